//! What all threads of the guest share: the page in which they beat, and the clocks that each of them looks at.

use crate::beat::{BeatPage, Fault, FirstFault, Sample, Tally};
use crate::clock::{self, Floor, Look};
use crate::params::Params;

/// What all threads share.
pub(super) struct Guest<'a> {
    pub page: BeatPage<'a>,
    pub clocks: clock::Shared,
    pub params: &'a Params,
    pub seed: u64,
}

impl Guest<'_> {
    pub(super) fn fault(&self, fault: Fault, place: u64, expected: u64, found: u64) {
        self.page.record(FirstFault {
            fault,
            place,
            expected,
            found,
        });
    }

    /// Looks at the clocks and records what ran backwards.
    pub(super) fn look(&self, own_tsc: &Floor) -> Look {
        let look = self.clocks.look(own_tsc);
        for (fault, backwards) in &look.faults {
            self.fault(*fault, 0, backwards.earlier, backwards.later);
        }
        self.page.add(Tally::ClockChecks, 1);
        self.page.raise(Tally::LongestStepNs, look.step_ns);
        self.page.raise(Tally::VdsoFellNs, look.vdso_fell_ns);
        look
    }

    /// Looks at the clocks and publishes them. One thread only.
    pub(super) fn publish(&self, own_tsc: &Floor) {
        let look = self.look(own_tsc);
        self.page.publish(Sample {
            beat: self.page.beats(),
            tsc: look.tsc,
            monotonic_ns: look.monotonic_ns,
            realtime_ns: look.realtime_ns,
        });
    }
}
