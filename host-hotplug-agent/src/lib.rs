//! `locum`: the command and daemon in the host, which replace that host by another under its running guests.
//!
//! # What this is
//!
//! The hands of a refresh. `partitioner` decides what is to be done, `firmware-shim` makes what the successor sees as
//! firmware, L0 and `locum.ko` enforce who owns what; this program reads the machine, performs the actions one by one,
//! moves the guests, and tells the operator. The same program runs in both hosts, first as the successor's agent, later
//! as the incumbent's.
//!
//! # What this is not
//!
//! It holds no policy, touches no device but through Linux and the module, and runs AML only in a process that may die
//! and touches nothing ([`acpi::aml`]). It trusts the administrator, but not the other host: messages are checked, and every wait ends.
//!
//! # How data flows through it
//!
//! ```text
//!  /etc/locum/NAME.toml -> config --+
//!  /proc, /sys, L0's status -> inventory --+-> refresh::prepare -> partitioner::plan
//!  kernel, initramfs -> load::files --+
//!
//!  partitioner::Refresh -- next action --> refresh::{incumbent, successor} -> machine (module, sysfs)
//!           ^------------ done, failed ----------'      |-> load (image, tables, zero page)
//!                                                       |-> channel 0: messages to the other agent
//!                                                       '-> guest (QMP) <-> channels 1-3: guests' state
//!
//!  L0's status, trace, log -> l0 -> command (doctor, status, trace, log);  report -> status
//! ```
//!
//! # Modules
//!
//! | module | what |
//! | --- | --- |
//! | [`cli`], [`command`] | the command line, and each command |
//! | [`config`] | `/etc/locum/NAME.toml` |
//! | [`error`] | what is refused before anything changes |
//! | [`preflight`], [`doctor`] | is this machine fit? The first without L0, too |
//! | [`setup`] | how this machine boots next |
//! | [`image`] | the initramfs that a successor starts from |
//! | [`sysroot`], [`inventory`], [`acpi`] | the machine as Linux shows it, and what the firmware's code uses of it |
//! | [`l0`] | the machine as L0 shows it |
//! | [`machine`] | the machine as it can be changed: the one place of ioctls and sysfs writes |
//! | [`load`] | the successor's image |
//! | [`channel`] | bytes and messages between the hosts |
//! | [`guest`] | QEMU |
//! | [`pool`] | which guest's RAM lies where in the pool |
//! | [`file`] | files that are replaced as a whole |
//! | [`clock`], [`tsc`] | time that both hosts share |
//! | [`deadline`] | how long to wait |
//! | [`journal`] | what of a refresh outlives the daemon |
//! | [`refresh`] | the refresh carried out, from either side |
//! | [`daemon`] | requests, one at a time |
//! | [`systemd`] | what systemd is told |
//! | [`evidence`] | what is saved of a successor that died |
//! | [`report`], [`status`], [`metrics`] | what happened, and how it stands |
//! | [`told`] | what `--json` is made of, for programs that stand for this one in tests |
//! | [`units`] | times and sizes in words |
//!
//! Everything above [`machine`] and [`guest`] runs in `cargo test` against a machine in memory, including every way
//! back.

mod acpi;
pub mod channel;
pub mod cli;
mod clock;
pub mod command;
pub mod config;
mod daemon;
pub mod deadline;
mod doctor;
pub mod error;
mod evidence;
mod file;
pub mod guest;
mod image;
mod inventory;
mod journal;
mod l0;
mod load;
pub mod machine;
mod metrics;
pub mod pool;
mod preflight;
mod refresh;
mod report;
mod setup;
mod status;
pub mod sysroot;
mod systemd;
pub mod told;
mod tsc;
mod units;

#[cfg(test)]
mod testing;
