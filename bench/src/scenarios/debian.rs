//! A host on the emulated server that is a whole Debian, as an operator has it: its own initramfs, systemd, Locum's
//! package, and its root on a disk that hangs on a PCI function.

mod domain;
mod refresh;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    image::{
        build,
        debian_host::DebianHost,
        iso::{Boot, Iso},
    },
    machine::{
        self, Machine, Medium, Setup,
        board::Board,
        bochs::{HASWELL, IPS},
        deadline::Span,
        layout::Layout,
        platform::Platform,
    },
    progress::{Progress, say},
    report::agent::Status,
    tools,
};

/// Seconds of its own time after which the machine is killed.
const LIMIT: Span = Span::seconds(7200);
/// Long enough for a boot, with everything that systemd does in it.
const BOOT: Span = Span::seconds(900);

const CPUS: u32 = 4;
const LAYOUT: Layout = Layout::DEBIAN;

/// As GRUB's entry of the package has it, and what Bochs wants. Its floppy has no medium, and the initramfs waits for what
/// it says of that. Its BIOS writes to IA32_FEATURE_CONTROL, which is still locked after a reset by the keyboard
/// controller: that ends in a triple fault, so the machine is reset by port 0xCF9.
const CMDLINE: &str = "root=LABEL=root ro console=ttyS0,115200 idle=halt reboot=pci net.ifnames=0 modprobe.blacklist=floppy \
     fsck.mode=skip transparent_hugepage=never dax_hmem.region_idle=1";

/// For GRUB: each network card's line (PIRQB and PIRQC of the PIIX3, 82371SB datasheet, 2.2.9) has an interrupt of its own. As the BIOS
/// leaves them, one shares its interrupt with ACPI and the SMBus and the other with the disk's controller, so that neither could go
/// to another host without these.
const APART: [&str; 2] = ["setpci -s 00:01.0 61.b=05", "setpci -s 00:01.0 62.b=0a"];

/// What the disk is: the block device that is the root's parent, and the PCI function that it hangs on.
const WHERE: &str = "disk=$(lsblk -no pkname $(findmnt -no source /)); \
     function=$(readlink -f /sys/block/$disk | grep -o '0000:[0-9a-f:.]*' | tail -n 1); f=/sys/bus/pci/devices/$function";

/// Removes the function of a root's disk, scans for it, and looks for a file there: with a program in memory.
const GO_AND_COME: &str = r#"
b=/dev/shm/busybox
echo u > /proc/sysrq-trigger
$b sleep 1
echo 1 > $1/remove
$b sleep 1
[ -e $1 ] || echo "the function is gone; disks: $($b ls /sys/block | $b grep ^sd | $b xargs)"
echo 1 > /sys/bus/pci/rescan
for i in $($b seq 60); do
    for part in /dev/sd?1; do
        [ -e "$part" ] && $b mount -t ext4 -o ro,noload "$part" /run/again 2>/dev/null && break 2
    done
    $b sleep 1
done
echo "after $i s the root is on $part"
$b cmp -s /run/again/root/witness /run/witness && echo "the witness is there: yes"
$b dmesg | $b grep -iE "xhci|usb|sd |ext4" | $b tail -n 25
# Nothing can be started any more once this ends.
($b sleep 10; echo o > /proc/sysrq-trigger) </dev/null >/dev/null 2>&1 &
"#;

/// All of it.
pub(super) fn all(dir: &Path) -> Result<()> {
    tools::ensure()?;
    fs::create_dir_all(dir)?;
    let mut host = Host::new("debian", dir)?;
    host.up("Debian boots from its disk")?;
    host.units()?;
    host.facts()?;
    host.locum()?;
    host.reboot()?;
    host.disk_goes_and_comes()?;
    host.goes_off()
}

/// As [`all`] begins, and then two refreshes to the other kernel that is installed.
pub(super) use refresh::all as refreshes;

struct Host {
    machine: Machine,
    progress: Progress,
    /// The kernel that is to run, and another one that is installed.
    release: String,
    next: String,
    /// The host that reigns.
    generation: u32,
}

impl Host {
    fn new(name: &str, dir: &Path) -> Result<Self> {
        let progress = Progress::new(name);
        progress.step("building");
        let debian = DebianHost::get()?;
        let (iso, disk) = (dir.join("boot.iso"), dir.join("disk.img"));
        debian.disk(&disk)?;
        Iso {
            l0: Some(build::l0()?),
            l0_args: format!("{} log=e9 host_cpus={CPUS}", LAYOUT.l0_pool()),
            kernel: debian.kernel(),
            cmdline: format!("{CMDLINE} movablecore={}M", LAYOUT.movable()),
            initrd: debian.initrd(),
            boot: Boot::Bios,
            before: APART.map(str::to_owned).into(),
        }
        .build(&dir.join("iso"), &iso)?;
        let machine = Machine::start(&Setup {
            cpus: CPUS,
            cpu_model: HASWELL.into(),
            memory: LAYOUT.memory,
            board: Board::default(),
            medium: Medium::Cd(iso),
            disk: Some(disk),
            platform: Platform::Bochs,
            segment: false,
            machine_checks: false,
            dir: dir.to_owned(),
            limit: LIMIT,
        })?;
        Ok(Self {
            machine,
            progress,
            release: debian.release,
            next: debian.next,
            generation: 0,
        })
    }

    fn here(&mut self) -> machine::Host<'_> {
        self.machine.host(self.generation)
    }

    fn sh(&mut self, command: &str) -> Result<String> {
        self.here()
            .run(command, BOOT)?
            .ok()
            .with_context(|| format!("running {command:?}"))
    }

    /// Waits for a boot, to its end.
    fn up(&mut self, step: &str) -> Result<()> {
        self.progress.step(step);
        let hello = self.here().wait_ready(BOOT)?;
        ensure!(
            hello.release == self.release,
            "the host runs {}, not {} of its disk",
            hello.release,
            self.release
        );
        self.booted()
    }

    fn booted(&mut self) -> Result<()> {
        let answered = self.seconds()?;
        let state = self.here().run("systemctl is-system-running --wait", BOOT)?;
        let state = state.text.trim().to_owned();
        let failed = self.sh("systemctl list-units --failed --plain --no-legend")?;
        let ended = self.seconds()?;
        say(&format!(
            "debian: {} answered {answered:.1} s after power on, and was {state} after {ended:.1} s",
            self.release
        ));
        ensure!(
            state == "running",
            "the system is {state}; units that failed:\n{failed}"
        );
        Ok(())
    }

    /// Since the machine was powered on, in its own time: a reset does not begin it anew.
    fn seconds(&mut self) -> Result<f64> {
        Ok(self.here().tsc()? as f64 / IPS as f64)
    }

    fn units(&mut self) -> Result<()> {
        self.sh("systemctl is-active locum locum-pool locum-confirm")
            .context("Locum's units are not up")?;
        let blame = self.sh("systemd-analyze time; systemd-analyze blame | head -n 12")?;
        say(&format!("debian: {}", blame.trim()));
        Ok(())
    }

    /// Where the disk is, for whoever reads.
    fn facts(&mut self) -> Result<()> {
        let facts = self.sh(&format!(
            "{WHERE}; echo \"the root is on $disk, behind $function\"; \
             for file in vendor device class irq; do echo \"$file $(cat $f/$file)\"; done; \
             echo \"driver $(basename $(readlink -f $f/driver))\"; ls $f/msi_irqs 2>/dev/null; \
             grep -E 'xhci|eth|e1000|acpi|ata' /proc/interrupts; cat /proc/iomem | grep $function; cat /proc/partitions"
        ))?;
        say(&format!("debian: {}", facts.trim()));
        let tick = self.here().tsc()?;
        let said = self.sh("dd if=/dev/sda of=/dev/null bs=1M count=16 skip=2048 iflag=direct 2>&1 | tail -n 1")?;
        let read = self.here().tsc()? - tick;
        // Writes that Bochs' disk takes in two pieces, the second of them in one packet: it hung.
        self.sh("dd if=/dev/zero of=/root/zeroes bs=132k count=2 oflag=direct 2>&1")?;
        let tick = self.here().tsc()?;
        self.sh("dd if=/dev/zero of=/root/zeroes bs=1M count=16 oflag=direct conv=fsync 2>&1 && rm /root/zeroes")?;
        let written = self.here().tsc()? - tick;
        say(&format!(
            "debian: 16 MiB are read in {} M ticks and written in {} M; {}",
            read / 1_000_000,
            written / 1_000_000,
            said.trim()
        ));
        Ok(())
    }

    fn status(&mut self) -> Result<Status> {
        let status = self.sh("locum status --json")?;
        serde_json::from_str(&status).with_context(|| format!("locum status --json printed:\n{status}"))
    }

    fn locum(&mut self) -> Result<()> {
        self.progress.step("Locum's commands");
        let status = self.status()?;
        ensure!(status.state == "idle", "the daemon is {}", status.state);
        ensure!(status.generation == 0, "the generation is {}", status.generation);
        ensure!(status.all_native(), "not every CPU is native: {:?}", status.cpus);
        let pool = self.sh("locum pool")?;
        say(&format!("debian: {}", pool.trim()));
        let doctor = self.sh("locum doctor").context("locum doctor misses something")?;
        say(&format!("debian: {}", doctor.trim()));
        Ok(())
    }

    /// As an operator does it: what was written is there afterwards.
    fn reboot(&mut self) -> Result<()> {
        self.progress.step("rebooting");
        self.sh("date +%s > /root/witness && sync")?;
        let before = self.sh("cat /root/witness /proc/sys/kernel/random/boot_id")?;
        let began = self.machine.now()?;
        let hello = self
            .here()
            .boots_anew(BOOT, |host| host.start("systemctl reboot").map(drop))
            .context("rebooting")?;
        self.generation = hello.generation;
        say(&format!(
            "debian: rebooted; the reboot was asked for {began}, and it is now {}",
            self.machine.now()?
        ));
        self.booted()?;
        self.units()?;
        let after = self.sh("cat /root/witness /proc/sys/kernel/random/boot_id")?;
        ensure!(
            before.lines().next() == after.lines().next() && before != after,
            "the file that was written before the reboot is not as it was: {before:?}, {after:?}"
        );
        Ok(())
    }

    /// The disk's function is taken from under the root, and found again, as by the next host. Nothing of the root is used
    /// meanwhile but what is in memory.
    fn disk_goes_and_comes(&mut self) -> Result<()> {
        self.progress.step("the disk's function goes and comes back");
        self.sh("cp $(command -v busybox) /dev/shm/busybox && cp /root/witness /run && mkdir /run/again && sync")?;
        let seen = self.sh(&format!("{WHERE}; exec /dev/shm/busybox sh -c '{GO_AND_COME}' sh $f"))?;
        say(&format!("debian: {}", seen.trim()));
        ensure!(
            seen.contains("the witness is there: yes"),
            "the disk did not come back:\n{seen}"
        );
        Ok(())
    }

    /// The kernel does it.
    fn off(&mut self) -> Result<()> {
        self.progress.step("powering off");
        self.here().power_off()?;
        self.remove_disks()
    }

    /// It has been asked to.
    fn goes_off(&mut self) -> Result<()> {
        self.machine.wait_off(BOOT)?;
        self.remove_disks()
    }

    fn remove_disks(&self) -> Result<()> {
        for file in ["disk.img", "boot.iso"] {
            fs::remove_file(self.machine.dir().join(file))?;
        }
        Ok(())
    }
}
