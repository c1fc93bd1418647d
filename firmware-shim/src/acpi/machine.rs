//! The machine's root table and the tables it lists.

use super::error::AcpiError;
use super::errors::{Hest, boot_error_region};
use super::fadt::Fadt;
use super::header::{SDT_HEADER_LEN, SdtHeader, sum};
use super::madt::Madt;
use super::mcfg::Mcfg;
use super::rsdp::Rsdp;
use super::signature::Signature;
use super::srat::Srat;
use crate::bytes::{u32_at, u64_at};
use crate::mem::PhysMem;
use core::ops::Range;

/// A table that the root table lists: its header was read, its contents were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRef {
    /// Its name.
    pub signature: Signature,
    /// Its physical address.
    pub address: u64,
    /// Its length in bytes, header included.
    pub length: u32,
}

/// The machine's own tables, as its firmware left them in memory.
#[derive(Debug)]
pub struct Machine<'m, M: PhysMem + ?Sized> {
    mem: &'m M,
    root: u64,
    header: SdtHeader,
    wide: bool,
}

impl<M: PhysMem + ?Sized> Clone for Machine<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: PhysMem + ?Sized> Copy for Machine<'_, M> {}

impl<'m, M: PhysMem + ?Sized> Machine<'m, M> {
    /// Opens the root table that `rsdp` points to: the XSDT if there is one, else the RSDT.
    ///
    /// # Errors
    /// [`AcpiError`] if that table cannot be read or is damaged.
    pub fn open(mem: &'m M, rsdp: &Rsdp) -> Result<Self, AcpiError> {
        let (root, wide) = match (rsdp.xsdt, rsdp.rsdt) {
            (0, 0) => return Err(AcpiError::NoRootTable),
            (0, rsdt) => (u64::from(rsdt), false),
            (xsdt, _) => (xsdt, true),
        };
        let signature = if wide { Signature::XSDT } else { Signature::RSDT };
        Ok(Self {
            mem,
            root,
            header: SdtHeader::read_named(mem, root, signature, SDT_HEADER_LEN)?,
            wide,
        })
    }

    /// Header of the root table.
    #[must_use]
    pub fn root_header(&self) -> &SdtHeader {
        &self.header
    }

    /// The tables in the root table's order. Null pointers, which some firmware leaves in, are passed over, and so is
    /// part of a pointer at the end. The DSDT and the FACS are not among them: the FADT points there.
    pub fn tables(&self) -> impl Iterator<Item = Result<TableRef, AcpiError>> + use<'m, M> {
        let this = *self;
        let count = (this.header.length - SDT_HEADER_LEN as u32) / this.entry_len();
        (0..count).filter_map(move |index| this.table(index).transpose())
    }

    /// The first table of that name. Entries whose table cannot be read are passed over, as ACPICA does with those that it
    /// cannot install (`acpi_tb_parse_root_table`).
    pub fn find(&self, signature: Signature) -> Option<TableRef> {
        self.tables()
            .filter_map(Result::ok)
            .find(|table| table.signature == signature)
    }

    /// Why entries of the root table cannot be read; no host gets them.
    pub fn unreadable(&self) -> impl Iterator<Item = AcpiError> + use<'m, M> {
        self.tables().filter_map(Result::err)
    }

    /// The root table and those it lists whose bytes do not sum to zero. They are used all the same, as Linux does; who
    /// reads them says so. Tables that cannot be read whole are left out.
    pub fn wrong_checksums(&self) -> impl Iterator<Item = TableRef> + use<'m, M> {
        let mem = self.mem;
        let root = TableRef {
            signature: self.header.signature,
            address: self.root,
            length: self.header.length,
        };
        core::iter::once(root)
            .chain(self.tables().filter_map(Result::ok))
            .filter(move |table| matches!(sum(mem, table.address, table.length), Ok(sum) if sum != 0))
    }

    /// The FADT.
    ///
    /// # Errors
    /// [`AcpiError`] if it is missing or damaged.
    pub fn fadt(&self) -> Result<Fadt, AcpiError> {
        Fadt::read(self.mem, self.require(Signature::FADT)?)
    }

    /// The MADT, of which all entries are whole.
    ///
    /// # Errors
    /// [`AcpiError`] if it is missing or damaged.
    pub fn madt(&self) -> Result<Madt<'m, M>, AcpiError> {
        Madt::read(self.mem, self.require(Signature::MADT)?)
    }

    /// The MCFG, if the machine has PCI Express configuration space.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged.
    pub fn mcfg(&self) -> Result<Option<Mcfg<'m, M>>, AcpiError> {
        match self.find(Signature::MCFG) {
            Some(table) => Mcfg::read(self.mem, table.address).map(Some),
            None => Ok(None),
        }
    }

    /// The SRAT, if the firmware describes NUMA nodes.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged.
    pub fn srat(&self) -> Result<Option<Srat<'m, M>>, AcpiError> {
        match self.find(Signature::SRAT) {
            Some(table) => Srat::read(self.mem, table.address).map(Some),
            None => Ok(None),
        }
    }

    /// The HEST, if the firmware reports hardware errors.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged.
    pub fn hest(&self) -> Result<Option<Hest<'m, M>>, AcpiError> {
        match self.find(Signature::HEST) {
            Some(table) => Hest::read(self.mem, table.address).map(Some),
            None => Ok(None),
        }
    }

    /// The region of the boot error record that the BERT names, if there is one.
    ///
    /// # Errors
    /// [`AcpiError`] if the BERT is damaged.
    pub fn boot_error_region(&self) -> Result<Option<Range<u64>>, AcpiError> {
        match self.find(Signature::BERT) {
            Some(table) => boot_error_region(self.mem, table.address).map(Some),
            None => Ok(None),
        }
    }

    /// Whether the firmware describes DMA remapping units (VT-d).
    #[must_use]
    pub fn has_dmar(&self) -> bool {
        self.find(Signature::DMAR).is_some()
    }

    fn require(&self, signature: Signature) -> Result<u64, AcpiError> {
        match self.find(signature) {
            Some(table) => Ok(table.address),
            None => Err(AcpiError::Missing(signature)),
        }
    }

    fn entry_len(&self) -> u32 {
        if self.wide { 8 } else { 4 }
    }

    fn table(&self, index: u32) -> Result<Option<TableRef>, AcpiError> {
        let offset = SDT_HEADER_LEN as u64 + u64::from(index) * u64::from(self.entry_len());
        let at = self.root.saturating_add(offset);
        let mut raw = [0; 8];
        let address = if self.wide {
            self.mem.read(at, &mut raw)?;
            u64_at(&raw, 0)
        } else {
            self.mem.read(at, raw.split_at_mut(4).0)?;
            u64::from(u32_at(&raw, 0))
        };
        if address == 0 {
            return Ok(None);
        }
        let header = SdtHeader::read(self.mem, address)?;
        Ok(Some(TableRef {
            signature: header.signature,
            address,
            length: header.length,
        }))
    }
}
