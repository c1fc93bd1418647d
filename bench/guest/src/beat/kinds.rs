//! What a guest counts: faults, and the work that shows that a check ran.

/// What a check found wrong. A guest that survived has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Fault {
    /// A page of the buffer holds bytes that nobody wrote.
    MemoryCorrupt = 1,
    /// A page of the buffer is an earlier one of itself: a write was lost.
    MemoryStale = 2,
    /// A general, vector, x87 or flags register changed while it was held.
    Registers = 3,
    /// `CLOCK_MONOTONIC`, as the kernel reads it, ran backwards.
    MonotonicBackwards = 4,
    /// `CLOCK_REALTIME`, as the kernel reads it, ran backwards.
    RealtimeBackwards = 5,
    /// The TSC of a vCPU ran backwards.
    TscBackwards = 6,
    /// A vCPU read a TSC below one that another vCPU had read before.
    TscSkew = 7,
    /// A sleep ended before its time, by the clock that the kernel sets its timers by.
    TimerEarly = 8,
    /// The disk returned other bytes than were written.
    DiskCorrupt = 9,
    /// The disk refused a request.
    DiskError = 10,
    /// An echoed datagram differs from the one sent.
    NetCorrupt = 11,
}

impl Fault {
    /// All faults, in the order of their numbers.
    pub const ALL: [Fault; 11] = [
        Fault::MemoryCorrupt,
        Fault::MemoryStale,
        Fault::Registers,
        Fault::MonotonicBackwards,
        Fault::RealtimeBackwards,
        Fault::TscBackwards,
        Fault::TscSkew,
        Fault::TimerEarly,
        Fault::DiskCorrupt,
        Fault::DiskError,
        Fault::NetCorrupt,
    ];

    /// The name that reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Fault::MemoryCorrupt => "memory_corrupt",
            Fault::MemoryStale => "memory_stale",
            Fault::Registers => "registers",
            Fault::MonotonicBackwards => "monotonic_backwards",
            Fault::RealtimeBackwards => "realtime_backwards",
            Fault::TscBackwards => "tsc_backwards",
            Fault::TscSkew => "tsc_skew",
            Fault::TimerEarly => "timer_early",
            Fault::DiskCorrupt => "disk_corrupt",
            Fault::DiskError => "disk_error",
            Fault::NetCorrupt => "net_corrupt",
        }
    }
}

/// Work done and extremes seen: shows that a check really ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Tally {
    /// Pages of the buffer verified.
    PagesVerified = 0,
    /// Passes over the whole buffer.
    Passes = 1,
    /// Rounds in which registers were held and compared.
    RegisterRounds = 2,
    /// Clock readings compared.
    ClockChecks = 3,
    /// Blocks written to the disk, read back and compared.
    DiskBlocks = 4,
    /// Datagrams echoed and compared.
    NetEchoes = 5,
    /// Datagrams without an answer. Not a fault: UDP may lose them in a pause.
    NetLost = 6,
    /// Longest step of `CLOCK_MONOTONIC` between two readings anywhere in the guest, in ns.
    LongestStepNs = 7,
    /// Most that a sleep ended late, in ns.
    LatestWakeNs = 8,
    /// Most that `CLOCK_MONOTONIC` fell as the vDSO reads it, in ns; see [`crate::kernel_clock`].
    VdsoFellNs = 9,
}

impl Tally {
    /// All tallies, in the order of their words.
    pub const ALL: [Tally; 10] = [
        Tally::PagesVerified,
        Tally::Passes,
        Tally::RegisterRounds,
        Tally::ClockChecks,
        Tally::DiskBlocks,
        Tally::NetEchoes,
        Tally::NetLost,
        Tally::LongestStepNs,
        Tally::LatestWakeNs,
        Tally::VdsoFellNs,
    ];

    /// The name that reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Tally::PagesVerified => "pages_verified",
            Tally::Passes => "passes",
            Tally::RegisterRounds => "register_rounds",
            Tally::ClockChecks => "clock_checks",
            Tally::DiskBlocks => "disk_blocks",
            Tally::NetEchoes => "net_echoes",
            Tally::NetLost => "net_lost",
            Tally::LongestStepNs => "longest_step_ns",
            Tally::LatestWakeNs => "latest_wake_ns",
            Tally::VdsoFellNs => "vdso_fell_ns",
        }
    }
}
