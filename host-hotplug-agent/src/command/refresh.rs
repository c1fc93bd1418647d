//! Commands that change something: `plan` (which does not), `refresh`, `abort`, `retry`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;

use super::{print_json, print_line};
use crate::cli::{Cli, Output};
use crate::daemon::ipc::{self, Question};
use crate::guest::pool::Pool;
use crate::guest::qemu::Qemu;
use crate::machine::{Access, Device, Host, Machine};
use crate::refresh::Prepared;
use crate::refresh::prepare::PlanView;
use crate::status::DaemonStatus;
use crate::sysroot::SysRoot;

pub fn plan(sys: &SysRoot, cli: &Cli, name: &str, output: Output) -> Result<()> {
    let host = Host::new(sys.clone(), Device::open(sys, Access::Control)?)?;
    let unreclaimed = ipc::ask(&cli.socket, &Question::Status).map_or_else(|_| Vec::new(), |status| status.unreclaimed);
    let hypervisor = Qemu::new(sys.clone(), Pool::of(&host.facts().header));
    let prepared = Prepared::new(&host, &hypervisor, &cli.config_dir, name, unreclaimed)?;
    let view = PlanView::new(&prepared, &host)?;
    if output.json {
        print_json(&view)
    } else {
        print_line(&view.to_string())
    }
}

pub fn refresh(cli: &Cli, name: &str, detach: bool, output: Output) -> Result<ExitCode> {
    let mut status = ipc::ask(&cli.socket, &Question::Refresh(name.to_owned()))?;
    if detach {
        show(&status, output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut shown = String::new();
    while status.running.is_some() {
        let line = format!("{}/{} {}", status.done, status.total, status.summary);
        if !output.json && line != shown {
            print_line(&line)?;
            shown = line;
        }
        std::thread::sleep(Duration::from_millis(300));
        status = ipc::ask(&cli.socket, &Question::Status)?;
    }
    show(&status, output)?;
    let ended_well = status.report.is_some_and(|report| report.outcome != "aborted");
    Ok(if ended_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub fn ask(cli: &Cli, question: &Question, output: Output) -> Result<()> {
    show(&ipc::ask(&cli.socket, question)?, output)
}

fn show(status: &DaemonStatus, output: Output) -> Result<()> {
    if output.json {
        return print_json(status);
    }
    print_line(&status.summary)?;
    match &status.last_error {
        Some(error) => print_line(&format!("last error: {error}")),
        None => Ok(()),
    }
}
