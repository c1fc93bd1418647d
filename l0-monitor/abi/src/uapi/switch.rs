//! Native and nested

use super::number::iowr;

/// [`Switch::cpu`] and [`Cycle::cpu`] that mean every online CPU.
pub const ALL_CPUS: i32 = -1;

/// [`Switch::failed_apic_id`] and [`Cycle::failed_apic_id`] if no CPU failed.
pub const NO_CPU: u32 = 0xffff_ffff;

/// [`Switch::flags`] of [`IOC_ENTER`]: nothing changes. The module only tells whether a CPU uses what L0 does not carry
/// over; L0 is not asked. A module that does not know the flag refuses it: -EINVAL.
pub const SWITCH_CHECK: u32 = 1;

/// Enter or leave nested.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Switch {
    /// In: Linux's CPU number, or [`ALL_CPUS`].
    pub cpu: i32,
    /// In: 0, or [`SWITCH_CHECK`].
    pub flags: u32,
    /// Out: CPUs that are now in the asked-for mode (the others were put back), or would be as far as was checked.
    pub done: u32,
    /// Out: of the first CPU that failed.
    pub l0_errno: u32,
    /// Out: APIC id of that CPU, [`NO_CPU`] if none failed.
    pub failed_apic_id: u32,
    /// In: 0.
    pub reserved: u32,
    /// Out: bits of CR4 of that CPU that L0 does not carry over, for which it did not enter. CET is among them only if the
    /// kernel has a shadow stack of its own.
    pub unknown_cr4: u64,
    /// Out: TSC ticks that the whole call took.
    pub ticks: u64,
}

impl Switch {
    /// For one CPU, by Linux's number, or [`ALL_CPUS`].
    #[must_use]
    pub fn new(cpu: i32) -> Self {
        Self {
            cpu,
            failed_apic_id: NO_CPU,
            ..Self::default()
        }
    }

    /// Only to be told of CPUs that could not enter.
    #[must_use]
    pub fn check(cpu: i32) -> Self {
        Self {
            flags: SWITCH_CHECK,
            ..Self::new(cpu)
        }
    }

    /// APIC id of the first CPU that failed.
    #[must_use]
    pub const fn failed(&self) -> Option<u32> {
        failed(self.failed_apic_id)
    }
}

/// The CPU(s) become nested. CPUs that are nested already are left so and count as done. If one of several fails, those
/// that this call entered leave again before it returns.
/// Errors: -ENODEV (no such CPU or offline), -EINVAL, -EOPNOTSUPP (also: a feature of the CPU is in use that L0 does not
/// know: see [`Switch::unknown_cr4`]), those of L0.
pub const IOC_ENTER: u32 = iowr::<Switch>(0x10);

/// The CPU(s) become native. As [`IOC_ENTER`], the other way round.
pub const IOC_LEAVE: u32 = iowr::<Switch>(0x11);

/// Enter and leave many times (a test).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cycle {
    /// In: Linux's CPU number, or [`ALL_CPUS`].
    pub cpu: i32,
    /// In: times, 1 to 1000000.
    pub count: u32,
    /// In: microseconds, at most 1000000, to stay nested and then native in each cycle.
    pub pause_us: u32,
    /// Out: whole cycles.
    pub done: u32,
    /// Out: of the first CPU that failed.
    pub l0_errno: u32,
    /// Out: APIC id of that CPU, [`NO_CPU`] if none failed.
    pub failed_apic_id: u32,
    /// Out: 0.
    pub reserved: u64,
    /// Out: sum over cycles and CPUs of the TSC ticks spent in entering.
    pub enter_ticks: u64,
    /// Out: likewise, in leaving.
    pub leave_ticks: u64,
    /// Out: longest single enter in ticks.
    pub enter_max: u64,
    /// Out: longest single leave in ticks.
    pub leave_max: u64,
}

impl Cycle {
    /// `count` times, with `pause_us` microseconds in each mode, on one CPU or [`ALL_CPUS`].
    #[must_use]
    pub fn new(cpu: i32, count: u32, pause_us: u32) -> Self {
        Self {
            cpu,
            count,
            pause_us,
            failed_apic_id: NO_CPU,
            ..Self::default()
        }
    }

    /// APIC id of the CPU that failed.
    #[must_use]
    pub const fn failed(&self) -> Option<u32> {
        failed(self.failed_apic_id)
    }
}

/// From native: enter and leave [`Cycle::count`] times. Stops at the first failure or signal (-EINTR), native.
/// Errors: -EALREADY (a CPU is nested already), those of [`IOC_ENTER`].
pub const IOC_CYCLE: u32 = iowr::<Cycle>(0x12);

const fn failed(apic_id: u32) -> Option<u32> {
    match apic_id {
        NO_CPU => None,
        apic_id => Some(apic_id),
    }
}
