//! Shares a developer's machine among several users of the lab: their emulators take turns.
//!
//! `LAB_TURNS` may name files, separated by colons; an emulator then runs only while it holds the lock of one of them.
//! Without the variable nothing is limited.

use std::{
    fs::{File, OpenOptions},
    path::PathBuf,
    sync::mpsc,
    thread,
};

use anyhow::{Context, Result};

/// The variable, and what it was called when hosts had slots, too.
const FILES: [&str; 2] = ["LAB_TURNS", "LAB_SLOTS"];

/// Leave to run an emulator; given up when dropped. By default everybody has it.
#[derive(Debug, Default)]
pub(crate) struct Turn {
    _lock: Option<File>,
}

/// Waits for a turn: for one of the files in `LAB_TURNS`.
///
/// # Errors
/// A file cannot be made or locked.
pub(crate) fn take() -> Result<Turn> {
    let files = FILES.iter().find_map(std::env::var_os).unwrap_or_default();
    let files: Vec<_> = std::env::split_paths(&files)
        .filter(|path| !path.as_os_str().is_empty())
        .collect();
    wait(&files)
}

fn wait(files: &[PathBuf]) -> Result<Turn> {
    if files.is_empty() {
        return Ok(Turn::default());
    }
    // Waiting in the kernel's queue of each lock: who only looks now and then is overtaken for ever.
    let (sender, taken) = mpsc::channel();
    for path in files {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("opening {} of LAB_TURNS", path.display()))?;
        let sender = sender.clone();
        thread::spawn(move || {
            let locked = file.lock().map(|()| file);
            // Nobody listens any more: another file was quicker, and this lock is given up.
            let _ = sender.send(locked);
        });
    }
    let file = taken
        .recv()
        .context("no thread waits for LAB_TURNS")?
        .context("locking a file of LAB_TURNS")?;
    Ok(Turn { _lock: Some(file) })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_second_of_two_waits_for_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("turn")];
        let first = wait(&files).unwrap();
        let (sender, events) = std::sync::mpsc::channel();
        let for_thread = files.clone();
        let second = thread::spawn(move || {
            let turn = wait(&for_thread);
            sender.send(()).unwrap();
            turn.map(drop)
        });
        assert!(
            events.recv_timeout(Duration::from_millis(500)).is_err(),
            "two have one turn"
        );
        drop(first);
        events.recv_timeout(Duration::from_secs(60)).unwrap();
        second.join().unwrap().unwrap();
    }
}
