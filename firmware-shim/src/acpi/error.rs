//! What can be wrong with the machine's tables, and with a request for new ones.

use super::signature::Signature;
use crate::mem::OutOfRange;

/// The machine's tables cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// A pointer leads outside readable memory.
    #[error(transparent)]
    Memory(#[from] OutOfRange),
    /// No RSDP in the EBDA or in 0xE0000-0xFFFFF.
    #[error("no ACPI RSDP found in the BIOS area; enable ACPI in the firmware, or pass the RSDP of the boot loader")]
    NoRsdp,
    /// The bytes given are no RSDP.
    #[error("not an RSDP: the signature \"RSD PTR \" is missing")]
    NotRsdp,
    /// The RSDP's checksum, or its extended one, is wrong.
    #[error("the RSDP's checksum is wrong; the firmware's table is damaged")]
    RsdpChecksum,
    /// The RSDP is cut off or gives an impossible length.
    #[error("the RSDP has an impossible length of {0} bytes")]
    RsdpLength(u32),
    /// The RSDP points neither to an XSDT nor to an RSDT.
    #[error("the RSDP points to no XSDT and no RSDT")]
    NoRootTable,
    /// Another table than the one expected.
    #[error("table at {addr:#x} should be {expected} but is {found}")]
    WrongSignature {
        /// What the pointer promised.
        expected: Signature,
        /// What is there.
        found: Signature,
        /// Physical address of the table.
        addr: u64,
    },
    /// A table's length is below its minimum or above [`crate::acpi::SdtHeader::MAX_LEN`].
    #[error("{table} table at {addr:#x} has an impossible length of {len} bytes; update the firmware")]
    Length {
        /// Its signature.
        table: Signature,
        /// Its physical address.
        addr: u64,
        /// The length it claims.
        len: u32,
    },
    /// The machine lacks a table that a host cannot do without.
    #[error("the machine has no {0} table; enable ACPI and the APIC in the firmware")]
    Missing(Signature),
    /// An entry of the MADT is shorter than its type, or reaches beyond the table.
    #[error("the MADT's entry at offset {offset} (type {kind}, {len} bytes) is malformed")]
    MadtEntry {
        /// Offset of the entry from the table's start.
        offset: u32,
        /// Its type byte.
        kind: u8,
        /// Its length byte.
        len: u8,
    },
    /// An entry of the SRAT is shorter than its type, or reaches beyond the table.
    #[error("the SRAT's entry at offset {offset} (type {kind}, {len} bytes) is malformed")]
    SratEntry {
        /// Offset of the entry from the table's start.
        offset: u32,
        /// Its type byte.
        kind: u8,
        /// Its length byte.
        len: u8,
    },
    /// A source of the HEST is of a kind that is not known, or reaches beyond the table.
    #[error("the HEST's source at offset {offset} (type {kind}) is malformed or unknown")]
    HestSource {
        /// Offset of the source from the table's start.
        offset: u32,
        /// Its type.
        kind: u16,
    },
    /// The BERT's region is empty, or wraps around the end of the address space.
    #[error("the BERT names {len:#x} bytes at {start:#x}, which is no memory")]
    BootErrorRegion {
        /// Where it begins.
        start: u64,
        /// Its length in bytes.
        len: u64,
    },
}

/// A host's tables cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// The machine's own tables are unusable.
    #[error(transparent)]
    Machine(#[from] AcpiError),
    /// The caller's buffer is too small.
    #[error("the ACPI tables need {needed} bytes but have room for {have}: {} more", needed.saturating_sub(*have))]
    TooSmall {
        /// Bytes that the tables take.
        needed: usize,
        /// Bytes that the buffer has.
        have: usize,
    },
    /// An address lacks the alignment that its reader counts on.
    #[error("{what} at {addr:#x} must be aligned to {align:#x} bytes")]
    Misaligned {
        /// What lies there.
        what: &'static str,
        /// The address given.
        addr: u64,
        /// The alignment in bytes.
        align: u64,
    },
    /// The host would have no CPU to start on.
    #[error("the host is given no CPU; give it at least its boot CPU")]
    NoCpu,
    /// A CPU given to the host is not an enabled CPU of the machine.
    #[error("CPU with APIC id {0} is not an enabled CPU of this machine's MADT")]
    UnknownCpu(u32),
    /// A CPU is listed twice.
    #[error("CPU with APIC id {0} is listed twice")]
    DuplicateCpu(u32),
    /// The address range of the tables wraps around.
    #[error("the tables at {addr:#x} would wrap around the end of the address space")]
    AddressOverflow {
        /// Where the tables were to live.
        addr: u64,
    },
}
