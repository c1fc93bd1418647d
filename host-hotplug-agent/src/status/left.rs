//! How long a refresh will still take, by how long the last one on this machine took. Where there was none, or this one is
//! another case, nothing is said.

use crate::refresh::phase;
use crate::report::Report;
use crate::units;

/// A phase that has taken so many times as long as the last time makes the last time worth nothing.
const PATIENCE: u64 = 2;

/// Seconds, about, at the TSC `now` in the phase `phase` of the refresh `report`, by the one before it.
pub fn seconds(report: &Report, before: &Report, phase: &str, now: u64) -> Option<u64> {
    let at = phase::ORDER.iter().position(|name| *name == phase)?;
    if before.outcome != "done" || before.tsc_khz != report.tsc_khz || report.tsc_khz == 0 {
        return None;
    }
    let took = |name: &str| -> u64 {
        let phases = before.phases.iter().filter(|phase| phase.name == name);
        phases.map(|phase| phase.end.saturating_sub(phase.start)).sum()
    };
    let begun = match report.phases.last() {
        Some(last) if last.name == phase => last.start,
        Some(last) => last.end,
        None => report.start,
    };
    let (elapsed, usual) = (now.saturating_sub(begun), took(phase));
    if elapsed > usual.saturating_mul(PATIENCE).max(10 * 1000 * report.tsc_khz) {
        return None;
    }
    let later: u64 = phase::ORDER[at + 1..].iter().map(|name| took(name)).sum();
    Some(units::seconds(usual.saturating_sub(elapsed) + later, report.tsc_khz).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Phase;

    fn report(outcome: &str, phases: &[(&str, u64, u64)]) -> Report {
        // A TSC of 1 MHz: 1,000,000 ticks a second.
        let phases = phases.iter().map(|(name, start, end)| Phase {
            name: (*name).to_owned(),
            by: "incumbent".to_owned(),
            start: start * 1_000_000,
            end: end * 1_000_000,
            l0_exits: 0,
        });
        Report {
            outcome: outcome.to_owned(),
            tsc_khz: 1000,
            phases: phases.collect(),
            ..Report::default()
        }
    }

    #[test]
    fn the_rest_of_this_phase_and_those_after_it_are_left() {
        let before = report("done", &[("offload", 0, 10), ("boot", 10, 70), ("reclaim", 70, 90)]);
        let running = report("running", &[("offload", 1000, 1008)]);
        let at = |second: u64, phase: &str| seconds(&running, &before, phase, second * 1_000_000);
        assert_eq!(at(1004, "offload"), Some(6 + 60 + 20));
        assert_eq!(at(1008 + 15, "boot"), Some(45 + 20));
        assert_eq!(at(1008 + 65, "boot"), Some(20), "later than the last time");
    }

    #[test]
    fn nothing_is_said_without_a_refresh_to_go_by() {
        let before = report("done", &[("boot", 10, 70)]);
        let running = report("running", &[("offload", 0, 8)]);
        assert_eq!(
            seconds(&running, &before, "boot", 1_000_000 * (8 + 121)),
            None,
            "it hangs"
        );
        assert_eq!(seconds(&running, &before, "abort", 0), None);
        assert_eq!(
            seconds(&running, &report("aborted", &[("boot", 0, 9)]), "boot", 0),
            None
        );
        let elsewhere = Report { tsc_khz: 5, ..before };
        assert_eq!(seconds(&running, &elsewhere, "boot", 0), None);
    }
}
