//! A memory map of fixed capacity: sorted, free of overlaps, neighbours of one type joined.

use arrayvec::ArrayVec;
use core::ops::Range;

/// Entries of a map at most: twice what the zero page has room for. Servers with EFI have come to more than that; a kernel
/// is told of the rest by a list beside the zero page.
pub const CAPACITY: usize = 256;

/// What a range of physical memory may be used for (Linux `enum e820_type`; ACPI 6.5, 15.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// RAM, free for use.
    Usable,
    /// Not for use.
    Reserved,
    /// ACPI tables; RAM once they are read.
    AcpiReclaim,
    /// ACPI tables and firmware data; never RAM.
    AcpiNvs,
    /// Defective RAM.
    Unusable,
    /// Persistent memory.
    Persistent,
    /// RAM set aside for a purpose: Linux offers it as a device-DAX device.
    SoftReserved,
}

impl MemoryType {
    /// From the number in a map; numbers without a meaning here are not for use.
    #[must_use]
    pub fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Usable,
            3 => Self::AcpiReclaim,
            4 => Self::AcpiNvs,
            5 => Self::Unusable,
            7 => Self::Persistent,
            0xefff_ffff => Self::SoftReserved,
            _ => Self::Reserved,
        }
    }

    /// The number that Linux expects.
    #[must_use]
    pub fn raw(self) -> u32 {
        match self {
            Self::Usable => 1,
            Self::Reserved => 2,
            Self::AcpiReclaim => 3,
            Self::AcpiNvs => 4,
            Self::Unusable => 5,
            Self::Persistent => 7,
            Self::SoftReserved => 0xefff_ffff,
        }
    }
}

/// A range of one type, `start` inclusive, `end` exclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
    /// Its type.
    pub kind: MemoryType,
}

/// What is wrong with a memory map, or with a wish for one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum E820Error {
    /// More entries than a host can be told of.
    #[error(
        "the memory map needs more than {CAPACITY} entries, which is all that Locum keeps; give the host fewer, larger ranges"
    )]
    Full,
    /// A range ends before it starts.
    #[error("memory range {0:#x?} is empty or reversed")]
    BadRange(Range<u64>),
    /// A range is not what it must be for its purpose.
    #[error("{what} {range:#x?} is not wholly {wanted} in the machine's memory map; choose another range")]
    NotAvailable {
        /// What the range is for.
        what: &'static str,
        /// The range.
        range: Range<u64>,
        /// What it should be.
        wanted: &'static str,
    },
    /// Two ranges share bytes.
    #[error("{what} {range:#x?} overlaps {other}; choose disjoint ranges")]
    Overlap {
        /// What the range is for.
        what: &'static str,
        /// The range.
        range: Range<u64>,
        /// What it collides with.
        other: &'static str,
    },
    /// There is no room for two trampoline slices.
    #[error(
        "below 640 KiB the memory map has no two usable pieces of 40 KiB above the first 64 KiB, so two hosts cannot \
         both start their CPUs; turn off legacy boot support (CSM) in the firmware, or update it"
    )]
    NoSlices,
}

/// A memory map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct E820Map {
    entries: ArrayVec<Entry, CAPACITY>,
}

impl E820Map {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            entries: ArrayVec::new_const(),
        }
    }

    /// From firmware's ranges as (start, length in bytes, type number), in any order and overlapping or not: where they
    /// overlap, memory is usable only if all agree. Empty ranges and parts beyond the address space are dropped.
    ///
    /// # Errors
    /// [`E820Error::Full`].
    pub fn from_firmware<I>(ranges: I) -> Result<Self, E820Error>
    where
        I: Iterator<Item = (u64, u64, u32)> + Clone,
    {
        let mut map = Self::new();
        for usable in [true, false] {
            for (start, len, raw) in ranges.clone() {
                let kind = MemoryType::from_raw(raw);
                let end = start.saturating_add(len);
                if (kind == MemoryType::Usable) == usable && start < end {
                    map.set(start..end, kind)?;
                }
            }
        }
        Ok(map)
    }

    /// The entries, sorted.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Gives `range` the type `kind`, whatever it was before.
    ///
    /// # Errors
    /// [`E820Error::Full`] or [`E820Error::BadRange`]; the map is unchanged then.
    pub fn set(&mut self, range: Range<u64>, kind: MemoryType) -> Result<(), E820Error> {
        let added = Entry {
            start: range.start,
            end: range.end,
            kind,
        };
        if range.is_empty() {
            return Err(E820Error::BadRange(range));
        }
        let mut joined = Joined::default();
        let mut placed = false;
        for &old in &self.entries {
            joined.push(Entry {
                end: old.end.min(added.start),
                ..old
            })?;
            if !placed && old.end > added.start {
                joined.push(added)?;
                placed = true;
            }
            joined.push(Entry {
                start: old.start.max(added.end),
                ..old
            })?;
        }
        if !placed {
            joined.push(added)?;
        }
        self.entries = joined.0;
        Ok(())
    }

    /// Gives every part of `range` that has the type `from` the type `to`.
    ///
    /// # Errors
    /// [`E820Error::Full`]; the map is unchanged then.
    pub fn replace(&mut self, range: Range<u64>, from: MemoryType, to: MemoryType) -> Result<(), E820Error> {
        let mut joined = Joined::default();
        for &old in &self.entries {
            if old.kind != from {
                joined.push(old)?;
                continue;
            }
            let inside = old.start.max(range.start)..old.end.min(range.end);
            if inside.is_empty() {
                joined.push(old)?;
                continue;
            }
            joined.push(Entry {
                end: inside.start,
                ..old
            })?;
            joined.push(Entry {
                start: inside.start,
                end: inside.end,
                kind: to,
            })?;
            joined.push(Entry {
                start: inside.end,
                ..old
            })?;
        }
        self.entries = joined.0;
        Ok(())
    }

    /// Whether every byte of `range` is in the map with a type that `accept` takes. False for an empty range.
    #[must_use]
    pub fn covers(&self, range: &Range<u64>, accept: impl Fn(MemoryType) -> bool) -> bool {
        let mut next = range.start;
        for entry in &self.entries {
            if entry.start <= next && next < entry.end && accept(entry.kind) {
                next = entry.end;
            }
        }
        !range.is_empty() && next >= range.end
    }

    /// Bytes of that type in the map.
    #[must_use]
    pub fn total(&self, kind: MemoryType) -> u64 {
        self.entries
            .iter()
            .filter(|entry| entry.kind == kind)
            .fold(0, |sum, entry| sum.saturating_add(entry.end - entry.start))
    }
}

/// Entries pushed in ascending order: empty ones dropped, neighbours of one type joined.
#[derive(Default)]
struct Joined(ArrayVec<Entry, CAPACITY>);

impl Joined {
    fn push(&mut self, entry: Entry) -> Result<(), E820Error> {
        if entry.start >= entry.end {
            return Ok(());
        }
        match self.0.last_mut() {
            Some(last) if last.end == entry.start && last.kind == entry.kind => {
                last.end = entry.end;
                Ok(())
            }
            _ => self.0.try_push(entry).map_err(|_| E820Error::Full),
        }
    }
}
