//! `locum setup`: the next boot.

use std::process::ExitCode;

use anyhow::Result;

use super::{print_json, print_line};
use crate::cli::Output;
use crate::setup::{self, Confirmed};
use crate::sysroot::SysRoot;

pub fn run(sys: &SysRoot, check: bool, confirmed: bool, output: Output) -> Result<ExitCode> {
    if confirmed {
        let text = match setup::confirm(sys)? {
            Confirmed::Stays => "the next boot goes by way of Locum, too",
            Confirmed::NotWanted => "the next boot goes without Locum: LOCUM_STAY in /etc/default/locum says so",
        };
        print_line(text)?;
        return Ok(ExitCode::SUCCESS);
    }
    if !check {
        setup::once(sys)?;
    }
    let findings = setup::examine(sys);
    if output.json {
        print_json(&findings)?;
    } else {
        for finding in &findings {
            let word = match (finding.ok, finding.needed) {
                (true, _) => "ok",
                (false, true) => "missing",
                (false, false) => "to do",
            };
            print_line(&format!("{word:<8} {:<12} {}", finding.what, finding.text))?;
        }
    }
    let ready = findings.iter().all(|finding| finding.ok || !finding.needed);
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
