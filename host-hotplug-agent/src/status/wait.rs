//! What a refresh waits for, and for how long it may.

use std::fmt;
use std::time::{Duration, Instant};

use partitioner::Action;
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
    let action = inner.refresh.next_action();
    let what = inner.awaits.clone().or_else(|| Some(words(action?, hello(inner))));
    let Some(what) = what.filter(|_| inner.running.is_some()) else {
        inner.waiting = None;
        return None;
    };
    let (since, limit) = match &inner.waiting {
        Some((known, since, limit)) if *known == what => (*since, *limit),
        // Looked for once: the configuration is read for it.
        _ => {
            let action = action.filter(|_| inner.awaits.is_none());
            (Instant::now(), action.and_then(|action| limit(action, inner)))
        }
    };
    inner.waiting = Some((what.clone(), since, limit));
    Some(Wait {
        what,
        seconds: since.elapsed().as_secs(),
        limit_seconds: limit.map(|limit| limit.as_secs()),
    })
}

/// What an action is waited for as, and for how long at most.
fn limit(action: &Action, inner: &Inner) -> Option<Duration> {
    let limited = |of: fn(&Timeouts) -> Duration| timeouts(inner).as_ref().map(of);
    match action {
        Action::AwaitSuccessor if hello(inner) => limited(|timeouts| timeouts.guest_start),
        Action::AwaitSuccessor => limited(|timeouts| timeouts.boot),
        Action::MoveGuest(_) | Action::ReturnGuest(_) => limited(|timeouts| timeouts.guest_move),
        Action::OfflineCpu(_) => limited(|timeouts| timeouts.cpu),
        Action::AwaitIncumbentGone => inner.brief.retire_seconds.map(Duration::from_secs),
        _ => None,
    }
}

/// Whether the successor's agent has said hello.
fn hello(inner: &Inner) -> bool {
    inner.report.as_ref().is_some_and(|report| !report.successor.is_empty())
}

/// As it goes on after "waits for". `hello`: the successor's agent has answered.
fn words(action: &Action, hello: bool) -> String {
    match action {
        Action::RemoveMemory { .. } | Action::AddMemory { .. } | Action::RemovePci(_) | Action::AddPci(_) => {
            format!("Linux to {action}")
        }
        Action::OfflineCpu(apic) => format!("the CPU with {apic} to go offline"),
        Action::OnlineCpu(apic) => format!("the CPU with {apic} to come online"),
        Action::EnterNested(apic) => format!("the CPU with {apic} to become nested"),
        Action::LeaveNested(apic) => format!("the CPU with {apic} to become native"),
        Action::LoadSuccessor => "the successor's image to be in its memory".to_owned(),
        Action::WipeSuccessor => "the successor's memory to be cleared".to_owned(),
        Action::Transfer(_) | Action::StartSuccessor | Action::StopSuccessor | Action::TakeIncumbent => {
            format!("L0 to {action}")
        }
        Action::AwaitSuccessor if hello => "the guests' QEMUs in the successor to be ready".to_owned(),
        Action::AwaitSuccessor => "the successor to boot, and its agent to say hello".to_owned(),
        Action::MoveGuest(name) => format!("guest {name} to cross"),
        Action::ReturnGuest(name) => format!("guest {name} to come back"),
        Action::Entrust => "the successor to be in charge".to_owned(),
        Action::PowerOff => "this host to power itself off".to_owned(),
        Action::AwaitIncumbentGone => "the old host to power itself off".to_owned(),
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
    use crate::journal::{Brief, ConfigText};
    use crate::refresh::shared::Shared;

    const CONFIG: &str =
        "kernel = \"k\"\ninitramfs = \"i\"\ncpus = 1\nmemory = \"1G\"\ntimeouts = { boot = 7, guest_move = 8 }\n";

    #[test]
    fn limits_are_those_of_the_configuration_that_the_journal_keeps() {
        let shared = Shared::new(0, Vec::new(), Some(crate::report::Report::default()));
        let mut inner = shared.lock();
        let limit = |inner: &Inner, action: &Action| limit(action, inner).map(|limit| limit.as_secs());
        assert_eq!(limit(&inner, &Action::AwaitSuccessor), None, "not known");
        let (path, text) = ("/etc/locum/next.toml".into(), CONFIG.to_owned());
        inner.brief = Brief {
            config: Some(ConfigText { path, text }),
            retire_seconds: Some(9),
            ..Brief::default()
        };
        assert_eq!(limit(&inner, &Action::AwaitSuccessor), Some(7));
        assert_eq!(limit(&inner, &Action::MoveGuest("g1".to_owned())), Some(8));
        assert_eq!(limit(&inner, &Action::AwaitIncumbentGone), Some(9));
        assert_eq!(limit(&inner, &Action::LoadSuccessor), None);
        inner.report.as_mut().unwrap().successor = "6.12".to_owned();
        assert_eq!(
            limit(&inner, &Action::AwaitSuccessor),
            Some(120),
            "the guests' QEMUs, by default"
        );
        assert_eq!(
            words(&Action::StartSuccessor, hello(&inner)),
            "L0 to start the successor"
        );
    }

    #[test]
    fn what_is_waited_for_is_timed_from_when_it_was_first_told() {
        let shared = Shared::new(0, Vec::new(), None);
        let mut inner = shared.lock();
        inner.awaits = Some("guests to shut down".to_owned());
        assert_eq!(now(&mut inner), None, "nothing runs");
        inner.running = Some("next".to_owned());
        assert_eq!(now(&mut inner).unwrap().what, "guests to shut down");
        let earlier = Instant::now().checked_sub(Duration::from_secs(40)).unwrap();
        inner.waiting.as_mut().unwrap().1 = earlier;
        assert_eq!(now(&mut inner).unwrap().seconds, 40);
        inner.awaits = Some("something else".to_owned());
        assert_eq!(now(&mut inner).unwrap().seconds, 0);
    }

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
