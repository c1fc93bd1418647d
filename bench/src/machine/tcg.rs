//! Runs the second board: QEMU's TCG, which has what Bochs lacks (UEFI, PCI Express, NUMA, many CPUs, much RAM) and lacks
//! VMX.

use std::{
    ffi::OsString,
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::{board::Board, qemu, server::Medium};
use crate::debian::root::Root;

/// What the board is connected to.
#[derive(Debug)]
pub(crate) struct Wires<'a> {
    /// CPUs.
    pub cpus: u32,
    /// What it boots.
    pub medium: &'a Medium,
    /// TCP ports on 127.0.0.1 that COM3 and COM4 connect to.
    pub channels: [u16; 2],
    /// The one that QEMU's monitor connects to.
    pub monitor: u16,
}

/// Starts QEMU in `dir`. Files there afterwards: `console0.log` (COM1, the firmware's console, too), `console1.log`
/// (COM2), `l0.log` (port 0xE9), `qemu.err`, and the firmware's variables, `variables.fd`.
///
/// # Errors
/// A tree cannot be had, or the program does not start.
pub(crate) fn start(board: &Board, wires: &Wires, dir: &Path) -> Result<Child> {
    let variables = dir.join("variables.fd");
    let code = match board.firmware.ovmf() {
        None => None,
        Some(files) => {
            let root = Root::uefi()?;
            let [code, fresh] = files.map(|file| root.path(&format!("usr/share/OVMF/{file}")));
            fs::copy(&fresh, &variables).with_context(|| format!("copying {}", fresh.display()))?;
            Some(code)
        }
    };
    let ovmf = code.as_deref().map(|code| [code, variables.as_path()]);
    let [com3, com4] = wires.channels;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .args(qemu::words()?)
        .args(["-no-user-config", "-nodefaults", "-display", "none", "-vga", "std"])
        .args(board.arguments(wires.cpus, ovmf))
        .args(drive(wires.medium))
        .args(["-serial", "file:console0.log", "-serial", "file:console1.log"])
        .args(["-serial", &format!("tcp:127.0.0.1:{com3}")])
        .args(["-serial", &format!("tcp:127.0.0.1:{com4}")])
        .args(["-debugcon", "file:l0.log"])
        .args(["-qmp", &format!("tcp:127.0.0.1:{}", wires.monitor)])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join(qemu::ERRORS))?);
    command.spawn().context("starting QEMU")
}

fn drive(medium: &Medium) -> Vec<OsString> {
    match medium {
        Medium::Cd(iso) => vec!["-cdrom".into(), iso.into(), "-boot".into(), "d".into()],
        Medium::Disk(file) => {
            // What a machine writes is there when it boots again; it need not outlive this machine.
            let mut drive = OsString::from("if=virtio,format=raw,cache=unsafe,file=");
            drive.push(file);
            vec!["-drive".into(), drive]
        }
    }
}
