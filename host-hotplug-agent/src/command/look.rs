//! Commands that only look: `doctor`, `preflight`, `trace`, `log`.

use std::process::ExitCode;

use anyhow::Result;

use super::{print_json, print_line};
use crate::cli::{Cli, Output};
use crate::doctor;
use crate::l0::trace as ring;
use crate::machine::{Access, Device};
use crate::preflight::{self, Level};
use crate::sysroot::SysRoot;

pub fn doctor(sys: &SysRoot, cli: &Cli, output: Output) -> Result<ExitCode> {
    let checks = doctor::examine(sys, &cli.config_dir);
    if output.json {
        print_json(&checks)?;
    } else {
        for check in &checks {
            let text = if cli.verbose {
                format!("{check:#}")
            } else {
                check.to_string()
            };
            print_line(&text)?;
        }
    }
    Ok(if doctor::fit(&checks) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub fn preflight(sys: &SysRoot, output: Output) -> Result<ExitCode> {
    let findings = preflight::examine(sys);
    if output.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            print_line(&finding.to_string())?;
        }
    }
    let refuses = findings.iter().any(|finding| finding.level == Level::Refuses);
    Ok(if refuses { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

pub fn trace(sys: &SysRoot, newest: usize, kinds: &[String], output: Output) -> Result<()> {
    let device = Device::open(sys, Access::Look)?;
    let records = ring::records(&device, device.header(), newest, kinds)?;
    if output.json {
        return print_json(&records);
    }
    if records.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = records.iter().map(ToString::to_string).collect();
    print_line(&lines.join("\n"))
}

pub fn log(sys: &SysRoot, output: Output) -> Result<()> {
    let device = Device::open(sys, Access::Look)?;
    let text = ring::log(&device, device.header())?;
    if output.json {
        print_json(&text.lines().collect::<Vec<_>>())
    } else {
        print_line(text.trim_end())
    }
}
