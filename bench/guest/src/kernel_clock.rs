//! The clock as the kernel reads it, by a system call.
#![expect(unsafe_code, reason = "the wrappers of clock_gettime(2) go by the vDSO")]

use std::io;

/// `CLOCK_MONOTONIC` by the kernel's own reading, in ns.
///
/// The vDSO computes time from the kvm-clock page of vCPU 0, whichever vCPU it runs on (Linux,
/// arch/x86/include/asm/vdso/gettimeofday.h, `vread_pvclock`), and KVM renews a vCPU's page as that vCPU enters the guest
/// (arch/x86/kvm/x86.c, `kvm_guest_time_update`). So where another vCPU is the first that goes on after a migration, the
/// vDSO follows the page that the old host wrote until vCPU 0 is there: it lags, by at most the pause. The kernel reads the
/// page of the vCPU that it runs on, and sets its timers by it.
///
/// # Panics
///
/// Where the kernel does not know `CLOCK_MONOTONIC`, which none does.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec there, which lives until after the call.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_MONOTONIC, &raw mut now) };
    assert_eq!(result, 0, "clock_gettime: {}", io::Error::last_os_error());
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use rustix::time::ClockId;

    use super::monotonic_ns;
    use crate::clock::nanoseconds;

    #[test]
    #[cfg_attr(miri, ignore = "a system call")]
    fn both_ways_of_reading_agree_on_one_kernel() {
        let before = nanoseconds(ClockId::Monotonic);
        let between = monotonic_ns();
        let after = nanoseconds(ClockId::Monotonic);
        assert!(before <= between && between <= after, "{before} {between} {after}");
    }
}
