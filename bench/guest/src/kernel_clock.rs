//! The clocks as the kernel reads them, by a system call.
//!
//! The vDSO computes time from the kvm-clock page of vCPU 0, whichever vCPU it runs on (Linux,
//! arch/x86/include/asm/vdso/gettimeofday.h, `vread_pvclock`), and KVM renews a vCPU's page as that vCPU enters the guest
//! (arch/x86/kvm/x86.c, `kvm_guest_time_update`). So where another vCPU is the first that goes on after a migration, the
//! vDSO follows the page that the old host wrote until vCPU 0 is there. By that page time goes on with the TSC: from the
//! state's loading on, at which QEMU sets the TSC, and kvm-clock itself only from the resume on, with the time of the
//! state's saving (QEMU, hw/i386/kvm/clock.c). What the vDSO says then is behind by what passed between stop and saving,
//! and ahead by what passed between loading and resume: when the latter is longer, it falls as vCPU 0 comes, by less than
//! the pause. All of that is so between any two hosts with stock QEMU. The kernel reads the page of the vCPU that it runs
//! on, and sets its timers by it.
#![expect(unsafe_code, reason = "the wrappers of clock_gettime(2) go by the vDSO")]

use std::io;

use crate::clock::in_ns;

/// `CLOCK_MONOTONIC` by the kernel's own reading, in ns.
///
/// # Panics
///
/// Where the kernel does not know the clock, which none does.
pub(crate) fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// `CLOCK_REALTIME` by the kernel's own reading, in ns.
///
/// # Panics
///
/// As [`monotonic_ns`].
pub(crate) fn realtime_ns() -> u64 {
    read(libc::CLOCK_REALTIME)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec there, which lives until after the call.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, &raw mut now) };
    assert_eq!(result, 0, "clock_gettime: {}", io::Error::last_os_error());
    in_ns(now.tv_sec, now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use rustix::time::ClockId;

    use super::{monotonic_ns, realtime_ns};
    use crate::clock::nanoseconds;

    #[test]
    #[cfg_attr(miri, ignore = "a system call")]
    fn both_ways_of_reading_agree_on_one_kernel() {
        let ways: [(fn() -> u64, ClockId); 2] = [(monotonic_ns, ClockId::Monotonic), (realtime_ns, ClockId::Realtime)];
        for (kernel, clock) in ways {
            let before = nanoseconds(clock);
            let between = kernel();
            let after = nanoseconds(clock);
            assert!(before <= between && between <= after, "{before} {between} {after}");
        }
    }
}
