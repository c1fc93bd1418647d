//! The header page: what L0 is and where its parts are. Written once at boot, read-only for hosts.
//!
//! L0 stays for years while module and agent are upgraded above it, so none of the three may be taken to be of the same
//! release. The rules:
//! - Only another [`FAMILY`] is a reason to refuse L0 as a whole. It changes when a field moves, if ever.
//! - [`Header::size`] says how much of the header L0 has. A reader copies as much of it as it knows itself, and takes what
//!   is missing for 0.
//! - Structures grow at their end, or into words that were reserved. How long the elements of an array are and where it
//!   lies is in the header, too; where that says 0, it is as in the first release. [`Layout`](crate::Layout) does this
//!   arithmetic.
//! - What else an L0 can do is a bit of [`Header::features`]; bits that a reader does not know mean nothing to it.
//! - What an L0 does not know is refused by itself: an operation as without L0 (#UD or VMfail), a kind of resource by
//!   [`Errno::Argument`](crate::Errno::Argument).

use core::mem::offset_of;

use crate::pool::{POOL_EXTENTS, PoolExtent};
use crate::slot::PerSlot;
use crate::trace::KEPT_KINDS;
use crate::{
    CHANNEL_COUNT, ChannelRing, CpuStatus, HostStatus, KeptRecord, KeptRing, LogRing, Status, TraceRecord, TraceRing,
};

/// Signature of the ACPI table that points to the [`Header`]. Body after the standard 36 bytes: `u64` physical
/// address of the header, `u32` [`FAMILY`], `u32` zero.
pub const LOCM_SIGNATURE: [u8; 4] = *b"LOCM";

/// First word of the header: `LOCUM-L0`, little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LOCUM-L0");

/// Family of all layouts in this crate but the module's interface: 1 as long as no field moves. Module and agent refuse
/// an L0 of another family.
pub const FAMILY: u32 = 1;

/// All that [`Header::features`] of this release tells: nothing yet. A bit that a release adds has a constant of its own
/// and is never used again.
pub const FEATURES: u64 = 0;

/// Bytes of the header that every L0 has.
pub const HEADER_MIN: u32 = 344;

/// How many logical CPUs L0 manages at most.
pub const MAX_CPUS: usize = 256;

/// Pieces that the pool has at most.
pub const POOL_PIECES: usize = 16;

/// Ranges of blank memory at most.
pub const BLANK_RANGES: usize = 8;

/// What belongs to the host of one slot (generation parity).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SlotInfo {
    /// Physical address of the ACPI wakeup [`crate::Mailbox`] (4 KiB aligned).
    pub mailbox: u64,
    /// Physical address of the reset vector: where an offlined CPU jumps, native or nested.
    pub reset_vector: u64,
    /// CR3 to load for a native call of L0. Bit 12 is clear, see [`crate::frame`].
    pub l0_cr3: u64,
    /// Address (under `l0_cr3`) of L0's native entry; RDI is the address of a [`crate::Frame`].
    pub l0_entry: u64,
    /// Physical address of the page directory that maps the top GiB (0xffffffffc0000000 and up) under `l0_cr3`.
    pub stub_pd: u64,
    /// Physical address of the page tables that the module links into `stub_pd` to map its stub and frames.
    pub stub_pt: u64,
    /// How many page-table pages there are at `stub_pt`.
    pub stub_pt_pages: u32,
    /// I/O port of the host's console UART, 0 if none.
    pub console_port: u32,
    /// First byte of the slice below 1 MiB that holds this host's trampoline.
    pub low_slice: u64,
    /// Bytes of the slice.
    pub low_slice_size: u64,
    /// Physical address of the page this host sees at address 0 while nested (0: the real one).
    pub page_zero: u64,
    /// Physical address of memory for this host's firmware tables, at the agent's disposal (ACPI, zero page).
    pub tables: u64,
    /// Bytes at `tables`.
    pub tables_size: u64,
}

/// A piece of the pool: memory of one NUMA node. Cannot grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolPiece {
    /// Physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// Memory of the firmware's, whole pages, that reads as zeroes for a host that does not reign, and is the reigning
/// host's: where its error sources say whether there is a report. Cannot grow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlankRange {
    /// Physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// The header page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`FAMILY`].
    pub family: u32,
    /// Bytes of the header that L0 has, at least [`HEADER_MIN`].
    pub size: u32,
    /// Physical address of the shared region. Hosts may map all of it.
    pub shared: u64,
    /// Bytes of the shared region.
    pub shared_size: u64,
    /// Physical address of L0's private memory, which no host may touch.
    pub private: u64,
    /// Bytes of L0's private memory.
    pub private_size: u64,
    /// Physical address of the pool's first piece, 0 if there is no pool.
    pub pool: u64,
    /// Bytes of the pool's first piece.
    pub pool_size: u64,
    /// Physical address of the [`crate::Status`].
    pub status: u64,
    /// Bytes of the status, including what later releases append.
    pub status_size: u64,
    /// Physical address of the [`crate::TraceRing`].
    pub trace: u64,
    /// Bytes of the trace ring, header included.
    pub trace_size: u64,
    /// Physical address of the [`crate::LogRing`].
    pub log: u64,
    /// Bytes of the log ring, header included.
    pub log_size: u64,
    /// Physical address of the first [`crate::ChannelRing`]; see [`crate::channel`].
    pub channels: u64,
    /// Bytes of all channel rings.
    pub channels_size: u64,
    /// Per slot.
    pub slots: PerSlot<SlotInfo>,
    /// Physical address of the machine's own RSDP (not the one made for the first host).
    pub machine_rsdp: u64,
    /// Bytes of L0's loaded image (text, read-only data, data), without bss.
    pub image_bytes: u64,
    /// Logical CPUs of the machine.
    pub cpu_count: u32,
    /// Port of PM1a_CNT (ACPI 4.8.3.2.1) of the machine, 0 if none. A hardware-reduced host has no other way to S5.
    pub pm1a_cnt: u16,
    /// Port of PM1b_CNT, 0 if none.
    pub pm1b_cnt: u16,
    /// What L0 can do beyond the first release, of which it is 0: bits of [`FEATURES`].
    pub features: u64,
    /// Bytes from one [`CpuStatus`] to the next, a multiple of 64. 0: [`FIRST_CPU_STATUS_SIZE`](crate::layout::FIRST_CPU_STATUS_SIZE).
    pub cpu_status_size: u32,
    /// CPUs for which the status has room. 0: [`FIRST_CPU_CAPACITY`](crate::layout::FIRST_CPU_CAPACITY).
    pub cpu_capacity: u32,
    /// Bytes from one [`HostStatus`] to the next. 0: [`FIRST_HOST_STATUS_SIZE`](crate::layout::FIRST_HOST_STATUS_SIZE).
    pub host_status_size: u32,
    /// Bytes from one [`TraceRecord`] to the next. 0: [`FIRST_TRACE_RECORD_SIZE`](crate::layout::FIRST_TRACE_RECORD_SIZE).
    pub trace_record_size: u32,
    /// Number of channels. 0: [`FIRST_CHANNEL_COUNT`](crate::layout::FIRST_CHANNEL_COUNT).
    pub channel_count: u32,
    /// Bytes of a [`ChannelRing`], of which all but the first 4096 are data, a power of two. 0:
    /// [`FIRST_CHANNEL_RING_SIZE`](crate::layout::FIRST_CHANNEL_RING_SIZE).
    pub channel_ring_size: u32,
    /// Offset in the status of the first [`HostStatus`]. 0: [`FIRST_STATUS_HOSTS`](crate::layout::FIRST_STATUS_HOSTS).
    pub status_hosts: u32,
    /// Offset in the status of the first [`CpuStatus`]. 0: [`FIRST_STATUS_CPUS`](crate::layout::FIRST_STATUS_CPUS).
    pub status_cpus: u32,
    /// First address that a host can't be entered at, nor find its zero page above it: the page tables with which a CPU is
    /// handed over map the low 4 GiB and all RAM below this. 0: 4 GiB.
    pub entry_end: u64,
    /// Not used, zero.
    pub reserved: [u64; 2],
    /// All pieces of the pool in ascending order, the first one too; then zeroes. An L0 of the first release has one
    /// piece and none of this.
    pub pool_pieces: [PoolPiece; POOL_PIECES],
    /// Blank memory; then zeroes. An L0 without this has none.
    pub blank: [BlankRange; BLANK_RANGES],
    /// Physical address of the first [`KeptRing`], that of kind 0; 0 if this L0 keeps no records apart.
    pub kept: u64,
    /// Bytes from one [`KeptRing`] to the next.
    pub kept_ring_size: u32,
    /// Bytes from one [`KeptRecord`] to the next.
    pub kept_record_size: u32,
    /// Rings: the kinds of records that this L0 writes, and kind 0.
    pub kept_kinds: u32,
    /// Not used, zero.
    pub reserved3: u32,
    /// Physical address of the pool's table, an array of [`PoolExtent`]; see [`crate::pool`]. 0: there is none.
    pub pool_table: u64,
    /// Bytes from one [`PoolExtent`] to the next, a multiple of 64.
    pub pool_extent_size: u32,
    /// How many there are.
    pub pool_extent_count: u32,
}

impl Header {
    /// What every L0 of this release says of itself: magic, family, features and sizes. All else is zero.
    #[must_use]
    pub fn of_this_release() -> Self {
        Self {
            magic: MAGIC,
            family: FAMILY,
            size: size_of::<Self>() as u32,
            shared: 0,
            shared_size: 0,
            private: 0,
            private_size: 0,
            pool: 0,
            pool_size: 0,
            status: 0,
            status_size: size_of::<Status>() as u64,
            trace: 0,
            trace_size: size_of::<TraceRing>() as u64,
            log: 0,
            log_size: size_of::<LogRing>() as u64,
            channels: 0,
            channels_size: size_of::<[PerSlot<ChannelRing>; CHANNEL_COUNT]>() as u64,
            slots: PerSlot::default(),
            machine_rsdp: 0,
            image_bytes: 0,
            cpu_count: 0,
            pm1a_cnt: 0,
            pm1b_cnt: 0,
            features: FEATURES,
            cpu_status_size: size_of::<CpuStatus>() as u32,
            cpu_capacity: MAX_CPUS as u32,
            host_status_size: size_of::<HostStatus>() as u32,
            trace_record_size: size_of::<TraceRecord>() as u32,
            channel_count: CHANNEL_COUNT as u32,
            channel_ring_size: size_of::<ChannelRing>() as u32,
            status_hosts: offset_of!(Status, hosts) as u32,
            status_cpus: offset_of!(Status, cpus) as u32,
            entry_end: 0,
            reserved: [0; 2],
            pool_pieces: [PoolPiece::default(); POOL_PIECES],
            blank: [BlankRange::default(); BLANK_RANGES],
            kept: 0,
            kept_ring_size: size_of::<KeptRing>() as u32,
            kept_record_size: size_of::<KeptRecord>() as u32,
            kept_kinds: KEPT_KINDS as u32,
            reserved3: 0,
            pool_table: 0,
            pool_extent_size: size_of::<PoolExtent>() as u32,
            pool_extent_count: POOL_EXTENTS as u32,
        }
    }

    /// Memory that reads as zeroes for a host that does not reign.
    pub fn blank(&self) -> impl Iterator<Item = BlankRange> + '_ {
        self.blank.iter().copied().filter(|range| range.size > 0)
    }

    /// The pool's pieces, whatever release the header is of.
    pub fn pool(&self) -> impl Iterator<Item = PoolPiece> + '_ {
        let only = PoolPiece {
            start: self.pool,
            size: self.pool_size,
        };
        let of_first_release = self.pool_pieces.iter().all(|piece| piece.size == 0);
        self.pool_pieces
            .iter()
            .copied()
            .chain(of_first_release.then_some(only))
            .filter(|piece| piece.size > 0)
    }
}

const _: () = assert!(size_of::<Header>() <= 4096);
const _: () = assert!(offset_of!(Header, slots) == 128);
const _: () = assert!(offset_of!(Header, features) == HEADER_MIN as usize);
const _: () = assert!(size_of::<SlotInfo>() == 96);
