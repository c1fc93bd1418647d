//! Shares a machine among several users of the lab.
//!
//! `LAB_SLOTS` may name files, separated by colons; an emulator then runs only while it holds the lock of one of them.
//! Without the variable nothing is limited.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result};

/// A place among the emulators; given up when dropped. By default one of any number.
#[derive(Debug, Default)]
pub struct Slot {
    _lock: Option<File>,
}

/// Waits for a free place of those in `LAB_SLOTS`.
///
/// # Errors
/// A file cannot be made or locked.
pub fn take() -> Result<Slot> {
    let files = std::env::var_os("LAB_SLOTS").unwrap_or_default();
    let files: Vec<_> = std::env::split_paths(&files)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    wait(&files)
}

fn wait(files: &[PathBuf]) -> Result<Slot> {
    if files.is_empty() {
        return Ok(Slot::default());
    }
    // Waiting in the kernel's queue of each lock: who only looks now and then is overtaken for ever.
    let (sender, taken) = mpsc::channel();
    for path in files {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {} of LAB_SLOTS", path.display()))?;
        let sender = sender.clone();
        thread::spawn(move || {
            let locked = file.lock().map(|()| file);
            // Nobody listens any more: another file was quicker, and this lock is given up.
            let _ = sender.send(locked);
        });
    }
    let file = taken
        .recv()
        .context("no thread waits for LAB_SLOTS")?
        .context("locking a file of LAB_SLOTS")?;
    Ok(Slot { _lock: Some(file) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_second_of_two_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("slot")];
        let first = wait(&files).unwrap();
        let (sender, events) = std::sync::mpsc::channel();
        let for_thread = files.clone();
        let second = thread::spawn(move || {
            let slot = wait(&for_thread);
            sender.send(()).unwrap();
            slot.map(drop)
        });
        assert!(
            events.recv_timeout(Duration::from_millis(500)).is_err(),
            "two in one slot"
        );
        drop(first);
        events.recv_timeout(Duration::from_secs(60)).unwrap();
        second.join().unwrap().unwrap();
    }
}
