//! The host's view of its guests: reads beat pages out of the pool.

mod report;
mod spin;

pub use report::{Clock, Fault, Report, survived};
pub use spin::{Gap, Progress, first_progress, gaps};

use crate::map::Shared;
use crate::scan::{Found, newest, scan};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Between two looks: a scan of the pool costs about a million instructions, which must not become most of the emulator's.
const LOOK: Duration = Duration::from_millis(200);

/// All guests in the pool, those of the past too.
#[must_use]
pub fn all(pool: &Shared) -> Vec<Report> {
    scan(pool.pages()).iter().map(Report::read).collect()
}

/// The guest `name`, waiting for it up to `timeout`.
///
/// # Errors
/// No such guest appeared.
pub fn find<'a>(pool: &'a Shared, name: &str, timeout: Duration) -> Result<Found<'a>> {
    let end = Instant::now() + timeout;
    loop {
        let found = newest(&scan(pool.pages()), name);
        if found.is_some() || Instant::now() >= end {
            return found.with_context(|| {
                format!("no beat page of {name:?} in the pool: has the guest booted, and is the offset right?")
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until a guest runs all its checks.
///
/// # Errors
/// It did not within `timeout`.
pub fn running(pool: &Shared, name: &str, timeout: Duration) -> Result<Report> {
    let end = Instant::now() + timeout;
    loop {
        let found = find(pool, name, end.saturating_duration_since(Instant::now()))?;
        if found.page.running() {
            return Ok(Report::read(&found));
        }
        anyhow::ensure!(
            Instant::now() < end,
            "{name} still fills its buffer: give it more time or a smaller one"
        );
        std::thread::sleep(LOOK);
    }
}

/// Waits until the guest of an earlier report has proven that it survived: the same boot, no fault, and every kind of work that it
/// did before going on.
///
/// # Errors
/// The sentences of [`survived`] that are still true after `timeout`, or at once when it can no longer prove it.
pub fn prove_survival(pool: &Shared, before: &Report, timeout: Duration) -> Result<Report> {
    let end = Instant::now() + timeout;
    let start = Report::read(&find(pool, &before.name, timeout)?);
    loop {
        // Found anew each time: a guest that rebooted has another page.
        let now = Report::read(&find(pool, &before.name, Duration::ZERO)?);
        let complaints = survived(before, &start, &now);
        if complaints.is_empty() {
            return Ok(now);
        }
        let hopeless = now.faults > 0 || now.boot_id != before.boot_id;
        if hopeless || Instant::now() >= end {
            anyhow::bail!("{} did not survive: {}", before.name, complaints.join("; "));
        }
        std::thread::sleep(LOOK);
    }
}
