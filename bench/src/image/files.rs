//! Builds initramfs archives (cpio "newc") without being root.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cpio::newc;

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

enum Entry {
    Directory,
    Link(String),
    Bytes(Vec<u8>, u32),
    File(PathBuf, u32),
}

/// The files of an archive, by their path without leading slash. A later entry replaces an earlier one.
#[derive(Default)]
pub(crate) struct Files {
    entries: BTreeMap<String, Entry>,
}

impl Files {
    /// Adds an empty directory.
    pub(crate) fn directory(&mut self, path: &str) {
        self.insert(path, Entry::Directory);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.insert(path, Entry::Link(target.to_owned()));
    }

    /// Adds a file with the given contents and permission bits.
    pub(crate) fn bytes(&mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.insert(path, Entry::Bytes(bytes.into(), mode));
    }

    /// Adds a copy of `source` (symbolic links followed).
    pub(crate) fn file(&mut self, path: &str, source: impl Into<PathBuf>, mode: u32) {
        self.insert(path, Entry::File(source.into(), mode));
    }

    /// Whether something was added at that path.
    #[must_use]
    pub(crate) fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(path)
    }

    fn insert(&mut self, path: &str, entry: Entry) {
        let mut parent = Path::new(path).parent();
        while let Some(directory) = parent.filter(|p| !p.as_os_str().is_empty()) {
            self.entries
                .entry(directory.to_string_lossy().into_owned())
                .or_insert(Entry::Directory);
            parent = directory.parent();
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the archive, padded to 4 bytes so that another one may follow.
    ///
    /// # Errors
    /// A source file cannot be read, or the writer fails.
    pub(crate) fn write(&self, mut out: impl Write) -> Result<()> {
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            let (mode, bytes) = match entry {
                Entry::Directory => (DIRECTORY, Vec::new()),
                Entry::Link(target) => (LINK, target.clone().into_bytes()),
                Entry::Bytes(bytes, mode) => (FILE | mode, bytes.clone()),
                Entry::File(source, mode) => {
                    let bytes =
                        fs::read(source).with_context(|| format!("reading {} for the image", source.display()))?;
                    (FILE | mode, bytes)
                }
            };
            let size = u32::try_from(bytes.len()).context("a file of 4 GiB in an initramfs")?;
            let mut writer = newc::Builder::new(path)
                .ino(inode)
                .nlink(1)
                .mode(mode)
                .write(&mut out, size);
            writer.write_all(&bytes)?;
            writer.finish()?;
        }
        newc::trailer(&mut out)?;
        Ok(())
    }
}

impl Files {
    /// Lays the files out in a directory, which must not exist.
    ///
    /// # Errors
    /// A source file cannot be read, or the directory cannot be written.
    pub(crate) fn stage(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        for (path, entry) in &self.entries {
            let target = dir.join(path);
            match entry {
                Entry::Directory => fs::create_dir_all(&target)?,
                Entry::Link(to) => std::os::unix::fs::symlink(to, &target)?,
                Entry::Bytes(bytes, mode) => {
                    fs::write(&target, bytes)?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(*mode))?;
                }
                Entry::File(source, mode) => {
                    fs::copy(source, &target).with_context(|| format!("reading {} for the image", source.display()))?;
                    fs::set_permissions(&target, fs::Permissions::from_mode(*mode))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children_and_contents_survive() {
        let mut archive = Files::default();
        archive.bytes("a/b/c", "text", 0o644);
        archive.link("a/l", "b/c");
        let mut out = Vec::new();
        archive.write(&mut out).unwrap();
        let mut rest: &[u8] = &out;
        let mut names = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let name = reader.entry().name().to_owned();
            let mut body = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut body).unwrap();
            if name == "a/b/c" {
                assert_eq!(body, b"text");
                assert_eq!(reader.entry().mode(), 0o100_644);
            }
            names.push(name);
            rest = reader.finish().unwrap();
        }
        assert_eq!(names, ["a", "a/b", "a/b/c", "a/l"]);
    }
}
