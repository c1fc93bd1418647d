//! What the daemon's threads share: the refresh, its report, and what the operator asked for meanwhile.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use partitioner::{Course, Event, Generation, Owner, Refresh, Refused, Resource, Role, State, Unreclaimed};

use super::phase;
use crate::error::Told;
use crate::journal::Brief;
use crate::report::Report;
use crate::status::{DaemonStatus, left, wait};
use crate::tsc;

/// Shared by the thread that listens and the one that works.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// Behind the lock.
#[derive(Debug)]
pub struct Inner {
    /// The refresh, or the lack of one.
    pub refresh: Refresh,
    /// The last report, or the present one so far.
    pub report: Option<Report>,
    /// The report before it, if that refresh went through.
    pub before: Option<Report>,
    /// Name of the refresh that is being prepared or runs.
    pub running: Option<String>,
    /// Whether a thread serves the incumbent, or takes over from it.
    pub succeeds: bool,
    /// Why the operator wants to stop.
    pub abort: Option<String>,
    /// Whether the operator wants the stuck action tried again.
    pub retry: bool,
    /// Why the successor had to be stopped in the middle of an action.
    pub lost: Option<String>,
    /// Why the last request failed before there was a refresh.
    pub refused: Option<Told>,
    /// What performing actions needs beside the state of the refresh.
    pub brief: Brief,
    /// What the action under way waits for, where that may take for ever.
    pub awaits: Option<String>,
    /// What [`wait::now`] last told, since when that is so, and for how long it may be.
    pub waiting: Option<(String, Instant, Option<Duration>)>,
}

impl Shared {
    /// No refresh.
    pub fn new(generation: u64, unreclaimed: Vec<Unreclaimed>, report: Option<Report>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                refresh: Refresh::idle(Generation(generation), unreclaimed),
                before: report.clone(),
                report,
                running: None,
                succeeds: false,
                abort: None,
                retry: false,
                lost: None,
                refused: None,
                brief: Brief::default(),
                awaits: None,
                waiting: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Locks. A thread that panicked left nothing half done: every change is one assignment.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the operator wants to stop.
    pub fn aborting(&self) -> bool {
        self.lock().abort.is_some()
    }

    /// Wakes whoever waits in [`Self::wait`].
    pub fn notify(&self) {
        self.changed.notify_all();
    }

    /// Waits for a change, for a moment at most.
    pub fn wait(&self) {
        let guard = self.lock();
        drop(self.changed.wait_timeout(guard, Duration::from_millis(200)));
    }

    /// What to tell the other commands.
    pub fn status(&self) -> DaemonStatus {
        let mut inner = self.lock();
        let waits = wait::now(&mut inner);
        let refresh = &inner.refresh;
        let phase = inner.phase();
        let word = |value: String| value.to_lowercase();
        DaemonStatus {
            role: match refresh.role() {
                Role::Incumbent => "incumbent".to_owned(),
                Role::Successor => "successor".to_owned(),
            },
            state: state(refresh.state()).to_owned(),
            course: word(match refresh.course() {
                Course::Resting => "resting".to_owned(),
                Course::Running => "running".to_owned(),
                Course::Aborting(_) => "aborting".to_owned(),
                Course::Stuck { .. } => "stuck".to_owned(),
            }),
            running: inner.running.clone(),
            done: refresh.progress().done,
            total: refresh.progress().total,
            summary: match &inner.awaits {
                Some(what) => format!("{}, waiting: {what}", refresh.summary()),
                None => refresh.summary(),
            },
            last_error: match &inner.refused {
                Some(told) => Some(told.text.clone()),
                None => refresh.last_error().map(str::to_owned),
            },
            last_error_name: match (&inner.refused, &inner.report) {
                (Some(told), _) => told.name.clone(),
                (None, Some(report)) if refresh.last_error().is_some() => report.error_name.clone(),
                _ => None,
            },
            unreclaimed: refresh.unreclaimed().to_vec(),
            unreclaimed_bytes: refresh.unreclaimed().iter().map(|left| left.range.len()).sum(),
            report: inner.report.clone(),
            renewed: None,
            left_seconds: phase.and_then(|phase| inner.left(phase)),
            phase: phase.map(str::to_owned),
            waits,
            other_memory_bytes: given(refresh),
        }
    }
}

impl Inner {
    /// Has the refresh take a failure in, as the event that `event` makes of its text, and its name told with it.
    ///
    /// # Errors
    /// Of [`Refresh::apply`]; nothing has changed then.
    pub fn fail(&mut self, failure: Told, event: impl FnOnce(String) -> Event) -> Result<(), Refused> {
        self.refresh.apply(event(failure.text))?;
        if let Some(report) = &mut self.report {
            report.error_name = failure.name;
        }
        Ok(())
    }

    /// The phase of the refresh that runs.
    fn phase(&self) -> Option<&'static str> {
        let action = self.refresh.next_action().filter(|_| self.running.is_some())?;
        Some(phase::name(&self.refresh, action))
    }

    /// Seconds that it will still take, about.
    fn left(&self, phase: &str) -> Option<u64> {
        left::seconds(self.report.as_ref()?, self.before.as_ref()?, phase, tsc::now())
    }
}

/// Bytes of memory that the incumbent has given to the successor; none on the successor's side.
fn given(refresh: &Refresh) -> Option<u64> {
    let (Role::Incumbent, Some(plan), Some(partition)) = (refresh.role(), refresh.plan(), refresh.partition()) else {
        return None;
    };
    let theirs = Some(Owner::Host(plan.successor()));
    let given = plan
        .memory
        .iter()
        .filter(|range| partition.owner(Resource::Memory(**range)) == theirs);
    Some(given.map(|range| range.len()).sum())
}

/// The state in one word, as in `/sys/kernel/locum/state`.
fn state(state: State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Planned => "planned",
        State::Offloaded => "offloaded",
        State::Nested => "nested",
        State::SuccessorUp => "successor_up",
        State::Handover => "handover",
        State::Retired => "retired",
        State::Dormant => "dormant",
    }
}
