//! `locum`: the command and daemon that drives a refresh from inside the host.

pub mod acpi;
pub mod channel;
pub mod cli;
pub mod clock;
pub mod command;
pub mod config;
pub mod cpuinfo;
pub mod daemon;
pub mod doctor;
pub mod error;
pub mod guest;
pub mod inventory;
pub mod l0;
pub mod load;
pub mod machine;
pub mod refresh;
pub mod report;
pub mod status;
pub mod sysroot;
pub mod tsc;

#[cfg(test)]
mod testing;
