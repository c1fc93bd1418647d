//! The 64-bit Linux/x86 boot protocol (Linux `Documentation/arch/x86/boot.rst`): a kernel file checked, its zero page
//! filled.

mod kernel;
mod platform;
mod screen;
mod setup_header;
mod zero_page;

pub use kernel::{ENTRY_64_OFFSET, KernelError, KernelImage};
pub use platform::{Efi, Platform};
pub use screen::{Channel, Framebuffer, Screen, ScreenError, VideoFirmware};
pub use zero_page::{E820_REST_LEN, ZERO_PAGE_LEN, ZeroPage, ZeroPageError};
