//! The lines in which a refresh is followed: each says what is waited for, and for how long it may be.

use std::time::{Duration, Instant};

use crate::status::DaemonStatus;
use crate::units::span;

/// Between two lines about actions of one phase, of which there may be hundreds.
const SELDOM: Duration = Duration::from_secs(2);
/// Between two lines about one and the same thing.
const STILL: Duration = Duration::from_secs(30);

/// What was told last.
#[derive(Default)]
pub struct Lines {
    told: Option<Told>,
}

struct Told {
    at: Instant,
    phase: String,
    /// Without figures that grow by themselves.
    steady: String,
}

impl Lines {
    /// The line to tell at that moment, if there is any. A new phase is told at once, and so is whatever has a limit, is stuck or
    /// goes back.
    pub fn next(&mut self, status: &DaemonStatus, now: Instant) -> Option<String> {
        let steady = line(status, false);
        let phase = status.phase.clone().unwrap_or_default();
        let limited = status.waits.as_ref().is_none_or(|wait| wait.limit_seconds.is_some());
        let due = match &self.told {
            None => true,
            Some(told) if told.steady == steady => now.duration_since(told.at) >= STILL,
            Some(told) => limited || told.phase != phase || now.duration_since(told.at) >= SELDOM,
        };
        due.then(|| {
            self.told = Some(Told { at: now, phase, steady });
            line(status, true)
        })
    }
}

fn line(status: &DaemonStatus, with_times: bool) -> String {
    let (done, total) = (status.done, status.total);
    let Some(wait) = &status.waits else {
        return format!("{done}/{total} {}", status.summary);
    };
    let phase = status.phase.as_deref().unwrap_or("preparing");
    let mut wait = wait.clone();
    if !with_times {
        wait.seconds = 0;
    }
    let left = status.left_seconds.filter(|_| with_times);
    let left = left
        .map(|left| format!("; about {} left", span(left)))
        .unwrap_or_default();
    // Why it goes back is in the summary.
    let back = match status.course.as_str() {
        "aborting" => format!(" ({})", status.summary),
        _ => String::new(),
    };
    format!("{done}/{total} {phase}: waits for {wait}{left}{back}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::wait::Wait;

    fn status(done: usize, phase: &str, what: &str, seconds: u64, limit_seconds: Option<u64>) -> DaemonStatus {
        DaemonStatus {
            done,
            total: 100,
            phase: Some(phase.to_owned()),
            course: "running".to_owned(),
            waits: Some(Wait {
                what: what.to_owned(),
                seconds,
                limit_seconds,
            }),
            ..DaemonStatus::default()
        }
    }

    #[test]
    fn hundreds_of_short_actions_are_a_few_lines() {
        let (mut lines, begin) = (Lines::default(), Instant::now());
        let told: Vec<_> = (0..100)
            .filter_map(|done| {
                let status = status(done, "offload", &format!("block {done}"), 0, None);
                lines.next(&status, begin + Duration::from_millis(100) * done as u32)
            })
            .collect();
        assert_eq!(told.len(), 5, "{told:#?}");
        assert_eq!(told[0], "0/100 offload: waits for block 0");
    }

    #[test]
    fn what_has_a_limit_is_told_at_once_and_again_if_it_takes_long() {
        let (mut lines, begin) = (Lines::default(), Instant::now());
        let mut at = |second: u64, status: DaemonStatus| lines.next(&status, begin + Duration::from_secs(second));
        assert!(at(0, status(1, "enter", "a CPU", 0, None)).is_some());
        let boot = |seconds| status(2, "boot", "the successor", seconds, Some(600));
        let first = at(0, boot(0));
        assert_eq!(
            first.as_deref(),
            Some("2/100 boot: waits for the successor (10 min at most)")
        );
        assert_eq!(at(1, boot(1)), None);
        assert_eq!(at(29, boot(29)), None);
        let again = at(31, boot(31)).unwrap();
        assert!(again.contains("for 31 s so far (10 min at most)"), "{again}");
    }

    #[test]
    fn an_older_daemon_and_one_that_is_stuck_are_told_by_their_summary() {
        let mut lines = Lines::default();
        let older = DaemonStatus {
            summary: "generation 0, Offloaded, next: this".to_owned(),
            ..DaemonStatus::default()
        };
        let told = lines.next(&older, Instant::now());
        assert_eq!(told.as_deref(), Some("0/0 generation 0, Offloaded, next: this"));
        let mut back = status(3, "abort", "this", 0, None);
        back.course = "aborting".to_owned();
        back.summary = "aborting (stopped by the operator)".to_owned();
        let told = lines.next(&back, Instant::now()).unwrap();
        assert!(told.contains("stopped by the operator"), "{told}");
    }
}
