//! Hardware errors as the firmware reports them (APEI; ACPI 6.5, chapter 18): the HEST and the BERT, and what of them a
//! successor may have.
//!
//! Both name memory. A generic error source names a register that holds the address of an error status block, 0 while
//! there is none: Linux reads it at each poll or interrupt (`__ghes_peek_estatus()` in `drivers/acpi/apei/ghes.c`), and
//! clears and acknowledges what it finds. The boot error record is a region that Linux looks at once, at its boot. Two
//! hosts must not take reports from one block. So a successor is told of what reads as zeroes for it until it reigns:
//! till then there is nothing to report, and then all is its own.

use super::error::{AcpiError, BuildError};
use super::gas::{Gas, SPACE_SYSTEM_MEMORY};
use super::header::{SDT_HEADER_LEN, SdtHeader};
use super::signature::Signature;
use super::sink::Sink;
use crate::bytes::{put, u8_at, u16_at, u32_at, u64_at};
use crate::mem::PhysMem;
use core::ops::Range;

/// The header is followed by the number of sources.
const FIRST_SOURCE: u32 = SDT_HEADER_LEN as u32 + 4;
/// Type and id.
const SOURCE_HEADER: usize = 4;
/// Generic error source, and its second version, which wants an acknowledgement (18.3.2.7, 18.3.2.8).
const GENERIC: u16 = 9;
const GENERIC_V2: u16 = 10;
const GENERIC_LEN: usize = 64;
const GENERIC_V2_LEN: usize = 92;
/// Bytes of a machine check bank in sources of IA-32 (18.3.2.1.1).
const BANK_LEN: u32 = 28;

/// In a generic source.
const ENABLED: usize = 7;
const ERROR_STATUS_ADDRESS: usize = 20;
const NOTIFICATION: usize = 32;
const POLL_INTERVAL: usize = NOTIFICATION + 4;

/// Kinds of notification (18.3.2.9).
const POLLED: u8 = 0;
const NMI: u8 = 4;
/// How often Linux looks where an interrupt would have told, in milliseconds.
const INSTEAD_OF_INTERRUPT: u32 = 1000;

const BERT_LEN: usize = SDT_HEADER_LEN + 12;

/// How many generic error sources a host has of those that the firmware has enabled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorSources {
    /// It can hear of their errors.
    pub kept: u32,
    /// It cannot.
    pub left_out: u32,
}

/// The HEST, of which all sources are whole.
#[derive(Debug)]
pub struct Hest<'m, M: PhysMem + ?Sized> {
    mem: &'m M,
    addr: u64,
    header: SdtHeader,
    count: u32,
}

impl<M: PhysMem + ?Sized> Clone for Hest<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: PhysMem + ?Sized> Copy for Hest<'_, M> {}

/// Where a source is in the table.
#[derive(Clone, Copy, Debug)]
struct Place {
    kind: u16,
    offset: u32,
    len: u32,
}

impl<'m, M: PhysMem + ?Sized> Hest<'m, M> {
    /// Reads the table at `addr` and checks every source.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged, or has a source of a kind that is not known: its length is not known either, and
    /// Linux goes without the whole table then (`apei_hest_parse()` in `drivers/acpi/apei/hest.c`).
    pub fn read(mem: &'m M, addr: u64) -> Result<Self, AcpiError> {
        let header = SdtHeader::read_named(mem, addr, Signature::HEST, FIRST_SOURCE as usize)?;
        let mut count = [0; 4];
        mem.read(addr.saturating_add(SDT_HEADER_LEN as u64), &mut count)?;
        let hest = Self {
            mem,
            addr,
            header,
            count: u32::from_le_bytes(count),
        };
        hest.sources().try_for_each(|source| source.map(|_| ()))?;
        Ok(hest)
    }

    /// The registers of the enabled generic sources that lie in memory.
    pub fn registers(&self) -> impl Iterator<Item = Range<u64>> + use<'m, M> {
        self.generic().filter_map(|raw| register(&raw))
    }

    /// Writes the table as a host may have it for which all of `blank` reads as zeroes until it reigns: sources whose
    /// register lies elsewhere are disabled. It has no SCI, and the pins of interrupts stay as another kernel set them
    /// up, so what the firmware would tell by an interrupt is polled. NMIs reach the host as ever.
    pub(super) fn write(&self, blank: &[Range<u64>], out: &mut Sink<'_>) -> Result<ErrorSources, BuildError> {
        let mut sources = ErrorSources::default();
        let table = out.open(&self.header);
        out.u32(self.count);
        for place in self.sources() {
            let place = place?;
            let Some(mut raw) = self.generic_at(place) else {
                self.copy(place, out)?;
                continue;
            };
            if u8_at(&raw, ENABLED) != 0 {
                if register(&raw).is_some_and(|register| lies_in(&register, blank)) {
                    sources.kept += 1;
                    poll(&mut raw);
                } else {
                    sources.left_out += 1;
                    put(&mut raw, ENABLED, &[0]);
                }
            }
            out.bytes(raw.split_at(place.len as usize).0);
        }
        out.close(table);
        Ok(sources)
    }

    /// The enabled generic sources.
    fn generic(&self) -> impl Iterator<Item = [u8; GENERIC_V2_LEN]> + use<'m, M> {
        let this = *self;
        // `read` has seen that there are no errors.
        self.sources()
            .filter_map(Result::ok)
            .filter_map(move |place| this.generic_at(place))
            .filter(|raw| u8_at(raw, ENABLED) != 0)
    }

    /// The generic source at that place; the second version's bytes are zero in one of the first.
    fn generic_at(&self, place: Place) -> Option<[u8; GENERIC_V2_LEN]> {
        if !matches!(place.kind, GENERIC | GENERIC_V2) {
            return None;
        }
        let mut raw = [0; GENERIC_V2_LEN];
        let (own, _) = raw.split_at_mut_checked(place.len as usize)?;
        self.mem.read(self.at(place.offset), own).ok()?;
        Some(raw)
    }

    fn at(&self, offset: u32) -> u64 {
        self.addr.saturating_add(u64::from(offset))
    }

    /// Copies a source as it is.
    fn copy(&self, place: Place, out: &mut Sink<'_>) -> Result<(), AcpiError> {
        let mut chunk = [0; 64];
        let (mut offset, mut left) = (place.offset, place.len as usize);
        while left > 0 {
            let (part, _) = chunk.split_at_mut(left.min(64));
            self.mem.read(self.at(offset), part)?;
            out.bytes(part);
            offset += part.len() as u32;
            left -= part.len();
        }
        Ok(())
    }

    fn sources(&self) -> impl Iterator<Item = Result<Place, AcpiError>> + use<'m, M> {
        let this = *self;
        let (mut left, mut offset) = (this.count, FIRST_SOURCE);
        core::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            let place = this.source(offset);
            match &place {
                Ok(place) => offset += place.len,
                Err(_) => left = 0,
            }
            Some(place)
        })
    }

    fn source(&self, offset: u32) -> Result<Place, AcpiError> {
        let rest = self.header.length.saturating_sub(offset);
        let mut head = [0; SOURCE_HEADER];
        let damaged = |kind| AcpiError::HestSource { offset, kind };
        if (rest as usize) < SOURCE_HEADER {
            return Err(damaged(0));
        }
        self.mem.read(self.at(offset), &mut head)?;
        let kind = u16_at(&head, 0);
        // Structures of 18.3.2; those of machine checks end with a number of banks.
        let (fixed, banks_at) = match kind {
            0 => (40, Some(32)),
            1 | 11 => (48, Some(44)),
            2 => (20, None),
            6 => (48, None),
            7 => (44, None),
            8 => (56, None),
            GENERIC => (GENERIC_LEN as u32, None),
            GENERIC_V2 => (GENERIC_V2_LEN as u32, None),
            _ => return Err(damaged(kind)),
        };
        if fixed > rest {
            return Err(damaged(kind));
        }
        let mut banks = [0];
        if let Some(at) = banks_at {
            self.mem.read(self.at(offset + at), &mut banks)?;
        }
        let len = fixed + u32::from(banks[0]) * BANK_LEN;
        if len > rest {
            return Err(damaged(kind));
        }
        Ok(Place { kind, offset, len })
    }
}

/// The bytes of a generic source's register, if it lies in memory.
fn register(raw: &[u8]) -> Option<Range<u64>> {
    let register = Gas::at(raw, ERROR_STATUS_ADDRESS).filter(|register| register.space == SPACE_SYSTEM_MEMORY)?;
    let bits = u64::from(register.bit_width) + u64::from(register.bit_offset);
    // Firmware that says less than it means: an address has at most eight bytes.
    let len = bits.div_ceil(8).max(8);
    Some(register.address..register.address.checked_add(len)?)
}

/// Makes of an interrupt a poll.
fn poll(raw: &mut [u8]) {
    let kind = u8_at(raw, NOTIFICATION);
    if matches!(kind, POLLED | NMI) {
        return;
    }
    put(raw, NOTIFICATION, &[POLLED]);
    put(raw, POLL_INTERVAL, &INSTEAD_OF_INTERRUPT.to_le_bytes());
}

/// The region of the boot error record that the BERT at `addr` names (18.3.1).
///
/// # Errors
/// [`AcpiError`] if the table is damaged, or the region beyond the address space.
pub(super) fn boot_error_region<M: PhysMem + ?Sized>(mem: &M, addr: u64) -> Result<Range<u64>, AcpiError> {
    SdtHeader::read_named(mem, addr, Signature::BERT, BERT_LEN)?;
    let mut raw = [0; BERT_LEN];
    mem.read(addr, &mut raw)?;
    let start = u64_at(&raw, SDT_HEADER_LEN + 4);
    let len = u64::from(u32_at(&raw, SDT_HEADER_LEN));
    match start.checked_add(len) {
        Some(end) if len > 0 => Ok(start..end),
        _ => Err(AcpiError::BootErrorRegion { start, len }),
    }
}

/// Whether all of `range` lies in one of `blank`.
pub(super) fn lies_in(range: &Range<u64>, blank: &[Range<u64>]) -> bool {
    blank.iter().any(|one| one.start <= range.start && range.end <= one.end)
}
