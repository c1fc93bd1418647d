//! Who owns which physical memory: a sorted list of ranges that covers the whole address space.

use arrayvec::ArrayVec;
use locum_abi::Slot;

pub(crate) use locum_abi::grant::ADDRESS_SPACE_END as END;

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Belongs to the host in this slot.
    Host(Slot),
    /// Belongs to the host in this slot, and the other may read it.
    Readable(Slot),
    /// Belongs to the host in this slot, and the other reads zeroes there: the firmware's registers of which a kernel takes
    /// reports.
    Blank(Slot),
    /// L0's private memory: no host.
    Monitor,
    /// Both hosts: the pool, the local APIC page, the channels.
    Shared,
    /// Both hosts, read-only: what L0 publishes, the BIOS area.
    ReadOnly,
    /// An IOAPIC's registers: direct while there is one host, filtered while there are two.
    IoApic,
}

/// Rights of a host on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// None.
    None,
    /// Read and fetch.
    Read,
    /// Read, write, fetch.
    Full,
}

impl Kind {
    /// Rights of the host in `slot`; `sole` if it is the only host.
    pub(crate) fn access(self, slot: Slot, sole: bool) -> Access {
        match self {
            Self::Host(owner) => {
                if owner == slot {
                    Access::Full
                } else {
                    Access::None
                }
            }
            Self::Readable(owner) | Self::Blank(owner) => {
                if owner == slot {
                    Access::Full
                } else {
                    Access::Read
                }
            }
            Self::Monitor => Access::None,
            Self::Shared => Access::Full,
            Self::ReadOnly => Access::Read,
            Self::IoApic => {
                if sole {
                    Access::Full
                } else {
                    Access::None
                }
            }
        }
    }
}

/// Where another kind of memory begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    start: u64,
    kind: Kind,
}

/// Twice as many as a memory map has entries: each may begin and end a range.
const CAPACITY: usize = 2 * firmware_shim::e820::CAPACITY;

/// The list of ranges is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The map.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    /// Kind of the byte at address 0.
    first: Kind,
    /// In ascending order; each has another kind than what is before it.
    changes: ArrayVec<Change, CAPACITY>,
}

impl Map {
    /// Everything belongs to the host in the even slot.
    pub(crate) const fn new() -> Self {
        Self {
            first: Kind::Host(Slot::Even),
            changes: ArrayVec::new_const(),
        }
    }

    /// The kind of the byte at `address` and the end of the run of that kind.
    pub(crate) fn at(&self, address: u64) -> (Kind, u64) {
        let next = self.changes.partition_point(|change| change.start <= address);
        let (before, after) = self.changes.split_at(next);
        (
            before.last().map_or(self.first, |change| change.kind),
            after.first().map_or(END, |change| change.start),
        )
    }

    /// True if all of `start..end` satisfies `test`.
    pub(crate) fn all(&self, start: u64, end: u64, test: impl Fn(Kind) -> bool) -> bool {
        if start >= end || end > END {
            return false;
        }
        let mut at = start;
        while at < end {
            let (kind, run) = self.at(at);
            if !test(kind) {
                return false;
            }
            at = run;
        }
        true
    }

    /// Stretches of one kind.
    pub(crate) fn stretches(&self) -> usize {
        self.changes.len() + 1
    }

    /// Whether so many ranges can be set, whatever they are.
    pub(crate) fn has_room_for(&self, ranges: usize) -> bool {
        self.changes.remaining_capacity() >= 2 * ranges
    }

    /// Makes `start..end` of one kind. Bounds are 4 KiB aligned and within [`END`]; an empty range changes nothing.
    ///
    /// # Errors
    /// [`Full`]; the map is as before then.
    pub(crate) fn set(&mut self, start: u64, end: u64, kind: Kind) -> Result<(), Full> {
        if start >= end || end > END {
            return Ok(());
        }
        // Two more changes at the most: then nothing can go wrong half way.
        if !self.has_room_for(1) {
            return Err(Full);
        }
        let (after, _) = self.at(end);
        self.changes.retain(|change| !(start..=end).contains(&change.start));
        self.begin(start, kind)?;
        self.begin(end, after)
    }

    /// Makes a kind begin at `start`, where no change is yet.
    fn begin(&mut self, start: u64, kind: Kind) -> Result<(), Full> {
        if start == 0 {
            self.first = kind;
        } else if start < END && self.at(start).0 != kind {
            let next = self.changes.partition_point(|change| change.start < start);
            let change = Change { start, kind };
            self.changes.try_insert(next, change).map_err(|_| Full)?;
        }
        Ok(())
    }

    /// Everything that belongs to the host in `from` belongs to the one in `to`.
    pub(crate) fn transfer(&mut self, from: Slot, to: Slot) {
        let given = |kind| match kind {
            Kind::Host(owner) if owner == from => Kind::Host(to),
            Kind::Readable(owner) if owner == from => Kind::Readable(to),
            Kind::Blank(owner) if owner == from => Kind::Blank(to),
            other => other,
        };
        self.first = given(self.first);
        let mut last = self.first;
        self.changes.retain(|change| {
            change.kind = given(change.kind);
            core::mem::replace(&mut last, change.kind) != change.kind
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_splits_and_joins() {
        let mut map = Map::new();
        map.set(0x10_0000, 0x20_0000, Kind::Monitor).unwrap();
        assert_eq!(map.at(0xf_ffff), (Kind::Host(Slot::Even), 0x10_0000));
        assert_eq!(map.at(0x10_0000), (Kind::Monitor, 0x20_0000));
        assert_eq!(map.at(0x20_0000), (Kind::Host(Slot::Even), END));
        map.set(0x18_0000, 0x30_0000, Kind::Host(Slot::Odd)).unwrap();
        assert_eq!(map.at(0x17_ffff), (Kind::Monitor, 0x18_0000));
        assert_eq!(map.at(0x2f_ffff), (Kind::Host(Slot::Odd), 0x30_0000));
        map.transfer(Slot::Odd, Slot::Even);
        assert_eq!(map.at(0x18_0000), (Kind::Host(Slot::Even), END));
        map.set(0x10_0000, 0x18_0000, Kind::Host(Slot::Even)).unwrap();
        assert_eq!(map.changes.len(), 0, "joined again");
    }

    #[test]
    fn exactly_one_owner_whatever_happens() {
        let mut map = Map::new();
        let mut model = [Slot::Even; 64];
        let mut seed = 12345_u32;
        for _ in 0..2000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (a, b, slot) = (
                (seed >> 8 & 63) as usize,
                (seed >> 16 & 63) as usize,
                Slot::of_generation(seed >> 30),
            );
            map.set((a as u64) << 12, (b as u64) << 12, Kind::Host(slot)).unwrap();
            for owner in model.iter_mut().take(b).skip(a) {
                *owner = slot;
            }
            assert!(map.changes.is_sorted_by(|a, b| a.start < b.start && a.kind != b.kind));
            for (page, owner) in model.iter().enumerate() {
                assert_eq!(map.at((page as u64) << 12).0, Kind::Host(*owner));
            }
        }
    }

    #[test]
    fn full_changes_nothing() {
        let mut map = Map::new();
        let mut at = 0;
        while map.set(at, at + 0x1000, Kind::Shared).is_ok() {
            at += 0x2000;
        }
        let len = map.changes.len();
        assert_eq!(map.set(at, at + 0x1000, Kind::Shared), Err(Full));
        assert_eq!((map.changes.len(), map.at(at).0), (len, Kind::Host(Slot::Even)));
    }
}
