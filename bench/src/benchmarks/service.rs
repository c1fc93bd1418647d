//! A refresh as a client of a guest sees it: `target/bench/refresh.json` and `refresh.svg`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{
    machine::platform::Platform,
    progress::{Progress, say},
    report::service::draw,
    steps::{Run, prepare::MachineArgs},
};

/// Plays one refresh under the client, and the same in which the client says nothing.
///
/// # Errors
/// It does not go through, or a result cannot be written.
pub(super) fn measure(dir: &Path, timeout: u64, platform: Platform) -> Result<()> {
    let machine = MachineArgs {
        timeout,
        platform,
        strict: true,
        segment: true,
        ..MachineArgs::default()
    };
    let mut run = Run::boot(&machine, Progress::new("refresh"))?;
    let services = run.refresh_under_client(1)?;
    run.power_off()?;
    let mut service = services.into_iter().next().context("no refresh was played")?;
    let mut quiet = Run::boot(&machine, Progress::new("refresh, without a client"))?;
    service.without = quiet.refresh_beside_client()?;
    quiet.power_off()?;
    say(&service.to_string());
    fs::create_dir_all(dir)?;
    fs::write(dir.join("refresh.json"), serde_json::to_vec_pretty(&service)?)?;
    let which = format!("{} to {}", run.report.incumbent, run.report.successor);
    fs::write(dir.join("refresh.svg"), draw(&service, &which)?)?;
    Ok(())
}
