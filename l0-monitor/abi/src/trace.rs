//! The always-on trace ring and the log ring. Written by L0, read-only for hosts (`locum trace`).

/// What a [`TraceRecord`] tells. `a`, `b`, `c` per kind; "refused" kinds carry the [`crate::Errno`] in `a`.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// Slot never written.
    None = 0,
    /// L0 booted (`a`: CPUs).
    Boot = 1,
    /// A CPU parked (`a`: 1 if it came from nested mode).
    Park = 2,
    /// A parked CPU started (`a`: 0 native, 1 nested; `b`: address).
    Wake = 3,
    /// A mailbox command was not for an owned, parked CPU (`a`: command, `b`: APIC id).
    MailboxRefused = 4,
    /// Native to nested (`a`: 1 if the CPU was in VMX operation, `b`: current VMCS).
    Enter = 5,
    /// Nested to native (`a`: 1 if the host is in VMX operation, `b`: current VMCS, `c`: adopted VMCSs written back).
    Leave = 6,
    /// A hypercall was refused (`a`: errno, `b`: operation, `c`: first argument).
    HypercallRefused = 7,
    /// A resource changed owner (`a`: kind | new owner << 16, `b`, `c`: as in the hypercall).
    Owner = 8,
    /// A host started (`a`: slot, `b`: entry, `c`: zero page).
    HostStart = 9,
    /// A host died (`a`: reason | slot << 16, `b`, `c`: details 0 and 1).
    HostDead = 10,
    /// A host retired (`a`: slot).
    HostRetired = 11,
    /// A CPU was taken from a dead host (`a`: slot).
    CpuTaken = 12,
    /// Access to a port of the other partition (`a`: port | size << 16 | write << 24, `b`: value).
    PortDenied = 13,
    /// Access to an IOAPIC pin of the other partition (`a`: pin | write << 24, `b`: value).
    PinDenied = 14,
    /// PCI configuration access to the other partition (`a`: CF8 address, `b`: offset | write << 24, `c`: value).
    PciDenied = 15,
    /// An exception was injected (`a`: vector | error code << 16, `b`: RIP).
    Inject = 16,
    /// Memory access denied without consequence (`a`: qualification, `b`: physical address, `c`: RIP).
    MemDenied = 17,
    /// A VMX instruction of the host failed (`a`: reason, `b`: RFLAGS, `c`: operand).
    VmxFail = 18,
    /// The host's power-off or reset was filtered (`a`: port, `b`: value).
    PowerFiltered = 19,
    /// L0 took an exception it should not (`a`: vector, `b`: RIP, `c`: CR2 or error code).
    Fault = 20,
    /// A VMCS was given back (`a`: 1 if it is as it was before, `b`: its address, `c`: 0 if so). Only with
    /// `check=vmcs`, and if neither host nor guest changed it meanwhile.
    VmcsChecked = 21,
    /// The host's VMREADs or VMWRITEs of one field exited again (`a`: encoding | write << 31, `b`: times since boot, a
    /// power of two; only these leave a record).
    FieldTrapped = 22,
}

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceRecord {
    /// TSC when it was written.
    pub tsc: u64,
    /// A [`TraceKind`].
    pub kind: u16,
    /// APIC id.
    pub cpu: u16,
    /// See the kind.
    pub a: u32,
    /// See the kind.
    pub b: u64,
    /// See the kind.
    pub c: u64,
}

/// Records in the ring.
pub const TRACE_RECORDS: usize = 2044;

/// The ring: record number `n` is at `records[n % TRACE_RECORDS]`.
#[repr(C)]
#[derive(Debug)]
pub struct TraceRing {
    /// Records written since boot.
    pub written: u64,
    /// [`TRACE_RECORDS`].
    pub capacity: u64,
    /// Not used, zero.
    pub reserved: [u64; 14],
    /// The records.
    pub records: [TraceRecord; TRACE_RECORDS],
}

/// Bytes of text in the log ring.
pub const LOG_BYTES: usize = 32 * 1024 - 64;

/// The log ring: byte number `n` is at `text[n % LOG_BYTES]`.
#[repr(C)]
#[derive(Debug)]
pub struct LogRing {
    /// Bytes written since boot.
    pub written: u64,
    /// [`LOG_BYTES`].
    pub capacity: u64,
    /// Not used, zero.
    pub reserved: [u64; 6],
    /// UTF-8 text, lines end with `\n`.
    pub text: [u8; LOG_BYTES],
}

const _: () = assert!(size_of::<TraceRecord>() == 32);
const _: () = assert!(size_of::<TraceRing>() <= 64 * 1024);
const _: () = assert!(size_of::<LogRing>() == 32 * 1024);
