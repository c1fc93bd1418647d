//! `cargo lab`: an emulated Intel server on which Locum is built, run and tested end to end.
//!
//! From the ground up:
//!
//! - [`debian`]: Debian trees, made with mmdebstrap and cached.
//! - [`image`]: what a machine is booted from. Kernels and user space are taken out of those trees, Locum's own parts are
//!   built, and all of it goes into one initramfs and onto a GRUB CD.
//! - [`machine`]: a running emulator (Bochs), and the hosts on it, to which serial lines lead.
//! - [`steps`]: what is done with a running machine, up to a whole refresh; a run leaves a [`report`].
//! - [`package`]: what an operator installs.
//! - [`demo`], [`scenarios`] and [`benchmarks`] are made of such steps, as are [`boot`] and [`shell`]; [`suite`]
//!   plays the scenarios.
//!
//! The lab's only clock is the emulated one, which counts instructions: evidence is in ticks of the time stamp counter,
//! and limits follow the emulator's own count ([`machine::deadline`]). Wall time finds an emulator that stands still,
//! nothing else.

mod benchmarks;
mod boot;
mod debian;
mod demo;
mod image;
mod machine;
mod package;
mod paths;
mod progress;
mod report;
mod scenarios;
mod shell;
mod steps;
mod suite;
mod tools;
mod upkeep;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use benchmarks::BenchArgs;
use boot::BootArgs;
use debian::kernels::{NEWEST, OLDEST};
use demo::DemoArgs;
use report::picture;
use shell::ShellArgs;
use suite::TestArgs;

/// An emulated Intel server with Locum on it
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Count what Locum costs, under four set-ups
    Bench(BenchArgs),
    /// Boot a host, run commands in it, power off
    Boot(BootArgs),
    /// Replace a host under running guests, and report it
    Demo(DemoArgs),
    /// Run every test; the last line is "N passed, N failed"
    Test(TestArgs),
    /// Open a shell in the incumbent
    Shell(ShellArgs),
    /// Remove what the lab made in target/lab
    Clean {
        /// Remove the cached Debian trees, too
        #[arg(long)]
        all: bool,
    },
    /// Fetch and make everything that depends on Debian only
    Root {
        /// Kernels to get
        #[arg(long, default_values = [OLDEST, NEWEST])]
        kernel: Vec<String>,
        /// Only list the kernels: where they are, what the defaults are; fetch nothing
        #[arg(long)]
        list: bool,
    },
    /// Draw the last refresh of a report
    Picture {
        /// The report, such as target/lab/report.json
        report: PathBuf,
        /// The SVG file to write
        svg: PathBuf,
    },
    /// Make the Debian package, and print where it is
    Package {
        /// What lintian finds is an error, too
        #[arg(long)]
        strict: bool,
    },
    /// Build locum.ko and print where it is
    Kmod {
        /// Kernels to build for
        #[arg(long, default_values = [OLDEST, NEWEST])]
        kernel: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Bench(args) => benchmarks::bench(&args),
        Command::Boot(args) => boot::boot(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Test(args) => suite::test(&args),
        Command::Shell(args) => shell::shell(&args),
        Command::Clean { all } => upkeep::clean(all),
        Command::Root { list: true, .. } => upkeep::list(),
        Command::Root { kernel, .. } => upkeep::fetch(&kernel),
        Command::Picture { report, svg } => picture::write(&report, &svg).map(|()| true),
        Command::Package { strict } => package::command(strict),
        Command::Kmod { kernel } => upkeep::modules(&kernel),
    }
}
