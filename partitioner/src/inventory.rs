//! The machine as the incumbent's agent observed it. Plain data: the agent fills it in, [`plan()`](crate::plan())
//! judges it.

use alloc::{string::String, vec::Vec};

use rangemap::RangeSet;

use crate::{ApicId, CpuNumber, Generation, Gsi, MemRange, NodeId, PciFunction, PortRange, Resource};

/// A CPU that the incumbent owns.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Cpu {
    /// Its local APIC id.
    pub apic: ApicId,
    /// The incumbent's number for it.
    pub number: CpuNumber,
    /// Whether the incumbent runs on it.
    pub online: bool,
    /// Its NUMA node.
    pub node: NodeId,
    /// Its core, by the lowest number of the CPUs that are threads of it. `None` if that is not known: then it is taken
    /// for a core of its own.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub core: Option<CpuNumber>,
}

impl Cpu {
    /// What tells its core from others.
    pub(crate) fn core(&self) -> CpuNumber {
        self.core.unwrap_or(self.number)
    }
}

/// State of a memory block (`/sys/devices/system/memory/memoryN/state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum BlockState {
    /// In use by the page allocator.
    Online,
    /// Present, not in use.
    Offline,
}

/// A memory block of the incumbent: the unit of Linux's memory hotplug.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MemoryBlock {
    /// Where it is: `block_size` bytes, aligned to that.
    pub range: MemRange,
    /// Whether Linux uses it.
    pub state: BlockState,
    /// Whether Linux could take all its pages off it: it lies in a movable zone wholly, and not below the kernel's image
    /// or crash kernel in its stretch of RAM. Holes are found from [`Inventory::ram`] and need not be told here.
    pub removable: bool,
    /// Bytes that are free already; the rest is migrated when the block goes. 0 if not known.
    pub free: u64,
    /// Its NUMA node.
    pub node: NodeId,
    /// What in it Linux cannot move, though its zone is movable: "memory that the kernel took at boot (12 KiB)". `None` if
    /// there is no such thing, or it was not looked for.
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub kept: Option<String>,
    /// What some of it is if no host can boot in it, since the firmware's memory map does not call it RAM: "System RAM
    /// (kmem) that is persistent memory for the firmware".
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub foreign: Option<String>,
}

/// An IOAPIC pin.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Pin {
    /// Its number.
    pub gsi: Gsi,
    /// Who uses it other than the PCI functions of this inventory: "acpi", "timer", "ttyS0".
    pub users: Vec<String>,
}

/// I/O ports that the incumbent cannot do without.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StayingPorts {
    /// Which.
    pub ports: PortRange,
    /// Who uses them: "ttyS0, the console".
    pub user: String,
}

/// Something that the firmware's own code (AML) uses while the machine runs, and that L0 has no filter for. Both hosts
/// run that code, so it must stay with the one that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FirmwareRegion {
    /// What: memory, ports or a function.
    pub resource: Resource,
    /// Its name and table: "\\_SB_.PCI0.LPCB.PMIO of DSDT".
    pub name: String,
}

impl FirmwareRegion {
    /// Whether it is, or lies in part in, `resource`.
    #[must_use]
    pub fn touches(&self, resource: Resource) -> bool {
        match (self.resource, resource) {
            (Resource::Memory(own), Resource::Memory(other)) => own.overlaps(other),
            (Resource::Ports(own), Resource::Ports(other)) => own.overlaps(other),
            (own, other) => own == other,
        }
    }
}

/// Memory that belongs to neither host: left in blocks with holes by an incumbent that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Unreclaimed {
    /// Where it is.
    pub range: MemRange,
    /// The NUMA node of its block.
    pub node: NodeId,
}

/// Everything that the incumbent owns, and the memory that it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Inventory {
    /// The incumbent's generation.
    pub generation: Generation,
    /// Its CPUs, online or not.
    pub cpus: Vec<Cpu>,
    /// Size of a memory block in bytes, a power of two (`/sys/devices/system/memory/block_size_bytes`).
    pub block_size: u64,
    /// Its memory blocks.
    pub blocks: Vec<MemoryBlock>,
    /// Its RAM that a successor can have: "System RAM" of `/proc/iomem`, driver-managed memory included, as far as the
    /// firmware's memory map knows it. A block that this does not cover wholly has holes; Linux neither removes nor adds
    /// such a block.
    pub ram: Vec<MemRange>,
    /// Bytes that it can do without: what is free, or could be made so, less the headroom that the agent wants.
    pub spare: u64,
    /// Its PCI functions, bridges and those of other segments included, which never move.
    pub functions: Vec<PciFunction>,
    /// Its IOAPIC pins, all of them, used or not.
    pub pins: Vec<Pin>,
    /// Ports that stay with it.
    pub staying_ports: Vec<StayingPorts>,
    /// What the firmware's code uses and must not move.
    pub firmware: Vec<FirmwareRegion>,
    /// Tables of the firmware's code that could not be read, each with the cause: what they use is not known.
    pub unread_firmware: Vec<String>,
    /// The pool. Empty if there is none.
    pub pool: Vec<MemRange>,
    /// NUMA nodes of the pool's memory. Empty if they are not known.
    pub pool_nodes: Vec<NodeId>,
    /// What L0 maps for a host at its entry ends here: kernel, ramdisk and zero page of a successor lie below.
    pub entry_reach: u64,
    /// Memory that belongs to no host ever: L0, and all of the first MiB (trampoline slices, BIOS). Wins over `ram`.
    /// Blocks with holes do not belong here: what is in them changes hands, if only at boot.
    pub never_moves: Vec<MemRange>,
    /// Memory that earlier refreshes left over ([`Refresh::unreclaimed`](crate::Refresh::unreclaimed)).
    pub unreclaimed: Vec<Unreclaimed>,
}

impl Inventory {
    /// The CPU with that APIC id.
    #[must_use]
    pub fn cpu(&self, apic: ApicId) -> Option<&Cpu> {
        self.cpus.iter().find(|cpu| cpu.apic == apic)
    }

    /// What of the firmware's stands in the way of moving `resource`.
    pub(crate) fn used_by_firmware(&self, resource: Resource) -> Option<&FirmwareRegion> {
        self.firmware.iter().find(|region| region.touches(resource))
    }

    /// PCI functions that L0 knows nothing of: they stay, or follow what they lie behind.
    pub fn immovable(&self) -> impl Iterator<Item = &PciFunction> {
        self.functions.iter().filter(|function| !function.movable())
    }

    /// CPUs that the incumbent runs on.
    pub fn online_cpus(&self) -> impl Iterator<Item = &Cpu> {
        self.cpus.iter().filter(|cpu| cpu.online)
    }
}

impl Inventory {
    /// RAM that is the incumbent's to give: `ram` less what never moves.
    pub(crate) fn own_ram(&self) -> RangeSet<u64> {
        let mut own: RangeSet<u64> = self.ram.iter().map(|range| range.range()).collect();
        for never in &self.never_moves {
            own.remove(never.range());
        }
        own
    }
}
