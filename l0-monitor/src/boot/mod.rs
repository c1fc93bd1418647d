//! From GRUB to the first host. What is here runs once; nothing else of L0 imports it.
//!
//! [`entry`] brings the boot CPU from GRUB's 32-bit state to long mode and calls [`main`]. That copies what GRUB said
//! ([`multiboot`]), reads the machine's tables into [`crate::machine::Machine`] ([`discover`]), fills the shared region
//! ([`publish`]), starts and parks all other CPUs ([`ap`]), puts the host's kernel and ramdisk where they belong
//! ([`load`]) and jumps. After that L0 is dormant: the ways back in are [`crate::doors`]. If something is in the way, L0 says
//! so and starts the host without itself ([`plain`]).

#[cfg(target_os = "none")]
mod ap;
pub(crate) mod blank;
pub(crate) mod cmdline;
#[cfg(target_os = "none")]
mod discover;
pub(crate) mod display;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod error;
pub(crate) mod home;
#[cfg(target_os = "none")]
mod load;
#[cfg(target_os = "none")]
mod main;
pub(crate) mod memory;
pub(crate) mod multiboot;
pub(crate) mod place;
#[cfg(target_os = "none")]
mod plain;
pub(crate) mod platform;
pub(crate) mod pool;
#[cfg(target_os = "none")]
mod publish;

#[cfg(target_os = "none")]
pub(crate) use error::BootError;
#[cfg(target_os = "none")]
pub(crate) use main::main;
