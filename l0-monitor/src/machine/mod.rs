//! What the machine is: memory, memory types, IOAPICs. Found out at boot, read-only afterwards.

pub(crate) mod mtrr;

use arrayvec::ArrayVec;
use firmware_shim::acpi::EcamRegion;
use firmware_shim::e820::{E820Map, MemoryType as RangeType};
use locum_abi::{BLANK_RANGES, POOL_PIECES, PerSlot};
use spin::Once;

use crate::arch::paging::page_of;
use crate::shared::layout::Place;
use mtrr::Mtrrs;

/// IOAPICs that L0 knows at most. Servers have one and four a socket: four sockets have 17.
pub(crate) const MAX_IOAPICS: usize = 64;
/// Windows of PCI configuration space that L0 knows at most.
pub(crate) const MAX_ECAM: usize = 8;

/// A range of physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First byte.
    pub(crate) start: u64,
    /// First byte after it.
    pub(crate) end: u64,
}

impl Span {
    /// No memory.
    pub(crate) const EMPTY: Self = Self { start: 0, end: 0 };
}

/// Pieces of guest RAM, in ascending order.
pub(crate) type Pool = ArrayVec<Span, POOL_PIECES>;

/// Where a host that does not reign reads zeroes, in ascending order; see [`locum_abi::BlankRange`].
pub(crate) type Blank = ArrayVec<Span, BLANK_RANGES>;

/// An IOAPIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoApic {
    /// Physical address of its registers.
    pub(crate) address: u64,
    /// Global system interrupt of its pin 0.
    pub(crate) gsi_base: u32,
    /// Number of pins.
    pub(crate) pins: u32,
}

/// The machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    /// Memory map as the firmware gave it.
    pub(crate) e820: E820Map,
    /// IOAPICs of the MADT.
    pub(crate) ioapics: ArrayVec<IoApic, MAX_IOAPICS>,
    /// There are more IOAPICs than L0 can filter: two hosts can't be kept apart.
    pub(crate) too_many_ioapics: bool,
    /// PCI Express configuration space.
    pub(crate) ecam: ArrayVec<EcamRegion, MAX_ECAM>,
    /// Memory types.
    pub(crate) mtrrs: Mtrrs,
    /// L0's own memory.
    pub(crate) l0: Place,
    /// Memory below 1 MiB for the trampolines of each slot's kernel.
    pub(crate) low_slices: PerSlot<Span>,
    /// Guest RAM.
    pub(crate) pool: Pool,
    /// The firmware's error sources, in Reserved memory.
    pub(crate) blank: Blank,
    /// Ports of PM1a_CNT and PM1b_CNT, 0 if not there.
    pub(crate) pm1_control: [u16; 2],
    /// Physical address of (a copy of) the machine's RSDP.
    pub(crate) rsdp: u64,
    /// APIC id of the boot CPU.
    pub(crate) boot_apic_id: u32,
}

impl Machine {
    /// A machine of which nothing is known.
    pub(crate) const EMPTY: Self = Self {
        e820: E820Map::new(),
        ioapics: ArrayVec::new_const(),
        too_many_ioapics: false,
        ecam: ArrayVec::new_const(),
        mtrrs: Mtrrs::NONE,
        l0: Place::new(0),
        low_slices: PerSlot::new(Span::EMPTY, Span::EMPTY),
        pool: Pool::new_const(),
        blank: Blank::new_const(),
        pm1_control: [0; 2],
        rsdp: 0,
        boot_apic_id: 0,
    };

    /// RAM of any kind, ACPI memory included.
    pub(crate) fn ram(&self) -> impl Iterator<Item = Span> + '_ {
        self.e820
            .entries()
            .iter()
            .filter(|entry| {
                matches!(
                    entry.kind,
                    RangeType::Usable
                        | RangeType::AcpiReclaim
                        | RangeType::AcpiNvs
                        | RangeType::SoftReserved
                        | RangeType::Persistent
                )
            })
            .map(|entry| Span {
                start: entry.start,
                end: entry.end,
            })
    }

    /// First byte after the last of RAM.
    pub(crate) fn memory_end(&self) -> u64 {
        self.ram().map(|span| span.end).max().unwrap_or(0)
    }
}

static MACHINE: Once<Machine> = Once::new();

/// Makes the machine known. Called once, at boot.
pub(crate) fn publish(machine: Machine) -> &'static Machine {
    MACHINE.call_once(|| machine)
}

/// Memory type at a physical address, and the first address above it where another may begin. Write-back everywhere
/// while the machine is not known.
pub(crate) fn memory_type(address: u64) -> (mtrr::MemoryType, u64) {
    MACHINE
        .get()
        .map_or((mtrr::MemoryType::WriteBack, page_of(u64::MAX)), |machine| {
            machine.mtrrs.lookup(address)
        })
}

/// Whether there is RAM at `address`, or what is below 1 MiB up to the VGA window.
pub(crate) fn is_memory(address: u64) -> bool {
    memory_end(address) > address
}

/// Where the memory ends that is at `address` (see [`is_memory`]); `address` itself if there is none.
pub(crate) fn memory_end(address: u64) -> u64 {
    const VGA: u64 = 0xa_0000;
    let ram = MACHINE.get().into_iter().flat_map(Machine::ram);
    let found = ram
        .into_iter()
        .find(|range| (range.start..range.end).contains(&address));
    let low = if address < VGA { VGA } else { address };
    found.map_or(low, |range| range.end.max(low))
}
