//! `locum daemon` and how the other commands talk to it.

pub mod ipc;
