//! Why there is no plan, and what to beware of in one. Each text names the cause and the remedy.

use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use core::fmt;

use locum_abi::{GRANTABLE_FUNCTIONS, GRANTABLE_PINS};

use crate::{CpuNumber, Gsi, MemRange, NodeId, Owner, PciAddress, PortRange, Resource};

/// Bytes, shown in MiB where that is exact.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 & 0xf_ffff == 0 {
            write!(f, "{} MiB", self.0 >> 20)
        } else {
            write!(f, "{} bytes", self.0)
        }
    }
}

/// CPU numbers, as `taskset` takes them.
struct Numbers<'a>(&'a [CpuNumber]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, number) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, number.0)?;
        }
        Ok(())
    }
}

/// Nodes, in a sentence.
struct Nodes<'a>(&'a [NodeId]);

impl fmt::Display for Nodes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, node) in self.0.iter().enumerate() {
            write!(f, "{}{node}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why a block cannot be taken off Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Stuck {
    /// Part of it is not RAM of the incumbent.
    Holes,
    /// It is not wholly in a movable zone, or Linux cannot divide its stretch of RAM there.
    Unmovable,
}

/// Why there is no plan. Nothing has been changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, strum::IntoStaticStr, strum::VariantNames)]
#[strum(serialize_all = "kebab-case", prefix = "plan-")]
#[non_exhaustive]
pub enum PlanError {
    /// CPU 0 was asked for.
    #[error("CPU 0 cannot be taken: Linux never offlines its boot CPU; leave it out of the list of CPUs")]
    CpuZero,
    /// No CPU was asked for.
    #[error("the successor gets no CPU: ask for at least one")]
    NoCpu,
    /// No CPU would be left to the incumbent.
    #[error("taking {asked} of {online} online CPUs leaves none to the incumbent: ask for at most {}", online.saturating_sub(1))]
    LastCpu {
        /// CPUs asked for.
        asked: usize,
        /// CPUs that the incumbent runs on.
        online: usize,
    },
    /// There is no such CPU.
    #[error("{cpu} does not exist; online CPUs that could go: {}", Numbers(could))]
    UnknownCpu {
        /// What was asked for.
        cpu: CpuNumber,
        /// What could be asked for.
        could: Vec<CpuNumber>,
    },
    /// The CPU is offline.
    #[error("{0} is offline: `echo 1 > /sys/devices/system/cpu/cpu{n}/online`, or choose another", n = .0.0)]
    OfflineCpu(CpuNumber),
    /// Something is named twice.
    #[error("{0} is asked for twice: name it once")]
    Duplicate(String),

    /// The incumbent cannot give so much memory.
    #[error(
        "{} of memory asked for, but only {} can be offlined ({} in removable blocks, {} to spare): ask for less, \
         free memory, or boot the incumbent with a larger movablecore=", Size(*asked), Size(*could), Size(*removable), Size(*spare))]
    TooMuchMemory {
        /// Bytes asked for.
        asked: u64,
        /// Bytes that the successor could get, unreclaimed memory included.
        could: u64,
        /// Bytes in removable blocks.
        removable: u64,
        /// Bytes that the incumbent can do without.
        spare: u64,
    },
    /// A range that is no multiple of the block size.
    #[error("memory {range} is not made of whole memory blocks: align both ends to {block_size:#x}")]
    Misaligned {
        /// What was asked for.
        range: MemRange,
        /// Size of a block in bytes.
        block_size: u64,
    },
    /// The incumbent has no such block.
    #[error("memory block {0} is not the incumbent's: choose from /sys/devices/system/memory")]
    UnknownBlock(MemRange),
    /// The block cannot be taken off Linux.
    #[error("memory block {range} cannot be offlined: {}", match why {
        Stuck::Holes => "it has holes, Linux moves whole blocks only; choose another",
        Stuck::Unmovable => "it is not in a movable zone, or below the kernel's image or crash kernel in its stretch of RAM; choose another, or boot the incumbent with a larger movablecore=",
    })]
    NotRemovable {
        /// The block.
        range: MemRange,
        /// The cause.
        why: Stuck,
    },
    /// Something in the block cannot be moved.
    #[error(
        "memory block {range} cannot be offlined: in it is {what}; choose another, or boot the incumbent with a larger movablecore="
    )]
    KeptMemory {
        /// The block.
        range: MemRange,
        /// What it is.
        what: String,
    },
    /// A block that the firmware's memory map does not call RAM.
    #[error(
        "memory block {range} cannot be the successor's: it is {what}, and a successor boots in ordinary RAM only; choose another"
    )]
    ForeignMemory {
        /// The block.
        range: MemRange,
        /// What it is.
        what: String,
    },
    /// The block touches the pool.
    #[error("memory {range} overlaps the pool {pool}, which holds the guests' RAM: choose other blocks")]
    OverlapsPool {
        /// What was asked for.
        range: MemRange,
        /// What it overlaps.
        pool: MemRange,
    },
    /// The block touches memory that never moves.
    #[error("memory {range} overlaps {never}, which never moves (L0 or the first MiB): choose other blocks")]
    OverlapsNeverMoves {
        /// What was asked for.
        range: MemRange,
        /// What it overlaps.
        never: MemRange,
    },
    /// The kernel finds no place.
    #[error(
        "kernel, initramfs and tables need {needed} contiguous bytes, the longest range of the successor has {longest}: \
         ask for more memory or for adjacent blocks, or use a smaller initramfs"
    )]
    TooSmallToBoot {
        /// Bytes needed in one range.
        needed: u64,
        /// Bytes in the longest range.
        longest: u64,
    },

    /// The kernel finds no place where L0 can enter it.
    #[error(
        "kernel, initramfs and tables need {needed} contiguous bytes below {reach:#x}, which is all that L0 maps for them, \
         and the longest such range of the successor has {longest}: ask by address for blocks down there, boot the \
         incumbent so that there are movable ones, or use a smaller initramfs"
    )]
    OutOfReach {
        /// Bytes needed in one range.
        needed: u64,
        /// Bytes in the longest range below.
        longest: u64,
        /// Where L0's map ends.
        reach: u64,
    },

    /// There is no such PCI function.
    #[error("PCI function {0} does not exist: choose one that `ls /sys/bus/pci/devices` shows")]
    UnknownFunction(PciAddress),
    /// A bridge was asked for.
    #[error("PCI function {0} is a bridge, which both hosts see and neither can move: ask for the functions behind it")]
    Bridge(PciAddress),
    /// A function that L0 knows nothing of.
    #[error("PCI function {address} cannot move: L0 knows PCI segment 0000 only; {}", match behind {
        Some(endpoint) => format!("ask for {endpoint}, behind which it lies and which it follows"),
        None => "leave it out".to_owned(),
    })]
    OtherSegment {
        /// What was asked for.
        address: PciAddress,
        /// The function of segment 0 that it lies behind.
        behind: Option<PciAddress>,
    },
    /// The function is in use.
    #[error("PCI function {address} is busy: {why}; stop its use first")]
    Busy {
        /// The function.
        address: PciAddress,
        /// Who uses it.
        why: String,
    },
    /// Its interrupt line also serves a device that stays.
    #[error(
        "{gsi}, asked for with {wanted}, is shared with {other}, which stays, and a shared line cannot be split: move \
             both, unbind the other's driver, or plug one in elsewhere"
    )]
    SharedPin {
        /// The pin.
        gsi: Gsi,
        /// What needs it on the successor's side.
        wanted: String,
        /// What needs it on the incumbent's side.
        other: String,
    },
    /// The machine has no such pin.
    #[error("{0} does not exist: ask for one that /proc/interrupts or the MADT lists")]
    UnknownPin(Gsi),
    /// L0 keeps account of lower pins only.
    #[error(
        "{gsi}, asked for with {wanted}, cannot go ahead of time: L0 gives pins below {GRANTABLE_PINS} only; leave {wanted} \
         out, it follows once the incumbent is gone"
    )]
    HighPin {
        /// The pin.
        gsi: Gsi,
        /// What needs it on the successor's side.
        wanted: String,
    },
    /// More functions than L0 has room for.
    #[error(
        "{0} PCI functions are asked for, and L0 gives {GRANTABLE_FUNCTIONS} at most ahead of time: leave some out, they \
             follow once the incumbent is gone"
    )]
    ManyFunctions(usize),
    /// Its registers share a page with a function that stays.
    #[error("{page} holds registers of {address} and of {other}, which stays, and a page has one owner: move both")]
    SharedPage {
        /// The function asked for.
        address: PciAddress,
        /// The function that stays.
        other: PciAddress,
        /// The page or pages.
        page: MemRange,
    },
    /// The ports are needed by the incumbent.
    #[error("I/O ports {ports} are in use by {user}, which stays: choose others")]
    PortsInUse {
        /// What was asked for.
        ports: PortRange,
        /// Who has them.
        user: String,
    },

    /// The firmware's code uses it, in both hosts.
    #[error("{resource} cannot go: the firmware's code uses it ({region}), both hosts run that code, and L0 has no filter \
             for it; {}", match resource {
        Resource::Function(_) => "take it off the devices: it follows once the incumbent is gone",
        _ => "choose other ones",
    })]
    UsedByFirmware {
        /// What was asked for.
        resource: Resource,
        /// Name and table of the region.
        region: String,
    },

    /// Guests, but nowhere for their RAM to stay.
    #[error("guests are to be handed over, but there is no pool: boot L0 with pool=, or list no guests")]
    NoPool,
    /// Two owners of one piece of memory.
    #[error("memory {range} of {owner} also belongs to {other}: {}", match (owner, other) {
        (Owner::Host(_), Owner::Pool) | (Owner::Pool, Owner::Host(_)) => "keep Linux from using the pool as System RAM (dax_hmem.region_idle=1)",
        _ => "the memory map that L0 made contradicts the incumbent's; please report this with the output of `locum status --json`",
    })]
    Conflict {
        /// What is claimed twice.
        range: MemRange,
        /// One owner.
        owner: Owner,
        /// The other.
        other: Owner,
    },
    /// The inventory contradicts itself.
    #[error("the inventory is inconsistent ({0}): read it anew; if that does not help, please report it")]
    Inconsistent(String),
}

/// What to beware of in a plan that is possible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum Warning {
    /// The successor's CPUs of that node have remote memory only.
    #[error(
        "the successor gets CPUs of {0} but no memory there, so all their memory is remote: choose blocks of that node too"
    )]
    SuccessorNodeWithoutMemory(NodeId),
    /// The incumbent's CPUs of that node are left with remote memory only.
    #[error("the incumbent keeps CPUs of {0} but no memory there, so all their memory is remote: leave it some")]
    IncumbentNodeWithoutMemory(NodeId),
    /// Memory that no successor finds.
    #[error(
        "memory {range} is {what}: no successor finds it, so it is out of use from the refresh to the machine's next boot"
    )]
    MemoryLost {
        /// Where: whole blocks.
        range: MemRange,
        /// What it is.
        what: String,
    },
    /// Functions that L0 keeps no host off.
    #[error(
        "{count} PCI functions are in other segments than 0000 ({first}): they stay, but L0 filters no access to their \
         configuration space; have the successor load no drivers for them"
    )]
    OtherSegments {
        /// One of them.
        first: PciAddress,
        /// How many there are.
        count: usize,
    },
    /// Two hosts share a core.
    #[error(
        "{goes} goes and {stays} stays, but both are threads of one core: each host slows the other down and shares its \
         caches with it; ask for whole cores"
    )]
    SplitCore {
        /// The thread that goes.
        goes: CpuNumber,
        /// One that stays.
        stays: CpuNumber,
    },
    /// Guests run away from their RAM.
    #[error(
        "the pool is on {}, where the successor gets no CPU: until it has the whole machine, all RAM of its guests is \
         remote; ask for CPUs there",
        Nodes(pool)
    )]
    PoolFarAway {
        /// Nodes of the pool.
        pool: Vec<NodeId>,
    },
    /// Next to nothing below 4 GiB.
    #[error(
        "the successor has {} below 4 GiB beside its image, and memory that it adds later is none for 32-bit DMA: devices \
         that need it (and the kernel's bounce buffers, 64 MiB) may fail; ask by address for a block down there", Size(*spare))]
    LittleLowMemory {
        /// Bytes.
        spare: u64,
    },
    /// What a table of the firmware's code uses is not known.
    #[error(
        "what the firmware's code uses is not known in whole ({0}): take care that it needs nothing of what moves, or \
         move RAM and CPUs only"
    )]
    UnreadFirmware(String),
    /// An unused function loses its interrupt.
    #[error(
        "{address} stays without {gsi}, which it shares with a function that moves: give it no driver until it is one host's"
    )]
    IdleFunctionLosesPin {
        /// The function without a driver.
        address: PciAddress,
        /// The pin.
        gsi: Gsi,
    },
}
