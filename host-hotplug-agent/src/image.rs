//! `locum image`: the initramfs that a successor starts from, made with the distribution's own tool.
//!
//! A successor starts while the incumbent has the disks mounted. So it is furnished in its initramfs with what takes guests
//! over: `locum`, QEMU and what that needs. The hook of Debian's initramfs-tools that the package brings puts that in, if
//! this program asks it to, and a script that begins before the root is looked for. It ends when this host reigns and has what was the
//! incumbent's, its disks too; then the initramfs goes on as at any boot, and mounts the machine's own root.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;
use std::{fs, io};

use anyhow::{Context, Result, bail};

use crate::config::is_file_name;
use crate::error::Refusal;
use crate::sysroot::SysRoot;

/// Where the images are: GRUB does not read them, and `/boot` may be small.
const DIRECTORY: &str = "var/lib/locum/images";
/// Debian's tool, of the package initramfs-tools.
const TOOL: &str = "usr/sbin/mkinitramfs";
/// The hook that furnishes the image; it does so only where this variable is 1.
const HOOK: &str = "usr/share/initramfs-tools/hooks/locum";
const ASKED: &str = "LOCUM_IMAGE";
/// The script in it.
const SCRIPT: &str = "usr/share/initramfs-tools/scripts/init-top/locum";
/// The module that each kernel needs.
const MODULE: &str = "locum.ko";
/// What an image is of, besides the kernel: it changes whenever a package is installed.
const PACKAGES: &str = "var/lib/dpkg/status";
const LOCUM: &str = "usr/sbin/locum";
/// Files and directories whose content the hook copies, and operators change.
const CARRIED: [&str; 5] = [
    "etc/default/locum",
    "etc/libvirt/qemu.conf",
    "etc/libvirt/qemu/networks",
    "etc/libvirt/qemu/networks/autostart",
    "etc/libvirt/secrets",
];

/// Makes sure that it is the name of a kernel's version, and of nothing else.
///
/// # Errors
/// [`Refusal::BadVersion`].
pub fn check_name(version: &str) -> Result<(), Refusal> {
    match is_file_name(version, ".-_+~") {
        true => Ok(()),
        false => Err(Refusal::BadVersion(version.to_owned())),
    }
}

/// The image for that kernel, without a leading slash.
pub fn path(version: &str) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("{version}.img"))
}

/// The refusal of a kernel that this host has not; it names those that it has.
pub fn not_installed(sys: &SysRoot, version: &str) -> Refusal {
    Refusal::NoKernel {
        version: version.to_owned(),
        known: sys.list("lib/modules").unwrap_or_default().join(", "),
    }
}

/// Whether there is an image for that kernel, and nothing that it was made of has changed since.
pub fn is_fresh(sys: &SysRoot, version: &str) -> bool {
    let changed = |path: &str| fs::metadata(sys.path(path)).and_then(|file| file.modified()).ok();
    let modules = format!("lib/modules/{version}/modules.dep");
    let parts = [PACKAGES, LOCUM, HOOK, SCRIPT, &modules];
    let mut parts = parts.into_iter().chain(CARRIED).filter_map(changed);
    let image = changed(&path(version).to_string_lossy());
    image.is_some_and(|image: SystemTime| parts.all(|part| part <= image))
}

/// Makes the image for that kernel; returns where it is.
///
/// # Errors
/// What it lacks, or what the distribution's tool says.
pub fn make(sys: &SysRoot, version: &str) -> Result<PathBuf> {
    check_name(version)?;
    let modules = format!("lib/modules/{version}");
    if !sys.exists(&modules) {
        bail!(not_installed(sys, version));
    }
    if !has_module(&sys.path(&modules)).unwrap_or_default() {
        bail!(
            "kernel {version} has no {MODULE}: install its headers (linux-headers-{version}) so that DKMS builds it, and see \
             `dkms status`"
        );
    }
    for (file, remedy) in [
        (
            TOOL,
            "install initramfs-tools; with another tool, make the initramfs by hand and name it in a file of /etc/locum",
        ),
        (HOOK, "install the package locum anew"),
        (SCRIPT, "install the package locum anew"),
    ] {
        if !sys.exists(file) {
            bail!("there is no /{file}: {remedy}");
        }
    }
    let target = sys.path(path(version));
    let part = target.with_extension("part");
    if let Some(dir) = target.parent() {
        // There are passwords of disks in an image, and the tool lets everybody read it.
        let private = || fs::set_permissions(dir, fs::Permissions::from_mode(0o700));
        fs::create_dir_all(dir)
            .and_then(|()| private())
            .with_context(|| format!("creating {}", dir.display()))?;
    }
    let made = run(sys, version, &part).and_then(|()| {
        fs::rename(&part, &target).with_context(|| format!("renaming {} to {}", part.display(), target.display()))
    });
    if made.is_err() {
        // The tool leaves what it has written so far.
        let _ = fs::remove_file(&part);
    }
    made.map(|()| target)
}

fn run(sys: &SysRoot, version: &str, to: &Path) -> Result<()> {
    let tool = sys.path(TOOL);
    let output = Command::new(&tool)
        .arg("-o")
        .arg(to)
        .arg(version)
        .env(ASKED, "1")
        .output()
        .with_context(|| format!("{} cannot be run", tool.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!(
            "{} {version} failed ({}): {}",
            tool.display(),
            output.status,
            said.trim()
        );
    }
    for line in said.lines() {
        tracing::warn!("{line}");
    }
    Ok(())
}

/// Whether the module, compressed or not, is among those of a kernel.
fn has_module(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            has_module(&entry.path())?
        } else {
            entry.file_name().to_string_lossy().starts_with(MODULE)
        };
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::tree::Tree;

    const VERSION: &str = "6.12.1+deb13-amd64";

    /// A host with a tool that writes what it was asked for.
    fn host() -> Tree {
        let tree = Tree::lab();
        tree.put(HOOK, "");
        tree.put(SCRIPT, "");
        tree.put(format!("lib/modules/{VERSION}/modules.dep"), "");
        tree.put(format!("lib/modules/{VERSION}/updates/dkms/locum.ko.xz"), "");
        tool(&tree, "echo \"$LOCUM_IMAGE for $3\" >\"$2\"");
        tree
    }

    fn tool(tree: &Tree, text: &str) {
        tree.put(TOOL, format!("#!/bin/sh\n{text}\n"));
        let path = tree.path().join(TOOL);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn error(tree: &Tree) -> String {
        format!("{:#}", make(&tree.sys(), VERSION).unwrap_err())
    }

    #[test]
    fn the_tool_makes_the_image_and_is_told_whose() {
        let tree = host();
        assert!(!is_fresh(&tree.sys(), VERSION));
        let image = make(&tree.sys(), VERSION).unwrap();
        assert_eq!(fs::read_to_string(&image).unwrap(), format!("1 for {VERSION}\n"));
        assert!(is_fresh(&tree.sys(), VERSION));
        let directory = fs::metadata(image.parent().unwrap()).unwrap();
        assert_eq!(directory.permissions().mode() & 0o777, 0o700, "others may read it");
        let made = fs::metadata(&image).unwrap().modified().unwrap();
        // A package was installed since, or a secret was defined.
        for path in [PACKAGES, "etc/libvirt/secrets"] {
            let changed = fs::File::create(tree.put(path, "")).unwrap();
            changed.set_modified(made + Duration::from_secs(60)).unwrap();
            assert!(!is_fresh(&tree.sys(), VERSION), "{path}");
            changed.set_modified(made).unwrap();
            assert!(is_fresh(&tree.sys(), VERSION));
        }
    }

    #[test]
    fn what_is_missing_is_told_and_leaves_nothing_behind() {
        let tree = host();
        tool(&tree, "echo half >\"$2\"; echo no space left >&2; exit 1");
        assert!(error(&tree).contains("no space left"), "{}", error(&tree));
        assert_eq!(tree.sys().list(DIRECTORY).unwrap(), [""; 0]);
        for (file, word) in [
            (TOOL, "initramfs-tools"),
            (HOOK, "package locum"),
            (SCRIPT, "package locum"),
        ] {
            let tree = host();
            fs::remove_file(tree.path().join(file)).unwrap();
            assert!(error(&tree).contains(word), "{}", error(&tree));
        }
        let tree = host();
        fs::remove_file(
            tree.path()
                .join(format!("lib/modules/{VERSION}/updates/dkms/locum.ko.xz")),
        )
        .unwrap();
        assert!(error(&tree).contains("linux-headers-"), "{}", error(&tree));
        let other = make(&host().sys(), "6.1.0").unwrap_err().to_string();
        assert!(other.contains(VERSION), "those that are there are named: {other}");
        for name in ["", "../6.12", "6.12/x", ".6"] {
            assert!(
                make(&host().sys(), name)
                    .unwrap_err()
                    .to_string()
                    .contains("no kernel's version"),
                "{name}"
            );
        }
    }
}
