//! PCI Express configuration space in memory (PCI Firmware Specification 3.3, 4.1.2).

use super::error::AcpiError;
use super::header::{SDT_HEADER_LEN, SdtHeader};
use super::signature::Signature;
use crate::bytes::{u8_at, u16_at, u64_at};
use crate::mem::PhysMem;
use core::ops::Range;

const ENTRY_LEN: u32 = 16;
/// The header is followed by eight reserved bytes.
const FIRST_ENTRY: u32 = SDT_HEADER_LEN as u32 + 8;

/// One window of configuration space: 4 KiB per function, 1 MiB per bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcamRegion {
    /// Physical address where bus 0 would be; the first byte decoded is that of `first_bus`.
    pub base: u64,
    /// PCI segment group.
    pub segment: u16,
    /// First bus decoded.
    pub first_bus: u8,
    /// Last bus decoded.
    pub last_bus: u8,
}

impl EcamRegion {
    /// The physical addresses decoded, `None` if they are not a range.
    #[must_use]
    pub fn range(&self) -> Option<Range<u64>> {
        let start = self.base.checked_add(u64::from(self.first_bus) << 20)?;
        let end = self.base.checked_add((u64::from(self.last_bus) + 1) << 20)?;
        (start < end).then_some(start..end)
    }

    /// The page of a function of this window; `function` is bus, device, function as in requester ids. `None` if its bus
    /// is not decoded, or the window is not aligned to its buses.
    #[must_use]
    pub fn page_of(&self, function: u16) -> Option<u64> {
        let buses = u16::from(self.first_bus)..=u16::from(self.last_bus);
        let aligned = self.base.is_multiple_of(1 << 20);
        if !aligned || !buses.contains(&(function >> 8)) {
            return None;
        }
        self.base.checked_add(u64::from(function) << 12)
    }
}

/// The MCFG table.
#[derive(Debug)]
pub struct Mcfg<'m, M: PhysMem + ?Sized> {
    mem: &'m M,
    addr: u64,
    windows: u32,
}

impl<'m, M: PhysMem + ?Sized> Mcfg<'m, M> {
    /// Reads the table at `addr`. Bytes behind the last whole window are ignored, as Linux does (`pci_parse_mcfg`): Dell
    /// shipped tables of 62 bytes, one window and two bytes.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged.
    pub fn read(mem: &'m M, addr: u64) -> Result<Self, AcpiError> {
        let header = SdtHeader::read_named(mem, addr, Signature::MCFG, FIRST_ENTRY as usize)?;
        Ok(Self {
            mem,
            addr,
            windows: (header.length - FIRST_ENTRY) / ENTRY_LEN,
        })
    }

    /// The windows.
    pub fn regions(&self) -> impl Iterator<Item = Result<EcamRegion, AcpiError>> + use<'m, M> {
        let (mem, addr) = (self.mem, self.addr);
        (0..self.windows).map(move |index| {
            let mut raw = [0; ENTRY_LEN as usize];
            let offset = FIRST_ENTRY + index * ENTRY_LEN;
            mem.read(addr.saturating_add(u64::from(offset)), &mut raw)?;
            Ok(EcamRegion {
                base: u64_at(&raw, 0),
                segment: u16_at(&raw, 8),
                first_bus: u8_at(&raw, 10),
                last_bus: u8_at(&raw, 11),
            })
        })
    }
}
