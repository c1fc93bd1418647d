//! Files of this host as a cpio archive (format "newc", Linux
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::Refusal;

/// The bytes of every archive's end marker.
pub const TRAILER: &str = "TRAILER!!!";

/// Packs `paths` with all below them and the directories above them. Sockets, devices and pipes are left out.
///
/// # Errors
/// [`Refusal::NoCarry`] with the path that cannot be read.
pub fn pack(paths: &[PathBuf]) -> Result<Vec<u8>, Refusal> {
    let mut packer = Packer::default();
    for path in paths {
        packer.parents(path)?;
        packer.tree(path)?;
    }
    packer.entry(Path::new(TRAILER), 0, 0, &[]);
    Ok(packer.out)
}

#[derive(Default)]
struct Packer {
    out: Vec<u8>,
    seen: BTreeSet<PathBuf>,
    inode: u32,
}

impl Packer {
    fn parents(&mut self, path: &Path) -> Result<(), Refusal> {
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for parent in above.into_iter().rev().filter(|parent| parent.parent().is_some()) {
            self.one(parent)?;
        }
        Ok(())
    }

    fn tree(&mut self, path: &Path) -> Result<(), Refusal> {
        let metadata = self.one(path)?;
        if !metadata.is_dir() {
            return Ok(());
        }
        let failed = |error| Refusal::NoCarry {
            path: path.to_owned(),
            error,
        };
        let mut below = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            below.push(entry.map_err(failed)?.path());
        }
        below.sort();
        below.iter().try_for_each(|path| self.tree(path))
    }

    fn one(&mut self, path: &Path) -> Result<fs::Metadata, Refusal> {
        let failed = |error| Refusal::NoCarry {
            path: path.to_owned(),
            error,
        };
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        if !self.seen.insert(path.to_owned()) {
            return Ok(metadata);
        }
        let kind = metadata.file_type();
        let content = if kind.is_file() {
            fs::read(path).map_err(failed)?
        } else if kind.is_symlink() {
            fs::read_link(path).map_err(failed)?.as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        if u32::try_from(content.len()).is_err() {
            return Err(failed(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "4 GiB or more do not fit into an archive",
            )));
        }
        if kind.is_file() || kind.is_symlink() || kind.is_dir() {
            self.entry(path, metadata.permissions().mode(), metadata.mtime(), &content);
        }
        Ok(metadata)
    }

    fn entry(&mut self, path: &Path, mode: u32, mtime: i64, content: &[u8]) {
        let name = path.strip_prefix("/").unwrap_or(path).as_os_str().as_bytes();
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            u32::try_from(mtime).unwrap_or(0),
            u32::try_from(content.len()).unwrap_or(0),
            0,
            0,
            0,
            0,
            u32::try_from(name.len() + 1).unwrap_or(0),
            0,
        ];
        self.out.extend_from_slice(b"070701");
        for field in fields {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(name);
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let len = self.out.len().next_multiple_of(4);
        self.out.resize(len, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::initramfs;
    use std::process::{Command, Stdio};

    #[test]
    fn the_archive_is_what_cpio_expects() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/file"), "content\n").unwrap();
        std::os::unix::fs::symlink("file", dir.path().join("sub/link")).unwrap();
        let archive = pack(&[dir.path().join("sub"), dir.path().join("sub/file")]).unwrap();
        assert_eq!(initramfs::check(&archive), Ok(()));

        // Read back by the tool that everybody uses, where it is installed.
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-i", "-t", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return;
        };
        io::Write::write_all(&mut cpio.stdin.take().unwrap(), &archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let names = String::from_utf8(output.stdout).unwrap();
        let sub = dir.path().join("sub").strip_prefix("/").unwrap().display().to_string();
        assert!(names.lines().any(|line| line == format!("{sub}/file")), "{names}");
        assert_eq!(
            names.lines().filter(|line| line.ends_with("/file")).count(),
            1,
            "once only: {names}"
        );
        assert!(
            names.lines().any(|line| line == "tmp"),
            "directories above come first: {names}"
        );
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = pack(&[PathBuf::from("/nowhere/x")]).unwrap_err();
        assert!(
            matches!(&error, Refusal::NoCarry { path, .. } if path == Path::new("/nowhere")),
            "{error}"
        );
    }
}
