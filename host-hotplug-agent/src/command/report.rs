//! `locum report`: the last refresh, or the one that runs.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{print_json, print_line};
use crate::cli::{Cli, Output};
use crate::daemon::ipc::{self, Question};
use crate::error::Refusal;
use crate::report::drawing;

/// Tells or draws it. `svg`: to a file, or to the standard output.
///
/// # Errors
/// [`Refusal::NoReport`], those of [`ipc::ask`], or if the file cannot be written.
pub fn run(cli: &Cli, svg: Option<&Option<PathBuf>>, output: Output) -> Result<()> {
    let status = ipc::ask(&cli.socket, &Question::Status)?;
    let report = status.report.ok_or(Refusal::NoReport)?;
    match svg {
        None if output.json => print_json(&report),
        None => print_line(&report.to_string()),
        Some(None) => print_line(drawing::draw(&report).trim_end()),
        Some(Some(path)) => {
            fs::write(path, drawing::draw(&report)).with_context(|| format!("writing {}", path.display()))
        }
    }
}
