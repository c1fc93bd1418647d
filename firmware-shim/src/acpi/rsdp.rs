//! The root system description pointer (ACPI 6.5, 5.2.5.3): where the tables start.

use super::error::AcpiError;
use super::header::sum;
use crate::bytes::{checksum, field, put, u8_at, u16_at, u32_at, u64_at};
use crate::e820::EBDA_SEGMENT;
use crate::mem::PhysMem;

/// Length of the ACPI 1.0 structure in bytes.
pub const RSDP_V1_LEN: usize = 20;
/// Length of the structure since ACPI 2.0 in bytes.
pub const RSDP_V2_LEN: usize = 36;

const SIGNATURE: &[u8; 8] = b"RSD PTR ";
/// Longest structure believed; the specification's has 36 bytes.
const MAX_LEN: u32 = 4096;

/// A verified RSDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rsdp {
    /// 0 for ACPI 1.0, 2 since ACPI 2.0.
    pub revision: u8,
    /// Vendor.
    pub oem_id: [u8; 6],
    /// Physical address of the RSDT, 0 if there is none.
    pub rsdt: u32,
    /// Physical address of the XSDT, 0 if there is none or the revision is below 2.
    pub xsdt: u64,
}

impl Rsdp {
    /// Parses a copy of an RSDP, such as the one in a Multiboot2 ACPI tag. Bytes after it are ignored.
    ///
    /// # Errors
    /// [`AcpiError::NotRsdp`], [`AcpiError::RsdpLength`] (cut off) or [`AcpiError::RsdpChecksum`].
    pub fn parse(bytes: &[u8]) -> Result<Self, AcpiError> {
        if !bytes.starts_with(SIGNATURE) {
            return Err(AcpiError::NotRsdp);
        }
        let too_short = AcpiError::RsdpLength(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        let v1 = bytes.get(..RSDP_V1_LEN).ok_or(too_short)?;
        if checksum(v1) != 0 {
            return Err(AcpiError::RsdpChecksum);
        }
        let revision = u8_at(v1, 15);
        if revision >= 2 {
            let v2 = bytes.get(..RSDP_V2_LEN).ok_or(too_short)?;
            let length = u32_at(v2, 20);
            let whole = usize::try_from(length)
                .ok()
                .filter(|&len| len >= RSDP_V2_LEN && length <= MAX_LEN)
                .and_then(|len| bytes.get(..len))
                .ok_or(AcpiError::RsdpLength(length))?;
            if checksum(whole) != 0 {
                return Err(AcpiError::RsdpChecksum);
            }
        }
        Ok(Self {
            revision,
            oem_id: field(bytes, 9),
            rsdt: u32_at(bytes, 16),
            xsdt: if revision >= 2 { u64_at(bytes, 24) } else { 0 },
        })
    }

    /// Reads and verifies the RSDP at physical address `addr`.
    ///
    /// # Errors
    /// As [`Self::parse`], and [`AcpiError::Memory`].
    pub fn read<M: PhysMem + ?Sized>(mem: &M, addr: u64) -> Result<Self, AcpiError> {
        let mut raw = [0; RSDP_V2_LEN];
        let (v1, rest) = raw.split_at_mut(RSDP_V1_LEN);
        mem.read(addr, v1)?;
        if v1.starts_with(SIGNATURE) && u8_at(v1, 15) >= 2 {
            mem.read(addr.saturating_add(RSDP_V1_LEN as u64), rest)?;
            let length = u32_at(rest, 0);
            if !(RSDP_V2_LEN as u32..=MAX_LEN).contains(&length) {
                return Err(AcpiError::RsdpLength(length));
            }
            if sum(mem, addr, length)? != 0 {
                return Err(AcpiError::RsdpChecksum);
            }
            // Bytes beyond the known ones are covered by the sum above; parse the known part as a structure of its own.
            put(&mut raw, 20, &(RSDP_V2_LEN as u32).to_le_bytes());
            put(&mut raw, 32, &[0]);
            let fixed = checksum(&raw);
            put(&mut raw, 32, &[fixed]);
        }
        Self::parse(&raw)
    }

    /// Searches where a BIOS puts it: the first KiB of the EBDA, then 0xE0000-0xFFFFF, on 16-byte boundaries (ACPI 6.5,
    /// 5.2.5.1). UEFI firmware does not put it there; take it from the boot loader then.
    ///
    /// # Errors
    /// [`AcpiError::NoRsdp`].
    pub fn find_in_bios_area<M: PhysMem + ?Sized>(mem: &M) -> Result<(u64, Self), AcpiError> {
        let mut segment = [0; 2];
        let ebda = match mem.read(EBDA_SEGMENT, &mut segment) {
            Ok(()) => u64::from(u16_at(&segment, 0)) << 4,
            Err(_) => 0,
        };
        let ebda = if ebda >= 0x400 { ebda..ebda + 0x400 } else { 0..0 };
        ebda.step_by(16)
            .chain((0xe_0000u64..0x10_0000).step_by(16))
            .find_map(|addr| Some((addr, Self::read(mem, addr).ok()?)))
            .ok_or(AcpiError::NoRsdp)
    }

    /// The 36 bytes of a revision 2 RSDP that points to an XSDT only.
    pub(crate) fn encode(oem_id: [u8; 6], xsdt: u64) -> [u8; RSDP_V2_LEN] {
        let mut raw = [0; RSDP_V2_LEN];
        put(&mut raw, 0, SIGNATURE);
        put(&mut raw, 9, &oem_id);
        put(&mut raw, 15, &[2]);
        put(&mut raw, 20, &(RSDP_V2_LEN as u32).to_le_bytes());
        put(&mut raw, 24, &xsdt.to_le_bytes());
        let first = checksum(raw.split_at(RSDP_V1_LEN).0);
        put(&mut raw, 8, &[first]);
        let extended = checksum(&raw);
        put(&mut raw, 32, &[extended]);
        raw
    }
}
