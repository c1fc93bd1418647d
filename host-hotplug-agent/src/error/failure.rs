//! What a refresh or a command fails of where what went wrong has no name of its own: it is of Linux, of QEMU, or of time.

use crate::refresh::phase;

/// A failure that is told by where it came to pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case")]
#[non_exhaustive]
pub enum Failure {
    /// A command fails, as its text says.
    #[error("...")]
    Failed,
    /// The incumbent cannot give up a CPU, a block of memory or a PCI function.
    #[error("...")]
    RefreshFailedOffload,
    /// Kernel and initramfs cannot be put into the successor's memory.
    #[error("...")]
    RefreshFailedLoad,
    /// A CPU cannot become nested.
    #[error("...")]
    RefreshFailedEnter,
    /// L0 does not give the successor what the plan says, or does not start it.
    #[error("...")]
    RefreshFailedStart,
    /// The successor's agent does not answer in time, or not as it should.
    #[error("...")]
    RefreshFailedBoot,
    /// A guest does not cross.
    #[error("...")]
    RefreshFailedHandover,
    /// The successor does not take charge, or the incumbent does not end.
    #[error("...")]
    RefreshFailedRetire,
    /// A CPU cannot become native.
    #[error("...")]
    RefreshFailedLeave,
    /// The successor cannot take something that was the incumbent's.
    #[error("...")]
    RefreshFailedReclaim,
    /// Something goes wrong on the way back.
    #[error("...")]
    RefreshFailedAbort,
    /// A refresh that an earlier daemon began cannot be gone on with.
    #[error("...")]
    RefreshFailedTakeUp,
    /// The successor's agent cannot serve the incumbent, or not take over.
    #[error("...")]
    RefreshFailedSuccessor,
    /// The successor dies before it reigns, for any reason.
    #[error("the successor died: ...")]
    RefreshSuccessorDied,
    /// The incumbent is gone before it has put the successor in charge, which goes on alone.
    #[error("the incumbent died before it put this host in charge: ...")]
    RefreshIncumbentDied,
    /// An operator has it given up.
    #[error("stopped by the operator")]
    RefreshStopped,
}

impl Failure {
    /// Its stable name.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Of a refresh in one of the phases that [`phase::name`] knows.
    pub fn of_phase(phase: &str) -> Self {
        match phase {
            "offload" => Self::RefreshFailedOffload,
            "load" => Self::RefreshFailedLoad,
            "enter" => Self::RefreshFailedEnter,
            "start" => Self::RefreshFailedStart,
            "boot" => Self::RefreshFailedBoot,
            "handover" => Self::RefreshFailedHandover,
            "retire" => Self::RefreshFailedRetire,
            "reclaim" => Self::RefreshFailedReclaim,
            "leave" => Self::RefreshFailedLeave,
            phase::ABORT => Self::RefreshFailedAbort,
            _ => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_a_failure_of_its_name() {
        for phase in phase::ORDER.iter().chain([&phase::ABORT]) {
            assert_eq!(Failure::of_phase(phase).name(), format!("refresh-failed-{phase}"));
        }
    }
}
