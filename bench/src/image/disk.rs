//! What the disks of whole Debian systems have in common: a partition table, the lab's hand, an initramfs.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

use crate::{debian::root::Root, tools};

/// A partition.
pub(super) struct Partition {
    name: &'static str,
    kind: &'static str,
    place: (u64, u64),
}

impl Partition {
    /// One of sfdisk's types (`L`, `U`), where it begins and how large it is, both in MiB.
    #[must_use]
    pub(super) fn new(name: &'static str, kind: &'static str, place: (u64, u64)) -> Self {
        Self { name, kind, place }
    }
}

/// Makes the image of a disk of so many MiB with these partitions in a GPT. `root` has the program.
///
/// # Errors
/// It cannot be made.
pub(super) fn partition(root: &Root, image: &Path, size: u64, partitions: &[Partition]) -> Result<()> {
    fs::File::create(image)?.set_len(size << 20)?;
    let table = image.with_extension("table");
    let mut text = String::from("label: gpt\n");
    for Partition { name, kind, place } in partitions {
        text.push_str(&format!(
            "start={}MiB, size={}MiB, type={kind}, name={name}\n",
            place.0, place.1
        ));
    }
    fs::write(&table, text)?;
    let sfdisk = root.program("usr/sbin/sfdisk");
    tools::run(
        Command::new("sh")
            .args(["-c", r#"table=$1; shift; exec "$@" <"$table""#, "sh"])
            .arg(&table)
            .arg(sfdisk.get_program())
            .args(sfdisk.get_args())
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(image),
    )?;
    Ok(fs::remove_file(table)?)
}

/// Writes files of a tree: path from the root, and text.
///
/// # Errors
/// One cannot be written.
pub(super) fn put(tree: &Root, files: &[(&str, &str)]) -> Result<()> {
    for (path, text) in files {
        let path = tree.path(path);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        fs::write(path, text)?;
    }
    Ok(())
}

/// Gives a tree the lab's hand, which its `labd.service` starts.
///
/// # Errors
/// It cannot be copied.
pub(super) fn hand(tree: &Root, labd: &Path) -> Result<()> {
    let hand = tree.path("usr/local/sbin/labd");
    fs::copy(labd, &hand)?;
    fs::set_permissions(hand, fs::Permissions::from_mode(0o755))?;
    let wants = tree.path("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    Ok(symlink("../labd.service", wants.join("labd.service"))?)
}

/// Makes the initramfs, which a tree is made without. Returns the release of the newest kernel.
///
/// # Errors
/// update-initramfs fails.
pub(super) fn initramfs(tree: &Root) -> Result<String> {
    tools::run(tree.chroot().args(["update-initramfs", "-c", "-k", "all"]))?;
    Ok(tree.kernels()?.into_iter().max().unwrap_or_default())
}
