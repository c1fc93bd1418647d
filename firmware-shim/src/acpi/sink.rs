//! An append-only writer into the caller's buffer that goes on counting when the buffer is full.

use super::error::BuildError;
use super::header::{CHECKSUM_OFFSET, LENGTH_OFFSET, SdtHeader};
use crate::bytes::{checksum, put};

/// Tables start at multiples of this, in bytes; the RSDP must (ACPI 6.5, 5.2.5.1).
pub(crate) const ALIGN: usize = 16;

/// Our name as the creator of tables.
const CREATOR: [u8; 4] = *b"LOCM";
const CREATOR_REVISION: u32 = 1;

pub(crate) struct Sink<'a> {
    out: &'a mut [u8],
    phys: u64,
    at: usize,
}

/// A table under way: where it starts.
#[must_use]
pub(crate) struct Open(usize);

impl<'a> Sink<'a> {
    /// Writes to `out`, whose first byte will live at `phys`.
    pub(crate) fn new(out: &'a mut [u8], phys: u64) -> Result<Self, BuildError> {
        if !phys.is_multiple_of(ALIGN as u64) {
            return Err(BuildError::Misaligned {
                what: "the ACPI tables",
                addr: phys,
                align: ALIGN as u64,
            });
        }
        if phys.checked_add(out.len() as u64).is_none() {
            return Err(BuildError::AddressOverflow { addr: phys });
        }
        out.fill(0);
        Ok(Self { out, phys, at: 0 })
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        put(self.out, self.at, bytes);
        self.at = self.at.saturating_add(bytes.len());
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// Skips to the next table boundary and returns the physical address there.
    pub(crate) fn align(&mut self) -> u64 {
        self.at = self.at.next_multiple_of(ALIGN);
        self.phys.saturating_add(self.at as u64)
    }

    /// Leaves `len` bytes to be filled in by [`Self::patch`].
    pub(crate) fn skip(&mut self, len: usize) {
        self.at = self.at.saturating_add(len);
    }

    pub(crate) fn patch(&mut self, offset: usize, bytes: &[u8]) {
        put(self.out, offset, bytes);
    }

    /// Appends a table's header; length and checksum follow in [`Self::close`]. Creator is us.
    pub(crate) fn open(&mut self, header: &SdtHeader) -> Open {
        let start = Open(self.at);
        self.bytes(&header.signature.0);
        self.u32(0);
        self.bytes(&[header.revision, 0]);
        self.bytes(&header.oem_id);
        self.bytes(&header.oem_table_id);
        self.u32(header.oem_revision);
        self.bytes(&CREATOR);
        self.u32(CREATOR_REVISION);
        start
    }

    /// Ends a table: its length and checksum are set.
    pub(crate) fn close(&mut self, Open(start): Open) {
        let len = u32::try_from(self.at - start).unwrap_or(u32::MAX);
        self.patch(start + LENGTH_OFFSET, &len.to_le_bytes());
        let sum = self.out.get(start..self.at).map_or(0, checksum);
        self.patch(start + CHECKSUM_OFFSET, &[sum]);
    }

    /// Bytes used.
    pub(crate) fn finish(self) -> Result<usize, BuildError> {
        if self.at > self.out.len() {
            return Err(BuildError::TooSmall {
                needed: self.at,
                have: self.out.len(),
            });
        }
        Ok(self.at)
    }
}
