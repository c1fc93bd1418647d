//! The doors: every way into L0 at run time, and out of it.
//!
//! | door | from | to |
//! | --- | --- | --- |
//! | [`vm_exit`] | a nested host or its guest | `nested`, and back by VM entry |
//! | [`native_call`] | a native host's module | `nested`, and back through its frame |
//! | [`reset`] | a host's CPU that is taken offline or stopped | the parking loop |
//! | [`parking`] | any of these, and CPUs that boot started | `park`, and on to a host |
//! | [`native_host`], [`vm_entry`] | | a host, in VMX root or in non-root |
//!
//! All that jumps is here; what is behind a door returns a value, and the door carries it out.

pub(crate) mod native_call;
pub(crate) mod native_host;
pub(crate) mod parking;
pub(crate) mod reset;
pub(crate) mod vm_entry;
pub(crate) mod vm_exit;
