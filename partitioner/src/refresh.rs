//! The state machine of a refresh.
//!
//! ```text
//!  Idle -> Planned -> Offloaded -> Nested -> SuccessorUp -> Handover -> Retired -> Reclaimed -> Idle (gen + 1)
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
mod event;
mod script;

use alloc::{
    collections::VecDeque,
    string::{String, ToString},
    vec::Vec,
};

pub use action::{Action, Loss};
pub use event::{Event, Refused};

use crate::{
    Generation, Inventory, Owner, Partition, Plan, PlanError, Resource, Transfer, Unreclaimed,
};

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
    /// All that the incumbent had is in use by the successor.
    Reclaimed,
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
    pub fn plan_for(
        &mut self,
        inventory: &Inventory,
        request: &crate::Request,
    ) -> Result<&Plan, PlanRefused> {
        let plan = crate::plan(inventory, request)?;
        self.apply(Event::Plan(alloc::boxed::Box::new((
            plan,
            Partition::of(inventory)?,
        ))))?;
        // Accepted a line ago; the error is for the type checker only.
        self.plan
            .as_ref()
            .ok_or(PlanRefused::Refused(Refused::NothingPlanned))
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
        let total = 1 + script::reclaim(plan, partition).len() + script::leave(plan, &[]).len();
        Ok(Self {
            role: Role::Successor,
            state: State::Handover,
            pending: VecDeque::from([Action::AwaitIncumbentGone]),
            done: Vec::new(),
            progress: Progress { done: 0, total },
            ..sent
        })
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

    fn accept(&mut self, plan: Plan, partition: Partition) -> Result<(), Refused> {
        if self.role == Role::Successor {
            return Err(Refused::NotInCharge);
        }
        if !matches!(self.state, State::Idle | State::Planned) || self.course != Course::Resting {
            return Err(Refused::Busy(self.state));
        }
        if plan.generation != self.generation {
            return Err(Refused::OtherGeneration {
                plan: plan.generation,
                host: self.generation,
            });
        }
        self.progress = Progress {
            done: 0,
            total: script::incumbent_total(&plan),
        };
        self.plan = Some(plan);
        self.partition = Some(partition);
        self.state = State::Planned;
        self.losses.clear();
        self.last_error = None;
        Ok(())
    }

    fn start(&mut self) -> Result<(), Refused> {
        match (&self.plan, self.state, &self.course) {
            (Some(plan), State::Planned, Course::Resting) => {
                self.pending = script::offload(plan).into();
                self.course = Course::Running;
                self.advance();
                Ok(())
            }
            (_, State::Idle, _) => Err(Refused::NothingPlanned),
            _ => Err(Refused::Busy(self.state)),
        }
    }

    fn succeeded(&mut self) -> Result<(), Refused> {
        let action = match self.course {
            Course::Running | Course::Aborting(_) => {
                self.pending.front().ok_or(Refused::NothingPending)?
            }
            Course::Resting | Course::Stuck { .. } => return Err(Refused::NothingPending),
        };
        if let (Action::Transfer(transfer), Some(partition)) = (action, &mut self.partition) {
            partition.transfer(*transfer).map_err(Refused::Transfer)?;
        }
        let Some(action) = self.pending.pop_front() else {
            return Err(Refused::NothingPending);
        };
        self.progress.done += 1;
        if self.course == Course::Running {
            self.done.push(action);
            self.advance();
        } else {
            self.undone();
        }
        Ok(())
    }

    fn failed(&mut self, reason: String) -> Result<(), Refused> {
        let action = match self.course {
            Course::Running | Course::Aborting(_) => self
                .pending
                .front()
                .cloned()
                .ok_or(Refused::NothingPending)?,
            Course::Resting | Course::Stuck { .. } => return Err(Refused::NothingPending),
        };
        let reason = alloc::format!("{action}: {reason}");
        self.last_error = Some(reason.clone());
        if self.course == Course::Running && self.can_abort() {
            self.begin_abort(reason);
        } else if action == Action::AwaitIncumbentGone {
            // It neither powers off nor takes its guests back: it hangs.
            self.pending = VecDeque::from([Action::TakeIncumbent]);
        } else if let Some(loss) = action.loss() {
            self.pending.pop_front();
            self.progress.done += 1;
            self.lose(loss);
            if self.course == Course::Running {
                self.advance()
            } else {
                self.undone()
            }
        } else {
            let aborting = match core::mem::replace(&mut self.course, Course::Resting) {
                Course::Aborting(why) => Some(why),
                _ => None,
            };
            self.course = Course::Stuck { reason, aborting };
        }
        Ok(())
    }

    fn retry(&mut self) -> Result<(), Refused> {
        match &mut self.course {
            Course::Stuck { aborting, .. } => {
                self.course = aborting.take().map_or(Course::Running, Course::Aborting);
                Ok(())
            }
            _ => Err(Refused::NotStuck),
        }
    }

    /// Notes a loss. Memory that the successor could not add becomes nobody's, for the next successor to boot on.
    fn lose(&mut self, loss: Loss) {
        if let (Loss::Memory(range), Role::Successor, Some(plan)) = (&loss, self.role, &self.plan) {
            let transfer = Transfer {
                resource: Resource::Memory(*range),
                from: Owner::Host(plan.successor()),
                to: Owner::Nobody,
            };
            self.pending.push_front(Action::Transfer(transfer));
            self.progress.total += 1;
        }
        self.losses.push(loss);
    }

    /// Goes to the next state as long as nothing is left to do in the present one.
    fn advance(&mut self) {
        while self.pending.is_empty() && self.course == Course::Running {
            let (Some(plan), Some(partition)) = (&self.plan, &self.partition) else {
                return;
            };
            let (state, actions) = match (self.role, self.state) {
                (Role::Incumbent, State::Planned) => (State::Offloaded, script::enter(plan)),
                (Role::Incumbent, State::Offloaded) => (State::Nested, script::boot(plan)),
                (Role::Incumbent, State::Nested) => (State::SuccessorUp, script::hand_over(plan)),
                (Role::Incumbent, State::SuccessorUp) => {
                    (State::Handover, Vec::from([Action::Entrust]))
                }
                (Role::Incumbent, State::Handover) => {
                    (State::Retired, Vec::from([Action::PowerOff]))
                }
                (Role::Successor, State::Handover) => {
                    (State::Retired, script::reclaim(plan, partition))
                }
                (Role::Successor, State::Retired) => {
                    (State::Reclaimed, script::leave(plan, &self.losses))
                }
                (Role::Successor, State::Reclaimed) => return self.reign(),
                // Powered off, so to say: nothing follows.
                _ => {
                    self.course = Course::Resting;
                    return;
                }
            };
            self.state = state;
            self.pending = actions.into();
        }
    }

    /// The successor becomes the incumbent of the next refresh.
    fn reign(&mut self) {
        let node = |range: crate::MemRange| {
            let blocks = self.plan.iter().flat_map(|plan| &plan.reclaim.blocks);
            blocks
                .filter(move |block| block.range == range)
                .map(|block| block.node)
                .next()
        };
        let lost = self.losses.iter().filter_map(|loss| match loss {
            Loss::Memory(range) => Some(Unreclaimed {
                range: *range,
                node: node(*range)?,
            }),
            _ => None,
        });
        let left = self
            .plan
            .iter()
            .flat_map(|plan| plan.reclaim.unreclaimed.iter().copied());
        self.unreclaimed = left.chain(lost).collect();
        self.role = Role::Incumbent;
        self.generation = self.generation.next();
        self.rest();
    }

    /// Back to no refresh.
    fn rest(&mut self) {
        self.state = State::Idle;
        self.course = Course::Resting;
        self.plan = None;
        self.partition = None;
        self.pending.clear();
        self.done.clear();
        self.progress = Progress { done: 0, total: 0 };
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

/// What can be read of it.
impl Refresh {
    /// Whose side this is.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// Generation of the reigning host.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// What has been reached.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// Which way it goes.
    #[must_use]
    pub const fn course(&self) -> &Course {
        &self.course
    }

    /// The plan, unless idle.
    #[must_use]
    pub const fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Who owns what at this moment, unless idle.
    #[must_use]
    pub const fn partition(&self) -> Option<&Partition> {
        self.partition.as_ref()
    }

    /// What is to be done now. `None` while resting or stuck.
    #[must_use]
    pub fn next_action(&self) -> Option<&Action> {
        match self.course {
            Course::Running | Course::Aborting(_) => self.pending.front(),
            Course::Resting | Course::Stuck { .. } => None,
        }
    }

    /// What was done and could still be undone, oldest first.
    #[must_use]
    pub fn done(&self) -> &[Action] {
        &self.done
    }

    /// How far it has come.
    #[must_use]
    pub const fn progress(&self) -> Progress {
        self.progress
    }

    /// What the present or the last refresh has lost.
    #[must_use]
    pub fn losses(&self) -> &[Loss] {
        &self.losses
    }

    /// Memory that belongs to nobody, for the next [`Inventory`].
    #[must_use]
    pub fn unreclaimed(&self) -> &[Unreclaimed] {
        &self.unreclaimed
    }

    /// Why the last action that failed did.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// One line for an operator.
    #[must_use]
    pub fn summary(&self) -> String {
        let next = self
            .next_action()
            .map(|action| alloc::format!(", next: {action}"))
            .unwrap_or_default();
        let course = match &self.course {
            Course::Resting | Course::Running => String::new(),
            Course::Aborting(why) => alloc::format!(", aborting ({why})"),
            Course::Stuck { reason, .. } => {
                alloc::format!(", stuck ({reason}): remove the cause, then retry")
            }
        };
        [
            self.generation.to_string(),
            alloc::format!(", {:?}", self.state),
            course,
            next,
        ]
        .concat()
    }
}
