//! The agent's tests of real QEMUs (`host-hotplug-agent/tests/handover/`), with the QEMU that the lab's hosts have: the
//! machine itself may have none, and then cargo plays none of them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::{debian::root::Root, image::build, progress::say, suite::Skipped, tools};

/// In the tree, with devices and memory of this machine: `sh -c SCRIPT sh TREE TESTS`.
const PLAY: &str = r#"set -e
mount --rbind /dev "$1/dev"
mount --rbind "$2" "$1/mnt"
mount -t tmpfs shm "$1/dev/shm"
exec chroot "$1" /mnt/handover --test-threads 2"#;

/// All of them.
pub(super) fn all(dir: &Path) -> Result<()> {
    if !tools::is_root() {
        bail!(Skipped(
            "the hosts' tree is entered by root, and you are not root".into()
        ));
    }
    tools::ensure()?;
    let tree = Root::host()?;
    fs::create_dir_all(dir)?;
    let tests = build::handover_tests()?;
    let here = dir.join("handover");
    fs::copy(&tests, &here).with_context(|| format!("copying {}", tests.display()))?;
    let (status, text) = tools::status(
        Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg(format!("--mount-proc={}", tree.path("proc").display()))
            .args(["sh", "-c", PLAY, "sh"])
            .args([tree.dir(), dir]),
    )?;
    ensure!(status == Some(0), "they ended with {status:?}:\n{text}");
    let result = text.lines().find(|line| line.starts_with("test result:"));
    let result = result.with_context(|| format!("no result:\n{text}"))?;
    say(&format!("qemus: {result}"));
    fs::remove_file(here)?;
    Ok(())
}
