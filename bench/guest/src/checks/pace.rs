//! Lets a worker rest for its share of the time, and checks the guest's timers by it.

use super::guest::Guest;
use crate::beat::{Fault, Tally};
use crate::clock::nanoseconds;
use crate::kernel_clock::monotonic_ns;
use rustix::time::ClockId;
use std::time::Duration;

/// Work is gathered up to this long before a rest, in ns: shorter rests would be all timer interrupts.
const STINT_NS: u64 = 2_000_000;

pub(super) struct Pace {
    duty: u64,
    since_ns: u64,
}

impl Pace {
    pub(super) fn new(duty: u64) -> Self {
        Pace {
            duty,
            since_ns: nanoseconds(ClockId::Monotonic),
        }
    }

    /// Rests when it is time to.
    pub(super) fn rest(&mut self, guest: &Guest<'_>) {
        let now = nanoseconds(ClockId::Monotonic);
        let worked = now.saturating_sub(self.since_ns);
        if self.duty < 100 && worked >= STINT_NS {
            // A pause of the guest counts as work done, so cap what it would make up for.
            sleep(guest, rest_ns(worked.min(10 * STINT_NS), self.duty));
            self.since_ns = nanoseconds(ClockId::Monotonic);
        }
    }
}

fn rest_ns(worked_ns: u64, duty: u64) -> u64 {
    worked_ns * (100 - duty) / duty
}

/// Sleeps, and checks that it was not too short, by the clock that timers go by.
pub(super) fn sleep(guest: &Guest<'_>, length_ns: u64) {
    let before = monotonic_ns();
    std::thread::sleep(Duration::from_nanos(length_ns));
    let slept = monotonic_ns().saturating_sub(before);
    if slept < length_ns {
        guest.fault(Fault::TimerEarly, 0, length_ns, slept);
    }
    guest.page.raise(Tally::LatestWakeNs, slept.saturating_sub(length_ns));
}

#[cfg(test)]
mod tests {
    use super::rest_ns;

    #[test]
    fn a_quarter_of_duty_rests_three_times_as_long_as_it_worked() {
        assert_eq!(rest_ns(2_000_000, 25), 6_000_000);
        assert_eq!(rest_ns(2_000_000, 100), 0);
    }
}
