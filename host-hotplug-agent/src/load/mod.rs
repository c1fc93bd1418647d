//! The successor's image: its files checked, placed in its memory, described to it.

pub mod bootconfig;
pub mod cmdline;
mod compressed;
pub mod cpio;
pub mod files;
pub mod initramfs;
pub mod place;
pub mod squashfs;
pub mod tables;
pub mod threads;

pub use files::Files;
pub use place::{Layout, Sizes, layout, reach, row};

/// Bytes and where in physical memory they go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// What they are, for messages.
    pub what: &'static str,
    /// Physical address.
    pub at: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl Placed {
    /// Owned bytes at an address.
    pub fn bytes(what: &'static str, at: u64, bytes: Vec<u8>) -> Self {
        Self { what, at, bytes }
    }
}
