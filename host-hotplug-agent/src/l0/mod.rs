//! L0 as user space sees it: its header, status, trace and log, decoded. Read-only.

mod event;
pub mod header;
pub mod memory;
pub mod names;
pub mod trace;
pub mod view;
mod vmcs;

pub use view::L0View;
