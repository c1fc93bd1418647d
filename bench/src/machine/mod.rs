//! A running server, and the hosts on it.
//!
//! [`Machine`] runs [`bochs`] (or [`qemu`]) and watches over it: its logs are read by [`follow`], its time is that of
//! [`deadline`], and [`layout`] says where what lies in its RAM. To each [`Host`] on it leads a [`channel`], a serial
//! line. Where several users share the developer's machine, their emulators take [`turns`].

pub(crate) mod bochs;
pub(crate) mod channel;
pub(crate) mod deadline;
mod follow;
mod host;
pub(crate) mod layout;
pub(crate) mod qemu;
mod server;
pub(crate) mod turns;

pub(crate) use host::Host;
pub(crate) use server::{Machine, Setup};
