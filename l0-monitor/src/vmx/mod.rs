//! VMX as the SDM describes it: fields, instructions, capabilities, exits. Nothing here knows what L0 is for.

pub mod caps;
pub mod controls;
pub mod exit;
pub mod field;
pub mod guest;
pub mod hardware;
pub mod instructions;

pub use hardware::{Hardware, VmxStatus};
