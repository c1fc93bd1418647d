//! Where the lab keeps things.

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::progress::say;

/// Root of the workspace whose lab this is.
#[must_use]
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Outputs: `target/lab` of the workspace.
#[must_use]
pub(crate) fn out() -> PathBuf {
    workspace().join("target/lab")
}

/// Things that are costly to fetch and depend on versions only: `$XDG_CACHE_HOME/locum`, by default `~/.cache/locum`.
///
/// # Errors
/// Neither `XDG_CACHE_HOME` nor `HOME` is set.
pub(crate) fn cache() -> Result<PathBuf> {
    of_user("XDG_CACHE_HOME", ".cache", "caches Debian trees")
}

/// What is to outlive the cache: `$XDG_STATE_HOME/locum`, by default `~/.local/state/locum`.
///
/// # Errors
/// Neither `XDG_STATE_HOME` nor `HOME` is set.
pub(crate) fn state() -> Result<PathBuf> {
    of_user("XDG_STATE_HOME", ".local/state", "keeps its results")
}

/// Locum's directory in that which `variable` names, by default `~/DEFAULT`.
fn of_user(variable: &str, default: &str, what: &str) -> Result<PathBuf> {
    if let Some(dir) = env::var_os(variable).filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("locum"));
    }
    let home = env::var_os("HOME")
        .with_context(|| format!("neither {variable} nor HOME is set; set one, the lab {what} there"))?;
    Ok(PathBuf::from(home).join(default).join("locum"))
}

/// Takes the lock `DIR/NAME.lock`, waiting for whoever has it; held until the file is dropped.
///
/// # Errors
/// The directory or the file cannot be made.
pub(crate) fn lock(dir: &Path, name: &str) -> Result<File> {
    if let Some(file) = try_lock(dir, name)? {
        return Ok(file);
    }
    let (file, path) = lock_file(dir, name)?;
    say(&format!("waiting for whoever has {}", path.display()));
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

/// As [`lock`], without waiting: `None` if somebody has it.
///
/// # Errors
/// As [`lock`].
pub(crate) fn try_lock(dir: &Path, name: &str) -> Result<Option<File>> {
    let (file, path) = lock_file(dir, name)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

fn lock_file(dir: &Path, name: &str) -> Result<(File, PathBuf)> {
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    Ok((file, path))
}
