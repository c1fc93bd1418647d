//! What there is to be seen of a machine, not judged. What cannot be seen is kept with the reason.

mod bda;
mod boot;
mod cpuinfo;
mod kconfig;
mod msr;
mod qemu;

use anyhow::Result;
use partitioner::{MemoryBlock, PciFunction};

pub use boot::SecureBoot;
pub use cpuinfo::CpuEntry;
#[cfg(test)]
pub use cpuinfo::parse as parse_cpuinfo;
pub use msr::{CpuMsrs, Msrs};
pub use qemu::Qemu;

use crate::acpi::{Interrupts, Platform};
use crate::inventory::{Ram, memmap, memory, pci};
use crate::sysroot::SysRoot;

const TABLES: &str = "sys/firmware/acpi/tables";

/// A range of a memory map: start, length in bytes, e820 type.
pub type MapEntry = (u64, u64, u32);

/// Remapping units.
#[derive(Clone, Debug, Default)]
pub struct Remapping {
    /// There is a DMAR table.
    pub dmar: bool,
    /// Units that Linux uses.
    pub units: Vec<String>,
}

/// All that is looked at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Linux runs above L0, which has changed what the firmware tells.
    pub above_l0: bool,
    /// `/proc/cpuinfo`.
    pub cpus: Result<Vec<CpuEntry>, String>,
    /// MSRs of the CPUs.
    pub msrs: Msrs,
    /// CPUs and IOAPICs.
    pub madt: Result<Interrupts, String>,
    /// What FADT and MCFG say.
    pub platform: Result<Platform, String>,
    /// Tables cannot be opened by this user.
    pub tables_hidden: bool,
    /// PCI functions.
    pub functions: Result<Vec<PciFunction>, String>,
    /// Remapping units.
    pub remapping: Remapping,
    /// Secure Boot.
    pub secure_boot: SecureBoot,
    /// The kernel's lockdown mode, if it has that.
    pub lockdown: Option<String>,
    /// The firmware's memory map.
    pub memmap: Result<Vec<MapEntry>, String>,
    /// Where the BIOS' memory below 1 MiB begins, whatever the map says.
    pub bios_area: Result<u64, String>,
    /// What Linux uses as RAM.
    pub ram: Result<Ram, String>,
    /// Bytes of a memory block, and the blocks.
    pub blocks: Result<(u64, Vec<MemoryBlock>), String>,
    /// Bytes of a memory block, again: looked at for a refresh, too.
    pub block_size: Option<u64>,
    /// Bytes that Linux maps in pages of 1 GiB.
    pub in_gib_pages: u64,
    /// Release of the running kernel, empty if not known.
    pub release: String,
    /// Its configuration.
    pub config: Result<String, String>,
    /// QEMUs that run.
    pub guests: Vec<Qemu>,
}

impl Facts {
    /// Looks at everything.
    pub fn read(sys: &SysRoot) -> Self {
        let blocks = || Ok((memory::block_size(sys)?, memory::blocks(sys)?));
        let release = sys.read_optional("proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            platform: words(Platform::read(sys)),
            functions: words(pci::functions(sys)),
            remapping: Remapping {
                units: sys.list("sys/class/iommu").unwrap_or_default(),
                ..remapping(sys)
            },
            secure_boot: SecureBoot::read(sys),
            lockdown: boot::lockdown(sys),
            memmap: words(memmap::ranges(sys)),
            bios_area: bda::bios_area(sys),
            ram: words(Ram::read(sys)),
            blocks: words(blocks()),
            config: kconfig::read(sys, &release),
            guests: Qemu::all(sys),
            ..Self::of_cpus_and_board(sys)
        }
    }

    /// Looks at what a refresh depends on; the rest is as if nothing could be seen.
    pub fn of_cpus_and_board(sys: &SysRoot) -> Self {
        let unseen = || "not looked at".to_owned();
        let cpus = cpuinfo::read(sys);
        let numbers: Vec<u32> = cpus.iter().flatten().map(|cpu| cpu.number).collect();
        Self {
            above_l0: sys.exists(format!("{TABLES}/LOCM")) || sys.exists("dev/locum"),
            msrs: Msrs::read(sys, &numbers),
            cpus,
            madt: words(Interrupts::read(sys)),
            platform: Err(unseen()),
            tables_hidden: hidden(sys),
            functions: Err(unseen()),
            remapping: remapping(sys),
            secure_boot: SecureBoot::Unknown,
            lockdown: None,
            memmap: Err(unseen()),
            bios_area: Err(unseen()),
            ram: Err(unseen()),
            blocks: Err(unseen()),
            block_size: memory::block_size(sys).ok(),
            in_gib_pages: memory::in_gib_pages(sys),
            release: sys.read_optional("proc/sys/kernel/osrelease").unwrap_or_default(),
            config: Err(unseen()),
            guests: Vec::new(),
        }
    }

    /// Whether `/proc/cpuinfo` lists that feature for each CPU.
    pub fn every_cpu_has(&self, flag: &str) -> bool {
        let list = self.cpus.as_deref().unwrap_or_default();
        !list.is_empty() && list.iter().all(|cpu| cpu.has(flag))
    }
}

fn remapping(sys: &SysRoot) -> Remapping {
    Remapping {
        dmar: sys.exists(format!("{TABLES}/DMAR")),
        units: Vec::new(),
    }
}

/// Whether there are tables, but not for this user.
fn hidden(sys: &SysRoot) -> bool {
    let open = |name: &String| std::fs::File::open(sys.path(TABLES).join(name));
    let refused = |name: &String| open(name).is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    sys.list(TABLES).unwrap_or_default().iter().any(refused)
}

fn words<T>(outcome: Result<T>) -> Result<T, String> {
    outcome.map_err(|error| format!("{error:#}"))
}
