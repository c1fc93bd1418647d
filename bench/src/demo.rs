//! `lab demo`: replaces a host under running guests, end to end, and reports it.

use anyhow::Result;
use clap::Args;

use crate::{
    debian::kernels::{NEWEST, OLDEST},
    image::kernel::{Kernel, announce},
    machine::platform::Platform,
    paths,
    progress::Progress,
    report::Report,
    steps::{Run, prepare::MachineArgs},
};

/// Replace a host under running guests, and report it.
#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
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
pub(crate) fn demo(args: &DemoArgs) -> Result<bool> {
    let machine = MachineArgs {
        kernel: args.from.clone(),
        to: args.to.clone(),
        cpus: args.cpus,
        timeout: args.timeout,
        platform: args.platform,
        strict: true,
        ..MachineArgs::default()
    };
    announce(&[&args.from, &args.to])?;
    let mut report = Report {
        incumbent: Kernel::release_of(&args.from)?,
        successor: Kernel::release_of(&args.to)?,
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
    run.start_native(&guests)?;
    run.cycle(args.cycles)?;
    let successor = run.successor()?;
    run.replace_host(&successor)?;
    run.power_off()?;
    run.check("the new host powers the machine off");
    Ok(())
}
