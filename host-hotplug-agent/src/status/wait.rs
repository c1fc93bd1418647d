//! What a refresh waits for, and for how long it may.

use std::fmt;
use std::time::{Duration, Instant};

use partitioner::{Action, Role};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Timeouts};
use crate::refresh::shared::Inner;
use crate::units::span;

/// What is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// As it goes on after "waits for".
    pub what: String,
    /// Seconds so far.
    pub seconds: u64,
    /// Seconds after which it is given up; none if it is not, or not by the configuration.
    #[serde(default)]
    pub limit_seconds: Option<u64>,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        match (self.seconds, self.limit_seconds) {
            (0, None) => Ok(()),
            (0, Some(limit)) => write!(f, " ({} at most)", span(limit)),
            (seconds, None) => write!(f, ", for {} so far", span(seconds)),
            (seconds, Some(limit)) => write!(f, ", for {} so far ({} at most)", span(seconds), span(limit)),
        }
    }
}

/// What the refresh waits for now. Keeps in mind since when it does.
pub fn now(inner: &mut Inner) -> Option<Wait> {
    let awaited = match (&inner.awaits, inner.refresh.next_action()) {
        (Some(what), _) => Some((what.clone(), None)),
        (None, Some(action)) => Some(of(action, inner)),
        (None, None) => None,
    };
    let Some((what, limit)) = awaited.filter(|_| inner.running.is_some()) else {
        inner.waiting = None;
        return None;
    };
    let since = match &inner.waiting {
        Some((known, since)) if *known == what => *since,
        _ => Instant::now(),
    };
    inner.waiting = Some((what.clone(), since));
    Some(Wait {
        what,
        seconds: since.elapsed().as_secs(),
        limit_seconds: limit.map(|limit| limit.as_secs()),
    })
}

fn of(action: &Action, inner: &Inner) -> (String, Option<Duration>) {
    let incumbent = inner.refresh.role() == Role::Incumbent;
    let limit = |of: fn(&Timeouts) -> Duration| timeouts(inner).as_ref().map(of);
    let hello = inner.report.as_ref().is_some_and(|report| !report.successor.is_empty());
    match action {
        Action::AwaitSuccessor if hello => (
            "the guests' QEMUs in the successor to be ready".to_owned(),
            limit(|timeouts| timeouts.guest_start),
        ),
        Action::AwaitSuccessor => (
            "the successor to boot, and its agent to say hello".to_owned(),
            limit(|timeouts| timeouts.boot),
        ),
        Action::MoveGuest(name) => (format!("guest {name} to cross"), limit(|timeouts| timeouts.guest_move)),
        Action::ReturnGuest(name) => (
            format!("guest {name} to come back"),
            limit(|timeouts| timeouts.guest_move),
        ),
        Action::OfflineCpu(apic) => (
            format!("the CPU with {apic} to go offline"),
            limit(|timeouts| timeouts.cpu),
        ),
        Action::OnlineCpu(apic) => (format!("the CPU with {apic} to come online"), None),
        Action::RemoveMemory { range, .. } => (format!("Linux to give up memory {range}"), None),
        Action::AddMemory { range, .. } => (format!("Linux to take memory {range}"), None),
        Action::AwaitIncumbentGone => {
            let told = inner.brief.retire_seconds.map(Duration::from_secs);
            ("the old host to power itself off".to_owned(), told)
        }
        Action::PowerOff if incumbent => ("this host to power itself off".to_owned(), None),
        action => (format!("this to be done: {action}"), None),
    }
}

/// Those of the configuration that the refresh began with; the incumbent has it.
fn timeouts(inner: &Inner) -> Option<Timeouts> {
    let kept = inner.brief.config.as_ref()?;
    Some(Config::parse(&kept.path, &kept.text).ok()?.timeouts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_says_how_long_it_may_be() {
        let wait = |seconds, limit_seconds| {
            let what = "the successor".to_owned();
            Wait {
                what,
                seconds,
                limit_seconds,
            }
            .to_string()
        };
        assert_eq!(wait(0, None), "the successor");
        assert_eq!(wait(0, Some(600)), "the successor (10 min at most)");
        assert_eq!(wait(35, Some(60)), "the successor, for 35 s so far (60 s at most)");
        assert_eq!(wait(150, None), "the successor, for 2 min 30 s so far");
    }
}
