//! A refresh carried out: the state machine of `partitioner` says what to do, this module does it.
//!
//! ```text
//!  incumbent's daemon                                   successor's daemon
//!  prepare (files, guests, inventory -> plan)
//!  drive: offload, load, enter, grant, start
//!         await successor  <-------- Hello ------------ serve
//!                          --- Welcome (clock, guests) -> starts QEMUs, Prepared, Heir
//!         move guest       --- Receive -------------->   Receiving
//!                          === state on channel n ====>  Resumed | Failed
//!                          --- Late (frames) -------->   gives them to the guest
//!         entrust          --- Entrust (state) ------->  Entrusted
//!         power off                                     drive: await gone, leave nested; add memory, CPUs, PCI
//! ```

mod agent;
mod by_kernel;
#[cfg(test)]
mod clients;
#[cfg(test)]
mod deaths;
pub mod drive;
#[cfg(test)]
mod faults;
mod found;
pub mod give_back;
mod going;
#[cfg(test)]
mod gone;
pub mod incumbent;
mod kdump;
#[cfg(test)]
mod kills;
pub mod phase;
pub mod prepare;
mod settings;
pub mod shared;
#[cfg(test)]
mod stage;
#[cfg(test)]
mod stranded;
pub mod successor;
pub mod take_up;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wishes;

pub use agent::{Agent, Limits};
pub use prepare::{Choice, Prepared, Wishes};
pub use shared::Shared;

use std::collections::BTreeMap;

use anyhow::Result;

use crate::channel::Port;
use crate::machine::Machine;

/// Channels for guests, opened once per refresh: a channel that is opened anew drops what is in it.
#[derive(Default)]
pub struct Ports(BTreeMap<usize, Port>);

impl Ports {
    /// The channel of that number.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn get(&mut self, machine: &dyn Machine, number: usize) -> Result<&mut Port> {
        Ok(match self.0.entry(number) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(machine.channel(number)?),
        })
    }
}
