//! The header page: what L0 is and where its parts are. Written once at boot, read-only for hosts.

use crate::slot::PerSlot;

/// Signature of the ACPI table that points to the [`Header`]. Body after the standard 36 bytes: `u64` physical
/// address of the header, `u32` [`REVISION`], `u32` zero.
pub const LOCM_SIGNATURE: [u8; 4] = *b"LOCM";

/// First word of the header: `LOCUM-L0`, little-endian.
pub const MAGIC: u64 = u64::from_le_bytes(*b"LOCUM-L0");

/// Revision of everything in this crate. A module or agent with another revision must refuse to work.
pub const REVISION: u32 = 1;

/// How many logical CPUs L0 manages at most.
pub const MAX_CPUS: usize = 64;

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

/// The header page.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`REVISION`].
    pub revision: u32,
    /// `size_of::<Header>()`.
    pub size: u32,
    /// Physical address of the shared region. Hosts may map all of it.
    pub shared: u64,
    /// Bytes of the shared region.
    pub shared_size: u64,
    /// Physical address of L0's private memory, which no host may touch.
    pub private: u64,
    /// Bytes of L0's private memory.
    pub private_size: u64,
    /// Physical address of the pool, 0 if there is none.
    pub pool: u64,
    /// Bytes of the pool.
    pub pool_size: u64,
    /// Physical address of the [`crate::Status`].
    pub status: u64,
    /// Bytes of the status, including what later revisions append.
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
    /// Not used, zero.
    pub reserved: [u64; 8],
}

const _: () = assert!(size_of::<Header>() <= 4096);
const _: () = assert!(core::mem::offset_of!(Header, slots) == 128);
const _: () = assert!(size_of::<SlotInfo>() == 96);
