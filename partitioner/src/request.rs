//! What the successor is to get: the typed form of `/etc/locum/NAME.toml`.

use alloc::{string::String, vec::Vec};

use crate::{CpuNumber, Gsi, MemRange, PciAddress, PortRange, range::PAGE};

/// CPUs for the successor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum CpuRequest {
    /// These, by the incumbent's numbers. The first one boots the successor.
    List(Vec<CpuNumber>),
    /// So many: whole cores of one node with memory if that can be, those with the highest numbers.
    Count(usize),
}

/// Memory for the successor, beside whatever an earlier refresh left to nobody: that it gets in any case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum MemoryRequest {
    /// At least so many bytes in all, rounded up to whole memory blocks.
    Size(u64),
    /// Exactly these blocks; each range is a multiple of the block size.
    Blocks(Vec<MemRange>),
}

/// What must lie in one contiguous range for the successor to boot, all in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BootSize {
    /// `init_size` of the kernel's setup header (Linux boot protocol 2.10+).
    pub kernel_init: u64,
    /// `kernel_alignment` of the setup header; 0 counts as 1.
    pub kernel_align: u64,
    /// Size of the initramfs file.
    pub initramfs: u64,
    /// Zero page, command line, ACPI and page tables.
    pub tables: u64,
}

impl BootSize {
    /// Bytes needed if the kernel were loaded at the start of a range that begins at `start`.
    /// Saturates: what does not fit into 64 bits fits into no machine.
    #[must_use]
    pub fn needed_at(&self, start: u64) -> u64 {
        let up = |bytes: u64, grain: u64| bytes.checked_next_multiple_of(grain).unwrap_or(u64::MAX);
        (up(start, self.kernel_align.max(1)) - start)
            .saturating_add(up(self.kernel_init, PAGE))
            .saturating_add(up(self.initramfs, PAGE))
            .saturating_add(up(self.tables, PAGE))
    }

    /// Whether all of it fits into `range`.
    #[must_use]
    pub fn fits(&self, range: MemRange) -> bool {
        self.needed_at(range.start()) <= range.len()
    }
}

/// What the administrator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Request {
    /// CPUs to move.
    pub cpus: CpuRequest,
    /// Memory to move.
    pub memory: MemoryRequest,
    /// What the successor needs to boot.
    pub boot: BootSize,
    /// PCI functions to move, with their BARs and INTx pins.
    pub functions: Vec<PciAddress>,
    /// Further I/O ports: the successor's consoles.
    pub ports: Vec<PortRange>,
    /// Further IOAPIC pins: those of devices that are not PCI functions.
    pub pins: Vec<Gsi>,
    /// Guests to hand over, by name, in this order.
    pub guests: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_size_counts_the_alignment() {
        let boot = BootSize {
            kernel_init: 0x100_0000,
            kernel_align: 0x20_0000,
            initramfs: 1,
            tables: 1,
        };
        assert_eq!(boot.needed_at(0xa0_0000), 0x100_2000);
        assert_eq!(boot.needed_at(0xa0_1000), 0x100_2000 + 0x1f_f000);
        assert!(boot.fits(MemRange::with_len(0xa0_0000, 0x100_2000).unwrap()));
        assert!(!boot.fits(MemRange::with_len(0xa0_0000, 0x100_1fff).unwrap()));
        let unaligned = MemRange::with_len(0xa0_1000, 0x100_2000).unwrap();
        assert!(!boot.fits(unaligned), "the kernel cannot start where the range does");
        let absurd = BootSize {
            kernel_init: u64::MAX,
            kernel_align: u64::MAX,
            initramfs: u64::MAX,
            tables: 1,
        };
        assert_eq!(absurd.needed_at(1 << 40), u64::MAX);
    }
}
