//! The multiprocessor wakeup mailbox (ACPI 6.5, section 5.2.12.19, table 5.44), one per host.
//!
//! The host writes `apic_id` and `wakeup_vector`, then `command`. The addressed parked CPU acts and clears `command`;
//! a command for a CPU that the host does not own is cleared as well (Linux waits without limit) and traced.

/// No command; also what L0 leaves behind.
pub const NOOP: u16 = 0;
/// Jump to `wakeup_vector`.
pub const WAKEUP: u16 = 1;
/// Only clear the command: proves that the CPU is in the monitor's hands (mailbox version 1).
pub const TEST: u16 = 2;

/// The mailbox page.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Mailbox {
    /// [`NOOP`], [`WAKEUP`] or [`TEST`].
    pub command: u16,
    /// Zero.
    pub reserved: u16,
    /// Whom the command is for.
    pub apic_id: u32,
    /// Physical address to start at, in 64-bit mode with paging on an identity map.
    pub wakeup_vector: u64,
    /// The operating system's, up to byte 2047.
    pub os: [u8; 2032],
    /// The firmware's; L0 does not use it.
    pub firmware: [u8; 2048],
}

const _: () = assert!(size_of::<Mailbox>() == 4096);
