//! The machine's MADT (ACPI 6.5, 5.2.12): its CPUs and interrupt controllers.

use super::error::AcpiError;
use super::header::{SDT_HEADER_LEN, SdtHeader};
use super::madt_entry::{LAPIC_ENABLED, LAPIC_ONLINE_CAPABLE, MAX_ENTRY_LEN, MadtEntry};
use super::signature::Signature;
use crate::bytes::{u8_at, u32_at};
use crate::mem::PhysMem;

/// MADT flag: the machine also has a PC-compatible dual 8259.
pub const PCAT_COMPAT: u32 = 1 << 0;

/// The header is followed by the local APIC address and the flags.
const FIRST_ENTRY: u32 = SDT_HEADER_LEN as u32 + 8;

/// A CPU that the MADT lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// (x2)APIC id.
    pub apic_id: u32,
    /// ACPI processor UID, which ties it to the DSDT's processor object.
    pub uid: u32,
    /// Its flags: [`LAPIC_ENABLED`], [`LAPIC_ONLINE_CAPABLE`].
    pub flags: u32,
    /// Whether the machine lists it in a local x2APIC entry.
    pub x2apic: bool,
}

impl Cpu {
    /// Whether the firmware made it ready for use.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.flags & LAPIC_ENABLED != 0
    }

    /// Whether it may be enabled later.
    #[must_use]
    pub fn online_capable(&self) -> bool {
        self.flags & LAPIC_ONLINE_CAPABLE != 0
    }

    /// The entry that lists it as enabled.
    pub(crate) fn entry(&self) -> MadtEntry {
        match (self.x2apic, u8::try_from(self.apic_id), u8::try_from(self.uid)) {
            (false, Ok(apic_id), Ok(uid)) => MadtEntry::LocalApic {
                uid,
                apic_id,
                flags: LAPIC_ENABLED,
            },
            _ => MadtEntry::LocalX2Apic {
                apic_id: self.apic_id,
                flags: LAPIC_ENABLED,
                uid: self.uid,
            },
        }
    }
}

/// The machine's MADT, of which all entries are whole.
#[derive(Debug)]
pub struct Madt<'m, M: PhysMem + ?Sized> {
    mem: &'m M,
    addr: u64,
    header: SdtHeader,
    local_apic_address: u32,
    flags: u32,
    lists_local_apics: bool,
}

impl<M: PhysMem + ?Sized> Clone for Madt<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: PhysMem + ?Sized> Copy for Madt<'_, M> {}

impl<'m, M: PhysMem + ?Sized> Madt<'m, M> {
    /// Reads the table at `addr` and checks every entry.
    ///
    /// # Errors
    /// [`AcpiError`] if the table or an entry is damaged.
    pub fn read(mem: &'m M, addr: u64) -> Result<Self, AcpiError> {
        let header = SdtHeader::read_named(mem, addr, Signature::MADT, FIRST_ENTRY as usize)?;
        let mut fixed = [0; 8];
        mem.read(addr.saturating_add(SDT_HEADER_LEN as u64), &mut fixed)?;
        let mut madt = Self {
            mem,
            addr,
            header,
            local_apic_address: u32_at(&fixed, 0),
            flags: u32_at(&fixed, 4),
            lists_local_apics: false,
        };
        for entry in madt.entries() {
            madt.lists_local_apics |= matches!(entry?, MadtEntry::LocalApic { apic_id, .. } if apic_id != 0xff);
        }
        Ok(madt)
    }

    /// The table's header.
    #[must_use]
    pub fn header(&self) -> &SdtHeader {
        &self.header
    }

    /// Physical address of the local APIC, unless an entry gives another.
    #[must_use]
    pub fn local_apic_address(&self) -> u32 {
        self.local_apic_address
    }

    /// The table's flags: [`PCAT_COMPAT`].
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// All entries in the table's order.
    pub fn entries(&self) -> Entries<'m, M> {
        Entries {
            mem: self.mem,
            table: self.addr,
            length: self.header.length,
            offset: FIRST_ENTRY,
        }
    }

    /// The CPUs in the table's order, disabled ones included, by the rules of Linux' `acpi_parse_lapic` and
    /// `acpi_parse_x2apic`: invalid ids are passed over, and so are x2APIC entries with an id below 255 if there are
    /// local APIC entries (ACPI 6.5, 5.2.12.12: they would list a CPU twice).
    pub fn cpus(&self) -> impl Iterator<Item = Result<Cpu, AcpiError>> + use<'m, M> {
        let lists_local_apics = self.lists_local_apics;
        self.entries().filter_map(move |entry| match entry {
            Ok(MadtEntry::LocalApic { uid, apic_id, flags }) if apic_id != 0xff => Some(Ok(Cpu {
                apic_id: u32::from(apic_id),
                uid: u32::from(uid),
                flags,
                x2apic: false,
            })),
            Ok(MadtEntry::LocalX2Apic { apic_id, flags, uid })
                if apic_id != u32::MAX && (apic_id >= 0xff || !lists_local_apics) =>
            {
                Some(Ok(Cpu {
                    apic_id,
                    uid,
                    flags,
                    x2apic: true,
                }))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

/// Iterator over a MADT's entries; it ends after the first error.
#[derive(Debug)]
pub struct Entries<'m, M: PhysMem + ?Sized> {
    mem: &'m M,
    table: u64,
    length: u32,
    offset: u32,
}

impl<M: PhysMem + ?Sized> Entries<'_, M> {
    fn decode(&self) -> Result<(MadtEntry, u8), AcpiError> {
        let mut raw = [0; MAX_ENTRY_LEN];
        let at = self.table.saturating_add(u64::from(self.offset));
        let left = (self.length - self.offset) as usize;
        self.mem.read(at, raw.split_at_mut(left.min(2)).0)?;
        let (kind, len) = (u8_at(&raw, 0), u8_at(&raw, 1));
        let malformed = AcpiError::MadtEntry {
            offset: self.offset,
            kind,
            len,
        };
        if usize::from(len) > left {
            return Err(malformed);
        }
        let (bytes, _) = raw.split_at_mut(usize::from(len));
        self.mem.read(at, bytes)?;
        // Refuses lengths below two as well, on which the walk would stand still.
        let entry = MadtEntry::decode(bytes).ok_or(malformed)?;
        Ok((entry, len))
    }
}

impl<M: PhysMem + ?Sized> Iterator for Entries<'_, M> {
    type Item = Result<MadtEntry, AcpiError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.length {
            return None;
        }
        Some(match self.decode() {
            Ok((entry, len)) => {
                self.offset += u32::from(len);
                Ok(entry)
            }
            Err(error) => {
                self.offset = self.length;
                Err(error)
            }
        })
    }
}
