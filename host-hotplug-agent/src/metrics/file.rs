//! A file that is there as a whole or not at all.

use std::path::Path;

use anyhow::{Context, Result};

use crate::file;

/// Replaces the file: whoever reads it meanwhile has the old one. Its directory must be there.
///
/// # Errors
/// If the directory cannot be written to; the old file stays.
pub fn write(path: &Path, text: &str) -> Result<()> {
    // node-exporter reads `*.prom` only, which the file that is written first is not.
    file::replace(path, text).with_context(|| {
        format!(
            "writing {}: is its directory there, and may this user write to it?",
            path.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_is_replaced_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locum.prom");
        for text in ["one\n", "two\n"] {
            write(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = write(&dir.path().join("not-there/locum.prom"), "x").unwrap_err();
        assert!(error.to_string().contains("is its directory there"), "{error}");
        // A directory cannot be replaced: nothing stays beside it.
        fs::create_dir(dir.path().join("dir")).unwrap();
        assert!(write(&dir.path().join("dir"), "x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
