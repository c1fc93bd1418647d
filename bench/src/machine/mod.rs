//! A running server, and the hosts on it.
//!
//! [`Machine`] runs [`bochs`] (or [`qemu`]) and watches over it: its logs are read by [`follow`], its time is that of
//! [`deadline`], and [`layout`] says where what lies in its RAM. To each [`Host`] on it leads a [`channel`], a serial
//! line. Where several users share the developer's machine, their emulators take [`turns`].

pub mod bochs;
pub mod channel;
pub mod deadline;
mod follow;
mod host;
pub mod layout;
pub mod qemu;
mod server;
pub mod turns;

pub use host::Host;
pub use server::{Machine, Setup};
