//! `lab demo`: replaces a host under running guests, end to end, and reports it.

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::{
    boot::{self, MachineArgs},
    debian::kernels::{NEWEST, OLDEST},
    image::kernel::{CARD_DRIVER, CLOUD, Kernel as Stock},
    machine::bochs::Platform,
    paths,
    progress::Progress,
    report::Report,
    run::{OFF, Outcome, Run},
    successor::{Kernel, Successor},
};

/// Replace a host under running guests, and report it.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Kernel of the incumbent: one that `cargo lab root --list` shows
    #[arg(long, default_value = OLDEST)]
    pub from: String,
    /// Kernel of the successor, likewise
    #[arg(long, default_value = NEWEST)]
    pub to: String,
    /// CPUs of the machine, 2 to 4; the successor boots with half of them
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(2..=4))]
    pub cpus: u32,
    /// Guests: g1 (microvm), g2 (q35, two vCPUs, virtio disk and net), or none
    #[arg(long, value_delimiter = ',', default_value = "g1")]
    pub guests: Vec<String>,
    /// Times to enter and leave nested before the refresh
    #[arg(long, default_value_t = 10)]
    pub cycles: u32,
    /// Kill the machine after this many emulated seconds: 100 million ticks each, some 1.4 s here
    #[arg(long, value_name = "SECONDS", default_value_t = 1800)]
    pub timeout: u64,
    /// What runs the machine; kvm is untested
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
}

/// Runs the demo; returns whether everything was shown. Leaves `target/lab/report.json`.
///
/// # Errors
/// The report cannot be written.
pub fn demo(args: &DemoArgs) -> Result<bool> {
    let machine = MachineArgs {
        kernel: args.from.clone(),
        to: args.to.clone(),
        cpus: args.cpus,
        timeout: args.timeout,
        platform: args.platform,
        strict: true,
        ..MachineArgs::default()
    };
    boot::announce(&[&args.from, &args.to])?;
    let mut report = Report {
        incumbent: Stock::release_of(&args.from)?,
        successor: Stock::release_of(&args.to)?,
        ..Report::default()
    };
    let outcome = Run::boot(&machine, Progress::new("")).and_then(|mut run| {
        let outcome = play(&mut run, args);
        report = run.report.clone();
        outcome
    });
    report.ok = outcome.is_ok();
    report.error = outcome.err().map(|error| format!("{error:#}"));
    let path = paths::out().join("report.json");
    report.write(&path)?;
    println!("{report}");
    println!("report: {}", path.display());
    Ok(report.ok)
}

fn play(run: &mut Run, args: &DemoArgs) -> Result<()> {
    let guests: Vec<_> = args.guests.iter().filter(|guest| *guest != "none").cloned().collect();
    native(run, &guests)?;
    cycle(run, args.cycles)?;
    let to = run.to.clone();
    let successor = successor(run, &to)?;
    refresh(run, &successor)?;
    run.progress.step("powering off");
    run.host().power_off(OFF)?;
    run.check("the new host powers the machine off");
    Ok(())
}

/// The incumbent with KVM and guests, L0 dormant.
///
/// # Errors
/// Something does not come up, or L0 takes an exit.
pub fn native(run: &mut Run, guests: &[String]) -> Result<()> {
    run.begin()?;
    for guest in guests {
        run.start_guest(guest)?;
    }
    run.check_dormant()?;
    let exits = run.status()?.exits.total;
    ensure!(exits == 0, "L0 took {exits} exits before anything was nested");
    run.end_phase("native", exits)
}

/// Enters and leaves nested on every CPU under the running guests.
///
/// # Errors
/// The host or a guest did not take it well.
pub fn cycle(run: &mut Run, count: u32) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    run.progress.step(&format!("entering and leaving nested {count} times"));
    let before = run.status()?;
    run.sh(&format!("locum cycle {count} --json"))?;
    run.check_guests()?;
    let after = run.status()?;
    for (cpu, old) in after.cpus.iter().zip(&before.cpus) {
        let (enters, leaves) = (cpu.enters - old.enters, cpu.leaves - old.leaves);
        ensure!(
            enters == u64::from(count) && leaves == enters,
            "CPU with APIC id {} entered {enters} times and left {leaves} times, {count} were asked for",
            cpu.apic_id
        );
    }
    run.check(&format!(
        "every CPU entered and left nested {count} times under the guests"
    ));
    run.end_phase("cycle", after.exits.total)
}

/// A good successor for the reigning host: half of the CPUs, the last network card, all guests.
///
/// # Errors
/// The host does not answer.
pub fn successor(run: &mut Run, release: &str) -> Result<Successor> {
    let generation = run.generation + 1;
    let cards = run.sh("cd /sys/bus/pci/devices; grep -lx 0x100e */device | cut -d/ -f1")?;
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
        cpus: run.report.cpus / 2,
        memory: run.layout.successor,
        device: cards.pop(),
        guests: run.guest_names(),
        cmdline: String::new(),
        boot_timeout: 600,
    })
}

/// A refresh that has to go through, and what must hold after it.
///
/// # Errors
/// It does not go through, or something does not hold.
pub fn refresh(run: &mut Run, successor: &Successor) -> Result<()> {
    if let Outcome::Failed(words) = run.refresh(successor)? {
        bail!("the refresh failed: {words}");
    }
    run.check_guests()?;
    let release = run.sh("uname -r")?.trim().to_owned();
    ensure!(
        release == successor.release,
        "uname -r says {release}, not {}",
        successor.release
    );
    run.check(&format!("uname -r says {release}"));
    let cpus: u32 = run.sh("nproc")?.trim().parse()?;
    ensure!(
        cpus == run.report.cpus,
        "{cpus} CPUs are online, not {}",
        run.report.cpus
    );
    run.check(&format!("all {cpus} CPUs are online"));
    run.sh("date")?;
    for guest in run.report.guests.clone() {
        let copied = guest.ram_bytes_copied;
        ensure!(copied == 0, "{copied} bytes of RAM of guest {} were copied", guest.name);
    }
    if let Some(device) = &successor.device {
        check_card(run, device)?;
    }
    run.check_dormant()
}

/// Shows that the card works: bringing its link up makes it interrupt.
fn check_card(run: &mut Run, device: &str) -> Result<()> {
    if run.sh("uname -r")?.contains(CLOUD) {
        run.sh(&format!("test -e /sys/bus/pci/devices/{device}"))?;
        run.check(&format!(
            "PCI function {device} is there; this kernel has no driver for it"
        ));
        return Ok(());
    }
    run.sh(&format!(
        "modprobe {CARD_DRIVER}; cd /sys/bus/pci/devices/{device}; n=$(ls net); \
         count() {{ awk -v n=$n '$NF ~ n {{ s = 0; for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) s += $i; print s }}' /proc/interrupts; }}; \
         ip link set $n up; for i in $(seq 60); do [ \"$(count)\" -gt 0 ] 2>/dev/null && exit 0; sleep 1; done; \
         cat /proc/interrupts; echo \"no interrupt of $n\"; exit 1"
    ))?;
    run.check(&format!("the interrupt of PCI function {device} arrives"));
    Ok(())
}
