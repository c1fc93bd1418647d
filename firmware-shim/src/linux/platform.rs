//! What reaches a host of the firmware's own: screen and EFI.

use super::screen::{SCREEN_INFO_LEN, Screen, ScreenError};
use super::setup_header as at;
use super::zero_page::put_split;
use crate::bytes::put;
use crate::efi::MapForHost;

/// `EFI64_LOADER_SIGNATURE`.
const EFI64: &[u8; 4] = b"EL64";

/// EFI as the first host finds it: 64-bit firmware whose boot services have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Efi {
    /// Physical address of the system table.
    pub system_table: u64,
    /// Physical address of the host's copy of the memory map.
    pub map_address: u64,
    /// What [`crate::efi::for_first_host`] wrote there.
    pub map: MapForHost,
}

/// What a host is told of the machine's own firmware.
///
/// SMBIOS needs no word here: Linux finds it by the EFI system table, else in the BIOS area
/// (`dmi_scan_machine()` in `drivers/firmware/dmi_scan.c`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// The host that the machine booted: it owns screen and firmware.
    FirstHost {
        /// The screen.
        screen: Screen,
        /// EFI, on machines that have it.
        efi: Option<Efi>,
    },
    /// A host that comes later. It gets no screen, no EFI and no SMBIOS by EFI: the screen's adapter is a PCI function
    /// that may be another's, and `SetVirtualAddressMap()` has been called by the first host and cannot be called again.
    Successor,
}

impl Platform {
    /// The screen's structure.
    ///
    /// # Errors
    /// [`ScreenError`].
    pub(super) fn screen_info(&self) -> Result<[u8; SCREEN_INFO_LEN], ScreenError> {
        match self {
            Self::FirstHost { screen, .. } => screen.info(),
            Self::Successor => Screen::None.info(),
        }
    }

    /// EFI, if the host is told of it.
    pub(super) fn efi(&self) -> Option<&Efi> {
        match self {
            Self::FirstHost { efi, .. } => efi.as_ref(),
            Self::Successor => None,
        }
    }
}

impl Efi {
    /// Fills in `efi_info` of a zero page.
    pub(super) fn write(&self, out: &mut [u8]) {
        put(out, at::EFI_LOADER_SIGNATURE, EFI64);
        put_split(out, at::EFI_SYSTAB, at::EFI_SYSTAB_HI, self.system_table);
        put_split(out, at::EFI_MEMMAP, at::EFI_MEMMAP_HI, self.map_address);
        put(out, at::EFI_MEMMAP_SIZE, &(self.map.len as u32).to_le_bytes());
        put(out, at::EFI_MEMDESC_SIZE, &(self.map.stride as u32).to_le_bytes());
        put(out, at::EFI_MEMDESC_VERSION, &self.map.version.to_le_bytes());
    }
}
