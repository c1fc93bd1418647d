//! The machine as this host can change it: the module's ioctls and sysfs.

pub mod device;
pub mod host;
mod ioctl;

use anyhow::Result;
use firmware_shim::PhysMem;
use locum_abi::{Grant, Header, HostStatus, Slot, Status, Will};
use partitioner::{ApicId, MemRange, PciAddress};
use serde::{Deserialize, Serialize};

pub use device::{Access, Device};
pub use host::Host;
pub use locum_abi::uapi::TextKind;

use crate::channel::Port;
use crate::clock::Clock;
use crate::pool::Extents;
use crate::sysroot::SysRoot;

/// What does not change while the daemon runs.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// L0's header.
    pub header: Header,
    /// Its physical address.
    pub header_address: u64,
    /// This host's slot.
    pub slot: Slot,
    /// This kernel's exact TSC rate.
    pub tsc_khz: u64,
}

/// Where a host begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Physical address of its 64-bit entry point.
    pub entry: u64,
    /// Physical address of its zero page.
    pub zero_page: u64,
    /// The CPU that it boots on.
    pub boot_cpu: ApicId,
}

/// Whether all that Linux uses of the CPUs survives while L0 is above them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarriedOver {
    /// On every online CPU.
    All,
    /// Not on this one.
    Not {
        /// Which.
        apic_id: u32,
        /// Bits of its CR4 that L0 does not know.
        cr4: u64,
    },
    /// The module does not tell, for this reason.
    Unknown(String),
}

/// What a refresh does to a machine, one thing at a time. Every operation is all or nothing, and CPUs are told by
/// Linux's numbers.
pub trait Machine: Send + Sync {
    /// What does not change.
    fn facts(&self) -> &Facts;
    /// `/proc` and `/sys`.
    fn sys(&self) -> &SysRoot;
    /// Physical memory, as far as it can be seen.
    fn memory(&self) -> &dyn PhysMem;

    /// L0's status.
    ///
    /// # Errors
    /// If it cannot be read.
    fn status(&self) -> Result<Box<Status>>;

    /// L0's status of the host in one slot: much less to copy than [`Machine::status`].
    ///
    /// # Errors
    /// If it cannot be read.
    fn host(&self, slot: Slot) -> Result<HostStatus>;

    /// Takes a CPU off Linux.
    ///
    /// # Errors
    /// Linux's refusal.
    fn offline_cpu(&self, number: u32) -> Result<()>;
    /// Lets Linux start a CPU.
    ///
    /// # Errors
    /// Linux's refusal.
    fn online_cpu(&self, number: u32) -> Result<()>;
    /// Takes a PCI function off Linux.
    ///
    /// # Errors
    /// Linux's refusal.
    fn remove_pci(&self, address: PciAddress) -> Result<()>;
    /// Lets Linux find a PCI function.
    ///
    /// # Errors
    /// If it does not appear.
    fn find_pci(&self, address: PciAddress) -> Result<()>;
    /// Lets Linux find whatever PCI functions there are.
    ///
    /// # Errors
    /// Linux's refusal.
    fn rescan_pci(&self) -> Result<()>;
    /// Whether the module has taken that memory block off Linux, and the other host has not got it. Its first byte is
    /// cleared then.
    ///
    /// # Errors
    /// If the module does not say.
    fn is_removed(&self, block: MemRange) -> Result<bool>;
    /// Takes a memory block off Linux, online or not.
    ///
    /// # Errors
    /// The module's refusal.
    fn remove_memory(&self, block: MemRange) -> Result<()>;
    /// Gives a memory block to Linux, and lets it be used for movable pages.
    ///
    /// # Errors
    /// The module's refusal.
    fn add_memory(&self, block: MemRange, node: u32, online: bool) -> Result<()>;
    /// Overwrites removed memory with zeroes.
    ///
    /// # Errors
    /// The module's refusal.
    fn wipe(&self, range: MemRange) -> Result<()>;
    /// Writes to removed memory or the other slot's table area.
    ///
    /// # Errors
    /// The module's refusal.
    fn write(&self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Looks at the control registers of all online CPUs: what would keep one from becoming nested? Nothing changes.
    ///
    /// # Errors
    /// The module's refusal.
    fn carried_over(&self) -> Result<CarriedOver>;
    /// Makes a CPU nested.
    ///
    /// # Errors
    /// L0's refusal.
    fn enter(&self, number: u32) -> Result<()>;
    /// Makes a CPU native.
    ///
    /// # Errors
    /// L0's refusal.
    fn leave(&self, number: u32) -> Result<()>;
    /// Gives a resource to the other slot.
    ///
    /// # Errors
    /// L0's refusal.
    fn grant(&self, grant: Grant) -> Result<()>;
    /// Starts the other host.
    ///
    /// # Errors
    /// L0's refusal.
    fn start(&self, start: Start) -> Result<()>;
    /// Stops the other host and takes everything back.
    ///
    /// # Errors
    /// L0's refusal.
    fn abort(&self) -> Result<()>;
    /// Says what becomes of the machine when this host, which reigns, cannot go on beside another. False: module or L0 is
    /// older and does not know of that; it is as with [`Will::Pass`] then.
    ///
    /// # Errors
    /// L0's refusal.
    fn will(&self, will: Will) -> Result<bool>;
    /// Powers this host off, giving all it has to the other one. May return before it is done.
    ///
    /// # Errors
    /// If that cannot be begun.
    fn power_off(&self, command: &[String]) -> Result<()>;

    /// The pool's table. None: L0 or the module is older, and has none.
    fn extents(&self) -> Option<&Extents>;

    /// Opens a channel.
    ///
    /// # Errors
    /// If it is not there or in use.
    fn channel(&self, number: usize) -> Result<Port>;
    /// Sets this host's wall clock.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn set_clock(&self, clock: &Clock) -> Result<()>;
    /// Shows a text in `/sys/kernel/locum`. What goes wrong there is no reason to stop.
    fn publish(&self, kind: TextKind, text: &str);
    /// Tells the module whether a refresh runs.
    fn busy(&self, busy: bool);
}
