//! What `locum status`, `locum plan` and a report print with `--json`: for programs that stand for this one in tests, so that they
//! print nothing else.

pub use crate::l0::L0View;
pub use crate::l0::view::{CpuView, ExitView, HostView, TablesView};
pub use crate::refresh::prepare::PlanView;
pub use crate::report::{GuestReport, Report};
pub use crate::status::around::{Around, GuestView, Place};
pub use crate::status::{DaemonStatus, StatusView};
