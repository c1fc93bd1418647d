//! The EFI memory map (UEFI specification 2.10, 7.2.3 `GetMemoryMap()`), read and made fit for the first host.
//!
//! Linux needs it to call the firmware's runtime services (EFI variables), and its KASLR puts the kernel wherever the
//! map says that memory is free, in preference to e820 (`process_efi_entries()` in `arch/x86/boot/compressed/kaslr.c`).
//! So the host's copy must call nothing free that is not the host's.

mod descriptor;
mod host;
mod map;

pub use descriptor::{Attributes, DESCRIPTOR_MIN, Descriptor, EFI_PAGE, EfiMemoryType};
pub use host::{MapForHost, boot_services, for_first_host, soft_reserved};
pub use map::{EfiMap, EfiMapError};
