//! From GRUB to the first host.
//!
//! [`entry`] brings the boot CPU from GRUB's 32-bit state to long mode and calls [`main`]. That copies what GRUB said
//! ([`multiboot`]), reads the machine's tables into [`Machine`] ([`discover`]), fills the shared region ([`publish`]),
//! starts and parks all other CPUs ([`ap`]), puts the host's kernel and ramdisk where they belong ([`load`]) and jumps
//! ([`host`]). After that L0 is dormant: the ways back in are [`reset`] (a CPU goes offline) and [`native`] (a host
//! wants to be nested).

#[cfg(target_os = "none")]
mod ap;
pub mod cmdline;
#[cfg(target_os = "none")]
mod discover;
#[cfg(target_os = "none")]
mod entry;
mod error;
pub mod host;
#[cfg(target_os = "none")]
mod load;
pub mod machine;
#[cfg(target_os = "none")]
mod main;
pub mod memory;
pub mod mtrr;
pub mod multiboot;
pub mod native;
pub mod place;
#[cfg(target_os = "none")]
mod publish;
pub mod reset;

pub use error::BootError;
pub use machine::Machine;
#[cfg(target_os = "none")]
pub use main::main;
pub use native::native_entry;

use spin::Once;

static MACHINE: Once<Machine> = Once::new();

/// The machine, as found at boot; before that, an empty one.
pub fn machine() -> &'static Machine {
    static EMPTY: Machine = Machine::EMPTY;
    MACHINE.get().unwrap_or(&EMPTY)
}

/// Memory type at a physical address in the encoding of MTRRs and EPT entries, and the first address above it where
/// another may begin. Write-back everywhere while the machine is not known.
pub fn memory_type(address: u64) -> (u8, u64) {
    match MACHINE.get() {
        Some(machine) => {
            let (kind, end) = machine.mtrrs.lookup(address);
            (kind as u8, end)
        }
        None => (mtrr::MemoryType::WriteBack as u8, !0xfff),
    }
}
