//! What an agent works with, whichever side it is on.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use locum_abi::HostState;
use partitioner::{ApicId, MemRange};

use super::Shared;
use crate::acpi::Interrupts;
use crate::channel::Versions;
use crate::guest::Hypervisor;
use crate::journal::{Entry, Journal};
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
    /// What of it outlives this daemon.
    pub journal: Arc<Journal>,
    /// How long the other agent may take.
    pub limits: Limits,
    /// The versions of the protocol that it speaks.
    pub speaks: Versions,
}

/// How long the other agent may take, beside what the configuration grants.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For a message to get through.
    pub message: Duration,
    /// Beyond a guest's time, for the successor to say how it went, its QEMU's end included.
    pub verdict: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message: Duration::from_secs(30),
            verdict: Duration::from_secs(30),
        }
    }
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
            (HostState::Dumping, _) => Some("it has panicked, and writes a dump".to_owned()),
            _ => None,
        }
    }

    /// Gives a memory block to Linux. It was another host's, or may have been: it is cleared first.
    ///
    /// # Errors
    /// If it cannot be cleared, and then Linux has not got it; or Linux's refusal.
    pub fn add_memory(&self, block: MemRange, node: u32, online: bool) -> Result<()> {
        // Added by a daemon that is gone, and not yet brought online: it is in use, and was cleared.
        if !self.has_block(block) {
            self.machine.wipe(block)?;
        }
        self.machine.add_memory(block, node, online)
    }

    /// Makes a CPU native again.
    ///
    /// # Errors
    /// If there is no such CPU; or L0's refusal.
    pub fn leave_nested(&self, apic: ApicId) -> Result<()> {
        self.machine.leave(self.cpu_number(apic)?)?;
        self.settings_as_before();
        Ok(())
    }

    /// VM exits that L0 took since boot, on all CPUs; 0 if L0 does not say.
    pub fn exits(&self) -> u64 {
        self.machine.status().map_or(0, |status| view::total_exits(&status))
    }

    /// Boot of this host, as Linux names it.
    pub fn boot_id(&self) -> String {
        self.machine
            .sys()
            .read_optional("proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
    }

    /// This host's own generation.
    ///
    /// # Errors
    /// If L0 does not say.
    pub fn generation(&self) -> Result<u64> {
        let host = self.machine.host(self.machine.facts().slot)?;
        Ok(u64::from(host.generation))
    }

    /// Whether L0 says that this is the reigning host.
    ///
    /// # Errors
    /// If L0 does not say.
    pub fn reigns(&self) -> Result<bool> {
        Ok(self.generation()? == u64::from(self.machine.status()?.generation))
    }

    /// Writes down where the refresh stands. Once this has returned, another daemon can go on from here.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_down(&self) -> Result<()> {
        let (boot_id, generation) = (self.boot_id(), self.generation()?);
        let entry = {
            let inner = self.shared.lock();
            Entry {
                boot_id,
                generation,
                name: inner.running.clone().unwrap_or_default(),
                refresh: inner.refresh.clone(),
                brief: inner.brief.clone(),
                report: inner.report.clone(),
                abort: inner.abort.clone(),
            }
        };
        let path = self.journal.path().display();
        self.journal.write(&entry).with_context(|| {
            format!(
                "where the refresh stands cannot be written to {path}, and no action may begin without: make room there"
            )
        })
    }

    /// Shows where the refresh stands in `/sys/kernel/locum` and in `systemctl status`.
    pub fn publish(&self) {
        self.publish_state();
        self.publish_progress();
    }

    /// Shows what is waited for, where that may take for ever, or that nothing is. Returns whether it is another thing than before.
    pub fn awaits(&self, what: Option<&str>) -> bool {
        let what = what.map(str::to_owned);
        let before = std::mem::replace(&mut self.shared.lock().awaits, what.clone());
        let is_news = before != what;
        if is_news {
            self.publish();
        }
        is_news
    }

    /// Shows the state and the last error in `/sys/kernel/locum`.
    pub fn publish_state(&self) {
        let status = self.shared.status();
        self.machine.publish(TextKind::State, &status.state);
        self.machine
            .publish(TextKind::LastError, &status.last_error.unwrap_or_default());
    }

    /// Shows the action in `/sys/kernel/locum` and in `systemctl status`: who sees it there finds it written down.
    pub fn publish_progress(&self) {
        let status = self.shared.status();
        let progress = format!("{}/{} {}", status.done, status.total, status.summary);
        self.machine.publish(TextKind::Progress, &progress);
        systemd::status(&progress);
    }
}
