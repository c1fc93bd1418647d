//! The always-on trace ring and the log ring. Written by L0, read-only for hosts (`locum trace`).
//!
//! Hosts, and any program on them, can make L0 write records of some kinds as often as they like, and soon the ring holds
//! nothing else. So each record is written twice: to the ring, and to the [`KeptRing`] of its kind, where only its like
//! can take its place. Its number in the ring says where it belongs among the others.

use crate::TraceKind;

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

/// Records of each kind that are kept whatever the others do: as many as there may be CPUs, so that a round of all of
/// them is whole.
pub const KEPT_RECORDS: usize = 256;

/// [`KeptRecord::number`] of a record that is being written.
pub const BEING_WRITTEN: u64 = 0xffff_ffff_ffff_ffff;

/// A record with its number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KeptRecord {
    /// Number of the record since L0 booted, which is its number in the trace ring, too; or [`BEING_WRITTEN`].
    pub number: u64,
    /// The record. Its kind is 0 where none was written yet.
    pub record: TraceRecord,
}

/// The newest records of one kind: the `n`-th of them is at `records[n % KEPT_RECORDS]`.
#[repr(C)]
#[derive(Debug)]
pub struct KeptRing {
    /// Records of this kind written since boot.
    pub written: u64,
    /// Not used, zero.
    pub reserved: [u64; 7],
    /// The records.
    pub records: [KeptRecord; KEPT_RECORDS],
}

/// Rings of kept records: one for each [`TraceKind`], by its number; that of [`TraceKind::None`] stays empty.
pub const KEPT_KINDS: usize = TraceKind::ALL.len();

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
const _: () = assert!(size_of::<KeptRecord>() == 40);
const _: () = assert!(size_of::<KeptRing>() == 64 + 40 * KEPT_RECORDS);
// The kinds are numbered without a gap: each has a ring.
const _: () = assert!(TraceKind::ALL[KEPT_KINDS - 1] as usize == KEPT_KINDS - 1);
const _: () = assert!(size_of::<LogRing>() == 32 * 1024);
