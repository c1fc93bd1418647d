//! What a machine is booted from.
//!
//! [`kernel`] takes a kernel and its modules out of a Debian tree, [`build`] makes Locum's own parts, [`initramfs`] puts
//! both into the one image that every host runs from, as [`files`] of an archive, and [`iso`] puts that onto a CD which
//! GRUB boots. [`stock_guest`] is a guest that nobody here made, and its disk; [`server_disk`] is the disk of a server as
//! Debian installs it, [`debian_host`] that of a whole Debian with Locum's package in it. All are made by [`disk`] and
//! [`ext4`].

pub(crate) mod build;
pub(crate) mod debian_host;
mod disk;
mod ext4;
pub(crate) mod files;
pub(crate) mod initramfs;
pub(crate) mod iso;
pub(crate) mod kernel;
pub(crate) mod server_disk;
pub(crate) mod stock_guest;
