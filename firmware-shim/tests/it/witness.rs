//! The `acpi` crate as an independent reader of what we made.

use crate::fixture::Ram;
use acpi::{AcpiTables, Handler, PciAddress, RawPhysicalMapping};
use std::ptr::NonNull;

/// Reads through `Ram`. The tables stay where they are, so a mapping is a pointer into a piece.
#[derive(Clone)]
pub struct Reader<'a>(pub &'a Ram);

impl<'a> Reader<'a> {
    pub fn tables(ram: &'a Ram, rsdp: u64) -> AcpiTables<Self> {
        #[expect(unsafe_code, reason = "the crate asks for an RSDP address")]
        // SAFETY: `map_physical_region` checks every range against the pieces.
        unsafe {
            AcpiTables::from_rsdp(Reader(ram), rsdp as usize).expect("an RSDP")
        }
    }
}

impl Handler for Reader<'_> {
    #[expect(unsafe_code, reason = "the trait's signature")]
    unsafe fn map_physical_region<T>(&self, addr: usize, size: usize) -> RawPhysicalMapping<T> {
        let piece = self.0.at(addr as u64);
        assert!(
            piece.len() >= size.max(size_of::<T>()),
            "{size} bytes at {addr:#x} reach beyond the table"
        );
        let start = NonNull::from(piece).cast();
        // SAFETY: the region lies in `piece`, which lives and is not written as long as `self`.
        unsafe { RawPhysicalMapping::new(addr, start, size, size) }
    }

    #[expect(unsafe_code, reason = "the trait's signature")]
    unsafe fn unmap_physical_region<T>(&self, _region: RawPhysicalMapping<T>) {}

    fn read_u8(&self, _: usize) -> u8 {
        unreachable!()
    }
    fn read_u16(&self, _: usize) -> u16 {
        unreachable!()
    }
    fn read_u32(&self, _: usize) -> u32 {
        unreachable!()
    }
    fn read_u64(&self, _: usize) -> u64 {
        unreachable!()
    }
    fn write_u8(&self, _: usize, _: u8) {
        unreachable!()
    }
    fn write_u16(&self, _: usize, _: u16) {
        unreachable!()
    }
    fn write_u32(&self, _: usize, _: u32) {
        unreachable!()
    }
    fn write_u64(&self, _: usize, _: u64) {
        unreachable!()
    }
    fn read_io_u8(&self, _: u16) -> u8 {
        unreachable!()
    }
    fn read_io_u16(&self, _: u16) -> u16 {
        unreachable!()
    }
    fn read_io_u32(&self, _: u16) -> u32 {
        unreachable!()
    }
    fn write_io_u8(&self, _: u16, _: u8) {
        unreachable!()
    }
    fn write_io_u16(&self, _: u16, _: u16) {
        unreachable!()
    }
    fn write_io_u32(&self, _: u16, _: u32) {
        unreachable!()
    }
    fn read_pci_u8(&self, _: PciAddress, _: u16) -> u8 {
        unreachable!()
    }
    fn read_pci_u16(&self, _: PciAddress, _: u16) -> u16 {
        unreachable!()
    }
    fn read_pci_u32(&self, _: PciAddress, _: u16) -> u32 {
        unreachable!()
    }
    fn write_pci_u8(&self, _: PciAddress, _: u16, _: u8) {
        unreachable!()
    }
    fn write_pci_u16(&self, _: PciAddress, _: u16, _: u16) {
        unreachable!()
    }
    fn write_pci_u32(&self, _: PciAddress, _: u16, _: u32) {
        unreachable!()
    }
    fn nanos_since_boot(&self) -> u64 {
        unreachable!()
    }
    fn stall(&self, _: u64) {
        unreachable!()
    }
    fn sleep(&self, _: u64) {
        unreachable!()
    }
}
