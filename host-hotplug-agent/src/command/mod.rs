//! The commands, each as a function that prints.

mod image;
mod lines;
mod look;
mod metrics;
mod nested;
mod pool;
pub(crate) mod refresh;
mod report;
mod setup;
mod status;

use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::acpi::aml;
use crate::cli::{Cli, Command};
use crate::daemon::{self, ipc::Question};
use crate::refresh::{Choice, Wishes};
use crate::sysroot::SysRoot;

/// Carries out the command line.
///
/// # Errors
/// What the operator is to be told.
pub fn run(cli: &Cli) -> Result<ExitCode> {
    let sys = SysRoot::at(&cli.root);
    match &cli.command {
        Command::Doctor(output) => return look::doctor(&sys, cli, *output),
        Command::Setup { check, confirm, output } => return setup::run(&sys, *check, *confirm, *output),
        Command::Preflight(output) => return look::preflight(&sys, *output),
        Command::Status { long, watch, output } => status::run(&sys, cli, *long, *watch, *output)?,
        Command::Report { svg, output } => report::run(cli, svg.as_ref(), *output)?,
        Command::Metrics { output } => metrics::run(&sys, cli, output.as_deref())?,
        Command::Trace { newest, kinds, output } => look::trace(&sys, *newest, kinds, *output)?,
        Command::Pool { command, output } => pool::run(&sys, command.as_ref(), *output)?,
        Command::Log(output) => look::log(&sys, *output)?,
        Command::Cycle {
            count,
            pause_us,
            output,
        } => nested::cycle(&sys, *count, *pause_us, *output)?,
        Command::Enter => nested::enter(&sys)?,
        Command::Leave => nested::leave(&sys)?,
        Command::Image { version } => image::run(&sys, version.as_deref())?,
        Command::Plan {
            name,
            kernel,
            trust_storage,
            leave,
            output,
        } => {
            let wishes = Wishes { trust_storage, leave };
            let choice = choice(name.as_deref(), kernel.as_deref()).context("clap has one of them given")?;
            refresh::plan(&sys, cli, choice, wishes, *output)?;
        }
        Command::Refresh {
            name,
            kernel,
            trust_storage,
            leave,
            detach,
            follow: _,
            output,
        } => {
            let choice = choice(name.as_deref(), kernel.as_deref());
            let wishes = Wishes { trust_storage, leave };
            return refresh::refresh(&sys, cli, choice, wishes, *detach, *output);
        }
        Command::Renew { guest, output } => refresh::renew(cli, guest, *output)?,
        Command::Abort { force: false, output } => refresh::ask(cli, &Question::Abort, *output)?,
        Command::Abort { force: true, output } => refresh::ask(cli, &Question::AbortByForce, *output)?,
        Command::Retry(output) => refresh::ask(cli, &Question::Retry, *output)?,
        Command::LibvirtHook { operation, part, .. } => pool::libvirt_hook(&sys, operation, part)?,
        Command::Aml { skip } => aml::main(&sys, skip),
        Command::Daemon { until_reigning } => daemon::run(sys, &cli.config_dir, &cli.socket, *until_reigning)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a refresh goes to; `None` if neither is given.
fn choice<'c>(name: Option<&'c str>, kernel: Option<&'c str>) -> Option<Choice<'c>> {
    name.map(Choice::Named).or(kernel.map(Choice::Kernel))
}

/// Prints a value as JSON.
fn print_json(value: &impl Serialize) -> Result<()> {
    print_line(&serde_json::to_string_pretty(value)?)
}

/// Prints text; a reader that closed the pipe (`locum trace | head`) is no error.
fn print_line(text: &str) -> Result<()> {
    use std::io::{ErrorKind, Write, stdout};
    match writeln!(stdout().lock(), "{text}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
