//! What the agent reports, and why it may be told that this makes no sense.

use alloc::{boxed::Box, string::String};

use super::State;
use crate::{Generation, Partition, Plan, TransferError};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Event {
    /// There is a plan, made from an inventory with that partition. Replaces one that has not been started.
    Plan(Box<(Plan, Partition)>),
    /// The operator wants the plan carried out.
    Start,
    /// The pending action is done.
    Done,
    /// The pending action has failed, for this reason, and left nothing behind.
    Failed(String),
    /// Someone wants to go back, for this reason. The pending action has not been begun, or has been given up. On the
    /// successor's side: the incumbent's agent has asked for a guest back.
    Abort(String),
    /// L0 says that the successor is dead. If a guest was being handed over, report first whether it made it.
    SuccessorDied(String),
    /// The operator wants the action on which it is stuck tried again.
    Retry,
}

/// Why an event was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", prefix = "refresh-")]
#[non_exhaustive]
pub enum Refused {
    /// There is no plan.
    #[error("nothing is planned: `locum plan NAME` first")]
    NothingPlanned,
    /// A refresh is under way.
    #[error("a refresh is under way ({0:?}): wait for its end (`locum status`) or stop it (`locum abort`)")]
    Busy(State),
    /// The plan was made by or for another host.
    #[error("the plan is for {plan}, but this host is {host}: plan again")]
    OtherGeneration {
        /// The incumbent's generation in the plan.
        plan: Generation,
        /// That of this host.
        host: Generation,
    },
    /// A result of nothing.
    #[error("no action is pending, so none can have ended: the agent and its state disagree, please report it")]
    NothingPending,
    /// Nothing to go back from.
    #[error("no refresh is under way: there is nothing to abort")]
    NothingToAbort,
    /// Too late to go back.
    #[error(
        "the incumbent has been retired, so there is no way back: wait for the end (`locum status`), then refresh again"
    )]
    PointOfNoReturn,
    /// The abort is under way already.
    #[error("an abort is under way: wait for its end (`locum status`)")]
    Aborting,
    /// There is no successor that could die.
    #[error("no successor runs that could have died: the agent and its state disagree, please report it")]
    NoSuccessor,
    /// Not stuck.
    #[error("nothing is stuck that could be tried again: `locum status` shows what goes on")]
    NotStuck,
    /// The incumbent is still in charge, or took the charge back.
    #[error("this host is a successor that is not in charge yet: ask the incumbent")]
    NotInCharge,
    /// A state sent at the wrong moment.
    #[error(
        "the incumbent's agent sent its state at {0:?}, before all guests were handed over: the two agents disagree, please report it"
    )]
    NotEntrusted(State),
    /// A state that nobody can inherit.
    #[error(
        "the incumbent's agent sent its state at {0:?}, with no successor in it: the two agents disagree, please report it"
    )]
    NothingToInherit(State),
    /// The partition and the action disagree.
    #[error("L0 and the agent disagree on who owns what ({0}): abort, and please report it")]
    Transfer(TransferError),
}
