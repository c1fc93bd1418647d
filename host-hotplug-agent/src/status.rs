//! What `locum status` tells: L0's view and the daemon's.

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::guest::renew::Renewed;
use crate::l0::L0View;
use crate::l0::view::{CpuView, ExitView, HostView, TablesView};
use crate::report::Report;

/// What the daemon knows of a refresh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// `incumbent` or `successor`.
    pub role: String,
    /// `idle`, `planned`, `offloaded`, `nested`, `successor_up`, `handover`, `retired` or `reclaimed`.
    pub state: String,
    /// `resting`, `running`, `aborting` or `stuck`.
    pub course: String,
    /// The refresh that runs.
    pub running: Option<String>,
    /// Actions behind.
    pub done: usize,
    /// Actions in all.
    pub total: usize,
    /// One line for an operator.
    pub summary: String,
    /// Why the last refresh failed, if it did.
    pub last_error: Option<String>,
    /// Memory that belongs to nobody.
    pub unreclaimed: Vec<partitioner::Unreclaimed>,
    /// Its bytes.
    pub unreclaimed_bytes: u64,
    /// The last refresh, or the present one so far.
    pub report: Option<Report>,
    /// The guest that has got another QEMU, in the answer to that request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Renewed>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// Generation of the reigning host.
    pub generation: u32,
    /// Kernel release of this host.
    pub kernel: String,
    /// The daemon's state, `no daemon` or `daemon hangs`.
    pub state: String,
    /// Every CPU of the machine.
    pub cpus: Vec<CpuView>,
    /// Both slots.
    pub hosts: Vec<HostView>,
    /// L0's exits since boot.
    pub exits: ExitView,
    /// L0's exits since the last CPU became native: 0 while L0 is dormant. None while a CPU is nested.
    pub native_exits: Option<u64>,
    /// Requests that L0 refused since boot.
    pub refusals: u64,
    /// What L0 uses of its tables.
    pub tables: TablesView,
    /// Bytes of L0's loaded image.
    pub image_bytes: u64,
    /// Bytes of memory that belong to nobody.
    pub unreclaimed_bytes: u64,
    /// The daemon's word, if it answers.
    pub daemon: Option<DaemonStatus>,
    /// Why it does not.
    pub no_answer: Option<String>,
    /// The last refresh, or the present one so far.
    pub last_report: Option<Report>,
}

impl StatusView {
    /// Puts both views together.
    pub fn new(l0: L0View, image_bytes: u64, kernel: String, daemon: anyhow::Result<DaemonStatus>) -> Self {
        let hangs = matches!(&daemon, Err(error) if matches!(error.downcast_ref(), Some(Refusal::DaemonHangs { .. })));
        let (daemon, no_answer) = match daemon {
            Ok(daemon) => (Some(daemon), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let silent = if hangs { "daemon hangs" } else { "no daemon" };
        let last_report = daemon.as_ref().and_then(|daemon| daemon.report.clone());
        let before = last_report.as_ref().map_or(0, |report| report.exits_at_end);
        Self {
            native_exits: l0.all_native().then(|| l0.exits.total.saturating_sub(before)),
            generation: l0.generation,
            kernel,
            state: daemon
                .as_ref()
                .map_or_else(|| silent.to_owned(), |daemon| daemon.state.clone()),
            cpus: l0.cpus,
            hosts: l0.hosts,
            exits: l0.exits,
            refusals: l0.refusals,
            tables: l0.tables,
            image_bytes,
            unreclaimed_bytes: daemon.as_ref().map_or(0, |daemon| daemon.unreclaimed_bytes),
            daemon,
            no_answer,
            last_report,
        }
    }
}

impl std::fmt::Display for StatusView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "generation {}, kernel {}, {}",
            self.generation, self.kernel, self.state
        )?;
        if let Some(daemon) = &self.daemon {
            writeln!(f, "{}", daemon.summary)?;
            if let Some(error) = &daemon.last_error {
                writeln!(f, "last error: {error}")?;
            }
        }
        if let Some(error) = &self.no_answer {
            writeln!(f, "{error}")?;
        }
        for cpu in &self.cpus {
            let owner = cpu
                .owner
                .map_or_else(|| "nobody".to_owned(), |slot| format!("slot {}", slot.raw()));
            writeln!(
                f,
                "  APIC {:<3} {:<7} {owner:<7} entered {} left {} exits {} (of guests {})",
                cpu.apic_id, cpu.mode, cpu.enters, cpu.leaves, cpu.exits, cpu.guest_exits
            )?;
        }
        for host in &self.hosts {
            write!(
                f,
                "  slot {}: {}, generation {}",
                host.slot.raw(),
                host.state,
                host.generation
            )?;
            match &host.reason {
                Some(reason) => writeln!(f, ", {reason}")?,
                None => writeln!(f)?,
            }
        }
        write!(
            f,
            "  exits {} (of guests {}), refused requests {}",
            self.exits.total, self.exits.guest, self.refusals
        )?;
        for (reason, count) in &self.exits.by_reason {
            write!(f, "\n    {reason:<26} {count}")?;
        }
        match &self.last_report {
            Some(report) => write!(f, "\n{report}"),
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "refresh to `{}`: {} ({} -> {})",
            self.name, self.outcome, self.incumbent, self.successor
        )?;
        if let Some(error) = &self.error {
            write!(f, "\n  {error}")?;
        }
        for phase in &self.phases {
            let ticks = phase.end.saturating_sub(phase.start);
            write!(
                f,
                "\n  {:<12} {:<10} {ticks:>14} ticks {:>10} exits",
                phase.name, phase.by, phase.l0_exits
            )?;
        }
        for guest in &self.guests {
            let (name, pause, bytes) = (&guest.name, guest.pause_ticks, guest.state_bytes);
            write!(
                f,
                "\n  guest {name}: moved {}, pause {pause} ticks, {bytes} bytes of state",
                guest.moved
            )?;
        }
        for action in &self.taken_up {
            write!(f, "\n  taken up by a daemon that was started anew, at: {action}")?;
        }
        for saved in &self.saved {
            write!(f, "\n  {saved}")?;
        }
        for loss in &self.losses {
            write!(f, "\n  lost: {loss}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l0::memory;
    use crate::testing::l0::FakeRegion;

    #[test]
    fn exits_while_native_count_from_the_last_leave() {
        let region = FakeRegion::new(2);
        region.update(|status| status.cpus[1].exits = 120);
        let l0 = L0View::new(&memory::status(&region, &region.header()).unwrap());
        let report = Report {
            exits_at_end: 100,
            ..Report::default()
        };
        let daemon = DaemonStatus {
            report: Some(report),
            ..DaemonStatus::default()
        };
        let view = StatusView::new(l0.clone(), 1, "6.12".to_owned(), Ok(daemon));
        assert_eq!(view.native_exits, Some(20));
        let alone = StatusView::new(l0, 1, "6.12".to_owned(), Err(anyhow::anyhow!("why")));
        assert_eq!(alone.native_exits, Some(120));
        assert!(alone.to_string().contains("why"));
        assert_eq!(alone.state, "no daemon");
        let hangs = Refusal::DaemonHangs {
            path: "/run/locum.sock".into(),
            seconds: 10,
        };
        let hung = StatusView::new(
            L0View::new(&memory::status(&region, &region.header()).unwrap()),
            1,
            "6.12".to_owned(),
            Err(hangs.into()),
        );
        assert_eq!(hung.state, "daemon hangs");
        let text = alone.to_string();
        assert!(text.contains("APIC 1   native  slot 0"), "{text}");
        assert!(text.contains("slot 1: absent, generation 0"), "{text}");
    }
}
