//! What can be read of a refresh.

use alloc::string::{String, ToString};

use super::{Action, Course, Loss, Progress, Refresh, Role, State};
use crate::{Generation, Partition, Plan, Unreclaimed};

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

    /// Whether a guest runs in the successor for certain.
    #[must_use]
    pub fn has_crossed(&self) -> bool {
        self.done.iter().any(|action| matches!(action, Action::MoveGuest(_)))
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
