//! `locum.ko` by itself: its own tests, on a stock kernel in QEMU without VMX, on a fake L0.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    debian::{Archive, apt::Apt, index, root::Root},
    image::{build, kernel::Kernel},
    machine::{qemu, turns},
    paths,
    progress::say,
    tools,
};

/// Runs `kmod/tests/run.sh` for the kernel that a name means.
pub(super) fn check(name: &str, dir: &Path) -> Result<()> {
    tools::ensure()?;
    let kernel = Kernel::get(name)?;
    let module = build::module(&kernel)?.context("the workspace has no kmod/Makefile")?;
    let busybox = Root::host()?.path("usr/bin/busybox");
    fs::create_dir_all(dir)?;
    let _turn = turns::take()?;
    let (status, text) = tools::status(
        Command::new("sh")
            .arg(paths::workspace().join("host-hotplug-agent/kmod/tests/run.sh"))
            .arg(kernel.image())
            .args([module, busybox])
            .arg(dir)
            .args(qemu::words()?),
    )?;
    let last = text.lines().last().unwrap_or_default();
    ensure!(
        status == Some(0),
        "the module's tests on {} fail (logs: {}):\n{text}",
        kernel.release(),
        dir.display()
    );
    say(&format!("locum.ko on {}: {last}", kernel.release()));
    Ok(())
}

/// Builds the module for every kernel that the archive has with headers, of all flavours.
pub(super) fn every(dir: &Path) -> Result<()> {
    tools::ensure()?;
    let archive = Archive::today()?;
    let index = archive
        .index
        .as_ref()
        .map_err(|why| anyhow!("Debian's archive can't be reached, and this is about all that it has: {why}"))?;
    let apt = Apt::new(&paths::cache()?)?;
    let tree = Root::compiler()?;
    let mut releases = Vec::new();
    for entry in archive.kernels.entries().iter().filter(|entry| entry.archive) {
        let release = &entry.release;
        let debs = dir.join("debs");
        fs::create_dir_all(&debs)?;
        apt.download(&index::headers(index, release), &debs)?;
        let built = tree.with_headers(&debs, || build::module(&Kernel::headers_in(&tree, release)));
        fs::remove_dir_all(&debs)?;
        built?.context("the workspace has no kmod/Makefile")?;
        releases.push(release.clone());
    }
    ensure!(!releases.is_empty(), "the archive has no kernel");
    fs::write(dir.join("built"), releases.join("\n"))?;
    say(&format!(
        "locum.ko was built without a warning for {} kernels",
        releases.len()
    ));
    Ok(())
}
