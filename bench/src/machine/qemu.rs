//! Runs the server under QEMU/KVM instead of Bochs, on a machine whose `/dev/kvm` has nested VMX.
//!
//! Written from QEMU's manual and never run: no machine with nested VMX was at hand.

use std::{
    ffi::OsString,
    fs::File,
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::bochs::Hardware;
use crate::debian::root::Root;

/// File that has what QEMU complains of.
pub(super) const ERRORS: &str = "qemu.err";

/// The words that start the hosts' own QEMU on this machine, as the user who runs the lab.
///
/// # Errors
/// Its tree cannot be had.
pub(crate) fn words() -> Result<Vec<OsString>> {
    let root = Root::host()?;
    let qemu = root.program("usr/bin/qemu-system-x86_64");
    let mut words = vec![qemu.get_program().to_owned()];
    words.extend(qemu.get_args().map(OsString::from));
    for firmware in ["usr/share/seabios", "usr/share/qemu"] {
        words.extend(["-L".into(), root.path(firmware).into()]);
    }
    Ok(words)
}

/// Starts QEMU in `dir`, with the same ports, files and cards as [`crate::machine::bochs::start`].
///
/// # Errors
/// No nested VMX here, or the program does not start.
pub(crate) fn start(hardware: &Hardware, dir: &Path) -> Result<Child> {
    let nested = std::fs::read_to_string("/sys/module/kvm_intel/parameters/nested").unwrap_or_default();
    ensure!(
        matches!(nested.trim(), "Y" | "1"),
        "--platform kvm needs an Intel machine with nested VMX: load kvm_intel with nested=1, or use --platform bochs"
    );
    let [com3, com4] = hardware.channels;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .args(words()?)
        .args([
            "-machine",
            "pc,accel=kvm",
            "-cpu",
            "host,migratable=off",
            "-nodefaults",
            "-display",
            "none",
        ])
        .args(["-smp", &hardware.cpus.to_string(), "-m", &hardware.memory.to_string()])
        .arg("-cdrom")
        .arg(&hardware.iso)
        .args(["-boot", "d"])
        .args(["-serial", "file:console0.log", "-serial", "file:console1.log"])
        .args([
            "-serial",
            &format!("tcp:127.0.0.1:{com3}"),
            "-serial",
            &format!("tcp:127.0.0.1:{com4}"),
        ])
        .args([
            "-chardev",
            "file,id=e9,path=l0.log",
            "-device",
            "isa-debugcon,iobase=0xe9,chardev=e9",
        ])
        .args(["-netdev", "user,id=n0", "-device", "e1000,netdev=n0,addr=3,romfile="])
        .args(["-netdev", "user,id=n1", "-device", "e1000,netdev=n1,addr=4,romfile="])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join(ERRORS))?);
    command.spawn().context("starting QEMU")
}
