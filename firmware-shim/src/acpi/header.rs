//! The header that every system description table starts with (ACPI 6.5, 5.2.6), and its checksum.
//!
//! A wrong checksum is no error: Linux warns and uses the table (`acpi_ut_verify_checksum`), and real firmware has such
//! tables. What is read is bounded by lengths, which are checked; [`super::Machine::wrong_checksums`] tells of the sums.

use super::error::AcpiError;
use super::signature::Signature;
use crate::bytes::{field, u8_at, u32_at};
use crate::mem::PhysMem;

/// Length of the common header in bytes.
pub const SDT_HEADER_LEN: usize = 36;

/// The common header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SdtHeader {
    /// Name of the table.
    pub signature: Signature,
    /// Length of the whole table in bytes, this header included.
    pub length: u32,
    /// Revision of the table's layout.
    pub revision: u8,
    /// Vendor.
    pub oem_id: [u8; 6],
    /// Vendor's name for the machine.
    pub oem_table_id: [u8; 8],
    /// Vendor's revision.
    pub oem_revision: u32,
    /// Vendor of the tool that made the table.
    pub creator_id: [u8; 4],
    /// Revision of that tool.
    pub creator_revision: u32,
}

/// Offset of the length field, for patching.
pub(crate) const LENGTH_OFFSET: usize = 4;
/// Offset of the checksum byte, for patching.
pub(crate) const CHECKSUM_OFFSET: usize = 9;

impl SdtHeader {
    /// Longest table believed, in bytes: far above any real one (a large DSDT has about 1 MiB), so that a damaged
    /// length is an error instead of a long walk.
    pub const MAX_LEN: u32 = 16 << 20;

    /// Reads the header at `addr`; the table's contents are neither read nor verified.
    ///
    /// # Errors
    /// [`AcpiError::Memory`], or [`AcpiError::Length`] if the length is below the header's own or above
    /// [`Self::MAX_LEN`].
    pub fn read<M: PhysMem + ?Sized>(mem: &M, addr: u64) -> Result<Self, AcpiError> {
        let mut raw = [0; SDT_HEADER_LEN];
        mem.read(addr, &mut raw)?;
        let header = Self {
            signature: Signature(field(&raw, 0)),
            length: u32_at(&raw, LENGTH_OFFSET),
            revision: u8_at(&raw, 8),
            oem_id: field(&raw, 10),
            oem_table_id: field(&raw, 16),
            oem_revision: u32_at(&raw, 24),
            creator_id: field(&raw, 28),
            creator_revision: u32_at(&raw, 32),
        };
        header.require_length(addr, SDT_HEADER_LEN)?;
        Ok(header)
    }

    /// Reads the header at `addr` and verifies the table's name and least length.
    ///
    /// # Errors
    /// Any of [`AcpiError`]'s about one table.
    pub fn read_named<M: PhysMem + ?Sized>(
        mem: &M,
        addr: u64,
        expected: Signature,
        min_len: usize,
    ) -> Result<Self, AcpiError> {
        let header = Self::read(mem, addr)?;
        if header.signature != expected {
            return Err(AcpiError::WrongSignature {
                expected,
                found: header.signature,
                addr,
            });
        }
        header.require_length(addr, min_len)?;
        Ok(header)
    }

    fn require_length(&self, addr: u64, min: usize) -> Result<(), AcpiError> {
        let fits = self.length as usize >= min
            && self.length <= Self::MAX_LEN
            && addr.checked_add(u64::from(self.length)).is_some();
        if fits {
            Ok(())
        } else {
            Err(AcpiError::Length {
                table: self.signature,
                addr,
                len: self.length,
            })
        }
    }
}

/// Sum modulo 256 of `len` bytes at `addr`.
pub(crate) fn sum<M: PhysMem + ?Sized>(mem: &M, addr: u64, len: u32) -> Result<u8, AcpiError> {
    let mut total = 0u8;
    let mut chunk = [0u8; 64];
    let mut at = addr;
    let mut left = len as usize;
    while left > 0 {
        let take = left.min(chunk.len());
        let (part, _) = chunk.split_at_mut(take);
        mem.read(at, part)?;
        total = part.iter().fold(total, |t, &b| t.wrapping_add(b));
        left -= take;
        at = at.saturating_add(take as u64);
    }
    Ok(total)
}
