//! An operator's first day: a server with UEFI installs the package, boots by way of Locum, and what goes wrong there
//! never costs more than one boot.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use memchr::memmem;
use object::{Object, ObjectSegment};

use crate::{
    debian::kernels::NEXT,
    image::{build, kernel::Kernel, server_disk},
    machine::{
        Machine, Medium, Setup,
        board::{Board, Firmware},
        bochs::HASWELL,
        deadline::Span,
        platform::Platform,
    },
    package,
    progress::{Progress, say},
    tools,
};

/// Seconds of its own time after which the machine is killed.
const LIMIT: u64 = 7200;
/// Long enough for a boot, with everything that systemd does in it.
const BOOT: Span = Span::seconds(900);
/// Long enough for what builds a module.
const BUILD: Span = Span::seconds(1800);
/// So long nothing may have come of a boot that hangs.
const HANGS: Span = Span::seconds(60);

const CPUS: u32 = 2;
/// RAM in MiB: half of it becomes the pool.
const MEMORY: u32 = 3072;

/// On the server's disk: an L0 that hangs.
const HUNG: &str = "/root/l0-that-hangs";
/// One that refuses.
const REFUSING: &str = "/root/l0-that-refuses";
/// The package.
const PACKAGE: &str = "/root/locum.deb";
/// Another kernel's packages.
const KERNEL: &str = "/root/kernel.tar";

/// All of it.
pub(super) fn all(dir: &Path) -> Result<()> {
    tools::ensure()?;
    fs::create_dir_all(dir)?;
    let mut server = Server::new(dir)?;
    server.debian()?;
    server.install()?;
    server.by_way_of_locum()?;
    server.l0_is_garbage()?;
    server.l0_refuses()?;
    server.l0_hangs()?;
    server.kernel_upgrade()?;
    server.purge()?;
    server.off()
}

struct Server {
    machine: Machine,
    progress: Progress,
    /// The release of the kernel that it is upgraded to.
    upgrade: String,
    /// Where an L0 that hangs does so: its entry, as far as 2 MiB are concerned.
    hangs_at: u64,
}

impl Server {
    fn new(dir: &Path) -> Result<Self> {
        let progress = Progress::new("install");
        progress.step("building");
        let deb = package::make()?;
        let l0 = fs::read(build::l0()?)?;
        let (hung, refusing) = (dir.join("hung"), dir.join("refusing"));
        fs::write(&refusing, refuse(&l0)?)?;
        let hangs_at = hang(l0, &hung)?;
        let disk = dir.join("disk.img");
        let upgrade = Kernel::release_of(NEXT)?;
        let kernel = server_disk::kernel(&upgrade)?;
        let files: [(&str, &Path); 4] = [(PACKAGE, &deb), (HUNG, &hung), (REFUSING, &refusing), (KERNEL, &kernel)];
        server_disk::copy(&disk, &files)?;
        fs::remove_file(hung)?;
        fs::remove_file(refusing)?;
        let machine = Machine::start(&Setup {
            cpus: CPUS,
            cpu_model: HASWELL.into(),
            memory: MEMORY,
            board: Board {
                firmware: Firmware::Uefi,
                memory: MEMORY,
                ..Board::default()
            },
            medium: Medium::Disk(disk),
            disk: None,
            platform: Platform::Tcg,
            segment: false,
            machine_checks: false,
            dir: dir.to_owned(),
            limit: Span::seconds(LIMIT),
        })?;
        Ok(Self {
            machine,
            progress,
            upgrade,
            hangs_at,
        })
    }

    fn run(&mut self, command: &str, limit: Span) -> Result<String> {
        // As root's shell has it.
        let command = format!("export HOME=/root DEBIAN_FRONTEND=noninteractive; {command}");
        self.machine.host(0).run(&command, limit)?.ok()
    }

    fn sh(&mut self, command: &str) -> Result<String> {
        self.run(command, BOOT).with_context(|| format!("running {command:?}"))
    }

    /// As an operator does it: services are stopped, file systems are written.
    fn reboot(&mut self) -> Result<()> {
        let boot = self
            .machine
            .host(0)
            .boots_anew(BOOT, |host| host.start("systemctl reboot").map(drop));
        boot.context("rebooting")?;
        self.settles()
    }

    /// Waits until nothing is left to be started: GRUB's own unit writes its environment, which is empty for a moment, and a unit
    /// may fail late.
    fn settles(&mut self) -> Result<()> {
        let state = self.sh("systemctl is-system-running --wait || true")?;
        ensure!(
            ["running", "degraded"].contains(&state.trim()),
            "the server has booted, and is {state}"
        );
        Ok(())
    }

    /// Whether the next boot is to go by way of Locum.
    fn wanted(&mut self) -> Result<bool> {
        Ok(self
            .sh("grub-editenv /boot/grub/grubenv list")?
            .contains("locum_next=1"))
    }

    fn under_l0(&mut self) -> Result<()> {
        self.sh("test -e /sys/firmware/acpi/tables/LOCM")
            .context("the server does not run by way of Locum")?;
        let cpus = self.sh("nproc")?;
        ensure!(cpus.trim() == CPUS.to_string(), "{} CPUs are online", cpus.trim());
        Ok(())
    }

    /// It runs without L0, and will after its next boot, too.
    fn plain(&mut self) -> Result<()> {
        self.sh("test ! -e /sys/firmware/acpi/tables/LOCM")
            .context("the server runs by way of Locum")?;
        ensure!(!self.wanted()?, "the next boot goes by way of Locum again");
        let failed = self.failed_units()?;
        ensure!(failed.is_empty(), "units failed without L0: {failed}");
        Ok(())
    }

    fn failed_units(&mut self) -> Result<String> {
        self.sh("systemctl list-units --failed --plain --no-legend")
    }

    fn debian(&mut self) -> Result<()> {
        self.progress.step("Debian boots from its disk");
        self.machine.host(0).wait_ready(BOOT)?;
        self.settles()?;
        self.sh("mountpoint /boot/efi && mkdir -p /boot/grub && \
                 grub-install --target=x86_64-efi --efi-directory=/boot/efi --removable --no-nvram && update-grub")?;
        self.reboot()?;
        self.plain()
    }

    fn install(&mut self) -> Result<()> {
        self.progress.step("installing the package");
        let said = self.run(&format!("apt-get install --yes {PACKAGE}"), BUILD)?;
        ensure!(
            said.contains("locum preflight"),
            "it does not say what comes next:\n{said}"
        );
        self.sh("modinfo -n locum | grep -q updates/dkms")
            .context("DKMS has not built the module")?;
        ensure!(!self.wanted()?, "the package has changed how the server boots");
        // L0's log is the only witness of a boot that fails.
        self.sh("sed -i 's/^LOCUM_L0=.*/LOCUM_L0=\"log=e9\"/' /etc/default/locum && update-grub")?;
        say("install: the package is installed, the module built, and the next boot is as before");
        Ok(())
    }

    /// Waits until a good boot has been confirmed.
    fn confirmed(&mut self) -> Result<()> {
        self.sh("for i in $(seq 120); do \
                 case $(systemctl is-active locum-confirm) in active) exit 0;; failed) break;; esac; sleep 1; \
                 done; systemctl --no-pager status locum-confirm locum locum-pool; journalctl --no-pager -b -u 'locum*'; exit 1")
            .context("the boot is not confirmed")?;
        ensure!(self.wanted()?, "a confirmed boot is not the default");
        Ok(())
    }

    fn by_way_of_locum(&mut self) -> Result<()> {
        self.progress.step("booting by way of Locum");
        self.sh("locum setup")?;
        ensure!(self.wanted()?, "locum setup has not made it the next boot");
        self.reboot()?;
        self.under_l0()?;
        self.confirmed()?;
        let pool = self.sh("locum pool")?;
        self.progress.step("and again");
        self.reboot()?;
        self.under_l0()?;
        self.confirmed()?;
        say(&format!(
            "install: two boots by way of Locum; {}",
            pool.lines().next().unwrap_or_default()
        ));
        Ok(())
    }

    /// Asks for a boot by way of Locum, which comes to nothing.
    fn attempt(&mut self) -> Result<()> {
        self.sh("locum setup")?;
        self.reboot()
    }

    fn l0_is_garbage(&mut self) -> Result<()> {
        self.progress.step("an L0 that GRUB cannot load");
        self.sh("cp /boot/locum-l0 /root/l0 && head -c 100000 /dev/zero > /boot/locum-l0")?;
        self.attempt()?;
        self.plain().context("after an L0 that GRUB cannot load")?;
        self.sh("cp /root/l0 /boot/locum-l0")?;
        say("install: GRUB took its usual entry where it could not load L0");
        Ok(())
    }

    fn l0_refuses(&mut self) -> Result<()> {
        self.progress.step("an L0 that refuses");
        self.sh(&format!("cp {REFUSING} /boot/locum-l0"))?;
        self.attempt()?;
        let line = self.sh("cat /proc/cmdline")?;
        ensure!(
            line.contains("locum.boot_error=") && line.contains("ACPI"),
            "the command line does not say why: {line}"
        );
        self.plain().context("after an L0 that refused")?;
        self.reboot()?;
        let line = self.sh("cat /proc/cmdline")?;
        ensure!(
            !line.contains("locum."),
            "the boot after that went by way of Locum: {line}"
        );
        self.sh("cp /root/l0 /boot/locum-l0")?;
        say("install: an L0 that refused started the server without itself, and was not asked again");
        Ok(())
    }

    fn l0_hangs(&mut self) -> Result<()> {
        self.progress.step("an L0 that hangs");
        self.sh(&format!("cp {HUNG} /boot/locum-l0 && locum setup"))?;
        self.machine.host(0).start("systemctl reboot")?;
        let deadline = self.machine.deadline(BOOT)?;
        while !self.hangs()? {
            ensure!(self.machine.now()? < deadline, "the L0 that hangs was not reached");
            self.machine.look(Span::seconds(1))?;
        }
        self.machine.look(HANGS)?;
        ensure!(self.hangs()?, "it went on");
        // What a watchdog does, or a person.
        let boot = self.machine.host(0).boots_anew(BOOT, |host| {
            let said = host.monitor("system_reset")?;
            ensure!(said.is_empty(), "QEMU's monitor said: {said}");
            Ok(())
        });
        boot.context("resetting the server")?;
        self.settles()?;
        self.plain().context("after an L0 that hung")?;
        self.sh("cp /root/l0 /boot/locum-l0")?;
        self.attempt()?;
        self.under_l0()?;
        self.confirmed()?;
        say("install: a reset took the server out of an L0 that hung");
        Ok(())
    }

    /// Whether the first CPU is where the L0 that hangs does so.
    fn hangs(&mut self) -> Result<bool> {
        let registers = self.machine.monitor("info registers")?;
        let text = registers.split("EIP=").nth(1).and_then(|rest| rest.get(..8));
        let Some(eip) = text.and_then(|text| u64::from_str_radix(text, 16).ok()) else {
            // In 64-bit mode it is RIP.
            return Ok(false);
        };
        Ok(eip % (2 << 20) == self.hangs_at)
    }

    fn kernel_upgrade(&mut self) -> Result<()> {
        self.progress.step("upgrading the kernel");
        let upgrade = self.upgrade.clone();
        let before = self.sh("uname -r")?;
        ensure!(before.trim() != upgrade, "the server has {upgrade} from the start");
        self.run(
            &format!(
                "mkdir /root/kernel && tar -xf {KERNEL} -C /root/kernel && apt-get install --yes /root/kernel/*.deb"
            ),
            BUILD,
        )?;
        self.sh(&format!("modinfo -k {upgrade} -n locum | grep -q updates/dkms"))
            .context("DKMS has not built the module for the new kernel")?;
        let menu = self.sh("cat /boot/grub/grub.cfg")?;
        for release in [before.trim(), &upgrade] {
            ensure!(
                menu.contains(&format!("--id 'locum-{release}'")),
                "GRUB's menu has no entry by way of Locum for {release}"
            );
        }
        self.reboot()?;
        self.under_l0()?;
        self.confirmed()?;
        let now = self.sh("uname -r")?;
        ensure!(
            now.trim() == upgrade,
            "the server runs {} and not {upgrade}",
            now.trim()
        );
        say(&format!(
            "install: the kernel was upgraded, and {upgrade} came up by way of Locum"
        ));
        Ok(())
    }

    fn purge(&mut self) -> Result<()> {
        self.progress.step("purging the package");
        self.run("apt-get purge --yes locum", BUILD)?;
        self.reboot()?;
        self.plain()?;
        let left = self.sh("find /boot /etc /usr /var/lib -xdev -iname '*locum*' -not -path '/var/lib/dpkg/*'")?;
        ensure!(left.is_empty(), "purge leaves {left}");
        self.sh("! grep -i locum /boot/grub/grub.cfg")
            .context("purge leaves entries in GRUB's menu")?;
        say("install: purged, and booted as before");
        Ok(())
    }

    fn off(&mut self) -> Result<()> {
        self.machine.host(0).start("systemctl poweroff")?;
        self.machine.wait_off(BOOT)?;
        Ok(fs::remove_file(self.machine.dir().join("disk.img"))?)
    }
}

/// An L0 that does not know the firmware's table of CPUs (MADT): there is none with another signature.
fn refuse(l0: &[u8]) -> Result<Vec<u8>> {
    const MADT: &[u8] = b"APIC";
    let mut refusing = l0.to_vec();
    let places: Vec<usize> = memmem::find_iter(l0, MADT).collect();
    ensure!(!places.is_empty(), "L0 knows no MADT");
    for place in places {
        if let Some(signature) = refusing.get_mut(place..place + MADT.len()) {
            signature.copy_from_slice(b"apic");
        }
    }
    Ok(refusing)
}

/// Writes an L0 whose first instruction is a jump to itself. Returns where in 2 MiB that is: GRUB puts L0 at a multiple
/// of that.
fn hang(mut l0: Vec<u8>, to: &Path) -> Result<u64> {
    const JUMP_TO_ITSELF: [u8; 2] = [0xeb, 0xfe];
    let file = object::File::parse(l0.as_slice()).context("L0's file")?;
    let entry = file.entry();
    let place = file.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let within = entry.checked_sub(segment.address()).filter(|within| *within < size)?;
        usize::try_from(offset + within).ok()
    });
    let Some(code) = place.and_then(|place| l0.get_mut(place..place + 2)) else {
        bail!("L0's entry {entry:#x} is in none of its segments");
    };
    code.copy_from_slice(&JUMP_TO_ITSELF);
    fs::write(to, l0)?;
    Ok(entry % (2 << 20))
}
