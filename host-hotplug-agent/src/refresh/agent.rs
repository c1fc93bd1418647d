//! What an agent works with, whichever side it is on.

use std::sync::Arc;

use anyhow::{Context, Result};
use locum_abi::HostState;
use partitioner::ApicId;

use super::Shared;
use crate::acpi::Interrupts;
use crate::guest::Hypervisor;
use crate::l0::{names, view};
use crate::machine::{Machine, TextKind};
use crate::systemd;

/// The machine, what runs guests on it, and what the threads share.
#[derive(Clone)]
pub struct Agent {
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// What runs guests.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// The refresh.
    pub shared: Arc<Shared>,
}

impl Agent {
    /// Linux's number of a CPU.
    ///
    /// # Errors
    /// If this host does not know it.
    pub fn cpu_number(&self, apic: ApicId) -> Result<u32> {
        let madt = Interrupts::read(self.machine.sys())?;
        madt.number(apic.0)
            .with_context(|| format!("the MADT does not list {apic}"))
    }

    /// State of the host in the other slot, and why it is dead, if it is. None: L0 does not say.
    pub fn other_host(&self) -> Option<(HostState, String)> {
        let host = self.machine.host(self.machine.facts().slot.other()).ok()?;
        Some((HostState::from_raw(host.state)?, names::stop_reason(&host)))
    }

    /// Why the other host is dead, if it is.
    pub fn other_died(&self) -> Option<String> {
        match self.other_host()? {
            (HostState::Dead, reason) => Some(reason),
            _ => None,
        }
    }

    /// VM exits that L0 took since boot, on all CPUs; 0 if L0 does not say.
    pub fn exits(&self) -> u64 {
        self.machine.status().map_or(0, |status| view::total_exits(&status))
    }

    /// Shows where the refresh stands in `/sys/kernel/locum` and in `systemctl status`.
    pub fn publish(&self) {
        let status = self.shared.status();
        let progress = format!("{}/{} {}", status.done, status.total, status.summary);
        let error = status.last_error.unwrap_or_default();
        self.machine.publish(TextKind::State, &status.state);
        self.machine.publish(TextKind::Progress, &progress);
        self.machine.publish(TextKind::LastError, &error);
        systemd::status(&progress);
    }
}
