//! The shared region as one structure: offsets follow from it, so nothing can overlap.

use core::cell::UnsafeCell;
use core::ops::Range;

use locum_abi::channel::CHANNEL_COUNT;
use locum_abi::frame::TableRegister;
use locum_abi::trace::KEPT_KINDS;
use locum_abi::{
    ChannelRing, Header, KeptRing, LogRing, Mailbox, PAGE_SIZE, POOL_EXTENTS, PoolExtent, SLOTS, Slot, Status,
    TraceRing,
};

use crate::arch::paging::{LOW_GIB, PDPTS, SMALL_PAGES, Table};
use crate::id::APIC_IDS;

/// Bytes of the region: one 2 MiB page, since Linux maps the reset vector for its last jump with a page of that size.
pub(crate) const SIZE: u64 = 0x20_0000;
/// Bytes of L0's private memory, right below the region, as the linker script has it.
pub(crate) const PRIVATE_SIZE: u64 = 0x100_0000;
/// Page-table pages per slot with which a module maps its stub.
pub(crate) const STUB_PT_PAGES: usize = 16;
/// Bytes per slot for a host's firmware tables.
pub(crate) const TABLES_SIZE: usize = 64 * 1024;
/// Bytes at the end of [`Region::machine_rsdp`]'s page that stay unused.
pub(crate) const RSDP_MAX: usize = 36;

/// A page of bytes.
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; PAGE_SIZE as usize]);

/// A page-aligned value: the next one starts on a page of its own.
#[repr(C, align(4096))]
pub(crate) struct Paged<T>(pub(crate) T);

/// Bytes of code in a [`ResetPage`].
pub(crate) const RESET_CODE: usize = 256;

/// The reset vector's page: code, then what it needs, reached relative to RIP.
#[repr(C, align(4096))]
pub(crate) struct ResetPage {
    /// Code.
    pub(crate) code: [u8; RESET_CODE],
    /// Its data.
    pub(crate) data: ResetData,
}

/// What the reset vector's code needs.
#[repr(C)]
pub(crate) struct ResetData {
    /// Mode of the CPU with each APIC id: 1 nested, 0 native.
    pub(crate) nested: [u8; APIC_IDS],
    /// Top of L0's stack per APIC id; 0 for ids that L0 does not manage.
    pub(crate) stack: [u64; APIC_IDS],
    /// Where the code leads to.
    pub(crate) entry: u64,
    /// L0's CR3.
    pub(crate) cr3: u64,
    /// L0's CR3 for a CPU with five-level paging.
    pub(crate) cr3_five: u64,
    /// A GDT that will do until the CPU's own is loaded.
    pub(crate) gdtr: TableRegister,
    /// L0's IDT.
    pub(crate) idtr: TableRegister,
}

/// Page tables of the firmware's identity map.
#[repr(C, align(4096))]
pub(crate) struct FirmwareTables {
    /// CR3 names it.
    pub(crate) pml4: Table,
    /// CR3 names it on CPUs with five-level paging.
    pub(crate) pml5: Table,
    /// With pages of 1 GiB but for the first entries, which name `pd`.
    pub(crate) pdpt: [Table; PDPTS],
    /// The low GiBs.
    pub(crate) pd: [Table; LOW_GIB],
}

/// What one slot's host has.
#[repr(C, align(4096))]
pub(crate) struct SlotArea {
    /// Wakeup mailbox.
    pub(crate) mailbox: Mailbox,
    /// Reset vector.
    pub(crate) reset_vector: ResetPage,
    /// GDT with which a CPU is handed to a native host.
    pub(crate) gdt: Page,
    /// What the host sees at address 0 while nested.
    pub(crate) page_zero: Page,
    /// Identity map of the low 4 GiB and all RAM on which a CPU is handed to a host.
    pub(crate) firmware_tables: FirmwareTables,
    /// Page directory for the module's stub.
    pub(crate) stub_pd: Paged<Table>,
    /// Page tables for the module's stub.
    pub(crate) stub_pt: [Paged<Table>; STUB_PT_PAGES],
    /// Zero page, command line and ACPI tables.
    pub(crate) tables: Paged<[u8; TABLES_SIZE]>,
}

/// All of the region. Everything in it begins on a page of its own.
#[repr(C, align(4096))]
pub(crate) struct Region {
    /// Where everything is.
    pub(crate) header: Paged<Header>,
    /// Modes, owners, counters.
    pub(crate) status: Paged<Status>,
    /// Trace ring.
    pub(crate) trace: Paged<TraceRing>,
    /// What is kept of each kind of its records.
    pub(crate) kept: Paged<[KeptRing; KEPT_KINDS]>,
    /// Log ring.
    pub(crate) log: Paged<LogRing>,
    /// Copy of the machine's RSDP.
    pub(crate) machine_rsdp: Page,
    /// Per slot.
    pub(crate) slots: [SlotArea; SLOTS],
    /// Byte rings between the hosts.
    pub(crate) channels: [[ChannelRing; 2]; CHANNEL_COUNT],
    /// Which guest's RAM lies where in the pool: the hosts' affair.
    pub(crate) pool_table: Paged<[PoolExtent; POOL_EXTENTS]>,
}

/// Physical addresses of L0's memory: the image that the boot loader placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    /// L0's memory begins at `start`, a multiple of 2 MiB.
    pub(crate) const fn new(start: u64) -> Self {
        Self(start)
    }

    /// L0's alone.
    pub(crate) const fn private(self) -> Range<u64> {
        self.0..self.0 + PRIVATE_SIZE
    }

    /// The shared region.
    pub(crate) const fn shared(self) -> Range<u64> {
        let start = self.private().end;
        start..start + SIZE
    }

    /// Both.
    pub(crate) const fn all(self) -> Range<u64> {
        self.private().start..self.shared().end
    }

    /// The part of the shared region before the slots' areas, which hosts read.
    pub(crate) const fn readable(self) -> Range<u64> {
        let start = self.shared().start;
        start..start + core::mem::offset_of!(Region, slots) as u64
    }

    /// A slot's area: while two hosts run, no other touches it.
    pub(crate) const fn slot_area(self, slot: Slot) -> Range<u64> {
        let size = size_of::<SlotArea>() as u64;
        let start = self.readable().end + slot.index() as u64 * size;
        start..start + size
    }

    /// What follows the slots' areas: the channels and the pool's table, which both hosts write.
    pub(crate) const fn channels(self) -> Range<u64> {
        self.slot_area(Slot::Odd).end..self.shared().end
    }
}

/// The region, filled up: in the image it takes the memory that it is said to take.
#[repr(C, align(4096))]
pub(crate) union Filled {
    /// What is in it.
    pub(crate) region: core::mem::ManuallyDrop<Region>,
    /// What it takes.
    pub(crate) bytes: [u8; SIZE as usize],
}

const _: () = assert!(size_of::<Filled>() as u64 == SIZE);
const _: () = assert!(core::mem::offset_of!(Region, header) == 0);
const _: () = assert!(size_of::<Paged<Table>>() as u64 == PAGE_SIZE);
const _: () = assert!(size_of::<ResetPage>() as u64 == PAGE_SIZE);
const _: () = assert!(SMALL_PAGES as u64 * PAGE_SIZE >= PRIVATE_SIZE);

/// The region as a static: zero at boot, written by L0 and by hosts at any time, so only ever reached through
/// pointers.
#[repr(transparent)]
pub(crate) struct Shared(pub(crate) UnsafeCell<Filled>);
