//! Files that are replaced as a whole, and files that need not be there.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// Replaces a file, or makes it: whoever reads it meanwhile has the old one. Its directory must be there.
///
/// # Errors
/// If the directory cannot be written to; the old file stays.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    // Nobody takes it for one of the files beside it.
    let beside = path.with_file_name(format!(".{}.{}.tmp", name.display(), std::process::id()));
    let written = fs::write(&beside, content).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// As [`replace`], with this as JSON. Its directory is made.
///
/// # Errors
/// If it cannot be written; the old file stays.
pub fn put_json(path: &Path, content: &impl Serialize) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    replace(path, serde_json::to_vec(content)?).with_context(|| format!("writing {}", path.display()))
}

/// Removes a file, if it is there.
///
/// # Errors
/// If it stays.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_need_not_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("note");
        remove(&path).unwrap();
        replace(&path, "one").unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        assert!(remove(dir.path()).is_err(), "a directory is no file");
    }
}
