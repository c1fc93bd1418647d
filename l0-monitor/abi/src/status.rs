//! What L0 publishes while it runs: modes, owners, counters. One writer per field, read-only for hosts.

use crate::header::MAX_CPUS;
use crate::raw::from_raw;
use crate::slot::PerSlot;

/// Where a CPU is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuMode {
    /// Not started by L0.
    Absent = 0,
    /// In L0's parking loop.
    Parked = 1,
    /// A host runs on it in VMX root; L0 is dormant.
    Native = 2,
    /// A host runs on it in VMX non-root; L0 is in VMX root.
    Nested = 3,
}

from_raw!(CpuMode: u32 { Absent, Parked, Native, Nested });

/// State of the host in one slot.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostState {
    /// No host.
    Absent = 0,
    /// A partition is being put together for it.
    Preparing = 1,
    /// It runs.
    Running = 2,
    /// It ended by itself or was stopped; its resources are not handed out yet. See [`HostStatus::reason`].
    Dead = 3,
    /// It retired: everything it had belongs to the other slot.
    Retired = 4,
    /// It has panicked, and its crash kernel writes a dump: no guest runs in it any more. It is dead when that one resets the
    /// machine, or when the other host takes it, dump or not.
    Dumping = 5,
}

from_raw!(HostState: u32 { Absent, Preparing, Running, Dead, Retired, Dumping });

/// Why a host is [`HostState::Dead`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Not dead.
    None = 0,
    /// Triple fault (`detail[0]`: RIP).
    TripleFault = 1,
    /// It touched memory it does not own (`detail[0]`: RIP, `detail[1]`: physical address, `detail[2]`: exit
    /// qualification, SDM vol. 3C table "Exit Qualification for EPT Violations").
    WildAccess = 2,
    /// An exit that L0 can't serve (`detail[0]`: RIP, `detail[1]`: exit reason, `detail[2]`: qualification).
    Unhandled = 3,
    /// VM entry failed (`detail[0]`: RIP, `detail[1]`: exit reason or VM-instruction error).
    EntryFailure = 4,
    /// The other host aborted it.
    Aborted = 5,
    /// It asked for power-off or reboot itself.
    PoweredOff = 6,
}

from_raw!(StopReason: u32 { None, TripleFault, WildAccess, Unhandled, EntryFailure, Aborted, PoweredOff });

/// The host of one slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct HostStatus {
    /// A [`HostState`].
    pub state: u32,
    /// A [`StopReason`].
    pub reason: u32,
    /// What the reason says they are.
    pub detail: [u64; 3],
    /// Generation of the host.
    pub generation: u32,
    /// APIC id of the CPU on which `reason` arose.
    pub cpu: u32,
}

/// Number of basic exit reasons counted one by one; later ones share the last counter.
pub const EXIT_REASONS: usize = 80;

/// One CPU. Every counter counts from boot and never decreases.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct CpuStatus {
    /// Its xAPIC id.
    pub apic_id: u32,
    /// A [`CpuMode`].
    pub mode: u32,
    /// Slot of the host that owns it, or [`NO_OWNER`].
    pub owner: u32,
    /// Not used, zero.
    pub reserved: u32,
    /// Times it went from native to nested.
    pub enters: u64,
    /// Times it went from nested to native.
    pub leaves: u64,
    /// VM exits taken by L0, from the host and from guests.
    pub exits: u64,
    /// Of these, exits of a guest (L2), reflected to the host's KVM.
    pub guest_exits: u64,
    /// NMIs that arrived while L0 ran, passed on to the host.
    pub nmis: u64,
    /// Not used, zero.
    pub reserved2: u64,
    /// Exits of the host by basic exit reason (SDM vol. 3D appendix C).
    pub exits_by_reason: [u64; EXIT_REASONS],
}

/// [`CpuStatus::owner`] of a CPU that no host owns.
pub const NO_OWNER: u32 = 0xffff_ffff;

/// The status region.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Generation of the reigning host.
    pub generation: u32,
    /// Number of entries of `cpus` in use.
    pub cpu_count: u32,
    /// Per slot.
    pub hosts: PerSlot<HostStatus>,
    /// Number of refused requests (each has a trace record).
    pub refusals: u64,
    /// Stretches of memory of one kind and owner that L0 tells apart; 0 from an L0 that does not count them.
    pub memory_stretches: u32,
    /// Not used, zero.
    pub reserved2: u32,
    /// EPT tables (4 KiB each) in use below the root, per slot; 0 likewise, and where no CPU was nested yet.
    pub ept_tables: PerSlot<u32>,
    /// Not used, zero.
    pub reserved: [u64; 2],
    /// Per CPU, in the order of the machine's MADT.
    pub cpus: [CpuStatus; MAX_CPUS],
}
