//! The loop: next action, perform it, report the result.

use anyhow::{Error, Result};
use partitioner::{Action, Course, Event, Refresh, Refused, Role};

use super::{Agent, Shared, phase};
use crate::error::{Failure, Told};
use crate::report::Phase;
use crate::tsc;

/// Works until nothing is left to be done. `perform` does one action.
///
/// # Errors
/// If the state machine and this loop disagree, which is a fault of the program.
pub fn drive(agent: &Agent, mut perform: impl FnMut(&Action) -> Result<()>) -> Result<(), Refused> {
    let shared = &*agent.shared;
    let mut death_reported = false;
    loop {
        let (action, course, role) = {
            let inner = shared.lock();
            (
                inner.refresh.next_action().cloned(),
                inner.refresh.course().clone(),
                inner.refresh.role(),
            )
        };
        agent.publish_state();
        if role == Role::Incumbent
            && !death_reported
            && let Some(reason) = lost(agent)
        {
            let death = Told::new(Failure::RefreshSuccessorDied, reason);
            death_reported = shared.lock().fail(death, Event::SuccessorDied).is_ok();
            if death_reported {
                continue;
            }
        }
        if let Some(reason) = take_abort(shared, &course, role) {
            match shared.lock().fail(stopped(reason), Event::Abort) {
                Ok(()) => continue,
                Err(refused) => tracing::warn!("{refused}"),
            }
        }
        let Some(action) = action else {
            agent.publish_progress();
            if matches!(course, Course::Stuck { .. }) {
                await_retry(shared)?;
                continue;
            }
            return Ok(());
        };
        let name = phase::name(&shared.lock().refresh, &action);
        let failure = |error: &Error| Told::of_failure(Failure::of_phase(name), error);
        if let Err(error) = agent.write_down() {
            tracing::warn!("{error:#}");
            let mut inner = shared.lock();
            if may_turn_back(&inner.refresh) {
                inner.fail(failure(&error), Event::Failed)?;
                continue;
            }
        }
        agent.publish_progress();
        let (start, exits) = (tsc::now(), agent.exits());
        tracing::info!("{action}");
        let outcome = perform(&action);
        record(shared, name, role, start, agent.exits().saturating_sub(exits));
        let applied = match outcome {
            Ok(()) => shared.lock().refresh.apply(Event::Done).map(drop),
            Err(error) => {
                tracing::warn!("{action}: {error:#}");
                // Given up for the operator: that is the reason to tell.
                let asked = shared.lock().abort.take().filter(|_| course == Course::Running);
                match asked {
                    Some(reason) => shared.lock().fail(stopped(reason), Event::Abort),
                    None => shared.lock().fail(failure(&error), Event::Failed),
                }
            }
        };
        match applied {
            Err(Refused::PointOfNoReturn | Refused::Aborting) => {
                let given_up = Told::new(Failure::of_phase(name), "given up");
                shared.lock().fail(given_up, Event::Failed)?;
            }
            other => other?,
        }
    }
}

/// Whether what cannot be written down need not be done, either: no guest has gone over, so the way back loses nothing. On
/// that way, and beyond it, the actions matter more than the journal.
fn may_turn_back(refresh: &Refresh) -> bool {
    *refresh.course() == Course::Running && refresh.role() == Role::Incumbent && !refresh.has_crossed()
}

fn stopped(reason: String) -> Told {
    Told::new(Failure::RefreshStopped, reason)
}

/// Why there is no successor any more, if there was one.
fn lost(agent: &Agent) -> Option<String> {
    let died = agent.other_died().map(|reason| format!("the successor died: {reason}"));
    died.or_else(|| agent.shared.lock().lost.take())
}

/// The operator's wish to stop, if this is the moment for it.
fn take_abort(shared: &Shared, course: &Course, role: Role) -> Option<String> {
    let mut inner = shared.lock();
    let now = matches!(course, Course::Running | Course::Stuck { aborting: None, .. }) && role == Role::Incumbent;
    inner.abort.take().filter(|_| now)
}

fn await_retry(shared: &Shared) -> Result<(), Refused> {
    loop {
        {
            let mut inner = shared.lock();
            if std::mem::take(&mut inner.retry) {
                return inner.refresh.apply(Event::Retry).map(drop);
            }
            if inner.abort.is_some() {
                return Ok(());
            }
        }
        shared.wait();
    }
}

/// Adds to the report; neighbours of one phase are one entry.
fn record(shared: &Shared, name: &str, role: Role, start: u64, l0_exits: u64) {
    let by = match role {
        Role::Incumbent => "incumbent",
        Role::Successor => "successor",
    };
    let end = tsc::now();
    let mut inner = shared.lock();
    let Some(report) = &mut inner.report else {
        return;
    };
    match report.phases.last_mut() {
        Some(last) if last.name == name && last.by == by => {
            last.end = end;
            last.l0_exits += l0_exits;
        }
        _ => report.phases.push(Phase {
            name: name.to_owned(),
            by: by.to_owned(),
            start,
            end,
            l0_exits,
        }),
    }
}
