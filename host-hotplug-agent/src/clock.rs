//! The wall clock, carried over by the TSC that both hosts share: a hardware-reduced host has no RTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rustix::time::{ClockId, Timespec, clock_settime};
use serde::{Deserialize, Serialize};

use crate::tsc;

/// The time at a value of the TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Nanoseconds since 1970 (UTC).
    pub nanos: u64,
    /// TSC at that time.
    pub tsc: u64,
    /// Rate of the TSC in kHz.
    pub tsc_khz: u64,
}

impl Clock {
    /// The time now. Of several readings the one with the shortest way between the two clocks is taken.
    #[expect(clippy::disallowed_methods, reason = "the wall clock itself is what is carried over")]
    pub fn now(tsc_khz: u64) -> Self {
        let reading = || {
            let before = tsc::now();
            let time = SystemTime::now();
            let after = tsc::now();
            let nanos = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            (
                after - before,
                Self {
                    nanos,
                    tsc: before + (after - before) / 2,
                    tsc_khz,
                },
            )
        };
        let mut best = reading();
        for _ in 0..4 {
            best = std::cmp::min_by_key(best, reading(), |(width, _)| *width);
        }
        best.1
    }

    /// The time at a later value of the TSC.
    pub fn at(&self, tsc: u64) -> Duration {
        let ticks = u128::from(tsc.saturating_sub(self.tsc));
        let nanos = u128::from(self.nanos) + ticks * 1_000_000 / u128::from(self.tsc_khz.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Seconds since 1970 (UTC) at an earlier or later value of the TSC. It goes by what the clock says now.
    pub fn seconds_at(&self, tsc: u64) -> f64 {
        let ticks = self.tsc as f64 - tsc as f64;
        self.nanos as f64 / 1e9 - ticks / (self.tsc_khz.max(1) as f64 * 1e3)
    }

    /// Sets this host's clock.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set(&self) -> Result<()> {
        let now = self.at(tsc::now());
        let time = Timespec {
            tv_sec: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(now.subsec_nanos()),
        };
        clock_settime(ClockId::Realtime, time).context("setting the clock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_time() {
        let clock = Clock {
            nanos: 1_000_000_000,
            tsc: 500,
            tsc_khz: 2_000_000,
        };
        assert_eq!(clock.at(500), Duration::from_secs(1));
        assert_eq!(clock.at(500 + 2_000_000_000), Duration::from_secs(2));
        assert_eq!(clock.at(0), Duration::from_secs(1), "never backwards");
        assert!(Clock::now(1000).nanos > 1_700_000_000_000_000_000);
    }
}
