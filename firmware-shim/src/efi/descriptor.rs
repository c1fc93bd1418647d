//! One entry of the map: `EFI_MEMORY_DESCRIPTOR`.

use crate::bytes::{put, u32_at, u64_at};
use bitflags::bitflags;
use core::ops::Range;

/// Bytes of an EFI page, whatever the CPU's page size.
pub const EFI_PAGE: u64 = 4096;
/// Bytes of a descriptor of version 1. Firmware's are usually 48 bytes apart.
pub const DESCRIPTOR_MIN: usize = 40;

const TYPE: usize = 0;
const PHYSICAL_START: usize = 8;
const NUMBER_OF_PAGES: usize = 24;
const ATTRIBUTE: usize = 32;

/// `EFI_MEMORY_TYPE` (UEFI 2.10, 7.2.1), any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EfiMemoryType(pub u32);

impl EfiMemoryType {
    /// Not for use.
    pub const RESERVED: Self = Self(0);
    /// Code of boot loaders; free once they are gone.
    pub const LOADER_CODE: Self = Self(1);
    /// Data of boot loaders; free once they are gone.
    pub const LOADER_DATA: Self = Self(2);
    /// Code of boot services; free once they have ended.
    pub const BOOT_SERVICES_CODE: Self = Self(3);
    /// Data of boot services; free once they have ended.
    pub const BOOT_SERVICES_DATA: Self = Self(4);
    /// Code of runtime services.
    pub const RUNTIME_SERVICES_CODE: Self = Self(5);
    /// Data of runtime services.
    pub const RUNTIME_SERVICES_DATA: Self = Self(6);
    /// Free.
    pub const CONVENTIONAL: Self = Self(7);
    /// ACPI tables.
    pub const ACPI_RECLAIM: Self = Self(9);
    /// ACPI firmware data.
    pub const ACPI_NVS: Self = Self(10);
    /// Device registers that runtime services use.
    pub const MAPPED_IO: Self = Self(11);

    /// Whether an operating system takes it for RAM, after boot services have ended.
    #[must_use]
    pub fn is_ram(self) -> bool {
        matches!(
            self,
            Self::LOADER_CODE
                | Self::LOADER_DATA
                | Self::BOOT_SERVICES_CODE
                | Self::BOOT_SERVICES_DATA
                | Self::CONVENTIONAL
        )
    }
}

bitflags! {
    /// Attributes of a range; only those that are looked at here have names.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Attributes: u64 {
        /// `EFI_MEMORY_WB`: can be cached with write-back.
        const WRITE_BACK = 1 << 3;
        /// `EFI_MEMORY_MORE_RELIABLE`: mirrored. If any range is, KASLR takes such ranges only.
        const MORE_RELIABLE = 1 << 16;
        /// `EFI_MEMORY_SP`: set aside for a purpose; Linux' Soft Reserved.
        const SPECIFIC_PURPOSE = 1 << 18;
        /// `EFI_MEMORY_RUNTIME`: runtime services need it.
        const RUNTIME = 1 << 63;

        const _ = !0;
    }
}

/// A range of memory as the firmware describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its type.
    pub kind: EfiMemoryType,
    /// Physical address.
    pub start: u64,
    /// Number of [`EFI_PAGE`]s.
    pub pages: u64,
    /// Its attributes.
    pub attributes: Attributes,
}

impl Descriptor {
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self {
            kind: EfiMemoryType(u32_at(bytes, TYPE)),
            start: u64_at(bytes, PHYSICAL_START),
            pages: u64_at(bytes, NUMBER_OF_PAGES),
            attributes: Attributes::from_bits_retain(u64_at(bytes, ATTRIBUTE)),
        }
    }

    /// Writes what may differ between a descriptor and a part of it; the virtual address is left alone, it has no
    /// meaning before the host has set one.
    pub(super) fn write(&self, bytes: &mut [u8]) {
        put(bytes, TYPE, &self.kind.0.to_le_bytes());
        put(bytes, PHYSICAL_START, &self.start.to_le_bytes());
        put(bytes, NUMBER_OF_PAGES, &self.pages.to_le_bytes());
        put(bytes, ATTRIBUTE, &self.attributes.bits().to_le_bytes());
    }

    /// The range in bytes; `None` if it is empty or beyond the address space, which Linux takes for a fault of the
    /// firmware (`efi_memmap_entry_valid()` in `arch/x86/platform/efi/efi.c`).
    #[must_use]
    pub fn range(&self) -> Option<Range<u64>> {
        let end = self.start.checked_add(self.pages.checked_mul(EFI_PAGE)?)?;
        (self.start < end).then_some(self.start..end)
    }
}
