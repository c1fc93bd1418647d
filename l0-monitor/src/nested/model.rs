//! A model of VMX for tests: VMCSs with memory and a current pointer, the errors that matter, physical memory in words.

use core::ops::Range;
use std::boxed::Box;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use locum_abi::PAGE_SIZE;

use crate::arch::cpuid;
use crate::arch::paging::{PRESENT_WRITABLE, PRESENT_WRITABLE_LARGE, page_of};
use crate::vmx::controls::SecondaryControls;
use crate::vmx::field::{self, Area, Field};
use crate::vmx::hardware::Invalidate;
use crate::vmx::{Hardware, VmxStatus};

/// VMCS revision identifier of the model.
pub(crate) const REVISION: u32 = 0x10;

/// VM-instruction errors (SDM vol. 3C, 31.4).
pub(crate) mod error {
    pub(crate) const VMCALL_IN_ROOT: u64 = 1;
    pub(crate) const VMCLEAR_ADDRESS: u64 = 2;
    pub(crate) const VMCLEAR_VMXON: u64 = 3;
    pub(crate) const VMPTRLD_ADDRESS: u64 = 9;
    pub(crate) const VMPTRLD_VMXON: u64 = 10;
    pub(crate) const UNSUPPORTED_FIELD: u64 = 12;
    pub(crate) const READ_ONLY_FIELD: u64 = 13;
    pub(crate) const VMXON_IN_ROOT: u64 = 15;
    pub(crate) const INVALID_OPERAND: u64 = 28;
}

/// The machine.
#[derive(Debug, Default)]
pub(crate) struct Model {
    /// VMCS data by address.
    pub(crate) vmcs: BTreeMap<u64, BTreeMap<u32, u64>>,
    /// Addresses that are launched.
    pub(crate) launched: Vec<u64>,
    /// Addresses that are active on this CPU.
    pub(crate) active: BTreeSet<u64>,
    /// Fields that this CPU does not have.
    pub(crate) missing: Vec<Field>,
    /// A VMCS that L0 is to have cleared whenever the host runs.
    pub(crate) put_down: Option<u64>,
    /// VMWRITE to every field: IA32_VMX_MISC bit 29.
    pub(crate) writes_all: bool,
    /// Current VMCS.
    pub(crate) current: Option<u64>,
    /// VMXON region, if in VMX operation.
    pub(crate) vmxon: Option<u64>,
    /// Physical memory, by pages.
    pub(crate) memory: BTreeMap<u64, Box<[u8; PAGE_SIZE as usize]>>,
    /// MSRs that exist.
    pub(crate) msrs: BTreeMap<u32, u64>,
    /// What was invalidated.
    pub(crate) invalidated: Vec<(Invalidate, u64, [u64; 2])>,
    /// CR2.
    pub(crate) cr2: u64,
    /// Barriers of branch prediction.
    pub(crate) barriers: u32,
    /// PCI configuration space: words by port 0xCF8's value.
    pub(crate) pci: BTreeMap<u32, u32>,
    /// Port 0xCF8.
    pub(crate) pci_address: u32,
    /// How often it was done what is dear on silicon.
    pub(crate) done: Done,
    /// Memory that nobody may reach through [`Hardware::read_phys`] and [`Hardware::write_phys`].
    pub(crate) private: Range<u64>,
}

/// Counts of what is dear.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// VMREADs.
    pub(crate) reads: u32,
    /// VMWRITEs.
    pub(crate) writes: u32,
    /// VMPTRLDs.
    pub(crate) pointers: u32,
    /// VMCLEARs.
    pub(crate) clears: u32,
}

impl Model {
    /// In VMX operation, with `current` current; memory below 4 GiB is the host's and mapped one to one by the page
    /// tables at 0x1000.
    pub(crate) fn new(vmxon: u64, current: u64) -> Self {
        let mut model = Self {
            vmxon: Some(vmxon),
            ..Self::default()
        };
        model.put(0x1000, 0x2000 | PRESENT_WRITABLE);
        for gib in 0..4 {
            model.put(0x2000 + 8 * gib, gib << 30 | PRESENT_WRITABLE_LARGE);
        }
        model.vmcs.insert(current, BTreeMap::new());
        model.active.insert(current);
        model.current = Some(current);
        model
    }

    /// Stores a word.
    pub(crate) fn put(&mut self, address: u64, value: u64) {
        for (i, byte) in value.to_le_bytes().into_iter().enumerate() {
            self.set_byte(address + i as u64, byte);
        }
    }

    /// Stores that byte all over a page.
    pub(crate) fn fill(&mut self, page: u64, byte: u8) {
        self.page(page).fill(byte);
    }

    /// A field of a VMCS, 0 if it was never written.
    pub(crate) fn field(&self, vmcs: u64, field: Field) -> u64 {
        self.vmcs.get(&vmcs).and_then(|f| f.get(&field.0)).copied().unwrap_or(0)
    }

    /// Writes a field of a VMCS.
    pub(crate) fn set(&mut self, vmcs: u64, field: Field, value: u64) {
        self.vmcs.entry(vmcs).or_default().insert(field.0, value);
    }

    fn fail(&mut self, number: u64) -> VmxStatus {
        match self.current {
            Some(current) => {
                self.set(current, field::INSTRUCTION_ERROR, number);
                VmxStatus::FailValid
            }
            None => VmxStatus::FailInvalid,
        }
    }

    fn has(&self, field: Field) -> bool {
        field.0 <= 0x7000 && !self.missing.contains(&field)
    }

    /// The host, in non-root operation under VMCS01, executes VMREAD (SDM vol. 3C, VMREAD): `None` if that exits.
    pub(crate) fn host_vmread(&mut self, vmcs01: u64, field: Field) -> Option<Result<u64, VmxStatus>> {
        let shadow = self.shadow(vmcs01, field::VMREAD_BITMAP, field)?;
        Some(if shadow == u64::MAX {
            Err(VmxStatus::FailInvalid)
        } else {
            Ok(self.field(shadow, field))
        })
    }

    /// The host executes VMWRITE, likewise.
    pub(crate) fn host_vmwrite(&mut self, vmcs01: u64, field: Field, value: u64) -> Option<VmxStatus> {
        let shadow = self.shadow(vmcs01, field::VMWRITE_BITMAP, field)?;
        Some(if shadow == u64::MAX {
            VmxStatus::FailInvalid
        } else {
            self.set(shadow, field, field.truncate(value));
            VmxStatus::Succeed
        })
    }

    /// Link pointer of VMCS01, if this access does not exit.
    fn shadow(&mut self, vmcs01: u64, bitmap: Field, field: Field) -> Option<u64> {
        assert_eq!(self.current, Some(vmcs01), "the host runs on VMCS01");
        self.assert_put_down();
        let controls = SecondaryControls::from_bits_retain(self.field(vmcs01, field::SECONDARY_CONTROLS) as u32);
        if !controls.contains(SecondaryControls::VMCS_SHADOWING) || field.0 >> 15 != 0 {
            return None;
        }
        let byte = self.field(vmcs01, bitmap) + u64::from(field.0 / 8);
        let exits = self.byte(byte) >> (field.0 % 8) & 1 != 0;
        (!exits).then(|| self.field(vmcs01, field::VMCS_LINK))
    }

    /// The host or its guest is about to run.
    pub(crate) fn assert_put_down(&self) {
        let active = self.put_down.filter(|phys| self.active.contains(phys));
        assert_eq!(active, None, "is to be cleared");
    }

    fn byte(&self, address: u64) -> u8 {
        let page = self.memory.get(&page_of(address));
        page.map_or(0, |page| page[(address % PAGE_SIZE) as usize])
    }

    fn set_byte(&mut self, address: u64, byte: u8) {
        self.page(address)[(address % PAGE_SIZE) as usize] = byte;
    }

    fn page(&mut self, address: u64) -> &mut [u8; PAGE_SIZE as usize] {
        let page = self.memory.entry(page_of(address));
        page.or_insert_with(|| Box::new([0; PAGE_SIZE as usize]))
    }

    fn bad_pointer(phys: u64) -> bool {
        !phys.is_multiple_of(PAGE_SIZE) || phys >> 39 != 0
    }
}

impl Hardware for Model {
    fn vmread(&mut self, field: Field) -> Result<u64, VmxStatus> {
        self.done.reads += 1;
        if !self.has(field) {
            return Err(self.fail(error::UNSUPPORTED_FIELD));
        }
        self.current.map(|c| self.field(c, field)).ok_or(VmxStatus::FailInvalid)
    }

    fn vmwrite(&mut self, field: Field, value: u64) -> VmxStatus {
        self.done.writes += 1;
        match self.current {
            None => VmxStatus::FailInvalid,
            Some(_) if !self.has(field) => self.fail(error::UNSUPPORTED_FIELD),
            Some(_) if field.area() == Area::ExitInformation && !self.writes_all => self.fail(error::READ_ONLY_FIELD),
            Some(current) => {
                self.set(current, field, field.truncate(value));
                VmxStatus::Succeed
            }
        }
    }

    fn vmptrld(&mut self, phys: u64) -> VmxStatus {
        self.done.pointers += 1;
        if Self::bad_pointer(phys) {
            return self.fail(error::VMPTRLD_ADDRESS);
        }
        if self.vmxon == Some(phys) {
            return self.fail(error::VMPTRLD_VMXON);
        }
        self.current = Some(phys);
        self.active.insert(phys);
        self.vmcs.entry(phys).or_default();
        VmxStatus::Succeed
    }

    fn get(&mut self, field: Field) -> u64 {
        self.vmread(field).expect("a field that the CPU has")
    }

    fn put(&mut self, field: Field, value: u64) {
        assert!(self.vmwrite(field, value).ok(), "a field that the CPU has");
    }

    fn select(&mut self, phys: &u64) {
        assert!(self.vmptrld(*phys).ok(), "a good VMCS");
    }

    fn vmclear(&mut self, phys: u64) -> VmxStatus {
        if Self::bad_pointer(phys) {
            return self.fail(error::VMCLEAR_ADDRESS);
        }
        if self.vmxon == Some(phys) {
            return self.fail(error::VMCLEAR_VMXON);
        }
        self.active.remove(&phys);
        self.launched.retain(|l| *l != phys);
        if self.current == Some(phys) {
            self.current = None;
        }
        VmxStatus::Succeed
    }

    fn clear(&mut self, phys: &u64) {
        self.done.clears += 1;
        assert!(self.vmclear(*phys).ok(), "a good VMCS");
    }

    fn vmxon(&mut self, phys: u64) -> VmxStatus {
        if self.vmxon.is_some() {
            return self.fail(error::VMXON_IN_ROOT);
        }
        self.vmxon = Some(phys);
        self.current = None;
        VmxStatus::Succeed
    }

    fn vmxoff(&mut self) -> VmxStatus {
        self.vmxon = None;
        self.current = None;
        VmxStatus::Succeed
    }

    fn vmcall(&mut self) -> VmxStatus {
        self.fail(error::VMCALL_IN_ROOT)
    }

    fn vmptrst(&mut self) -> u64 {
        self.current.unwrap_or(!0)
    }

    fn invalidate(&mut self, instruction: Invalidate, kind: u64, descriptor: [u64; 2]) -> VmxStatus {
        if kind > 3 {
            return self.fail(error::INVALID_OPERAND);
        }
        self.invalidated.push((instruction, kind, descriptor));
        VmxStatus::Succeed
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let syscall = u32::from(leaf == cpuid::EXTENDED_1) * cpuid::EXTENDED_1_EDX_SYSCALL;
        [leaf, subleaf, 0, syscall]
    }

    fn rdmsr(&mut self, msr: u32) -> Option<u64> {
        self.msrs.get(&msr).copied()
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> bool {
        self.msrs.get_mut(&msr).map(|place| *place = value).is_some()
    }

    fn xsetbv(&mut self, index: u32, value: u64) -> bool {
        index == 0 && value & 1 == 1
    }

    fn predictor_barrier(&mut self) {
        self.barriers += 1;
    }

    fn wbinvd(&mut self) {}

    fn set_cr2(&mut self, value: u64) {
        self.cr2 = value;
    }

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        let ones = u32::MAX >> (32 - 8 * u32::from(size));
        match port {
            0xcf8 if size == 4 => self.pci_address,
            0xcfc..=0xcff => {
                let word = self.pci.get(&self.pci_address).copied().unwrap_or(!0);
                word >> (8 * (port - 0xcfc)) & ones
            }
            _ => ones,
        }
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        match port {
            0xcf8 if size == 4 => self.pci_address = value,
            0xcfc => drop(self.pci.insert(self.pci_address, value)),
            _ => {}
        }
    }

    fn read_phys(&mut self, address: u64, size: u8) -> u64 {
        assert!(!self.private.contains(&address), "read of {address:#x}");
        let at = (address % PAGE_SIZE) as usize;
        let size = usize::from(size);
        let mut bytes = [0; 8];
        // As for a store.
        if at + size <= PAGE_SIZE as usize {
            if let Some(page) = self.memory.get(&page_of(address)) {
                bytes[..size].copy_from_slice(&page[at..at + size]);
            }
        } else {
            for (address, byte) in (address..).zip(&mut bytes[..size]) {
                *byte = self.byte(address);
            }
        }
        u64::from_le_bytes(bytes)
    }

    fn write_phys(&mut self, address: u64, size: u8, value: u64) {
        assert!(!self.private.contains(&address), "write of {address:#x}");
        let bytes = value.to_le_bytes();
        let at = (address % PAGE_SIZE) as usize;
        let size = usize::from(size);
        // A look for the page a byte is dear where this is interpreted.
        if let Some(place) = self.page(address).get_mut(at..at + size) {
            return place.copy_from_slice(&bytes[..size]);
        }
        for (address, byte) in (address..).zip(&bytes[..size]) {
            self.set_byte(address, *byte);
        }
    }
}
