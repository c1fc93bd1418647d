//! `lab demo`: replaces a host under running guests, end to end, and reports it. Where there is no VMX it shows a dormant
//! L0, and what it says.

use anyhow::Result;
use clap::Args;

use crate::{
    debian::kernels::{NEWEST, OLDEST},
    image::kernel::{Kernel, announce},
    machine::{board::Board, platform::Platform},
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
    /// What runs the machine. With tcg no host is replaced, for that needs VMX
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
    /// The second board
    #[command(flatten)]
    pub board: Board,
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
        board: args.board.clone(),
        strict: true,
        ..MachineArgs::default()
    };
    announce(&[&args.from, &args.to])?;
    let mut report = Report {
        incumbent: Kernel::release_of(&args.from)?,
        successor: Kernel::release_of(&args.to)?,
        ..Report::default()
    };
    let mut doctor = String::new();
    let outcome = Run::boot(&machine, Progress::new("")).and_then(|mut run| {
        let outcome = match args.platform {
            Platform::Tcg => look(&mut run).map(|text| doctor = text),
            Platform::Bochs | Platform::Kvm => play(&mut run, args),
        };
        report = run.report.clone();
        outcome
    });
    report.ok = outcome.is_ok();
    report.error = outcome.err().map(|error| format!("{error:#}"));
    let path = paths::out().join("report.json");
    report.write(&path)?;
    if args.platform == Platform::Tcg {
        println!("{doctor}{}", without_vmx(&report));
    } else {
        println!("{report}");
    }
    println!("report: {}", path.display());
    Ok(report.ok)
}

/// What a run without VMX came to.
fn without_vmx(report: &Report) -> String {
    match &report.error {
        None => format!(
            "Above is what `locum doctor` says. L0 has started the host {} and is dormant. `locum enter` was refused.\n\
             No host was replaced: that needs VMX, and QEMU's TCG has none. `cargo lab demo` without --platform \
             replaces one.",
            report.incumbent
        ),
        Some(error) => format!("FAILED: {error}"),
    }
}

/// A host on a board without VMX: what holds, and what the doctor says.
fn look(run: &mut Run) -> Result<String> {
    run.under_l0()?;
    run.check("L0 has started the host and is dormant");
    let doctor = run.cannot_enter()?;
    run.check("entering nested is refused, and the doctor says that the CPU has no VMX");
    run.switch_off()?;
    run.check("the host powers the machine off");
    Ok(doctor)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_vmx_claims_no_refresh() {
        let mut report = Report {
            incumbent: "6.12".into(),
            ..Report::default()
        };
        assert!(without_vmx(&report).contains("No host was replaced: that needs VMX"));
        report.error = Some("the host did not boot".into());
        assert_eq!(without_vmx(&report), "FAILED: the host did not boot");
    }
}
