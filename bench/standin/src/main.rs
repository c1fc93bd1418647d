//! `locum` for a machine that is a file: the machine of the directory in which this program is.
//!
//! It takes the command line of the agent's own, and what it prints is made of the agent's own types: a change of either is one
//! of this program. Not the agent's is what it prints where: only `--json` is known here.
//!
//! `connect` instead of a command tells by the exit status whether the machine can be reached.

mod answers;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use lab_fleet::{Fate, Ill, Machine, Stage, tell};
use locum_agent::{
    cli::{Cli, Command},
    error::{Refusal, Told},
};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            let told = Told::of(&error);
            eprintln!("locum: {told}");
            if wants_json() {
                println!("{}", told.json());
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let program = env::current_exe()?;
    let dir: PathBuf = program.parent().context("a program is in a directory")?.to_owned();
    let mut machine = Machine::read(&dir)?;
    if env::args().nth(1).as_deref() == Some("connect") {
        let connects = machine.connects();
        machine.write(&dir)?;
        return Ok(if connects { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let cli = Cli::parse();
    let json = wants_json();
    match &cli.command {
        Command::Image { version: Some(version) } => {
            if !machine.installed.contains(version) {
                bail!(answers::no_kernel(&machine, version));
            }
            machine.images.push(version.clone());
            machine.write(&dir)?;
            tell(&dir, "image")?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Status { .. } if json => status(&dir, &mut machine)?,
        Command::Plan {
            kernel: Some(kernel),
            leave,
            ..
        } if json => {
            may_go(&machine, kernel)?;
            print(&answers::plan(&machine, kernel, leave)?)?;
        }
        Command::Refresh {
            kernel: Some(kernel),
            detach: true,
            ..
        } if json => refresh(&dir, &mut machine, kernel)?,
        _ => bail!("nothing that stands for a machine can do this"),
    }
    Ok(ExitCode::SUCCESS)
}

fn wants_json() -> bool {
    env::args().any(|word| word == "--json")
}

fn status(dir: &Path, machine: &mut Machine) -> Result<()> {
    if machine.ill == Some(Ill::NoL0) {
        bail!(Refusal::NoModule);
    }
    print(&answers::status(machine))?;
    if machine.go_on() {
        tell(dir, "ends")?;
    }
    machine.write(dir)
}

fn may_go(machine: &Machine, kernel: &str) -> Result<()> {
    if !machine.installed.iter().any(|installed| installed == kernel) {
        bail!(answers::no_kernel(machine, kernel));
    }
    if !machine.images.iter().any(|image| image == kernel) {
        bail!(Refusal::NoImage(kernel.to_owned()));
    }
    if machine.fate == Fate::RefusedPlan {
        bail!(answers::stays());
    }
    Ok(())
}

fn refresh(dir: &Path, machine: &mut Machine, kernel: &str) -> Result<()> {
    may_go(machine, kernel)?;
    if machine.fate == Fate::RefusedAtOnce {
        bail!(answers::stays());
    }
    if machine.stage != Stage::Rests {
        bail!(Refusal::Running(kernel.to_owned()));
    }
    machine.begin(kernel);
    tell(dir, "begins")?;
    machine.write(dir)?;
    print(&answers::daemon(machine))
}

fn print(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
