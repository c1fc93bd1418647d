//! Actions grouped into the phases of a report.

use partitioner::{Action, Course, Refresh, Role, State};

/// The phases of a refresh that goes through, in their order.
pub const ORDER: [&str; 9] = [
    "offload", "load", "enter", "start", "boot", "handover", "retire", "leave", "reclaim",
];

/// The phase of one that is given up.
pub const ABORT: &str = "abort";

/// The phase to which an action belongs.
pub fn name(refresh: &Refresh, action: &Action) -> &'static str {
    if matches!(refresh.course(), Course::Aborting(_)) {
        return ABORT;
    }
    match action {
        Action::RemoveMemory { .. } | Action::OfflineCpu(_) | Action::RemovePci(_) => "offload",
        Action::LoadSuccessor | Action::WipeSuccessor => "load",
        Action::EnterNested(_) => "enter",
        Action::Transfer(_) if refresh.role() == Role::Incumbent => "start",
        Action::StartSuccessor | Action::StopSuccessor => "start",
        Action::AwaitSuccessor => "boot",
        Action::MoveGuest(_) | Action::ReturnGuest(_) => "handover",
        // What L0 did by itself when the incumbent was gone.
        Action::Transfer(_) if refresh.state() == State::Retired => "retire",
        Action::Entrust | Action::PowerOff | Action::AwaitIncumbentGone | Action::TakeIncumbent => "retire",
        Action::Transfer(_) | Action::AddMemory { .. } | Action::OnlineCpu(_) | Action::AddPci(_) => "reclaim",
        Action::LeaveNested(_) => "leave",
    }
}
