//! What must hold of a host on the second board, where L0 stays dormant: that the host has all that it would have without
//! L0, and that what L0 does for its CPUs goes on.

use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

use super::run::Run;
use crate::machine::deadline::Span;

/// Long enough for a host to boot, and for whatever it does by itself.
pub(crate) const BOOT: Span = Span::seconds(400);

/// A machine check that is corrected without the software that was interrupted: bank, status (VAL, UC, EN, MISCV, ADDRV,
/// S, memory scrubbing), MCG_STATUS (RIPV, MCIP), address, and misc (a physical address, to its page). SDM vol. 3B,
/// 16.3.2 and 16.9.3.
const SCRUBBED: &str = "9 0xbd000000000000c0 0x5 0x0 0x8c";

/// Of `loadflags` in the zero page, at 0x211: `KASLR_FLAG` in arch/x86/include/uapi/asm/bootparam.h.
const KASLR_FLAG: u8 = 1 << 1;

/// The first host's image is below this: L0's `FIRST_TO_GIVE`.
const FIRST_TO_GIVE: u64 = 1 << 30;

impl Run {
    /// The host was started by L0, and all CPUs that it wanted are there.
    ///
    /// # Errors
    /// They are not.
    pub(crate) fn under_l0(&mut self) -> Result<()> {
        self.sh("test -e /sys/firmware/acpi/tables/LOCM")
            .context("the host has no ACPI table LOCM")?;
        let there = self.sh("nproc")?;
        ensure!(
            there.trim() == self.report.cpus.to_string(),
            "{} of {} CPUs are online",
            there.trim(),
            self.report.cpus
        );
        Ok(())
    }

    /// L0 gave the machine to the host: nothing of Locum is there, and CPUs are started as on any machine.
    ///
    /// # Errors
    /// It is not so.
    pub(crate) fn without_l0(&mut self) -> Result<()> {
        let there = self.sh("test ! -e /sys/firmware/acpi/tables/LOCM && nproc")?;
        ensure!(
            there.trim() == self.report.cpus.to_string(),
            "{} of {} CPUs are online",
            there.trim(),
            self.report.cpus
        );
        Ok(())
    }

    /// The kernel's command line has L0's error.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn boot_error(&mut self, error: &str) -> Result<()> {
        let line = self.sh("cat /proc/cmdline")?;
        let told = line.split_once("locum.boot_error=\"").map_or("", |(_, told)| told);
        ensure!(told.contains(error), "the command line is {line:?}");
        Ok(())
    }

    /// The text screen still shows what L0 wrote there: the host's console is a serial port.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn text_screen(&mut self, text: &str) -> Result<()> {
        // 25 lines of 80 characters, each with a byte of colours.
        let dump = self.machine.monitor("xp /4000xb 0xb8000")?;
        let bytes = dump
            .lines()
            .filter_map(|line| line.split_once(": "))
            .flat_map(|(_, bytes)| bytes.split_whitespace())
            .filter_map(|byte| u8::from_str_radix(byte.trim_start_matches("0x"), 16).ok());
        let shown: String = bytes.step_by(2).map(char::from).collect();
        ensure!(shown.contains(text), "the screen shows {shown:?}");
        Ok(())
    }

    /// The host has the screen that the firmware has set up.
    ///
    /// # Errors
    /// It has none.
    pub(crate) fn screen(&mut self) -> Result<()> {
        self.sh("grep -q . /sys/class/graphics/fb0/name || dmesg | grep -q 'Console: colour VGA'")
            .context("the host has neither a framebuffer nor a text screen")?;
        Ok(())
    }

    /// The host has the framebuffer of UEFI.
    ///
    /// # Errors
    /// It has none, or another one.
    pub(crate) fn framebuffer(&mut self) -> Result<()> {
        let name = self
            .sh("cat /sys/class/graphics/fb0/name")
            .context("the host has no framebuffer")?;
        ensure!(name.trim() == "EFI VGA", "the host's framebuffer is {name:?}");
        Ok(())
    }

    /// The host can list the firmware's variables.
    ///
    /// # Errors
    /// It cannot.
    pub(crate) fn efivars(&mut self) -> Result<()> {
        let names = self
            .sh("d=/sys/firmware/efi/efivars; test -d $d || { echo no $d; exit 1; }; \
                 mountpoint -q $d || { modprobe efivarfs; mount -t efivarfs none $d; } && ls $d")
            .context("the host has no EFI variables")?;
        ensure!(
            names.contains("BootCurrent-"),
            "the variables lack BootCurrent:\n{names}"
        );
        Ok(())
    }

    /// The host reads SMBIOS.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn dmi(&mut self) -> Result<()> {
        let vendor = self
            .sh("cat /sys/class/dmi/id/sys_vendor")
            .context("the host has no DMI")?;
        ensure!(vendor.trim() == "QEMU", "DMI's vendor is {vendor:?}");
        self.sh("test -s /sys/firmware/dmi/tables/DMI")
            .context("the host has no table of SMBIOS")?;
        Ok(())
    }

    /// The host uses the x2APIC.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn x2apic(&mut self) -> Result<()> {
        let said = self.sh("dmesg | grep -i x2apic; true")?;
        ensure!(
            said.contains("enabled by BIOS") || said.contains("x2apic enabled"),
            "the host did not find the x2APIC on, it said:\n{said}"
        );
        Ok(())
    }

    /// The host pages with five levels.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn five_levels(&mut self) -> Result<()> {
        // Linux clears the flag where it does not use the feature.
        self.sh("grep -qw la57 /proc/cpuinfo")
            .context("the host does not page with five levels")?;
        Ok(())
    }

    /// The kernel has all of a memory map that does not fit the zero page.
    ///
    /// # Errors
    /// It has not.
    pub(crate) fn long_map(&mut self) -> Result<()> {
        let told: u32 = self.sh("ls /sys/firmware/memmap | wc -l")?.trim().parse()?;
        ensure!(told > 150, "the kernel was told of {told} ranges");
        Ok(())
    }

    /// Both NUMA nodes have memory and CPUs.
    ///
    /// # Errors
    /// They have not.
    pub(crate) fn two_nodes(&mut self) -> Result<()> {
        let nodes = self.sh("cd /sys/devices/system/node; \
             for n in node*; do echo $n $(awk '/MemTotal/ {print ($4 > 262144)}' $n/meminfo) $(cat $n/cpulist); done")?;
        let good = nodes
            .lines()
            .filter(|line| line.split_whitespace().nth(1) == Some("1") && line.split_whitespace().count() == 3);
        ensure!(
            good.count() == 2,
            "two NUMA nodes with memory and CPUs are not there:\n{nodes}"
        );
        Ok(())
    }

    /// All of some CPUs, the first not among them, go offline and come back, so many times.
    ///
    /// # Errors
    /// One does not.
    pub(crate) fn cpus_off_and_on(&mut self, cpus: &[u32], rounds: u32) -> Result<()> {
        let all = self.report.cpus;
        let words: Vec<_> = cpus.iter().map(u32::to_string).collect();
        self.sh(&format!(
            "cd /sys/devices/system/cpu; for round in $(seq {rounds}); do \
             for value in 0 1; do for cpu in {}; do echo $value > cpu$cpu/online || exit 1; done; \
             test $(nproc) = $(( {all} - {} * (1 - value) )) || {{ echo round $round: $(nproc) CPUs; exit 1; }}; \
             done; done",
            words.join(" "),
            cpus.len(),
        ))?;
        Ok(())
    }

    /// The host survives a machine check that all CPUs get, one of which is parked.
    ///
    /// # Errors
    /// It does not, or it took none.
    pub(crate) fn machine_check(&mut self) -> Result<()> {
        let before = self.boot_id()?;
        self.sh("echo 0 > /sys/devices/system/cpu/cpu1/online")?;
        let said = self.machine.monitor(&format!("mce -b 0 {SCRUBBED}"))?;
        ensure!(said.is_empty(), "QEMU's monitor said: {said}");
        let log = self
            .sh("sleep 1; dmesg | grep 'Machine Check'; true")
            .context("after a broadcast machine check")?;
        ensure!(
            self.boot_id()? == before,
            "a broadcast machine check has reset the machine"
        );
        ensure!(
            log.contains("Bank 9"),
            "the host took no machine check, it says:\n{log}"
        );
        self.sh("echo 1 > /sys/devices/system/cpu/cpu1/online")
            .context("the CPU that was parked during a machine check does not come back")?;
        Ok(())
    }

    /// Linux's name for this boot of the host.
    fn boot_id(&mut self) -> Result<String> {
        self.sh("cat /proc/sys/kernel/random/boot_id")
    }

    /// The pool is there, of the size that L0 was told, and Linux keeps out of it.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn pool_is_free(&mut self) -> Result<()> {
        let map = self.sh("cat /proc/iomem")?;
        let pools = resources(&map, "Soft Reserved");
        ensure!(
            !pools.is_empty(),
            "there is no pool (Soft Reserved) in /proc/iomem:\n{map}"
        );
        let kernel = self.kernel_image()?;
        for pool in pools {
            ensure!(
                kernel.end <= pool.start || pool.end <= kernel.start,
                "the kernel's {kernel:#x?} is in the pool {pool:#x?}"
            );
        }
        self.sh("/guest/pool-up.sh").context("the pool is no device")?;
        Ok(())
    }

    /// Each of two nodes has a device of the pool.
    ///
    /// # Errors
    /// One has none.
    pub(crate) fn pool_on_both_nodes(&mut self) -> Result<()> {
        let nodes = self.sh("cat /sys/bus/dax/devices/*/target_node | sort -u")?;
        ensure!(
            nodes.split_whitespace().eq(["0", "1"]),
            "the pool is on the nodes {nodes:?}"
        );
        Ok(())
    }

    /// KASLR is on, and has not put the kernel's image into what successors get.
    ///
    /// # Errors
    /// It is off, or it has.
    pub(crate) fn kaslr(&mut self) -> Result<()> {
        let image = self.kernel_image()?;
        ensure!(
            image.end <= FIRST_TO_GIVE,
            "the kernel's image is at {image:#x?}, and not below {FIRST_TO_GIVE:#x}"
        );
        let flags = self.sh("od -An -tu1 -j 0x211 -N 1 /sys/kernel/boot_params/data")?;
        let flags: u8 = flags
            .trim()
            .parse()
            .with_context(|| format!("loadflags are {flags:?}"))?;
        ensure!(flags & KASLR_FLAG != 0, "KASLR is off");
        Ok(())
    }

    /// Where the kernel's image is.
    ///
    /// # Errors
    /// Linux does not tell.
    pub(crate) fn kernel_image(&mut self) -> Result<Range<u64>> {
        let map = self.sh("cat /proc/iomem")?;
        let code = resources(&map, "Kernel code");
        let bss = resources(&map, "Kernel bss");
        match (code.as_slice(), bss.as_slice()) {
            ([code], [bss]) => Ok(code.start..bss.end),
            _ => bail!("/proc/iomem does not say where the kernel is:\n{map}"),
        }
    }

    /// `locum enter` is refused and changes nothing, and `locum doctor` says why. Returns what the doctor says.
    ///
    /// # Errors
    /// It is not, or it does not.
    pub(crate) fn cannot_enter(&mut self) -> Result<String> {
        self.sh("modprobe locum")?;
        let doctor = self.host().run("locum doctor", BOOT)?;
        ensure!(
            doctor.status == 1,
            "locum doctor ended with status {}:\n{}",
            doctor.status,
            doctor.text
        );
        let told = doctor
            .text
            .lines()
            .find(|line| line.starts_with("missing") && line.contains("CPU:"));
        ensure!(
            told.is_some_and(|line| line.contains("vmx")),
            "locum doctor does not say that the CPU has no VMX:\n{}",
            doctor.text
        );
        let enter = self.host().run("locum enter", BOOT)?;
        // The module may find something else in the way before L0 is asked.
        let refused = ["VMX", "a feature of the CPU that L0 does not know"];
        ensure!(
            enter.status != 0 && refused.iter().any(|why| enter.text.contains(why)),
            "locum enter was not refused for want of VMX (status {}):\n{}",
            enter.status,
            enter.text
        );
        let status = self.status()?;
        ensure!(status.all_native(), "not every CPU is native: {:?}", status.cpus);
        ensure!(status.exits.total == 0, "L0 took {} exits", status.exits.total);
        Ok(doctor.text)
    }

    /// The host reboots the machine and is there again.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn reboot(&mut self) -> Result<()> {
        let before = self.boot_id()?;
        self.host().reboot(BOOT)?;
        ensure!(self.boot_id()? != before, "the host did not reboot");
        self.under_l0()
    }

    /// The host powers the machine off, as its own init would.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn switch_off(&mut self) -> Result<()> {
        self.host().start("poweroff -f")?;
        self.machine.wait_off(BOOT).map(drop)
    }
}

/// Where the resources of a name are, from the text of /proc/iomem; END exclusive.
fn resources(map: &str, name: &str) -> Vec<Range<u64>> {
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    map.lines()
        .filter_map(|line| line.trim().split_once(" : "))
        .filter(|(_, found)| *found == name)
        .filter_map(|(range, _)| range.split_once('-'))
        .filter_map(|(start, end)| Some(hex(start)?..hex(end)?.checked_add(1)?))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_found_by_name() {
        let map =
            "00001000-0004ffff : System RAM\n  60000000-74ffffff : Soft Reserved\n80000000-8fffffff : Soft Reserved\n";
        assert_eq!(
            resources(map, "Soft Reserved"),
            [0x6000_0000..0x7500_0000, 0x8000_0000..0x9000_0000]
        );
        assert!(resources(map, "Kernel code").is_empty());
    }
}
