//! Commands that change something: `plan` (which does not), `refresh`, `abort`, `retry`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::lines::Lines;
use super::{print_json, print_line};
use crate::cli::{Cli, Output};
use crate::daemon::ipc::{self, Question};
use crate::deadline::Deadline;
use crate::error::{Refusal, Told};
use crate::guest::here::Here;
use crate::guest::pool::Pool;
use crate::image;
use crate::machine::{Access, Device, Host, Machine};
use crate::refresh::prepare::PlanView;
use crate::refresh::{Choice, Prepared, Wishes};
use crate::status::DaemonStatus;
use crate::sysroot::SysRoot;

/// How often a refresh that runs is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// For a daemon that died to be there again.
const RESTART: Duration = Duration::from_secs(30);

pub fn plan(sys: &SysRoot, cli: &Cli, choice: Choice<'_>, wishes: Wishes<'_>, output: Output) -> Result<()> {
    let host = Host::new(sys.clone(), Device::open(sys, Access::Control)?)?;
    let unreclaimed = ipc::ask(&cli.socket, &Question::Status).map_or_else(|_| Vec::new(), |status| status.unreclaimed);
    let hypervisor = Here::new(sys.clone(), Pool::of(&host.facts().header));
    let prepared = Prepared::new(&host, &hypervisor, &cli.config_dir, choice, wishes, unreclaimed)?;
    let view = PlanView::new(&prepared, &host)?;
    if output.json {
        print_json(&view)
    } else {
        print_line(&view.to_string())
    }
}

/// Begins a refresh and follows it; without a choice, follows the one that runs. It is the daemon's: it goes on when this
/// program ends.
pub fn refresh(
    sys: &SysRoot,
    cli: &Cli,
    choice: Option<Choice<'_>>,
    wishes: Wishes<'_>,
    detach: bool,
    output: Output,
) -> Result<ExitCode> {
    if let Some(Choice::Kernel(version)) = choice
        && !image::is_fresh(sys, version)
    {
        tracing::info!("making the successor's image for {version}");
        image::make(sys, version)?;
    }
    let question = match choice {
        None => Question::Status,
        Some(choice) if !wishes.are_none() => Question::RefreshWith {
            to: choice.into(),
            trust_storage: wishes.trust_storage.to_vec(),
            leave: wishes.leave.to_vec(),
        },
        Some(Choice::Named(name)) => Question::Refresh(name.to_owned()),
        Some(Choice::Kernel(version)) => Question::RefreshToKernel(version.to_owned()),
    };
    let status = ipc::ask(&cli.socket, &question)?;
    if choice.is_none() && status.running.is_none() {
        return Err(Refusal::NothingToFollow.into());
    }
    if detach {
        show(&status, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = follow(cli, status, |line| if output.json { Ok(()) } else { print_line(line) })?;
    show(&status, output)?;
    let ended_well = status.report.is_some_and(|report| report.outcome != "aborted");
    Ok(if ended_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Tells each line that is new until nothing runs any more; returns the status then.
///
/// # Errors
/// If the daemon does not come again, or of `tell`. The refresh goes on all the same.
pub(crate) fn follow(
    cli: &Cli,
    mut status: DaemonStatus,
    mut tell: impl FnMut(&str) -> Result<()>,
) -> Result<DaemonStatus> {
    let mut lines = Lines::default();
    while status.running.is_some() {
        if let Some(line) = lines.next(&status, Instant::now()) {
            tell(&line)?;
        }
        std::thread::sleep(LOOK);
        status = again(cli)?;
    }
    Ok(status)
}

/// The status, of a daemon that may just be started anew.
fn again(cli: &Cli) -> Result<DaemonStatus> {
    let until = Deadline::after(RESTART);
    loop {
        match ipc::ask(&cli.socket, &Question::Status) {
            Err(error) if !until.passed() => tracing::debug!("{error:#}"),
            outcome => return outcome,
        }
        std::thread::sleep(LOOK);
    }
}

/// Has a guest's QEMU replaced, and tells what came of it.
pub fn renew(cli: &Cli, guest: &str, output: Output) -> Result<()> {
    let status = ipc::ask(&cli.socket, &Question::Renew(guest.to_owned()))?;
    let renewed = status
        .renewed
        .context("the daemon is older than this program: `systemctl restart locum`")?;
    if output.json {
        return print_json(&renewed);
    }
    let release = |release: Option<(u32, u32)>| match release {
        Some((major, minor)) => format!("QEMU {major}.{minor}"),
        None => "a QEMU of unknown release".to_owned(),
    };
    print_line(&format!(
        "guest {guest}: from {} to {}; it stood still for {} ticks of the TSC; {} bytes of state, {} bytes of RAM copied",
        release(renewed.from),
        release(renewed.to),
        renewed.stopped_ticks,
        renewed.state_bytes,
        renewed.ram_bytes_copied
    ))
}

pub fn ask(cli: &Cli, question: &Question, output: Output) -> Result<()> {
    show(&ipc::ask(&cli.socket, question)?, output)
}

fn show(status: &DaemonStatus, output: Output) -> Result<()> {
    if output.json {
        return print_json(status);
    }
    print_line(&status.summary)?;
    let Some(error) = &status.last_error else {
        return Ok(());
    };
    let told = Told {
        name: status.last_error_name.clone(),
        text: error.clone(),
    };
    print_line(&format!("last error: {}", told.in_line()))
}
