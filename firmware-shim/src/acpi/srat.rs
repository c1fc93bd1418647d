//! Which memory is near which CPUs (ACPI 6.5, 5.2.16): the memory affinity structures of the SRAT.

use super::error::AcpiError;
use super::header::{SDT_HEADER_LEN, SdtHeader};
use super::signature::Signature;
use crate::bytes::{u8_at, u32_at, u64_at};
use crate::mem::PhysMem;
use core::ops::Range;

/// The header is followed by twelve reserved bytes.
const FIRST_ENTRY: u32 = SDT_HEADER_LEN as u32 + 12;
/// Type and length.
const ENTRY_HEADER: u32 = 2;
/// Type of a memory affinity structure (5.2.16.2).
const MEMORY: u8 = 1;
/// Bytes of a memory affinity structure.
const MEMORY_LEN: u8 = 40;

const DOMAIN: usize = 2;
const BASE: usize = 8;
const LENGTH: usize = 16;
const FLAGS: usize = 28;

const ENABLED: u32 = 1 << 0;
const NON_VOLATILE: u32 = 1 << 2;

/// A range of memory of one proximity domain. Not all of it need be there: firmware lists room for hot-plug, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// The proximity domain.
    pub domain: u32,
    /// The range, not empty.
    pub range: Range<u64>,
}

/// The SRAT, of which all entries are whole.
#[derive(Debug)]
pub struct Srat<'m, M: PhysMem + ?Sized> {
    mem: &'m M,
    addr: u64,
    length: u32,
    revision: u8,
}

impl<M: PhysMem + ?Sized> Clone for Srat<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: PhysMem + ?Sized> Copy for Srat<'_, M> {}

impl<'m, M: PhysMem + ?Sized> Srat<'m, M> {
    /// Reads the table at `addr` and checks every entry.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged. Linux then goes without it: all memory is of one node (`bad_srat()` in
    /// `arch/x86/mm/srat.c`).
    pub fn read(mem: &'m M, addr: u64) -> Result<Self, AcpiError> {
        let header = SdtHeader::read_named(mem, addr, Signature::SRAT, FIRST_ENTRY as usize)?;
        let srat = Self {
            mem,
            addr,
            length: header.length,
            revision: header.revision,
        };
        srat.entries().try_for_each(|entry| entry.map(|_| ()))?;
        Ok(srat)
    }

    /// Memory that is enabled and volatile, in the table's order.
    pub fn memory(&self) -> impl Iterator<Item = NodeMemory> + Clone + use<'m, M> {
        // `read` has seen that there are no errors.
        self.entries().filter_map(Result::ok).flatten()
    }

    /// The entries: memory, or `None` for any other.
    fn entries(&self) -> impl Iterator<Item = Result<Option<NodeMemory>, AcpiError>> + Clone + use<'m, M> {
        let this = *self;
        let mut offset = FIRST_ENTRY;
        core::iter::from_fn(move || {
            // Too few bytes for another entry are passed over, as Linux does.
            let rest = this.length.checked_sub(offset).filter(|&rest| rest >= ENTRY_HEADER)?;
            let entry = this.entry(offset, rest);
            offset = match &entry {
                Ok((len, _)) => offset + u32::from(*len),
                Err(_) => this.length,
            };
            Some(entry.map(|(_, memory)| memory))
        })
    }

    /// The entry at `offset`, with `rest` bytes up to the table's end, and its length.
    fn entry(&self, offset: u32, rest: u32) -> Result<(u8, Option<NodeMemory>), AcpiError> {
        let at = self.addr.saturating_add(u64::from(offset));
        let mut raw = [0; MEMORY_LEN as usize];
        self.mem.read(at, raw.split_at_mut(ENTRY_HEADER as usize).0)?;
        let (kind, len) = (u8_at(&raw, 0), u8_at(&raw, 1));
        let least = if kind == MEMORY { MEMORY_LEN } else { ENTRY_HEADER as u8 };
        if len < least || u32::from(len) > rest {
            return Err(AcpiError::SratEntry { offset, kind, len });
        }
        if kind != MEMORY {
            return Ok((len, None));
        }
        self.mem.read(at, &mut raw)?;
        Ok((len, self.memory_of(&raw)))
    }

    fn memory_of(&self, raw: &[u8]) -> Option<NodeMemory> {
        let flags = u32_at(raw, FLAGS);
        if flags & ENABLED == 0 || flags & NON_VOLATILE != 0 {
            return None;
        }
        let domain = u32_at(raw, DOMAIN);
        let start = u64_at(raw, BASE);
        let range = start..start.saturating_add(u64_at(raw, LENGTH));
        (!range.is_empty()).then_some(NodeMemory {
            // The first revision has one byte for it, and three that are reserved.
            domain: if self.revision <= 1 { domain & 0xff } else { domain },
            range,
        })
    }
}
