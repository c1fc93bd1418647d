//! Steps with their checks: each has to go through, and afterwards what must hold is shown to hold.

use anyhow::{Result, bail, ensure};

use super::{
    refresh::Outcome,
    run::{ANSWER, LONG, Run},
    successor::{Kernel, Successor},
};
use crate::{
    image::kernel::{CARD_DRIVER, CLOUD},
    machine::deadline::Span,
    report::agent::Refresh,
};

impl Run {
    /// Shows that L0 is dormant: every CPU native, and no exit while the guests go on for a while.
    ///
    /// # Errors
    /// A CPU is nested, or L0 took an exit.
    pub(crate) fn check_dormant(&mut self) -> Result<()> {
        let before = self.status()?;
        ensure!(before.all_native(), "not every CPU is native: {:?}", before.cpus);
        self.check_guests()?;
        let after = self.status()?;
        let exits = after.exits.total.abs_diff(before.exits.total);
        self.report.l0.native_exits += exits;
        self.report.l0.image_bytes = after.image_bytes;
        self.report.l0.exits_by_reason = after.exits.by_reason;
        ensure!(exits == 0, "L0 took {exits} exits while every CPU was native");
        self.check(&format!(
            "generation {}: every CPU native, no exit to L0 meanwhile",
            self.generation
        ));
        Ok(())
    }

    /// The incumbent with KVM and guests, L0 dormant.
    ///
    /// # Errors
    /// Something does not come up, or L0 takes an exit.
    pub(crate) fn start_native(&mut self, guests: &[String]) -> Result<()> {
        self.begin()?;
        for guest in guests {
            self.start_guest(guest)?;
        }
        self.check_dormant()?;
        let exits = self.status()?.exits.total;
        ensure!(exits == 0, "L0 took {exits} exits before anything was nested");
        self.end_phase("native", exits)
    }

    /// Enters and leaves nested on every CPU under the running guests.
    ///
    /// # Errors
    /// The host or a guest did not take it well.
    pub(crate) fn cycle(&mut self, count: u32) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        self.progress
            .step(&format!("entering and leaving nested {count} times"));
        let before = self.status()?;
        self.sh(&format!("locum cycle {count} --json"))?;
        self.check_guests()?;
        let after = self.status()?;
        for (cpu, old) in after.cpus.iter().zip(&before.cpus) {
            let (enters, leaves) = (cpu.enters - old.enters, cpu.leaves - old.leaves);
            ensure!(
                enters == u64::from(count) && leaves == enters,
                "CPU with APIC id {} entered {enters} times and left {leaves} times, {count} were asked for",
                cpu.apic_id
            );
        }
        self.check(&format!(
            "every CPU entered and left nested {count} times under the guests"
        ));
        self.end_phase("cycle", after.exits.total)
    }

    /// A good successor for the reigning host: half of the CPUs, the last network card, all guests, and the kernel that
    /// this run replaces the first one by.
    ///
    /// # Errors
    /// The host does not answer.
    pub(crate) fn successor(&mut self) -> Result<Successor> {
        let release = self.to.clone();
        self.successor_of(&release)
    }

    /// As [`Run::successor`], with another kernel.
    ///
    /// # Errors
    /// The host does not answer.
    pub(crate) fn successor_of(&mut self, release: &str) -> Result<Successor> {
        let generation = self.generation + 1;
        let cards = self.sh("cd /sys/bus/pci/devices; grep -lx 0x100e */device | cut -d/ -f1")?;
        let mut cards: Vec<_> = cards.lines().map(str::to_owned).collect();
        // Each parity has a card of its own, so that the one that moves is not the one that came last time.
        if generation.is_multiple_of(2) {
            cards.reverse();
        }
        Ok(Successor {
            name: format!("gen{generation}"),
            generation,
            release: release.to_owned(),
            kernel: Kernel::Stock,
            cpus: self.report.cpus / 2,
            memory: self.layout.successor,
            device: cards.pop(),
            guests: self.guest_names(),
            cmdline: String::new(),
            carry: Vec::new(),
            boot_timeout: 600,
            poweroff: &[],
            retire_timeout: 120,
            dump_timeout: 300,
        })
    }

    /// A refresh that has to go through, and what must hold after it.
    ///
    /// # Errors
    /// It does not go through, or something does not hold.
    pub(crate) fn replace_host(&mut self, successor: &Successor) -> Result<()> {
        let command = successor.refresh_command();
        self.replace_host_by(successor, &command)
    }

    /// As [`Run::replace_host`], asked for by this command in the reigning host.
    ///
    /// # Errors
    /// As [`Run::replace_host`].
    pub(crate) fn replace_host_by(&mut self, successor: &Successor, command: &str) -> Result<()> {
        if let Outcome::Failed(words) = self.refresh_by(successor, command)? {
            bail!("the refresh failed: {words}");
        }
        for guest in self.report.guests.clone() {
            let copied = guest.ram_bytes_copied;
            ensure!(copied == 0, "{copied} bytes of RAM of guest {} were copied", guest.name);
        }
        self.check_whole(successor)
    }

    /// Waits until the successor reigns by itself, for an incumbent that does not end as it should; returns what its agent
    /// reports.
    ///
    /// # Errors
    /// It does not come to that.
    pub(crate) fn succeeded_by(&mut self, successor: &Successor) -> Result<Refresh> {
        self.progress.step("waiting for the successor to reign");
        let generation = successor.generation;
        let hello = self.machine.host(generation).wait_ready(LONG)?;
        self.report.successor = hello.release;
        self.generation = generation;
        let report = self.wait_status("the successor to reign", |status| {
            let reigns = status.generation == generation && status.all_native() && status.state == "idle";
            status.last_report.clone().filter(|_| reigns)
        })?;
        self.report.generation = generation;
        self.report.add_refresh(&report);
        Ok(report)
    }

    /// Waits until a successor that does not reign yet sees that the incumbent writes a dump, and waits for that.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn sees_dump(&mut self, successor: &Successor) -> Result<()> {
        self.progress.step("waiting for the incumbent's dump");
        self.machine.host(successor.generation).wait_ready(LONG)?;
        let end = self.machine.deadline(LONG)?;
        let mut said = String::new();
        while self.machine.now()? < end {
            let output = self
                .machine
                .host(successor.generation)
                .run("locum status --long", ANSWER)?;
            said = output.text;
            if said.contains("dumping") && said.contains("writes a dump") {
                self.check("the successor sees that the incumbent writes a dump, and waits for it");
                return Ok(());
            }
            self.machine.look(Span::seconds(1))?;
        }
        bail!("the successor sees no dump; its last status was:\n{said}")
    }

    /// Shows that the reigning host has the whole machine: its kernel, all CPUs, all memory blocks, the cards, the guests.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn check_whole(&mut self, successor: &Successor) -> Result<()> {
        let release = self.sh("uname -r")?.trim().to_owned();
        ensure!(
            release == successor.release,
            "uname -r says {release}, not {}",
            successor.release
        );
        self.check(&format!("uname -r says {release}"));
        let cpus: u32 = self.sh("nproc")?.trim().parse()?;
        ensure!(
            cpus == self.report.cpus,
            "{cpus} CPUs are online, not {}",
            self.report.cpus
        );
        self.check(&format!("all {cpus} CPUs are online"));
        let offline = self.sh("grep -lx offline /sys/devices/system/memory/memory*/state || true")?;
        ensure!(offline.trim().is_empty(), "memory blocks are offline: {offline}");
        self.sh("date")?;
        if let Some(device) = &successor.device {
            self.check_card(device)?;
        }
        self.check_dormant()
    }

    /// Shows that the card works: bringing its link up makes it interrupt.
    fn check_card(&mut self, device: &str) -> Result<()> {
        if self.sh("uname -r")?.contains(CLOUD) {
            self.sh(&format!("test -e /sys/bus/pci/devices/{device}"))?;
            self.check(&format!(
                "PCI function {device} is there; this kernel has no driver for it"
            ));
            return Ok(());
        }
        self.sh(&format!(
        "modprobe {CARD_DRIVER}; cd /sys/bus/pci/devices/{device}; n=$(ls net); \
         count() {{ awk -v n=$n '$NF ~ n {{ s = 0; for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) s += $i; print s }}' /proc/interrupts; }}; \
         ip link set $n up; for i in $(seq 60); do [ \"$(count)\" -gt 0 ] 2>/dev/null && exit 0; sleep 1; done; \
         cat /proc/interrupts; echo \"no interrupt of $n\"; exit 1"
    ))?;
        self.check(&format!("the interrupt of PCI function {device} arrives"));
        Ok(())
    }
}
