//! The pool's table: which guest's RAM lies where. Pure: words in, words out.
//!
//! Programs of two hosts change it at once, and any of them may die between any two of its writes. One word of an entry
//! decides, and is changed by compare-and-swap ([`locum_abi::pool`]); so whatever was begun and not decided counts for
//! nothing, and [`Table::mend`] clears it away. There is no lock that a dead program could hold.

use std::fmt;

use locum_abi::Slot;
use locum_abi::pool::{POOL_GRAIN, POOL_NAME, POOL_SEEN, PoolExtent, PoolState, StateWord};
use partitioner::MemRange;
use serde::Serialize;

const _: () = assert!(std::mem::offset_of!(PoolExtent, flags) == std::mem::offset_of!(PoolExtent, node) + 4);

/// Words of an entry that this release knows.
const KNOWN: usize = size_of::<PoolExtent>() / 8;
const START: usize = std::mem::offset_of!(PoolExtent, start) / 8;
const SIZE: usize = std::mem::offset_of!(PoolExtent, size) / 8;
const UUID: usize = std::mem::offset_of!(PoolExtent, uuid) / 8;
const NODE: usize = std::mem::offset_of!(PoolExtent, node) / 8;
const NAME: usize = std::mem::offset_of!(PoolExtent, name) / 8;
/// How often an entry is read again that changes meanwhile.
const TRIES: usize = 1000;

/// Memory that both hosts write, in words. Every access is sequentially consistent.
pub trait Words: fmt::Debug + Send + Sync {
    /// A word.
    fn load(&self, index: usize) -> u64;
    /// Changes a word.
    fn store(&self, index: usize, value: u64);
    /// Changes a word if it is `from`; whether it was.
    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool;
    /// What was written before it is seen by whoever writes before a fence of his own and reads after it.
    fn fence(&self);
}

/// A guest's UUID, in the order of its text. All zeroes: it is not known.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Reads `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    pub fn parse(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        let digits = groups.concat();
        let right = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]);
        if !right || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        Some(Self(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes()))
    }

    /// Whether it is known.
    pub fn is_known(self) -> bool {
        self != Self::default()
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", u128::from_be_bytes(self.0));
        let mut rest = digits.as_str();
        for (index, len) in [8, 4, 4, 4, 12].into_iter().enumerate() {
            let (group, after) = rest.split_at(len);
            write!(f, "{}{group}", if index == 0 { "" } else { "-" })?;
            rest = after;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whose RAM lies in a range of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where.
    pub range: MemRange,
    /// The guest's UUID.
    pub uuid: Uuid,
    /// NUMA node, if it is known.
    pub node: Option<u32>,
    /// The guest's name, at most 63 bytes.
    pub name: String,
    /// Nobody asked for it: a guest that was started by hand was found there.
    pub seen: bool,
}

/// An entry that says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub index: usize,
    /// What it said when it was read.
    pub word: StateWord,
    /// Its state.
    pub state: PoolState,
    /// Of what.
    pub extent: Extent,
}

/// Why a range was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", prefix = "pool-")]
pub enum ClaimError {
    /// Somebody has some of it.
    #[error("{} of it is guest {}'s ({})", .0.extent.range, .0.extent.name, word(.0.state))]
    Taken(Box<Entry>),
    /// Somebody is taking some of it at this moment.
    #[error("another program, maybe of the other host, is changing the pool's table: try again")]
    Contended,
    /// There is no empty entry.
    #[error("the pool's table is full: free extents of guests that are no more, with `locum pool free`")]
    Full,
    /// No whole pages of 2 MiB, or a name that does not fit.
    #[error("an extent is whole pages of 2 MiB, and a guest's name has 1 to 63 bytes")]
    Malformed,
    /// An entry that no release has written.
    #[error(
        "entry {0} of the pool's table is damaged, so it is not known what is free: `locum pool free '#{0}'` clears it once \
         no guest has its RAM there"
    )]
    Damaged(usize),
}

/// An entry that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It goes on changing.
    Changing,
    /// No release writes such a one.
    Damaged(usize),
}

impl From<Unreadable> for ClaimError {
    fn from(why: Unreadable) -> Self {
        match why {
            Unreadable::Changing => Self::Contended,
            Unreadable::Damaged(index) => Self::Damaged(index),
        }
    }
}

/// Entries in memory that both hosts write.
#[derive(Debug)]
pub struct Table<W> {
    words: W,
    /// Words from one entry to the next.
    stride: usize,
    count: usize,
}

impl<W: Words> Table<W> {
    /// `count` entries of `bytes` bytes, which lie in `words`.
    pub fn new(words: W, bytes: usize, count: usize) -> Self {
        Self {
            words,
            stride: bytes / 8,
            count,
        }
    }

    fn at(&self, index: usize, word: usize) -> usize {
        index * self.stride + word
    }

    fn word(&self, index: usize) -> StateWord {
        StateWord(self.words.load(self.at(index, 0)))
    }

    fn change(&self, index: usize, from: StateWord, to: StateWord) -> bool {
        self.words.swap_if(self.at(index, 0), from.0, to.0)
    }

    /// An entry, as it was at one moment; `None` if it says nothing.
    fn entry(&self, index: usize) -> Result<Option<Entry>, Unreadable> {
        for _ in 0..TRIES {
            let word = self.word(index);
            match word.state() {
                Some(PoolState::Empty | PoolState::Writing) => return Ok(None),
                None => return Err(Unreadable::Damaged(index)),
                Some(state) => {
                    let mut raw = [0; KNOWN];
                    for (place, value) in raw.iter_mut().enumerate().take(self.stride) {
                        *value = self.words.load(self.at(index, place));
                    }
                    if self.word(index) == word {
                        let extent = decode(&raw).ok_or(Unreadable::Damaged(index))?;
                        return Ok(Some(Entry {
                            index,
                            word,
                            state,
                            extent,
                        }));
                    }
                }
            }
        }
        Err(Unreadable::Changing)
    }

    /// All entries that say something, by address.
    ///
    /// # Errors
    /// The first that cannot be read.
    pub fn entries(&self) -> Result<Vec<Entry>, Unreadable> {
        let entries = (0..self.count).filter_map(|index| self.entry(index).transpose());
        let mut entries: Vec<Entry> = entries.collect::<Result<_, _>>()?;
        entries.sort_by_key(|entry| entry.extent.range);
        Ok(entries)
    }

    /// Takes a range, for the host in `slot`. It is the caller's to clear and then to [`Self::settle`]; no other program
    /// has any of it, nor gets any.
    ///
    /// # Errors
    /// [`ClaimError`]; nothing was taken then.
    pub fn claim(&self, extent: &Extent, slot: Slot) -> Result<Entry, ClaimError> {
        let raw = encode(extent).ok_or(ClaimError::Malformed)?;
        let (index, writing) = self.reserve(slot).ok_or(ClaimError::Full)?;
        for (place, value) in raw.into_iter().enumerate().skip(1) {
            self.words.store(self.at(index, place), value);
        }
        let claimed = writing.next(PoolState::Claimed, slot);
        if !self.change(index, writing, claimed) {
            return Err(ClaimError::Contended);
        }
        // Of two that claim the same, at least one sees the other.
        self.words.fence();
        let taken = self.check(index, extent.range);
        let (state, next) = match &taken {
            Ok(()) => (PoolState::Scrubbing, claimed.next(PoolState::Scrubbing, slot)),
            Err(_) => (PoolState::Empty, claimed.next(PoolState::Empty, slot)),
        };
        let decided = self.change(index, claimed, next);
        taken?;
        if !decided {
            return Err(ClaimError::Contended);
        }
        Ok(Entry {
            index,
            word: next,
            state,
            extent: extent.clone(),
        })
    }

    fn reserve(&self, slot: Slot) -> Option<(usize, StateWord)> {
        (0..self.count).find_map(|index| {
            let empty = self.word(index);
            let writing = empty.next(PoolState::Writing, slot);
            let free = empty.state() == Some(PoolState::Empty);
            (free && self.change(index, empty, writing)).then_some((index, writing))
        })
    }

    /// Whether no other entry has any of a range.
    fn check(&self, own: usize, range: MemRange) -> Result<(), ClaimError> {
        for index in (0..self.count).filter(|index| *index != own) {
            match self.entry(index)? {
                Some(entry) if entry.extent.range.overlaps(range) => {
                    return Err(match entry.state {
                        PoolState::Claimed => ClaimError::Contended,
                        _ => ClaimError::Taken(Box::new(entry)),
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Moves an entry on, for the host in `slot`; `None` if it is not any more as it was read.
    pub fn settle(&self, entry: &Entry, state: PoolState, slot: Slot) -> Option<Entry> {
        let word = entry.word.next(state, slot);
        let next = Entry {
            word,
            state,
            ..entry.clone()
        };
        self.change(entry.index, entry.word, word).then_some(next)
    }

    /// Clears a damaged entry; whether it was one.
    pub fn clear_damaged(&self, index: usize, slot: Slot) -> bool {
        let damaged = index < self.count && self.entry(index) == Err(Unreadable::Damaged(index));
        let word = self.words.load(self.at(index.min(self.count.saturating_sub(1)), 0));
        damaged && self.change(index, StateWord(word), StateWord(word).next(PoolState::Empty, slot))
    }

    /// Brings to an end what was begun by programs that are no more. `dead` says so of the programs of a slot that change
    /// the table, `gone` of a whole host. Returns what was changed.
    pub fn mend(&self, own: Slot, dead: impl Fn(Slot) -> bool, gone: impl Fn(Slot) -> bool) -> Vec<Mended> {
        let mut mended = Vec::new();
        for index in 0..self.count {
            let word = self.word(index);
            let entry = self.entry(index).ok().flatten();
            let state = match word.state() {
                // It never became anybody's.
                Some(PoolState::Writing | PoolState::Claimed | PoolState::Scrubbing) if dead(word.slot()) => {
                    PoolState::Empty
                }
                // There is one host only where its guest can be. Whether that runs or not, the RAM is its own.
                Some(PoolState::Crossing) if gone(own.other()) => PoolState::Used,
                Some(PoolState::Used) if gone(own.other()) && word.slot() != own => PoolState::Used,
                _ => continue,
            };
            if self.change(index, word, word.next(state, own)) {
                mended.push(Mended {
                    from: word.state(),
                    to: state,
                    name: entry.map(|entry| entry.extent.name),
                });
            }
        }
        mended
    }
}

/// What [`Table::mend`] did to an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// What it was.
    pub from: Option<PoolState>,
    /// What it is.
    pub to: PoolState,
    /// The guest's name, if it had one.
    pub name: Option<String>,
}

/// What lies between the entries.
pub fn free(pieces: &[MemRange], entries: &[Entry]) -> Vec<MemRange> {
    let mut free = Vec::new();
    for piece in pieces {
        let mut at = piece.start().next_multiple_of(POOL_GRAIN);
        let end = piece.end() / POOL_GRAIN * POOL_GRAIN;
        let mut within: Vec<MemRange> = entries.iter().map(|entry| entry.extent.range).collect();
        within.retain(|range| range.overlaps(*piece));
        within.sort();
        for range in within {
            free.extend(MemRange::new(at, range.start().min(end)));
            at = at.max(range.end());
        }
        free.extend(MemRange::new(at, end));
    }
    free
}

/// A range of `size` bytes in the smallest gap that has room for it.
pub fn place(gaps: &[MemRange], size: u64) -> Option<MemRange> {
    let fits = gaps.iter().filter(|gap| gap.len() >= size);
    let gap = fits.min_by_key(|gap| gap.len())?;
    MemRange::with_len(gap.start(), size)
}

/// A state in the operator's words.
pub fn word(state: PoolState) -> &'static str {
    match state {
        PoolState::Empty => "free",
        PoolState::Writing | PoolState::Claimed => "being taken",
        PoolState::Scrubbing => "being cleared",
        PoolState::Used => "used",
        PoolState::Crossing => "crossing",
    }
}

impl Serialize for Uuid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn encode(extent: &Extent) -> Option<[u64; KNOWN]> {
    let name = extent.name.as_bytes();
    let right = extent.range.is_aligned(POOL_GRAIN) && (1..POOL_NAME).contains(&name.len()) && !name.contains(&0);
    if !right {
        return None;
    }
    let mut raw = [0; KNOWN];
    let mut put = |first: usize, bytes: &[u8]| {
        for (value, chunk) in raw.iter_mut().skip(first).zip(bytes.chunks(8)) {
            let mut eight = [0; 8];
            eight.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            *value = u64::from_le_bytes(eight);
        }
    };
    put(START, &extent.range.start().to_le_bytes());
    put(SIZE, &extent.range.len().to_le_bytes());
    put(UUID, &extent.uuid.0);
    let flags = if extent.seen { POOL_SEEN } else { 0 };
    put(
        NODE,
        &(u64::from(flags) << 32 | u64::from(extent.node.unwrap_or(u32::MAX))).to_le_bytes(),
    );
    put(NAME, name);
    Some(raw)
}

fn decode(raw: &[u64; KNOWN]) -> Option<Extent> {
    let bytes = |first: usize, count: usize| -> Vec<u8> {
        let words = raw.iter().skip(first).take(count.div_ceil(8));
        words.flat_map(|word| word.to_le_bytes()).take(count).collect()
    };
    let range = MemRange::with_len(*raw.get(START)?, *raw.get(SIZE)?)?;
    let name = bytes(NAME, POOL_NAME);
    let len = name.iter().position(|byte| *byte == 0)?;
    let name = String::from_utf8(name.get(..len)?.to_vec()).ok()?;
    let both = *raw.get(NODE)?;
    let (node, flags) = (both as u32, (both >> 32) as u32);
    let right = range.is_aligned(POOL_GRAIN) && !name.is_empty();
    right.then_some(Extent {
        range,
        uuid: Uuid(*bytes(UUID, 16).first_chunk()?),
        node: (node != u32::MAX).then_some(node),
        name,
        seen: flags & POOL_SEEN != 0,
    })
}

/// Memory of a test.
#[cfg(test)]
impl Words for Vec<std::sync::atomic::AtomicU64> {
    fn load(&self, index: usize) -> u64 {
        self[index].load(std::sync::atomic::Ordering::SeqCst)
    }

    fn store(&self, index: usize, value: u64) {
        self[index].store(value, std::sync::atomic::Ordering::SeqCst);
    }

    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool {
        self[index]
            .compare_exchange(
                from,
                to,
                std::sync::atomic::Ordering::SeqCst,
                std::sync::atomic::Ordering::SeqCst,
            )
            .is_ok()
    }

    fn fence(&self) {
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}

/// Room for so many entries, all empty.
#[cfg(test)]
pub fn words(count: usize) -> Vec<std::sync::atomic::AtomicU64> {
    (0..count * KNOWN)
        .map(|_| std::sync::atomic::AtomicU64::new(0))
        .collect()
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
