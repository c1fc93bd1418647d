//! The state machine of a refresh.
//!
//! ```text
//!  Idle -> Planned -> Offloaded -> Nested -> SuccessorUp -> Handover -> Retired -> Dormant -> Idle (gen + 1)
//!                  <------------- abort: back to Idle, incumbent intact ------------->|
//!          |------------------ the incumbent's agent --------------------------------|
//!                                                              |--- the successor's agent ---|
//! ```
//!
//! A state names what has been reached. While it is [`Course::Running`], the actions that lead to the next state are
//! pending, and what they did is on the list of things done. [`Course::Aborting`] works through that list backwards.
//!
//! The incumbent's agent drives until it has entrusted its state to the successor's agent; from then on all it does
//! is power off. The successor's agent acts only once L0 has told it that the incumbent is gone, so L0's word is the
//! point of no return: the two agents cannot both believe that they are in charge.

mod abort;
mod action;
mod drive;
mod event;
mod read;
mod script;

use alloc::{collections::VecDeque, string::String, vec::Vec};

pub use action::{Action, Loss};
pub use event::{Event, Refused};

use crate::{Generation, Inventory, Partition, Plan, PlanError, Unreclaimed};

/// What has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum State {
    /// No refresh.
    Idle,
    /// There is a plan; nothing has been changed.
    Planned,
    /// Linux in the incumbent has given up what goes to the successor.
    Offloaded,
    /// Every CPU that the incumbent keeps is nested; the successor's image is in place.
    Nested,
    /// The successor runs and its agent answers.
    SuccessorUp,
    /// Every guest runs in the successor.
    Handover,
    /// The successor is in charge. The incumbent is gone, or about to power off.
    Retired,
    /// The successor is native, and takes what the incumbent had. Older agents became native last, in a state `reclaimed`, which
    /// ends as this one does.
    #[cfg_attr(feature = "serde", serde(alias = "reclaimed"))]
    Dormant,
}

/// Whose agent this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Role {
    /// That of the reigning host, whether or not it is being replaced.
    Incumbent,
    /// That of the host which replaces it.
    Successor,
}

/// Which way it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Course {
    /// Nowhere: nothing is pending.
    Resting,
    /// On to the next state.
    Running,
    /// Back to [`State::Idle`], because of this.
    Aborting(String),
    /// Neither on nor back, because the pending action failed and nothing may be built on its failure. The reason,
    /// and what was under way, if an abort was.
    Stuck {
        /// Why the pending action failed.
        reason: String,
        /// Why there was an abort, if there was one.
        aborting: Option<String>,
    },
}

/// How far the way to the end has been gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Progress {
    /// Actions behind.
    pub done: usize,
    /// Actions in all. During an abort: those that were to be undone when it began.
    pub total: usize,
}

/// A refresh, or the lack of one, as one of the two agents sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Refresh {
    role: Role,
    generation: Generation,
    state: State,
    course: Course,
    plan: Option<Plan>,
    partition: Option<Partition>,
    /// What is to be done next to reach the next state, or all that is still to be undone.
    pending: VecDeque<Action>,
    /// What was done, oldest first. During an abort: what has not been undone yet.
    done: Vec<Action>,
    progress: Progress,
    losses: Vec<Loss>,
    unreclaimed: Vec<Unreclaimed>,
    last_error: Option<String>,
}

impl Refresh {
    /// No refresh. `unreclaimed`: what is nobody's memory, if the agent knows of any.
    #[must_use]
    pub const fn idle(generation: Generation, unreclaimed: Vec<Unreclaimed>) -> Self {
        Self {
            role: Role::Incumbent,
            generation,
            state: State::Idle,
            course: Course::Resting,
            plan: None,
            partition: None,
            pending: VecDeque::new(),
            done: Vec::new(),
            progress: Progress { done: 0, total: 0 },
            losses: Vec::new(),
            unreclaimed,
            last_error: None,
        }
    }

    /// Plans and accepts the plan.
    ///
    /// # Errors
    /// As [`plan()`](crate::plan()) and [`Refresh::apply`]; nothing has changed then.
    pub fn plan_for(&mut self, inventory: &Inventory, request: &crate::Request) -> Result<&Plan, PlanRefused> {
        let plan = crate::plan(inventory, request)?;
        self.apply(Event::Plan(alloc::boxed::Box::new((plan, Partition::of(inventory)?))))?;
        // Accepted a line ago; the error is for the type checker only.
        self.plan.as_ref().ok_or(PlanRefused::Refused(Refused::NothingPlanned))
    }

    /// The state as it is sent with [`Action::Entrust`]: without the plan's warnings. They have been told, and the other
    /// agent, if it is older, may not know their kinds.
    #[must_use]
    pub fn to_send(&self) -> Self {
        let mut sent = self.clone();
        if let Some(plan) = &mut sent.plan {
            plan.warnings.clear();
        }
        sent
    }

    /// The successor's side of a refresh, made from what the incumbent's agent has sent while performing
    /// [`Action::Entrust`]. The first thing to do is in [`Refresh::next_action`].
    ///
    /// # Errors
    /// [`Refused::NotEntrusted`] if that state was not taken at [`Action::Entrust`].
    pub fn take_over(sent: Self) -> Result<Self, Refused> {
        let entrusted = sent.role == Role::Incumbent
            && sent.course == Course::Running
            && sent.pending.front() == Some(&Action::Entrust);
        if !entrusted {
            return Err(Refused::NotEntrusted(sent.state));
        }
        let (Some(plan), Some(partition)) = (&sent.plan, &sent.partition) else {
            return Err(Refused::NotEntrusted(sent.state));
        };
        let total = script::successor_total(plan, partition);
        Ok(Self {
            role: Role::Successor,
            state: State::Handover,
            pending: VecDeque::from([Action::AwaitIncumbentGone]),
            done: Vec::new(),
            progress: Progress { done: 0, total },
            ..sent
        })
    }

    /// The successor's side of a refresh whose incumbent died before it had put this host in charge: made from what its
    /// agent has sent since the successor is up. `losses` are guests that do not run here, `reason` says how it died.
    ///
    /// # Errors
    /// [`Refused::NothingToInherit`] if that state is not one of an incumbent with a successor.
    pub fn inherit(sent: Self, losses: Vec<Loss>, reason: String) -> Result<Self, Refused> {
        let (Role::Incumbent, Some(plan), Some(partition)) = (sent.role, &sent.plan, &sent.partition) else {
            return Err(Refused::NothingToInherit(sent.state));
        };
        if !sent.done.contains(&Action::StartSuccessor) {
            return Err(Refused::NothingToInherit(sent.state));
        }
        let total = script::successor_total(plan, partition);
        let losses = [sent.losses, losses].concat();
        Ok(Self {
            role: Role::Successor,
            state: State::Handover,
            course: Course::Running,
            pending: VecDeque::from([Action::TakeIncumbent]),
            done: Vec::new(),
            progress: Progress { done: 0, total },
            losses,
            last_error: Some(reason),
            ..sent
        })
    }

    /// Takes note of something that was lost beside an action.
    pub fn note_loss(&mut self, loss: Loss) {
        self.losses.push(loss);
    }

    /// Takes note of an event and says what to do next; `None` if nothing is to be done until the next event.
    ///
    /// Events come one at a time: report the result of an action under way before anything else.
    ///
    /// # Errors
    /// If the event makes no sense now. Nothing has changed then.
    pub fn apply(&mut self, event: Event) -> Result<Option<Action>, Refused> {
        match event {
            Event::Plan(planned) => self.accept(planned.0, planned.1)?,
            Event::Start => self.start()?,
            Event::Done => self.succeeded()?,
            Event::Failed(reason) => self.failed(reason)?,
            Event::Abort(reason) => self.abort(reason)?,
            Event::SuccessorDied(reason) => self.successor_died(reason)?,
            Event::Retry => self.retry()?,
        }
        Ok(self.next_action().cloned())
    }
}

/// Why there is no plan, or why it was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefused {
    /// There is none.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Not now.
    #[error(transparent)]
    Refused(#[from] Refused),
}
