//! File systems of whole trees.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{debian::root::Root, tools};

/// Makes an ext4 in `file` of `tree`, its owners as they are there: in all of the file, or from an offset on and so large,
/// both in MiB. `root` has the program.
///
/// # Errors
/// It cannot be made.
pub(super) fn make(root: &Root, tree: &Path, file: &Path, label: &str, place: Option<(u64, u64)>) -> Result<()> {
    let mke2fs = root.program("usr/sbin/mke2fs");
    let mut command = Command::new(mke2fs.get_program());
    if !tools::is_root() {
        // Where mmdebstrap made the tree, its owners are this user's subordinates.
        command = Command::new("unshare");
        command
            .args(["--map-auto", "--map-root-user"])
            .arg(mke2fs.get_program());
    }
    command
        .args(mke2fs.get_args())
        .args(["-q", "-F", "-t", "ext4", "-L", label, "-d"])
        .arg(tree)
        .env("MKE2FS_CONFIG", root.path("etc/mke2fs.conf"));
    if let Some((offset, _)) = place {
        command.arg("-E").arg(format!("offset={}", offset << 20));
    }
    command.arg(file);
    if let Some((_, size)) = place {
        command.arg(format!("{size}M"));
    }
    tools::run(&mut command)
}
