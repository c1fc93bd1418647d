//! The way back: what was done is undone in reverse order.

use alloc::string::String;

use super::{Action, Course, Loss, Progress, Refresh, Refused, Role, State};

impl Refresh {
    /// Whether the incumbent could still go back: it is the incumbent's agent and the successor is not in charge.
    pub(super) fn can_abort(&self) -> bool {
        self.role == Role::Incumbent && self.state < State::Retired
    }

    pub(super) fn abort(&mut self, reason: String) -> Result<(), Refused> {
        match (&self.course, self.role, self.state) {
            (_, _, State::Idle) => Err(Refused::NothingToAbort),
            (Course::Aborting(_) | Course::Stuck { aborting: Some(_), .. }, ..) => Err(Refused::Aborting),
            (_, Role::Successor, State::Handover) => {
                // The incumbent goes on. This host is about to be stopped; until then it is in charge of nothing.
                self.last_error = Some(reason);
                self.rest();
                Ok(())
            }
            _ if self.can_abort() => {
                self.last_error = Some(reason.clone());
                self.begin_abort(reason);
                Ok(())
            }
            _ => Err(Refused::PointOfNoReturn),
        }
    }

    /// The guests that were in the successor are gone with it. All else can be taken back, even when the successor
    /// was in charge already: the incumbent has not powered off, or it could not tell.
    pub(super) fn successor_died(&mut self, reason: String) -> Result<(), Refused> {
        if self.role == Role::Successor || !self.done.contains(&Action::StartSuccessor) {
            return Err(Refused::NoSuccessor);
        }
        self.last_error = Some(reason.clone());
        let losses = &mut self.losses;
        self.done.retain(|action| match action {
            Action::MoveGuest(name) => {
                losses.push(Loss::Guest(name.clone()));
                false
            }
            _ => true,
        });
        let reason = match &self.course {
            Course::Aborting(first)
            | Course::Stuck {
                aborting: Some(first), ..
            } => first.clone(),
            _ => reason,
        };
        self.begin_abort(reason);
        Ok(())
    }

    /// Turns back. Whatever is pending has not been done.
    pub(super) fn begin_abort(&mut self, reason: String) {
        self.done.retain(|action| action.undo().is_some());
        self.progress = Progress {
            done: 0,
            total: self.done.len(),
        };
        self.course = Course::Aborting(reason);
        self.next_undo();
    }

    /// The last thing done has been undone, or is lost.
    pub(super) fn undone(&mut self) {
        self.done.pop();
        self.next_undo();
    }

    fn next_undo(&mut self) {
        self.pending = self.done.last().and_then(Action::undo).into_iter().collect();
        if self.pending.is_empty() {
            self.rest();
        }
    }
}
