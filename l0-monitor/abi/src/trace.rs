//! The always-on trace ring and the log ring. Written by L0, read-only for hosts (`locum trace`).

/// One record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceRecord {
    /// TSC when it was written.
    pub tsc: u64,
    /// A [`crate::TraceKind`].
    pub kind: u16,
    /// APIC id.
    pub cpu: u16,
    /// See [`crate::Event`].
    pub a: u32,
    /// See [`crate::Event`].
    pub b: u64,
    /// See [`crate::Event`].
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
