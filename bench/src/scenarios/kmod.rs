//! `locum.ko` by itself: its own tests, on a stock kernel in QEMU without VMX, on a fake L0.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{build, kernel::Kernel, paths, qemu, roots::Root, say, tools};

/// Runs `kmod/tests/run.sh` for the kernel that a name means.
pub fn check(name: &str, dir: &Path) -> Result<()> {
    tools::ensure()?;
    let kernel = Kernel::get(name)?;
    let module = build::module(&kernel)?.context("the workspace has no kmod/Makefile")?;
    let busybox = Root::host()?.path("usr/bin/busybox");
    fs::create_dir_all(dir)?;
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
