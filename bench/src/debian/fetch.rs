//! Makes a Debian tree with mmdebstrap, and tells how far it is.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    process::Command,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    apt::Apt,
    archive::Archive,
    pocket::{Pocket, SUITE},
};
use crate::{paths, progress::say, tools};

/// How often progress is told.
const TELL: Duration = Duration::from_secs(10);
/// How often it is looked at. Packages come in some seconds and go when they are unpacked.
const LOOK: Duration = Duration::from_millis(500);

/// What a tree is made of.
#[derive(Debug, Clone)]
pub(crate) struct Order<'a> {
    /// What it is, for people.
    pub what: &'a str,
    /// Packages beside those that every tree has.
    pub packages: &'a [String],
    /// Whether the kernel's packages come from backports.
    pub backports: bool,
    /// A Debian source package to put into `usr/src`, if any.
    pub source: Option<&'a str>,
    /// A shell command that completes the tree, `$1`.
    pub hook: Option<&'a str>,
}

/// Makes the tree at `target`, which must not exist.
///
/// # Errors
/// mmdebstrap fails; with its last words.
pub(crate) fn tree(order: &Order, target: &Path) -> Result<()> {
    let mut command = Command::new("mmdebstrap");
    command
        .args([
            "--variant=minbase",
            "--aptopt=Apt::Install-Recommends \"false\"",
            "--aptopt=Acquire::Retries \"3\"",
        ])
        .arg(format!("--include={}", order.packages.join(",")))
        .env("INITRD", "No");
    let mut sources: Vec<_> = Pocket::OWN.iter().map(|pocket| pocket.source("deb")).collect();
    if order.backports {
        sources.push(Pocket::Backports.source("deb"));
        // Without it apt does not take the kernel's lesser packages from there.
        let pin = format!(
            "Package: linux-*\\nPin: release n={}\\nPin-Priority: 990\\n",
            Pocket::Backports.suite()
        );
        command.arg(format!(
            "--setup-hook=printf '{pin}' > \"$1/etc/apt/preferences.d/lab\""
        ));
    }
    if let Some(source) = order.source {
        sources.extend(Pocket::OWN.map(|pocket| pocket.source("deb-src")));
        command.arg(format!(
            "--customize-hook=cd \"$1/usr/src\" && APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" \
             apt-get source --download-only --tar-only {source}"
        ));
    }
    if let Some(hook) = order.hook {
        command.arg(format!("--customize-hook={hook}"));
    }
    command.arg(SUITE).arg(target).args(sources);
    let total = to_fetch(order);
    let (done, watched) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || watch(order.what, target, total, &watched));
        let made = tools::run(&mut command);
        drop(done);
        made
    })
}

/// Bytes and number of packages; `None` where apt cannot tell, which mmdebstrap will say better.
fn to_fetch(order: &Order) -> Option<(u64, usize)> {
    let archive = Archive::today().ok()?;
    let index = archive.index.as_ref().ok()?;
    let mut packages: Vec<_> = index.essential().map(str::to_owned).collect();
    packages.push("apt".to_owned());
    for package in order.packages {
        packages.push(if order.backports && package.starts_with("linux-") {
            format!("{package}/{}", Pocket::Backports.suite())
        } else {
            package.clone()
        });
    }
    Apt::new(&paths::cache().ok()?).ok()?.to_fetch(&packages).ok()
}

/// Tells, until the other end of `done` is dropped, what was fetched and how much is installed.
fn watch(what: &str, target: &Path, total: Option<(u64, usize)>, done: &mpsc::Receiver<()>) {
    let size = total.map(|(bytes, count)| format!(", {} MB in {count} packages", bytes / 1_000_000));
    say(&format!("fetching {what}{}", size.unwrap_or_default()));
    let mut fetched = Fetched::default();
    let mut told = Instant::now();
    let mut speed = (told, 0);
    while done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        fetched.look(&target.join("var/cache/apt/archives"));
        if told.elapsed() < TELL {
            continue;
        }
        told = Instant::now();
        let bytes = fetched.bytes();
        let rate = per_second(bytes - speed.1, speed.0.elapsed());
        speed = (told, bytes);
        say(&format!("{what}: {}", state(bytes, rate, total, installed(target))));
    }
}

/// How far a tree is, in words.
fn state(bytes: u64, rate: u64, total: Option<(u64, usize)>, installed: usize) -> String {
    const MB: u64 = 1_000_000;
    // dpkg has a few lists more than packages.
    let installed = total.map_or(installed, |(_, count)| installed.min(count));
    let Some((all, count)) = total else {
        return format!("{} MB fetched, {installed} packages unpacked", bytes / MB);
    };
    if bytes < all {
        let left = match (all - bytes).checked_div(rate) {
            Some(seconds) => format!("{seconds} s left"),
            None => "waiting for the archive".to_owned(),
        };
        format!(
            "{} of {} MB fetched, {}.{} MB/s, {left}; {installed} of {count} packages unpacked",
            bytes / MB,
            all / MB,
            rate / MB,
            rate % MB / 100_000
        )
    } else {
        format!("all fetched, {installed} of {count} packages unpacked")
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / milliseconds
}

/// Package files that were seen so far, by name, with their size then: mmdebstrap removes those that it has unpacked.
#[derive(Default)]
struct Fetched {
    files: HashMap<std::ffi::OsString, u64>,
}

impl Fetched {
    fn look(&mut self, archives: &Path) {
        for dir in [archives.join("partial"), archives.to_owned()] {
            // Not there yet, or not readable for this user: then less is told.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if let Ok(meta) = entry.metadata()
                    && meta.is_file()
                {
                    let size = self.files.entry(entry.file_name()).or_default();
                    *size = meta.len().max(*size);
                }
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.files.values().sum()
    }
}

fn installed(target: &Path) -> usize {
    fs::read_dir(target.join("var/lib/dpkg/info"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "list"))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_that_are_gone_count() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("partial")).unwrap();
        let mut fetched = Fetched::default();
        fs::write(dir.path().join("partial/a.deb"), [0; 10]).unwrap();
        fetched.look(dir.path());
        assert_eq!(fetched.bytes(), 10);
        fs::rename(dir.path().join("partial/a.deb"), dir.path().join("a.deb")).unwrap();
        fs::write(dir.path().join("a.deb"), [0; 30]).unwrap();
        fetched.look(dir.path());
        fs::remove_file(dir.path().join("a.deb")).unwrap();
        fs::write(dir.path().join("b.deb"), [0; 5]).unwrap();
        fetched.look(dir.path());
        assert_eq!(fetched.bytes(), 35);
    }

    #[test]
    fn what_is_left_is_told() {
        let total = Some((100_000_000, 200));
        assert_eq!(
            state(40_000_000, 2_500_000, total, 20),
            "40 of 100 MB fetched, 2.5 MB/s, 24 s left; 20 of 200 packages unpacked"
        );
        assert!(state(40_000_000, 0, total, 20).contains("waiting for the archive"));
        assert_eq!(
            state(100_000_000, 0, total, 120),
            "all fetched, 120 of 200 packages unpacked"
        );
        assert_eq!(state(1_000_000, 1, None, 3), "1 MB fetched, 3 packages unpacked");
        assert_eq!(per_second(3000, Duration::from_millis(1500)), 2000);
    }
}
