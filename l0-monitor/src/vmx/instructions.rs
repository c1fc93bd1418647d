//! The instructions themselves. Ports are read and written here and not with the crate `x86_64`: its accesses are
//! `nomem`, so the compiler may move them out of the lock around a PCI configuration cycle.
#![expect(
    unsafe_code,
    reason = "this module is the border to the CPU: VMX, port and MMIO instructions"
)]

use core::arch::{asm, x86_64::__cpuid_count};

use super::field::Field;
use super::hardware::{Hardware, Invalidate, VmxStatus};
use crate::arch;

/// The CPU that executes this code.
///
/// L0's page table maps all physical memory at its own address, and interrupts are off while L0 runs: both are
/// established at boot and hold whenever a value of this type exists.
#[derive(Debug)]
pub(crate) struct Cpu(());

impl Cpu {
    /// The CPU.
    ///
    /// # Safety
    /// Only L0 may make one, at CPL 0 on L0's page table with interrupts off. What is done through it must keep the
    /// memory that Rust knows of out of reach: the callers pass only addresses that the partition allows the host to
    /// touch, device registers, or L0's own page tables to read.
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }
}

macro_rules! vmx {
    ($text:literal, $($operand:tt)*) => {{
        let rflags: u64;
        // SAFETY: VMX instructions at CPL 0 touch the current VMCS or the region named, never Rust's memory; L0 is in
        // VMX operation wherever these are called (VMXON itself needs only CR4.VMXE).
        unsafe { asm!($text, "pushfq", "pop {rflags}", rflags = lateout(reg) rflags, $($operand)*) };
        VmxStatus::from_rflags(rflags)
    }};
}

impl Hardware for Cpu {
    fn vmread(&mut self, field: Field) -> Result<u64, VmxStatus> {
        let value: u64;
        let status = vmx!("vmread {v}, {f}", f = in(reg) u64::from(field.0), v = out(reg) value);
        if status.ok() { Ok(value) } else { Err(status) }
    }

    fn vmwrite(&mut self, field: Field, value: u64) -> VmxStatus {
        vmx!("vmwrite {f}, {v}", f = in(reg) u64::from(field.0), v = in(reg) value)
    }

    fn vmptrld(&mut self, phys: u64) -> VmxStatus {
        vmx!("vmptrld [{p}]", p = in(reg) &raw const phys)
    }

    #[inline(always)]
    fn get(&mut self, field: Field) -> u64 {
        let value;
        // SAFETY: reads the current VMCS at CPL 0 in VMX root operation, as in `vmx!`; that it can't fail is the
        // caller's word.
        unsafe {
            asm!("vmread {v}, {f}", f = in(reg) u64::from(field.0), v = lateout(reg) value, options(nomem, nostack));
        }
        value
    }

    #[inline(always)]
    fn put(&mut self, field: Field, value: u64) {
        // SAFETY: as for `get`.
        unsafe {
            asm!("vmwrite {f}, {v}", f = in(reg) u64::from(field.0), v = in(reg) value, options(nomem, nostack));
        }
    }

    #[inline(always)]
    fn select(&mut self, phys: &u64) {
        // SAFETY: as for `get`; reads the word.
        unsafe { asm!("vmptrld [{p}]", p = in(reg) phys, options(readonly, nostack)) };
    }

    fn vmclear(&mut self, phys: u64) -> VmxStatus {
        vmx!("vmclear [{p}]", p = in(reg) &raw const phys)
    }

    #[inline(always)]
    fn clear(&mut self, phys: &u64) {
        // SAFETY: as for `get`; writes the VMCS region, which is L0's or was named by the host that owns it.
        unsafe { asm!("vmclear [{p}]", p = in(reg) phys, options(nostack)) };
    }

    fn vmxon(&mut self, phys: u64) -> VmxStatus {
        vmx!("vmxon [{p}]", p = in(reg) &raw const phys)
    }

    fn vmxoff(&mut self) -> VmxStatus {
        vmx!("vmxoff",)
    }

    fn vmcall(&mut self) -> VmxStatus {
        vmx!("vmcall",)
    }

    fn vmptrst(&mut self) -> u64 {
        let mut phys = 0_u64;
        // SAFETY: stores to the local variable only.
        unsafe { asm!("vmptrst [{p}]", p = in(reg) &raw mut phys) };
        phys
    }

    fn invalidate(&mut self, instruction: Invalidate, kind: u64, descriptor: [u64; 2]) -> VmxStatus {
        let descriptor = descriptor.as_ptr();
        match instruction {
            Invalidate::Ept => vmx!("invept {k}, [{d}]", k = in(reg) kind, d = in(reg) descriptor),
            Invalidate::Vpid => {
                vmx!("invvpid {k}, [{d}]", k = in(reg) kind, d = in(reg) descriptor)
            }
        }
    }

    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let r = __cpuid_count(leaf, subleaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    }

    fn rdmsr(&mut self, msr: u32) -> Option<u64> {
        arch::msr::read_safe(msr)
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> bool {
        arch::msr::write_safe(msr, value)
    }

    fn xsetbv(&mut self, index: u32, value: u64) -> bool {
        arch::xsetbv_safe(index, value)
    }

    #[inline(always)]
    fn predictor_barrier(&mut self) {
        // SAFETY: a command to the CPU; changes neither memory nor a register.
        unsafe {
            asm!("wrmsr", in("ecx") arch::msr::PRED_CMD, in("eax") arch::msr::IBPB, in("edx") 0, options(nostack));
        }
    }

    fn wbinvd(&mut self) {
        // SAFETY: writes caches back; no effect on memory's contents.
        unsafe { asm!("wbinvd") };
    }

    fn set_cr2(&mut self, value: u64) {
        // SAFETY: L0 takes no page faults, CR2 is the host's.
        unsafe { asm!("mov cr2, {}", in(reg) value) };
    }

    fn port_in(&mut self, port: u16, size: u8) -> u32 {
        let value: u32;
        // SAFETY: the host's own access, which the partition allowed, or L0's to the IOAPIC or PCI ports.
        unsafe {
            match size {
                1 => asm!("in al, dx", "movzx eax, al", in("dx") port, out("eax") value),
                2 => asm!("in ax, dx", "movzx eax, ax", in("dx") port, out("eax") value),
                _ => asm!("in eax, dx", in("dx") port, out("eax") value),
            }
        }
        value
    }

    fn port_out(&mut self, port: u16, size: u8, value: u32) {
        // SAFETY: as for `port_in`.
        unsafe {
            match size {
                1 => asm!("out dx, al", in("dx") port, in("eax") value),
                2 => asm!("out dx, ax", in("dx") port, in("eax") value),
                _ => asm!("out dx, eax", in("dx") port, in("eax") value),
            }
        }
    }

    fn read_phys(&mut self, address: u64, size: u8) -> u64 {
        // SAFETY: identity-mapped; the caller checked the address (see the trait).
        unsafe {
            match size {
                1 => u64::from((address as *const u8).read_volatile()),
                2 => u64::from((address as *const u16).read_unaligned()),
                4 => u64::from((address as *const u32).read_volatile()),
                _ => (address as *const u64).read_unaligned(),
            }
        }
    }

    fn write_phys(&mut self, address: u64, size: u8, value: u64) {
        // SAFETY: identity-mapped; the caller checked the address (see the trait).
        unsafe {
            match size {
                1 => (address as *mut u8).write_volatile(value as u8),
                2 => (address as *mut u16).write_unaligned(value as u16),
                4 => (address as *mut u32).write_volatile(value as u32),
                _ => (address as *mut u64).write_unaligned(value),
            }
        }
    }
}
