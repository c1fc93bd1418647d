//! `locum metrics`.

use std::path::Path;

use anyhow::Result;

use super::{print_line, status};
use crate::cli::Cli;
use crate::clock::Clock;
use crate::daemon::ipc::{self, Question};
use crate::metrics::{self, Seen};
use crate::sysroot::SysRoot;

/// Prints metrics, or writes them to a file. A machine without L0 has some, too.
///
/// # Errors
/// If they cannot be written.
pub fn run(sys: &SysRoot, cli: &Cli, file: Option<&Path>) -> Result<()> {
    let view = status::view(sys, cli);
    if let Err(error) = &view {
        tracing::debug!("{error:#}");
    }
    let seen = match view.ok() {
        Some(view) => Seen {
            daemon: view.daemon.is_some(),
            view: Some(view),
        },
        None => Seen {
            daemon: ipc::ask(&cli.socket, &Question::Status).is_ok(),
            view: None,
        },
    };
    let report = seen.view.as_ref().and_then(|view| view.last_report.as_ref());
    let clock = report.map(|report| Clock::now(report.tsc_khz));
    let text = metrics::text(&seen, clock.as_ref())?;
    match file {
        Some(file) => metrics::write(file, &text),
        None => print_line(text.trim_end()),
    }
}
