//! Ranges of physical memory and of I/O ports. Both read and print as the kernel's logs and our files write them.

use alloc::string::String;
use core::{fmt, ops::Range, str::FromStr};

/// Size of a page: the grain at which L0 can give memory to one host or the other.
pub const PAGE: u64 = 4096;

/// A range of physical addresses in bytes, never empty: `[start, end)`. Written `0xSTART-0xEND`, END exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "String", try_from = "String")
)]
pub struct MemRange {
    start: u64,
    end: u64,
}

impl MemRange {
    /// `[start, end)`, or `None` if that is empty.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// `len` bytes from `start`, or `None` if that is empty or wraps around.
    #[must_use]
    pub const fn with_len(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Self::new(start, end),
            None => None,
        }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First byte after the range.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a range is never empty")]
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether every byte of `other` is in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether some byte is in both ranges.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// Whether both ends are multiples of `grain`, a power of two.
    #[must_use]
    pub const fn is_aligned(self, grain: u64) -> bool {
        (self.start | self.end) & (grain - 1) == 0
    }

    /// The smallest range of whole pages around this one, but for a last page that would wrap around.
    #[must_use]
    pub const fn to_pages(self) -> Self {
        let end = match self.end.checked_next_multiple_of(PAGE) {
            Some(end) => end,
            None => self.end,
        };
        Self {
            start: self.start - self.start % PAGE,
            end,
        }
    }

    pub(crate) const fn range(self) -> Range<u64> {
        self.start..self.end
    }

    pub(crate) fn from_range(range: &Range<u64>) -> Option<Self> {
        Self::new(range.start, range.end)
    }
}

impl fmt::Display for MemRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.end)
    }
}

/// I/O ports from `first` to `last`, both included. Written `0xFIRST-0xLAST`, or `0xPORT` for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "String", try_from = "String")
)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port there is.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// `first` to `last`, or `None` if `last` is below `first`.
    #[must_use]
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last {
            Some(Self { first, last })
        } else {
            None
        }
    }

    /// First port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// Last port, included.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether every port of `other` is in this range.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether some port is in both ranges.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    pub(crate) const fn range(self) -> core::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{:#x}", self.first)
        } else {
            write!(f, "{:#x}-{:#x}", self.first, self.last)
        }
    }
}

/// A range that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseRangeError {
    /// Not a range of addresses.
    #[error("`{0}` is no memory range: write 0xSTART-0xEND, END being the first byte after it and above START")]
    Memory(String),
    /// Not a range of ports.
    #[error("`{0}` is no port range: write 0xFIRST-0xLAST, both at most 0xffff, or one port")]
    Port(String),
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        // from_str_radix takes a sign, which has no place after a prefix.
        Some(hex) if !hex.starts_with(['+', '-']) => u64::from_str_radix(hex, 16).ok(),
        Some(_) => None,
        None => text.parse().ok(),
    }
}

impl FromStr for MemRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('-')
            .and_then(|(start, end)| Self::new(number(start)?, number(end)?))
            .ok_or_else(|| ParseRangeError::Memory(text.into()))
    }
}

impl FromStr for PortRange {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text| number(text).and_then(|port| u16::try_from(port).ok());
        port(first)
            .zip(port(last))
            .and_then(|(first, last)| Self::new(first, last))
            .ok_or_else(|| ParseRangeError::Port(text.into()))
    }
}

crate::ids::text_conversions!(MemRange, ParseRangeError);
crate::ids::text_conversions!(PortRange, ParseRangeError);

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn memory_reads_what_it_prints() {
        let range = MemRange::new(0x4800_0000, 0x6800_0000).unwrap();
        assert_eq!(range.to_string(), "0x48000000-0x68000000");
        assert_eq!(range.to_string().parse(), Ok(range));
        for bad in [
            "",
            "0x10",
            "0x10-0x10",
            "0x20-0x10",
            "0x-0x1",
            "0x+1-0x2",
            "-1-5",
            "0x1-0x10000000000000000",
        ] {
            let error = bad.parse::<MemRange>().unwrap_err();
            assert!(error.to_string().contains("write 0xSTART-0xEND"), "{bad}: {error}");
        }
    }

    #[test]
    fn ports_read_what_they_print() {
        let console = PortRange::new(0x2f8, 0x2ff).unwrap();
        assert_eq!(console.to_string().parse(), Ok(console));
        assert_eq!("0xe9".parse(), Ok(PortRange::new(0xe9, 0xe9).unwrap()));
        assert_eq!("760-767".parse(), Ok(console));
        for bad in ["", "0x10000", "0x3ff-0x3f8", "com1"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pages_around_a_range() {
        let bar = MemRange::new(0xfebc_0010, 0xfebc_0020).unwrap();
        assert_eq!(bar.to_pages(), MemRange::new(0xfebc_0000, 0xfebc_1000).unwrap());
        let top = MemRange::new(u64::MAX - 1, u64::MAX).unwrap();
        assert!(top.to_pages().contains(top));
    }
}
