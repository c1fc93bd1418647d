//! The host's view of its guests: reads beat pages out of the pool.

mod report;
mod spin;

pub use report::{Clock, Fault, Report, survived};
pub use spin::{Gap, Progress, first_progress, gaps};

use crate::map::Shared;
use crate::scan::{Found, newest, scan};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// Between two looks: a scan of the pool costs about a million instructions, which must not become most of the
/// emulator's.
const LOOK: Duration = Duration::from_millis(200);

/// All guests in the pool, those of the past too.
#[must_use]
pub fn all(pool: &Shared) -> Vec<Report> {
    scan(pool.pages()).iter().map(Report::read).collect()
}

/// Erases all beat pages of `name`. The guest must not be running: its page would be gone for good.
pub fn forget(pool: &Shared, name: &str) {
    let found = scan(pool.pages());
    for page in found.iter().map(|found| found.page) {
        if page.identity().name == name {
            page.erase();
        }
    }
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

/// Waits until the guest of an earlier report has proven that it survived: the same boot, no fault, and every kind of
/// work that it did before going on.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::{BeatPage, Identity};

    #[test]
    #[cfg_attr(miri, ignore = "maps memory")]
    fn a_forgotten_guest_is_not_found_and_others_are() {
        let pool = Shared::private(4 * 4096).expect("four pages");
        for (page, name) in pool.pages().iter().zip(["g1", "g2", "g1"]) {
            let identity = Identity {
                name: name.into(),
                gpa: 0,
                boot_id: 0,
                started_ns: 0,
                buffer_bytes: 0,
            };
            let _ = BeatPage::create(page, &identity);
        }
        assert_eq!(all(&pool).len(), 3);
        forget(&pool, "g1");
        let names: Vec<_> = all(&pool).into_iter().map(|report| report.name).collect();
        assert_eq!(names, ["g2"]);
        assert!(find(&pool, "g1", Duration::ZERO).is_err());
    }
}
