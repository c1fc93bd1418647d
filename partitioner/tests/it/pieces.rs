//! Numbers and their owners, in pieces that do not overlap. Naive on purpose: it checks what the crate does cleverly.

use std::collections::BTreeMap;

use partitioner::Owner;

/// From the first number of each piece to the first after it, and its owner.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pieces(BTreeMap<u64, (u64, Owner)>);

impl Pieces {
    pub fn put(&mut self, start: u64, end: u64, owner: Owner) {
        assert_eq!(self.0.insert(start, (end, owner)), None);
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64, Owner)> {
        self.0.iter().map(|(&start, &(end, owner))| (start, end, owner))
    }

    /// The piece that `at` is in: its end and owner.
    pub fn at(&self, at: u64) -> Option<(u64, Owner)> {
        self.0
            .range(..=at)
            .next_back()
            .map(|(_, &piece)| piece)
            .filter(|&(end, _)| at < end)
    }

    /// Whether all of `start..end` is `owner`'s.
    pub fn owned(&self, start: u64, end: u64, owner: Owner) -> bool {
        let mut at = start;
        while at < end {
            match self.at(at) {
                Some((next, who)) if who == owner => at = next,
                _ => return false,
            }
        }
        true
    }

    pub fn give(&mut self, start: u64, end: u64, from: Owner, to: Owner) {
        assert!(
            self.owned(start, end, from),
            "{start:#x}-{end:#x} is not {from}'s alone"
        );
        self.split(start);
        self.split(end);
        for (_, (_, owner)) in self.0.range_mut(start..end) {
            *owner = to;
        }
    }

    fn split(&mut self, at: u64) {
        if let Some((_, piece)) = self.0.range_mut(..at).next_back()
            && at < piece.0
        {
            let (end, owner) = *piece;
            piece.0 = at;
            self.0.insert(at, (end, owner));
        }
    }

    /// The same in as few pieces as can be.
    pub fn tidy(&self) -> Self {
        let mut tidy: Vec<(u64, u64, Owner)> = Vec::new();
        for (start, end, owner) in self.iter() {
            match tidy.last_mut() {
                Some(last) if last.1 == start && last.2 == owner => last.1 = end,
                _ => tidy.push((start, end, owner)),
            }
        }
        Self(
            tidy.into_iter()
                .map(|(start, end, owner)| (start, (end, owner)))
                .collect(),
        )
    }
}
