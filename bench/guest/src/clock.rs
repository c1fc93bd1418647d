//! Clocks that must not run backwards, checked across all threads of the guest.
//!
//! Each thread loads the highest value that any thread has seen, *then* reads the clock: a lower reading is a fault,
//! whatever the scheduling in between. Time is read as the kernel reads it; what the vDSO says is watched apart
//! ([`kernel_clock`]).

use crate::beat::Fault;
use crate::{kernel_clock, tsc};
use rustix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};

/// The highest value seen of one clock.
#[derive(Debug, Default)]
pub(crate) struct Floor(AtomicU64);

/// A reading below an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backwards {
    /// The earlier reading.
    pub earlier: u64,
    /// The later, lower reading.
    pub later: u64,
}

impl Floor {
    /// Reads the clock through `read` and compares; returns the reading and its step from the floor.
    pub(crate) fn check(&self, read: impl FnOnce() -> u64) -> (u64, Result<u64, Backwards>) {
        let earlier = self.0.load(Ordering::Acquire);
        let later = read();
        self.0.fetch_max(later, Ordering::AcqRel);
        let step = later.checked_sub(earlier).ok_or(Backwards { earlier, later });
        // The first reading has no earlier one to step from.
        (later, if earlier == 0 { Ok(0) } else { step })
    }
}

/// The clocks that all threads share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    monotonic: Floor,
    realtime: Floor,
    vdso: Floor,
    tsc: Floor,
}

/// What one look at the clocks gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// TSC of this vCPU.
    pub tsc: u64,
    /// `CLOCK_MONOTONIC`, in ns.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME`, in ns.
    pub realtime_ns: u64,
    /// Step of `CLOCK_MONOTONIC` since the latest reading of any thread, in ns.
    pub step_ns: u64,
    /// How far `CLOCK_MONOTONIC` fell as the vDSO reads it, in ns.
    pub vdso_fell_ns: u64,
    /// What ran backwards.
    pub faults: Vec<(Fault, Backwards)>,
}

impl Shared {
    /// Looks at all clocks. `own_tsc` is the floor of a thread that is bound to one vCPU.
    pub(crate) fn look(&self, own_tsc: &Floor) -> Look {
        let mut faults = Vec::new();
        let mut note = |fault, result: Result<u64, Backwards>| match result {
            Ok(step) => step,
            Err(backwards) => {
                faults.push((fault, backwards));
                0
            }
        };
        let (tsc, own) = own_tsc.check(tsc::read_ordered);
        let own_fell = own.is_err();
        note(Fault::TscBackwards, own);
        let (_, all) = self.tsc.check(tsc::read_ordered);
        // A vCPU whose own TSC fell is also below the others: one cause, one fault.
        if !own_fell {
            note(Fault::TscSkew, all);
        }
        let (monotonic_ns, step) = self.monotonic.check(kernel_clock::monotonic_ns);
        let step_ns = note(Fault::MonotonicBackwards, step);
        let (realtime_ns, step) = self.realtime.check(kernel_clock::realtime_ns);
        note(Fault::RealtimeBackwards, step);
        let vdso_fell_ns = match self.vdso.check(|| nanoseconds(ClockId::Monotonic)).1 {
            Ok(_) => 0,
            Err(fall) => fall.earlier - fall.later,
        };
        Look {
            tsc,
            monotonic_ns,
            realtime_ns,
            step_ns,
            vdso_fell_ns,
            faults,
        }
    }
}

/// Reads a clock as programs do, by the vDSO, in ns.
#[must_use]
pub(crate) fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    in_ns(now.tv_sec, now.tv_nsec)
}

/// A time since an epoch, in ns.
pub(crate) const fn in_ns(seconds: i64, nanoseconds: i64) -> u64 {
    seconds.unsigned_abs() * 1_000_000_000 + nanoseconds.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_stand_still_or_advance() {
        let floor = Floor::default();
        assert_eq!(floor.check(|| 10), (10, Ok(0)));
        assert_eq!(floor.check(|| 10), (10, Ok(0)));
        assert_eq!(floor.check(|| 14), (14, Ok(4)));
    }

    #[test]
    fn a_clock_that_falls_is_a_fault_until_it_catches_up() {
        let floor = Floor::default();
        let _ = floor.check(|| 10);
        assert_eq!(floor.check(|| 9).1, Err(Backwards { earlier: 10, later: 9 }));
        assert!(floor.check(|| 9).1.is_err());
        assert!(floor.check(|| 11).1.is_ok());
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads the TSC")]
    fn the_clocks_of_this_machine_pass() {
        let shared = Shared::default();
        let own = Floor::default();
        for _ in 0..1000 {
            assert_eq!(shared.look(&own).faults, []);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads the TSC")]
    fn each_clock_is_looked_at() {
        let shared = Shared::default();
        for floor in [&shared.monotonic, &shared.realtime, &shared.tsc] {
            floor.0.store(u64::MAX, Ordering::Relaxed);
        }
        let kinds: Vec<_> = shared
            .look(&Floor::default())
            .faults
            .into_iter()
            .map(|(fault, _)| fault)
            .collect();
        assert_eq!(
            kinds,
            [Fault::TscSkew, Fault::MonotonicBackwards, Fault::RealtimeBackwards]
        );
        assert_eq!(shared.look(&Floor::default()).vdso_fell_ns, 0);
        shared.vdso.0.store(u64::MAX, Ordering::Relaxed);
        let look = shared.look(&Floor::default());
        assert!(look.vdso_fell_ns > 0, "it is told, and no fault: {look:?}");
        let own = Floor(AtomicU64::new(u64::MAX));
        assert_eq!(shared.look(&own).faults.first().map(|f| f.0), Some(Fault::TscBackwards));
    }
}
