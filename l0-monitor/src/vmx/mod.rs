//! VMX as the SDM describes it: fields, instructions, capabilities, exits. Nothing here knows what L0 is for.

pub(crate) mod caps;
pub(crate) mod controls;
pub(crate) mod exit;
pub(crate) mod field;
pub(crate) mod guest;
pub(crate) mod hardware;
pub(crate) mod instructions;

pub(crate) use hardware::{Hardware, VmxStatus};
