//! The 64-bit Linux/x86 boot protocol (Linux `Documentation/arch/x86/boot.rst`): a kernel file checked, its zero page
//! filled.

mod kernel;
mod memory_map;
mod platform;
mod screen;
mod setup_header;
mod zero_page;

pub use kernel::{ENTRY_64_OFFSET, KernelError, KernelImage};
pub use memory_map::E820_REST_LEN;
pub use platform::{Efi, Platform};
pub use screen::{Channel, Framebuffer, Screen, ScreenError, VideoFirmware};
pub use zero_page::{ZERO_PAGE_LEN, ZeroPage, ZeroPageError};
