//! `target/lab/report.json`: what a run showed, for machines and for the time line.

pub(crate) mod agent;
pub(crate) mod picture;
pub(crate) mod service;

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A whole run. All counts of instructions are ticks of the emulator's TSC, which with several CPUs is one instruction
/// of each running CPU; nothing in here is wall time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Whether everything that the run set out to show was shown.
    pub ok: bool,
    /// Why not.
    pub error: Option<String>,
    /// `bochs`, `tcg` or `kvm`.
    pub platform: String,
    /// CPUs of the machine.
    pub cpus: u32,
    /// Kernel release of the first host.
    pub incumbent: String,
    /// Kernel release of the last host.
    pub successor: String,
    /// Kernel release of each generation's host.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Debian trees that emulator, user space and kernels are from, by their names in the lab's cache.
    pub trees: Vec<String>,
    /// Generation that reigned at the end.
    pub generation: u32,
    /// Guests that lived through it.
    pub guests: Vec<Guest>,
    /// What happened, in order.
    pub phases: Vec<Phase>,
    /// What was checked, in words, in order.
    pub checks: Vec<String>,
    /// What Linux's own tests of KVM came to, natively and nested.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub selftests: Vec<Selftest>,
    /// L0.
    pub l0: L0,
    /// Bytes of memory that belong to nobody at the end.
    pub unreclaimed_bytes: u64,
    /// What did not come back, in words.
    pub losses: Vec<String>,
}

/// One of Linux's own tests of KVM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Selftest {
    /// Its program.
    pub name: String,
    /// What it came to natively, in words.
    pub native: String,
    /// What it came to nested.
    pub nested: String,
    /// Emulated seconds that it took, natively and nested.
    pub seconds: [u64; 2],
}

/// One guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// Its name.
    pub name: String,
    /// Whether it runs at the end, in the boot that it was started with.
    pub alive: bool,
    /// Whether its checks of memory, registers, clocks and devices found nothing.
    pub checksum_ok: bool,
    /// Ticks from its last beat under the incumbent to its first under the successor, seen from outside the guest.
    pub pause_instructions: u64,
    /// Where `pause_instructions` comes from: `beats` (observed) or `qemu` (stop to resume as QEMU told, a little
    /// less).
    pub pause_seen_by: String,
    /// Ticks of `pause_instructions` in which the watcher was absent itself: the pause is between the difference and that.
    #[serde(default)]
    pub watcher_absent: u64,
    /// The pause by step.
    pub steps: Vec<Step>,
    /// Bytes of pool RAM that were copied.
    pub ram_bytes_copied: u64,
    /// Bytes that crossed between the QEMUs: device state, ROM and ACPI blocks.
    pub state_bytes: u64,
    /// Nanoseconds of emulated time by which its monotonic clock fell behind the host's TSC over the run.
    pub clock_lag_ns: Option<i64>,
    /// Most that its monotonic clock fell where a program reads it by the vDSO, in ns: a guest of several vCPUs reads the
    /// old host's page until vCPU 0 is there.
    #[serde(default)]
    pub vdso_fell_ns: u64,
}

impl Guest {
    /// Ticks from QEMU's stop in the incumbent to its resume in the successor: all steps but what comes before the
    /// stop.
    #[must_use]
    pub(crate) fn stopped(&self) -> u64 {
        self.still().map(|step| step.instructions).sum()
    }

    /// These steps in words, with the ticks of each.
    #[must_use]
    pub(crate) fn told(&self) -> String {
        let steps = self
            .still()
            .map(|step| format!("{} {}", step.name, timeline::millions(step.instructions)));
        steps.collect::<Vec<_>>().join(", ")
    }

    fn still(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.name != "ask")
    }
}

/// One step of a pause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// What was done.
    pub name: String,
    /// Ticks.
    pub instructions: u64,
}

/// One phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Phase {
    /// In a word or two.
    pub name: String,
    /// Whose doing: `lab`, `incumbent` or `successor`.
    pub by: String,
    /// What happened.
    pub what: String,
    /// Ticks.
    pub instructions: u64,
    /// VM exits that L0 took meanwhile, on all CPUs.
    pub l0_exits: u64,
}

/// L0.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct L0 {
    /// Exits taken while every CPU was native: 0 is the claim.
    pub native_exits: u64,
    /// Bytes of the loaded image.
    pub image_bytes: u64,
    /// Exits since boot, by reason.
    pub exits_by_reason: BTreeMap<String, u64>,
}

impl Report {
    /// Takes over what an agent reported of a refresh.
    pub(crate) fn add_refresh(&mut self, refresh: &agent::Refresh) {
        self.phases.extend(refresh.phases.iter().map(Phase::from_agent));
        self.losses.extend(refresh.losses.iter().cloned());
        self.hosts.push(refresh.successor.clone());
        self.unreclaimed_bytes = refresh.unreclaimed_bytes;
        for guest in &refresh.guests {
            let entry = self.guest(&guest.name);
            entry.ram_bytes_copied += guest.ram_bytes_copied;
            entry.state_bytes = guest.state_bytes;
            entry.steps = steps(guest);
            entry.pause_instructions = guest.resumed.saturating_sub(guest.stopped);
            entry.pause_seen_by = "qemu".into();
            entry.watcher_absent = 0;
        }
    }

    /// A guest's pause was watched from outside.
    pub(crate) fn see_pause(&mut self, name: &str, gap: &agent::Gap) {
        let entry = self.guest(name);
        entry.pause_instructions = gap.to_tsc - gap.from_tsc;
        entry.pause_seen_by = "beats".into();
        entry.watcher_absent = gap.absent_ticks;
    }

    /// The guest's entry, made if it is not there.
    pub(crate) fn guest(&mut self, name: &str) -> &mut Guest {
        let place = self
            .guests
            .iter()
            .position(|guest| guest.name == name)
            .unwrap_or_else(|| {
                self.guests.push(Guest {
                    name: name.to_owned(),
                    ..Guest::default()
                });
                self.guests.len() - 1
            });
        &mut self.guests[place]
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("writing {}", path.display()))
    }
}

impl Phase {
    fn from_agent(phase: &agent::Phase) -> Self {
        Self {
            name: phase.name.clone(),
            by: phase.by.clone(),
            what: describe(&phase.name).to_owned(),
            instructions: phase.end.saturating_sub(phase.start),
            l0_exits: phase.l0_exits,
        }
    }
}

fn steps(guest: &agent::Guest) -> Vec<Step> {
    [
        ("ask", guest.begun, guest.stopped),
        ("save", guest.stopped, guest.saved),
        ("cross", guest.saved, guest.received),
        ("resume", guest.received, guest.resumed),
    ]
    .into_iter()
    .map(|(name, from, to)| Step {
        name: name.to_owned(),
        instructions: to.saturating_sub(from),
    })
    .collect()
}

/// What a phase means, for readers of the time line.
#[must_use]
pub(crate) fn describe(phase: &str) -> &'static str {
    match phase {
        "boot machine" => "GRUB, L0 and the incumbent came up",
        "native" => "KVM and the guests started, L0 dormant",
        "cycle" => "entered nested and left again under the running guests",
        "offload" => "the incumbent gave CPUs, memory and devices up through Linux hotplug",
        "load" => "kernel and initramfs of the successor put into its memory",
        "enter" => "L0 took VMX root under the running KVM",
        "start" => "the successor's CPUs and memory handed to it, its boot CPU started",
        "boot" => "the successor booted beside the incumbent",
        "handover" => "the guests went over, their memory stayed",
        "retire" => "the incumbent powered itself off, its part of the machine taken",
        "reclaim" => "the successor took the rest of the machine through Linux hotplug",
        "leave" => "L0 gave VMX root back and is dormant",
        "abort" => "everything put back, the incumbent goes on",
        _ => "",
    }
}

impl fmt::Display for Report {
    /// The time line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<14} {:<10} {:>12} {:>10}  what happened",
            "phase", "by", "M instr.", "L0 exits"
        )?;
        for phase in &self.phases {
            writeln!(f, "{phase}")?;
        }
        for guest in &self.guests {
            writeln!(f, "{guest}")?;
        }
        writeln!(
            f,
            "L0: {} bytes, {} exits while native; {} bytes of memory not reclaimed",
            self.l0.image_bytes, self.l0.native_exits, self.unreclaimed_bytes
        )?;
        for loss in &self.losses {
            writeln!(f, "lost: {loss}")?;
        }
        let arrow = format!(
            "{} -> {}, generation {}",
            self.incumbent, self.successor, self.generation
        );
        match &self.error {
            None => write!(f, "{arrow}: {}", if self.ok { "ok" } else { "not ok" }),
            Some(error) => write!(f, "{arrow}: FAILED: {error}"),
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<14} {:<10} {:>12} {:>10}  {}",
            self.name,
            self.by,
            millions(self.instructions),
            self.l0_exits,
            self.what
        )
    }
}

impl fmt::Display for Guest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "guest {}: {}, checks {}, paused {} M instructions (seen by {}), {} bytes of RAM copied, {} bytes of state",
            self.name,
            if self.alive { "alive" } else { "DEAD" },
            if self.checksum_ok { "good" } else { "FAILED" },
            millions(self.pause_instructions),
            self.pause_seen_by,
            self.ram_bytes_copied,
            self.state_bytes
        )?;
        if self.watcher_absent > 0 {
            write!(
                f,
                "\n    the watcher was absent for {} M",
                millions(self.watcher_absent)
            )?;
        }
        for step in &self.steps {
            write!(f, "\n    {:<8} {:>8} M", step.name, millions(step.instructions))?;
        }
        Ok(())
    }
}

fn millions(ticks: u64) -> String {
    format!("{}.{:02}", ticks / 1_000_000, ticks / 10_000 % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refresh() -> agent::Refresh {
        serde_json::from_str(
            r#"{"incumbent":"a","successor":"b","outcome":"done","unreclaimed_bytes":5,
                "phases":[{"name":"handover","by":"incumbent","start":10,"end":2000010,"l0_exits":7}],
                "guests":[{"name":"g1","moved":true,"begun":1,"stopped":11,"saved":31,"received":61,"resumed":111,
                           "state_bytes":9,"ram_bytes_copied":0}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn a_refresh_becomes_phases_and_guests() {
        let mut report = Report::default();
        report.add_refresh(&refresh());
        assert_eq!(report.phases[0].instructions, 2_000_000);
        let guest = report.guest("g1");
        assert_eq!((guest.pause_instructions, guest.state_bytes), (100, 9));
        assert_eq!(
            guest.steps.iter().map(|step| step.instructions).collect::<Vec<_>>(),
            [10, 20, 30, 50]
        );
        assert!(
            report
                .to_string()
                .contains("handover       incumbent          2.00          7  the guests went over")
        );
    }

    #[test]
    fn the_required_fields_are_in_the_json() {
        let mut report = Report::default();
        report.add_refresh(&refresh());
        let json = serde_json::to_value(&report).unwrap();
        for field in ["ok", "incumbent", "successor", "generation", "guests", "phases", "l0"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        for field in [
            "name",
            "alive",
            "checksum_ok",
            "pause_instructions",
            "ram_bytes_copied",
            "state_bytes",
        ] {
            assert!(json["guests"][0].get(field).is_some(), "{field}");
        }
        for field in ["native_exits", "image_bytes", "exits_by_reason"] {
            assert!(json["l0"].get(field).is_some(), "{field}");
        }
    }
}
