//! Timer interrupts as a spinning program sees them, and the barrier that interrupts another vCPU.
#![expect(unsafe_code, reason = "membarrier(2) has no safe wrapper")]

use crate::clock::nanoseconds;
use crate::tsc;
use anyhow::{Context, Result, bail, ensure};
use rustix::fd::OwnedFd;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::time::Duration;

/// From arming a timer to its interrupt, in ns: arming must be over by then, also above two hypervisors.
const DELAY_NS: u64 = 2_000_000;
/// How long an interrupt may be late, in ns.
const PATIENCE_NS: u64 = 50_000_000;
/// Ticks between two readings of the TSC that only an interruption can explain.
const GAP: u64 = 200;

/// A timer of the guest's kernel, and the rate of its TSC.
#[derive(Debug)]
pub(super) struct Ticker {
    timer: OwnedFd,
    ticks_per_ms: u64,
}

impl Ticker {
    /// Makes the timer and measures the TSC against the clock.
    ///
    /// # Errors
    /// The kernel has no timer to give.
    pub(super) fn new() -> Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK).context("timerfd_create")?;
        let (tsc, ns) = now();
        std::thread::sleep(Duration::from_millis(20));
        let (later, later_ns) = now();
        Ok(Ticker {
            timer,
            ticks_per_ms: (later - tsc) * 1_000_000 / (later_ns - ns).max(1),
        })
    }

    /// Arms the timer `count` times, and returns the ticks that each interrupt took away from this program.
    ///
    /// # Errors
    /// The timer cannot be armed, or does not fire.
    pub(super) fn interruptions(&self, count: u32) -> Result<Vec<u64>> {
        (0..count).map(|_| self.interruption()).collect()
    }

    fn interruption(&self) -> Result<u64> {
        let (tsc, ns) = now();
        let at = Duration::from_nanos(ns + DELAY_NS);
        let when = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(at.as_secs())?,
                tv_nsec: at.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &when).context("timerfd_settime")?;
        let deadline = tsc + self.ticks(DELAY_NS);
        let end = deadline + self.ticks(PATIENCE_NS);
        let mut last = tsc::read_ordered();
        ensure!(last < deadline, "arming took longer than the timer");
        // The first interruption that ends after the deadline. The guest's own tick may be it now and then: the median
        // is not moved by that.
        while last < end {
            let now = tsc::read_ordered();
            if now > deadline && now - last > GAP {
                return Ok(now - last);
            }
            last = now;
        }
        bail!("no interrupt within {PATIENCE_NS} ns")
    }

    fn ticks(&self, ns: u64) -> u64 {
        ns * self.ticks_per_ms / 1_000_000
    }
}

/// The TSC and `CLOCK_MONOTONIC`, read one after the other.
fn now() -> (u64, u64) {
    (tsc::read_ordered(), nanoseconds(ClockId::Monotonic))
}

/// Announces [`membarrier`] to the kernel.
///
/// # Errors
/// The kernel has no `membarrier(2)`.
pub(super) fn membarrier_register() -> Result<()> {
    let answer = call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED);
    ensure!(answer == 0, "membarrier: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Interrupts every other CPU that runs a thread of this process, and waits until each has answered
/// (kernel/sched/membarrier.c, `membarrier_private_expedited`).
pub(super) fn membarrier() {
    call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED);
}

fn call(command: libc::c_int) -> libc::c_long {
    // SAFETY: membarrier touches no memory of the caller.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}
