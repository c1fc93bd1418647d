//! PID 1 of the guest: sets it up, then runs the checks, or measures if that is asked for.

use crate::{checks, measure, setup};
use anyhow::Result;

/// Runs as PID 1. Returns only on an error, upon which the guest's kernel panics and says so.
///
/// # Errors
/// The guest cannot be set up: the message names what is missing.
pub fn run() -> Result<()> {
    setup::mounts()?;
    let params = setup::params()?;
    if params.modules {
        println!("lab {}: {} modules loaded", params.name, setup::load_modules()?);
    }
    if params.measure.is_empty() {
        checks::run(&params)
    } else {
        measure::run(&params.measure)?;
        setup::reboot()
    }
}
