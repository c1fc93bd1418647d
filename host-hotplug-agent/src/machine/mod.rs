//! The machine as this host can change it: the module's ioctls and sysfs.

pub mod device;
mod ioctl;
pub mod uapi;

pub use device::{Access, Device};
