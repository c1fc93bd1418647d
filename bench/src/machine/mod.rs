//! A running server, and the hosts on it.
//!
//! [`Machine`] runs [`bochs`], or on another [`platform`] a [`board`] in [`tcg`] (or [`qemu`] with KVM), and watches over it:
//! its logs are read by [`follow`], its time is that of [`deadline`], and [`layout`] says where what lies in its RAM. To
//! each [`Host`] on it leads a [`channel`], a serial line; to QEMU itself, a [`monitor`]; Bochs is asked for machine
//! [`checks`], and its cards may hang on a [`segment`]. Where several users share the developer's
//! machine, their emulators take [`turns`].

pub(crate) mod board;
pub(crate) mod bochs;
pub(crate) mod channel;
pub(crate) mod checks;
pub(crate) mod deadline;
mod follow;
mod host;
pub(crate) mod layout;
mod monitor;
pub(crate) mod platform;
pub(crate) mod qemu;
pub(crate) mod segment;
mod server;
mod tcg;
pub(crate) mod turns;

pub(crate) use host::Host;
pub(crate) use server::{Machine, Medium, Setup};
