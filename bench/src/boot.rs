//! `lab boot`: one host, some commands, power off.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    image::kernel::announce,
    machine::Machine,
    progress::say,
    steps::prepare::{MachineArgs, prepare},
};

/// Boot a host, run commands in it, power off.
#[derive(Debug, Clone, Args)]
pub(crate) struct BootArgs {
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
    /// Shell command to run in the host; may be repeated
    #[arg(long)]
    pub run: Vec<String>,
    /// Shell script to run in the host after the commands
    #[arg(long)]
    pub run_file: Option<PathBuf>,
    /// Keep the CD image of the run
    #[arg(long)]
    pub keep: bool,
}

/// Boots, runs, powers off. Returns whether all commands succeeded.
///
/// # Errors
/// Something does not build, or the machine dies or does not answer.
pub(crate) fn boot(args: &BootArgs) -> Result<bool> {
    let mut commands = args.run.clone();
    if let Some(file) = &args.run_file {
        commands.push(fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?);
    }
    announce(&[&args.machine.kernel, &args.machine.to])?;
    let setup = prepare(&args.machine)?;
    say(&format!("booting, logs in {}", setup.dir.display()));
    let begin = Instant::now();
    let limit = setup.limit;
    let mut machine = Machine::start(&setup)?;
    let mut host = machine.host(0);
    let hello = host.wait_ready(limit)?;
    say(&format!("{} is up after {:.1?}", hello.release, begin.elapsed()));
    say(&format!("{} M ticks since reset", host.tsc()? / 1_000_000));
    let mut all_well = true;
    for command in &commands {
        println!("# {}", command.trim_end());
        let output = host.run(command, limit)?;
        print!("{}", output.text);
        if output.status != 0 {
            println!("# exit status {}", output.status);
            all_well = false;
        }
    }
    host.power_off()?;
    say(&format!("off after {:.1?}", begin.elapsed()));
    if let (Some(iso), false) = (setup.medium.cd(), args.keep) {
        fs::remove_file(iso)?;
    }
    Ok(all_well)
}
