//! Who owns which physical memory: a sorted list of ranges that covers the whole address space.

use locum_abi::Slot;

pub(crate) use locum_abi::grant::ADDRESS_SPACE_END as END;

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Belongs to the host in this slot.
    Host(Slot),
    /// Belongs to the host in this slot, and the other may read it.
    Readable(Slot),
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
            Self::Readable(owner) => {
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    /// First byte; the range ends where the next one starts.
    start: u64,
    kind: Kind,
}

const CAPACITY: usize = 256;

/// The list of ranges is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

/// The map.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    /// How many ranges there are beside the first. (So an empty map is all zeroes, and takes no place in the image.)
    more: usize,
    ranges: [Range; CAPACITY],
}

impl Map {
    /// Everything belongs to the host in the even slot.
    pub(crate) const fn new() -> Self {
        Self {
            more: 0,
            ranges: [Range {
                start: 0,
                kind: Kind::Host(Slot::Even),
            }; CAPACITY],
        }
    }

    const fn len(&self) -> usize {
        self.more + 1
    }

    fn ranges(&self) -> &[Range] {
        self.ranges.get(..self.len()).unwrap_or(&[])
    }

    /// The kind of the byte at `address` and the end of the run of that kind (as far as the list tells runs apart).
    pub(crate) fn at(&self, address: u64) -> (Kind, u64) {
        let ranges = self.ranges();
        let next = ranges.partition_point(|r| r.start <= address);
        let kind = next
            .checked_sub(1)
            .and_then(|i| ranges.get(i))
            .map_or(Kind::Monitor, |r| r.kind);
        (kind, ranges.get(next).map_or(END, |r| r.start))
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

    /// Makes `start..end` of one kind. Bounds are 4 KiB aligned and within [`END`]; an empty range changes nothing.
    ///
    /// # Errors
    /// [`Full`]; the map is as before then.
    pub(crate) fn set(&mut self, start: u64, end: u64, kind: Kind) -> Result<(), Full> {
        if start >= end || end > END {
            return Ok(());
        }
        // Two more ranges at the most: then nothing can go wrong half way.
        if self.len() + 2 > CAPACITY {
            return Err(Full);
        }
        self.split(start);
        self.split(end);
        for range in self.ranges.iter_mut().take(self.more + 1) {
            if range.start >= start && range.start < end {
                range.kind = kind;
            }
        }
        self.join();
        Ok(())
    }

    /// Makes a range begin at `at`. There is room for it.
    fn split(&mut self, at: u64) {
        let next = self.ranges().partition_point(|r| r.start < at);
        if at >= END || self.ranges().get(next).is_some_and(|r| r.start == at) {
            return;
        }
        let (kind, _) = self.at(at);
        let len = self.len();
        self.ranges.copy_within(next..len, next + 1);
        if let Some(place) = self.ranges.get_mut(next) {
            *place = Range { start: at, kind };
            self.more += 1;
        }
    }

    /// Joins neighbours of one kind.
    fn join(&mut self) {
        let mut kept = 1;
        for i in 1..self.len() {
            let (Some(range), Some(last)) = (self.ranges.get(i).copied(), self.ranges.get(kept - 1)) else {
                break;
            };
            if range.kind != last.kind {
                if let Some(place) = self.ranges.get_mut(kept) {
                    *place = range;
                }
                kept += 1;
            }
        }
        self.more = kept - 1;
    }

    /// Everything that belongs to the host in `from` belongs to the one in `to`.
    pub(crate) fn transfer(&mut self, from: Slot, to: Slot) {
        for range in self.ranges.iter_mut().take(self.more + 1) {
            match range.kind {
                Kind::Host(owner) if owner == from => range.kind = Kind::Host(to),
                Kind::Readable(owner) if owner == from => range.kind = Kind::Readable(to),
                _ => {}
            }
        }
        self.join();
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
        assert_eq!(map.len(), 1, "joined again");
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
        let len = map.len();
        assert_eq!(map.set(at, at + 0x1000, Kind::Shared), Err(Full));
        assert_eq!((map.len(), map.at(at).0), (len, Kind::Host(Slot::Even)));
    }
}
