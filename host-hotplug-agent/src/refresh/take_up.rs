//! A refresh that another daemon of this host began: what the journal says is held against what L0 and Linux say.
//!
//! | what L0 and Linux say | what follows |
//! | --- | --- |
//! | all that is done is done | it goes on with the next action, which looks first whether it is done |
//! | something that is done is not so any more, the successor is not in charge | it is aborted: guests that have gone over come back |
//! | the successor runs, or is dead, though it had not been started yet | it had been: that action is done |
//! | the successor is gone, though it had been started | it is aborted, or the successor's death is noted |
//! | no successor runs yet, but resources were given | L0 takes them back and they are given again: it does not tell each |

use anyhow::{Result, bail};
use partitioner::{Action, Course, Event, State};

use super::Agent;
use super::incumbent::Incumbent;
use crate::error::{Failure, Told};
use crate::l0::view;

/// Makes the refresh in `agent` fit what is so, before it goes on.
///
/// # Errors
/// If the state machine and this module disagree, which is a fault of the program.
pub fn reconcile(agent: &Agent, incumbent: &mut Incumbent) -> Result<()> {
    match incumbent.settle_pending() {
        Some(Ok(())) => drop(agent.shared.lock().refresh.apply(Event::Done)?),
        Some(Err(error)) => {
            let failure = Told::of_failure(Failure::RefreshFailedHandover, &error);
            agent.shared.lock().fail(failure, Event::Failed)?;
        }
        None => {}
    }
    let (course, state) = {
        let inner = agent.shared.lock();
        (inner.refresh.course().clone(), inner.refresh.state())
    };
    // On the way back every action looks first, and what L0 has is taken back at once.
    if course != Course::Running {
        return Ok(());
    }
    let Err(contradiction) = check(agent, incumbent) else {
        return Ok(());
    };
    let reason = format!("the daemon was started anew, and {contradiction:#}");
    tracing::warn!("{reason}");
    let mut inner = agent.shared.lock();
    if state < State::Retired {
        inner.fail(Told::new(Failure::RefreshFailedTakeUp, reason), Event::Abort)?;
    } else {
        inner.fail(Told::new(Failure::RefreshSuccessorDied, reason), Event::SuccessorDied)?;
    }
    Ok(())
}

/// Whether it can go on.
fn check(agent: &Agent, incumbent: &mut Incumbent) -> Result<()> {
    let (done, next) = {
        let inner = agent.shared.lock();
        (inner.refresh.done().to_vec(), inner.refresh.next_action().cloned())
    };
    let other = agent.other_state();
    let started = done.contains(&Action::StartSuccessor);
    match other {
        Some(state) if view::was_started(state) && (started || next == Some(Action::StartSuccessor)) => {}
        Some(state) if view::was_started(state) => bail!("L0 has a successor that this refresh did not start"),
        _ if started => bail!("L0 has no successor any more"),
        _ if done.iter().any(|action| matches!(action, Action::Transfer(_))) || agent.has_other() => {
            incumbent.give_again()?;
        }
        _ => {}
    }
    for action in &done {
        // What was given to the successor is not this host's to look at; that it runs was seen above.
        if !matches!(action, Action::StartSuccessor) && agent.found(action)? == Some(false) {
            bail!("`{action}`, which was done, is not so any more");
        }
    }
    Ok(())
}
