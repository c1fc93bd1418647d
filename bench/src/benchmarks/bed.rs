//! Beds: the four set-ups that are compared, each a booted host with KVM in which guests can be started.
//!
//! ```text
//!   Kvm            LocumNative     LocumNested      NestedKvm
//!                                                   host (KVM)        host(1) of the machine
//!   host (KVM)     host (KVM)      host (KVM)       QEMU
//!                  . L0 dormant .  L0 (VMX root)    host (KVM)        host(0)
//!   ---------------------------- the same emulated server ----------------------------
//! ```
//!
//! The server, the kernels, the initramfs and the guests are the same in all four. With [`SetUp::NestedKvm`] the host
//! of the guests is itself a guest of a stock KVM (`nested=1`, `-cpu host`), started from the kernel and the initramfs
//! that the outer host was booted from; its COM4 is the machine's COM4, so that it answers the lab like a host of odd
//! generation.
//!
//! Exits are counted in whatever is below the host of the guests ([`Counts::below`]): L0's own counters, or the outer
//! KVM's. Exits of guests are those that the KVM nearest to them counts.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    machine::{deadline::Span, layout::Layout, platform::Platform},
    progress::Progress,
    steps::{
        Run,
        exits::{Below, Counts, LAZY_LABD, NO_FLUSH},
        prepare::MachineArgs,
    },
};

/// Long enough for a nested host to boot, and for what it is asked.
const BOOT: Span = Span::seconds(900);

/// One of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SetUp {
    /// GRUB loads the host; no L0.
    Kvm,
    /// The host above L0, which is dormant.
    LocumNative,
    /// The host above L0, which is in VMX root on every CPU.
    LocumNested,
    /// The host as a guest of a stock KVM.
    NestedKvm,
}

impl SetUp {
    /// All, the baseline first.
    pub(crate) const ALL: [SetUp; 4] = [SetUp::Kvm, SetUp::LocumNative, SetUp::LocumNested, SetUp::NestedKvm];

    /// For people.
    #[must_use]
    pub(crate) fn title(self) -> &'static str {
        match self {
            SetUp::Kvm => "KVM",
            SetUp::LocumNative => "Locum, native",
            SetUp::LocumNested => "Locum, nested",
            SetUp::NestedKvm => "nested KVM",
        }
    }

    /// What runs the host of the guests.
    #[must_use]
    pub(crate) fn below(self) -> Below {
        match self {
            SetUp::Kvm => Below::Nothing,
            SetUp::LocumNative | SetUp::LocumNested => Below::L0,
            SetUp::NestedKvm => Below::OuterKvm,
        }
    }

    /// As in JSON.
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            SetUp::Kvm => "kvm",
            SetUp::LocumNative => "locum_native",
            SetUp::LocumNested => "locum_nested",
            SetUp::NestedKvm => "nested_kvm",
        }
    }
}

/// What a bed is made of.
#[derive(Debug, Clone)]
pub(crate) struct BedArgs {
    /// CPUs of the machine, and of the inner host. With 1, ticks are instructions exactly.
    pub cpus: u32,
    /// The machine is killed after so many emulated seconds.
    pub timeout: u64,
    /// What runs the machine.
    pub platform: Platform,
    /// Model of the machine's CPUs.
    pub cpu_model: String,
}

/// A booted host with KVM.
pub(crate) struct Bed {
    set_up: SetUp,
    run: Run,
}

impl Bed {
    /// Builds and boots what the set-up needs, up to a host with KVM loaded and a pool (`/dev/dax0.0`).
    ///
    /// # Errors
    /// Something does not build or boot.
    pub(crate) fn boot(set_up: SetUp, args: &BedArgs) -> Result<Self> {
        let progress = Progress::new(set_up.title());
        let mut bed = Bed {
            set_up,
            run: Run::boot(&machine(set_up, args), progress)?,
        };
        match set_up {
            SetUp::Kvm => bed.begin_without_l0()?,
            SetUp::LocumNative => bed.run.begin()?,
            SetUp::LocumNested => {
                bed.run.begin()?;
                bed.set_up = SetUp::LocumNative;
                bed.nest()?;
            }
            SetUp::NestedKvm => {
                bed.start_inner(args.cpus)?;
                bed.begin_without_l0()?;
            }
        }
        bed.run.prepare_counting()?;
        Ok(bed)
    }

    /// Makes every CPU of a [`SetUp::LocumNative`] bed nested, for good: it is a [`SetUp::LocumNested`] then.
    ///
    /// # Errors
    /// It is another bed, or L0 refuses.
    pub(crate) fn nest(&mut self) -> Result<()> {
        ensure!(
            self.set_up == SetUp::LocumNative,
            "{} cannot be nested",
            self.set_up.title()
        );
        self.run.progress.step("entering nested on every CPU");
        self.sh("locum enter")?;
        self.set_up = SetUp::LocumNested;
        self.run.progress = Progress::new(self.set_up.title());
        let status = self.run.status()?;
        ensure!(
            status.cpus.iter().all(|cpu| cpu.mode == "nested"),
            "not every CPU is nested: {:?}",
            status.cpus
        );
        Ok(())
    }

    /// Which one it is.
    #[must_use]
    pub(crate) fn set_up(&self) -> SetUp {
        self.set_up
    }

    /// The machine, and its steps; its reigning host is the host of the guests.
    pub(crate) fn run(&mut self) -> &mut Run {
        &mut self.run
    }

    /// Tells what goes on.
    pub(crate) fn step(&self, text: &str) {
        self.run.progress.step(text);
    }

    /// Runs a command in the host of the guests. It has to succeed.
    ///
    /// # Errors
    /// It fails, or the host does not answer.
    pub(crate) fn sh(&mut self, command: &str) -> Result<String> {
        self.run.sh(command)
    }

    /// Exits so far.
    ///
    /// # Errors
    /// A host does not answer.
    pub(crate) fn counts(&mut self) -> Result<Counts> {
        self.run.exits(self.set_up.below())
    }

    /// Powers the server off.
    ///
    /// # Errors
    /// It does not go off.
    pub(crate) fn power_off(mut self) -> Result<()> {
        self.step("powering off");
        self.run.machine.host(0).power_off()
    }

    fn begin_without_l0(&mut self) -> Result<()> {
        self.step("loading KVM, the pool");
        self.sh("modprobe kvm_intel && /guest/pool-up.sh").map(drop)
    }

    /// Starts the inner host and waits for it; from then on it is the host that is spoken to.
    fn start_inner(&mut self, cpus: u32) -> Result<()> {
        self.step("starting the inner host");
        self.sh(&format!(
            "mount -t debugfs none /sys/kernel/debug; modprobe kvm_intel nested=1; {NO_FLUSH}"
        ))?;
        // QEMU maps the file, which sysfs does not allow.
        self.sh("cat /boot/initrd >/run/initrd")?;
        let kernel = self.run.report.incumbent.clone();
        self.sh(&format!(
            "setsid qemu-system-x86_64 -accel kvm -cpu host -M pc,usb=off,vmport=off -m {INNER_MIB} -smp {cpus} \
             -nodefaults -no-user-config -display none -no-reboot \
             -kernel /boot/vmlinuz-{kernel} -initrd /run/initrd -append '{INNER_CMDLINE} {LAZY_LABD}' \
             -serial file:/run/inner.log -serial none -serial none \
             -chardev serial,id=com4,path=/dev/ttyS3 -serial chardev:com4 >/run/inner.qemu 2>&1 </dev/null &"
        ))?;
        let ready = self.run.machine.host(INNER).wait_ready(BOOT);
        if let Err(error) = ready {
            let words = "cat /run/inner.qemu; tail -n 30 /run/inner.log";
            let said = self.run.machine.host(0).run(words, BOOT);
            let said = said.map(|output| output.text).unwrap_or_default();
            return Err(error.context(format!("what QEMU and the inner host said:\n{said}")));
        }
        self.run.generation = INNER;
        Ok(())
    }
}

/// Generation of the inner host: an odd one, for COM4.
const INNER: u32 = 1;
/// RAM of the inner host, in MiB: its initramfs twice, the pool, and 700 MiB for QEMU and guests besides.
const INNER_MIB: u32 = 1280;
/// Command line of the inner host. Its pool holds the same guests as that of the others. What a guest of the lab leaves
/// out to boot in fewer instructions, it leaves out, too; none of it is about exits.
const INNER_CMDLINE: &str = "console=ttyS0,115200 nokaslr idle=halt retain_initrd panic=-1 reboot=t \
     transparent_hugepage=never no_timer_check initcall_blacklist=load_system_certificate_list rodata=off \
     memmap=0x17e00000%0x30000000-1+0xefffffff locum.generation=1";
fn machine(set_up: SetUp, args: &BedArgs) -> MachineArgs {
    let plain = matches!(set_up, SetUp::Kvm | SetUp::NestedKvm);
    let pool = if set_up == SetUp::Kvm {
        Layout::USUAL.plain_pool()
    } else {
        String::new()
    };
    MachineArgs {
        plain,
        strict: !plain,
        cpus: args.cpus,
        timeout: args.timeout,
        platform: args.platform,
        cpu_model: args.cpu_model.clone(),
        workload: true,
        cmdline: format!("{pool} {LAZY_LABD}"),
        ..MachineArgs::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::bochs::HASWELL;

    #[test]
    fn names_are_those_of_json() {
        for set_up in SetUp::ALL {
            let json = serde_json::to_string(&set_up).unwrap();
            assert_eq!(json, format!("{:?}", set_up.name()));
        }
    }

    #[test]
    fn only_plain_kvm_declares_the_pool_itself() {
        let args = BedArgs {
            cpus: 1,
            timeout: 1,
            platform: Platform::Bochs,
            cpu_model: HASWELL.into(),
        };
        let plain = machine(SetUp::Kvm, &args);
        assert!(plain.plain && plain.cmdline.contains("%0x60000000"));
        assert!(!machine(SetUp::NestedKvm, &args).cmdline.contains("memmap"));
        assert!(!machine(SetUp::LocumNested, &args).plain);
    }
}
