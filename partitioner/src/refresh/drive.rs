//! The way on: what each event does, and which state comes next.

use alloc::{collections::VecDeque, string::String, vec::Vec};

use super::{Action, Course, Loss, Progress, Refresh, Refused, Role, State, script};
use crate::{MemRange, Owner, Partition, Plan, Resource, Transfer, Unreclaimed};

impl Refresh {
    pub(super) fn accept(&mut self, plan: Plan, partition: Partition) -> Result<(), Refused> {
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

    pub(super) fn start(&mut self) -> Result<(), Refused> {
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

    pub(super) fn succeeded(&mut self) -> Result<(), Refused> {
        let action = match self.course {
            Course::Running | Course::Aborting(_) => self.pending.front().ok_or(Refused::NothingPending)?,
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

    pub(super) fn failed(&mut self, reason: String) -> Result<(), Refused> {
        let action = match self.course {
            Course::Running | Course::Aborting(_) => self.pending.front().cloned().ok_or(Refused::NothingPending)?,
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

    pub(super) fn retry(&mut self) -> Result<(), Refused> {
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
                (Role::Incumbent, State::SuccessorUp) => (State::Handover, Vec::from([Action::Entrust])),
                (Role::Incumbent, State::Handover) => (State::Retired, Vec::from([Action::PowerOff])),
                (Role::Successor, State::Handover) => (State::Retired, script::leave(plan, partition)),
                (Role::Successor, State::Retired) => (State::Dormant, self.left_to_reclaim(plan)),
                (Role::Successor, State::Dormant) => return self.reign(),
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

    /// What a successor that is native takes: nothing more if an older agent wrote this down, which had taken all before.
    fn left_to_reclaim(&self, plan: &Plan) -> Vec<Action> {
        let done = self.done.iter().filter_map(Action::loss);
        let mut tried = done.chain(self.losses.iter().cloned());
        if tried.any(|what| matches!(what, Loss::Memory(_) | Loss::Cpu(_) | Loss::Function(_))) {
            Vec::new()
        } else {
            script::reclaim(plan)
        }
    }

    /// The successor becomes the incumbent of the next refresh.
    fn reign(&mut self) {
        let node = |range: MemRange| {
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
    pub(super) fn rest(&mut self) {
        self.state = State::Idle;
        self.course = Course::Resting;
        self.plan = None;
        self.partition = None;
        self.pending.clear();
        self.done.clear();
        self.progress = Progress { done: 0, total: 0 };
    }
}
