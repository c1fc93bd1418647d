//! Runs Bochs, the emulator that has VMX.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

use super::checks;
use crate::debian::root::Root;

/// Instructions per second that the emulated clock assumes.
pub(crate) const IPS: u64 = 100_000_000;

/// CPU model with all that Locum can use: EPT, unrestricted guest, VPID, VMCS shadowing.
pub(crate) const HASWELL: &str = "corei7_haswell_4770";
/// The same without VMCS shadowing.
pub(crate) const IVY_BRIDGE: &str = "corei7_ivy_bridge_3770k";

/// A server's CPU: APICv, PML and TSC scaling besides. Linux takes its word that it has 3.5 GHz, so that its clock is
/// 35 times slower than [`IPS`] says.
pub(crate) const SKYLAKE_X: &str = "corei7_skylake_x";

/// What Linux takes the rate of the TSC of a model to be, in Hz; `None` for models that the lab does not know. The
/// emulator's TSC itself has [`IPS`], of emulated time.
#[must_use]
pub(crate) fn tsc_hz(cpu_model: &str) -> Option<u64> {
    match cpu_model {
        // They have no CPUID leaf 15H: Linux calibrates.
        HASWELL | IVY_BRIDGE => Some(IPS),
        SKYLAKE_X => Some(3_500_000_000),
        _ => None,
    }
}

/// MSRs that CPUID or VMX promise and Bochs lacks, told to it in its columns. They read as 0 and ignore writes, as
/// unknown ones do, but no access fills the log with a line of its own: Linux reads IA32_MPERF and IA32_APERF at every
/// tick of every CPU, KVM IA32_DEBUGCTL whenever it loads a vCPU.
const SILENT: &str = "\
0x0e7 0 00000000 00000000 00000000 00000000 ffffffff ffffffff
0x0e8 0 00000000 00000000 00000000 00000000 ffffffff ffffffff
0x1d9 0 00000000 00000000 00000000 00000000 ffffffff ffffffff
";

/// Models that Linux expects a microcode of: without it, it leaves the TSC deadline alone (`deadline_match` in
/// arch/x86/kernel/apic/apic.c), and the other mode of the timer runs at another rate here than CPUID says.
/// IA32_BIOS_SIGN_ID has the revision in bits 63:32.
const MICROCODE: &[(&str, &str)] = &[(
    SKYLAKE_X,
    "0x08b 0 02006e05 00000000 00000000 00000000 ffffffff ffffffff\n",
)];

/// The MSRs of a model, with or without those of machine checks.
fn msrs(cpu_model: &str, machine_checks: bool) -> String {
    let mut text = SILENT.to_owned();
    if machine_checks {
        text.push_str(checks::MSRS);
    }
    for (_, line) in MICROCODE.iter().filter(|(model, _)| *model == cpu_model) {
        text.push_str(line);
    }
    text
}

/// The emulated server.
#[derive(Debug, Clone)]
pub(crate) struct Hardware {
    /// CPUs, 1 to 4.
    pub cpus: u32,
    /// Their model, as Bochs calls it.
    pub cpu_model: String,
    /// RAM in MiB. What is beyond 3072 lies above 4 GiB, less the GiB below that.
    pub memory: u32,
    /// The CD it boots.
    pub iso: PathBuf,
    /// The image of its disk, which it writes to; without one it has no controller for it either.
    pub disk: Option<PathBuf>,
    /// Its CPUs have a bank for machine checks, and may be given some ([`checks`]).
    pub machine_checks: bool,
    /// The segment that its cards hang on, as their `ethdev`; without one, each has a network of its own that leads to this
    /// machine's.
    pub segment: Option<String>,
    /// TCP ports on 127.0.0.1 that COM3 and COM4 connect to.
    pub channels: [u16; 2],
}

/// Network cards.
pub(crate) const CARDS: u32 = 2;

/// A CPU with CET. Linux takes its TSC for 35 times as fast as it is.
pub(crate) const TIGER_LAKE: &str = "tigerlake";

/// File in which Bochs shows its ticks, for [`crate::machine::deadline::Clock`].
pub(crate) const TICKS: &str = "ticks";

/// Starts Bochs in `dir`. Files there afterwards: `bochsrc`, `console0.log` (COM1), `console1.log` (COM2), `l0.log`
/// (port 0xE9, and Bochs' own banner), `bochs.log`, and [`TICKS`].
///
/// # Errors
/// The root cannot be made, or the program does not start.
pub(crate) fn start(hardware: &Hardware, dir: &Path) -> Result<Child> {
    let root = Root::bochs()?;
    let config = dir.join("bochsrc");
    fs::write(&config, config_text(hardware, &root, dir))?;
    fs::write(dir.join("msrs"), msrs(&hardware.cpu_model, hardware.machine_checks))?;
    let bochs = root.program("usr/bin/bochs");
    // The emulator must not outlive the lab, however the lab ends.
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL"])
        .arg(bochs.get_program())
        .args(bochs.get_args())
        .args(["-q", "-f"])
        .arg(&config)
        .env("BXSHARE", root.path("usr/share/bochs"))
        .env("BOCHS_TICKS", dir.join(TICKS))
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(File::create(dir.join("l0.log"))?)
        .stderr(File::create(dir.join("bochs.err"))?);
    command.spawn().context("starting Bochs")
}

fn config_text(hardware: &Hardware, root: &Root, dir: &Path) -> String {
    let Hardware {
        cpus,
        cpu_model,
        memory,
        iso,
        disk,
        channels: [com3, com4],
        machine_checks: _,
        segment,
    } = hardware;
    let network = match segment {
        Some(device) => format!("ethmod=socket, ethdev={device}"),
        None => "ethmod=slirp".to_owned(),
    };
    let share = root.path("usr/share/bochs");
    let vga = root.path("usr/share/vgabios/vgabios.bin");
    let (share, vga, dir, iso) = (share.display(), vga.display(), dir.display(), iso.display());
    let mut text = format!(
        r#"# Written by the lab.
display_library: nogui
romimage: file={share}/BIOS-bochs-latest
vgaromimage: file={vga}
cpu: model={cpu_model}, count={cpus}, quantum=16, ips={IPS}, reset_on_triple_fault=0
cpu: msrs={dir}/msrs
memory: guest={memory}, host={memory}
clock: sync=none, time0=local
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path={iso}, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev={dir}/console0.log
com2: enabled=1, mode=file, dev={dir}/console1.log
com3: enabled=1, mode=socket-client, dev=127.0.0.1:{com3}
com4: enabled=1, mode=socket-client, dev=127.0.0.1:{com4}
port_e9_hack: enabled=1
log: {dir}/bochs.log
panic: action=fatal
error: action=report
info: action=report
debug: action=ignore
speaker: enabled=0
pci: enabled=1, chipset=i440fx, slot1=e1000, slot2=e1000{controller}
"#,
        controller = if disk.is_some() { ", slot5=usb_xhci" } else { "" },
    );
    for card in 0..CARDS {
        let _ = writeln!(
            text,
            "e1000: card={card}, enabled=1, mac=52:54:00:00:00:0{card}, {network}, script=\"\""
        );
    }
    if let Some(disk) = disk {
        // Bochs' own disks are IDE's, with an interrupt of the PIC's that no successor has.
        let _ = writeln!(
            text,
            "usb_xhci: enabled=1, port1=disk, options1=\"speed:super, path:{}, proto:bbb\"",
            disk.display()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_microcode_is_the_servers_alone() {
        assert_eq!(msrs(HASWELL, false), SILENT);
        let server = msrs(SKYLAKE_X, true);
        assert!(server.starts_with(SILENT) && server.contains("0x08b") && server.contains(checks::MSRS));
        // As Bochs wants them: address, type, and three pairs of words.
        for line in server.lines() {
            assert_eq!(line.split_whitespace().count(), 8, "{line}");
        }
    }
}
