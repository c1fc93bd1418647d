//! Control registers, flags, and the instructions that wait.
//!
//! The bits of CR0, CR4, IA32_EFER and RFLAGS are those of the crate `x86_64`, for all of L0. What a host has in such a
//! register is kept whole (`from_bits_retain`), bits that the crate does not know included.
#![expect(unsafe_code, reason = "control registers have no safe form")]

pub(crate) use x86_64::registers::control::{Cr0Flags, Cr4Flags, EferFlags};
pub(crate) use x86_64::registers::rflags::RFlags;

use x86_64::instructions::{self, interrupts};
use x86_64::registers::control::{Cr0, Cr2, Cr4};

/// CR0 of L0, and of a CPU that is handed to a host. NE is fixed to 1 in VMX operation (SDM vol. 3D, appendix A.7).
pub(crate) const CR0_L0: Cr0Flags = Cr0Flags::PROTECTED_MODE_ENABLE
    .union(Cr0Flags::MONITOR_COPROCESSOR)
    .union(Cr0Flags::EXTENSION_TYPE)
    .union(Cr0Flags::NUMERIC_ERROR)
    .union(Cr0Flags::WRITE_PROTECT)
    .union(Cr0Flags::PAGING);
/// CR4 of L0, but for VMXE and OSXSAVE. Without MCE a machine check resets the machine; every 64-bit CPU has it.
pub(crate) const CR4_L0: Cr4Flags = CR4_HOST.union(Cr4Flags::MACHINE_CHECK_EXCEPTION);
/// CR4 of a CPU that is handed to a host: MCE is for the host to set, once it has a handler.
pub(crate) const CR4_HOST: Cr4Flags = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
/// What L0 leaves in CR4 as a host had it: VMXE can't be cleared in VMX operation, and LA57 not in 64-bit mode.
pub(crate) const CR4_KEPT: Cr4Flags = Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.union(Cr4Flags::L5_PAGING);
/// CR4.CET: control-flow enforcement. L0 runs without.
pub(crate) const CR4_CET: Cr4Flags = Cr4Flags::CONTROL_FLOW_ENFORCEMENT;
/// IA32_EFER in 64-bit mode.
pub(crate) const EFER_LONG_MODE: EferFlags = EferFlags::LONG_MODE_ENABLE.union(EferFlags::LONG_MODE_ACTIVE);
/// RFLAGS with nothing set: bit 1 reads as 1 (SDM vol. 1, 3.4.3).
pub(crate) const RFLAGS_CLEAR: u64 = 1 << 1;
/// DR7 at reset, and as a VM exit loads it: no breakpoint; bit 10 reads as 1 (SDM vol. 3B, "Debug Control Register
/// (DR7)"; vol. 3C, 29.5.1).
pub(crate) const DR7_CLEAR: u64 = 1 << 10;
/// IA32_DEBUGCTL bit 1: single-step on branches (SDM vol. 3B, 19.4.1).
pub(crate) const DEBUGCTL_BTF: u64 = 1 << 1;
/// IA32_DEBUGCTL at reset, and as a VM exit loads it.
pub(crate) const DEBUGCTL_CLEAR: u64 = 0;

/// CR2: linear address of the last page fault.
pub(crate) fn cr2() -> u64 {
    Cr2::read_raw()
}

/// CR4.
pub(crate) fn cr4() -> Cr4Flags {
    Cr4Flags::from_bits_retain(Cr4::read_raw())
}

/// Sets CR4.VMXE: VMXON is legal from then on.
pub(crate) fn allow_vmx() {
    // SAFETY: the bit changes nothing else.
    unsafe { Cr4::write_raw((cr4() | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS).bits()) };
}

/// Clears CR4.VMXE.
///
/// # Safety
/// The CPU is outside VMX operation, in which the bit may not be cleared.
pub(crate) unsafe fn forbid_vmx() {
    // SAFETY: the caller's word.
    unsafe { Cr4::write_raw(cr4().difference(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS).bits()) };
}

/// Brings CR0 and CR4 to L0's own values, but for [`CR4_KEPT`].
///
/// # Safety
/// L0's page tables are in use (they need neither PCIDs nor global pages).
pub(crate) unsafe fn normalise() {
    let cr4 = CR4_L0 | cr4().intersection(CR4_KEPT);
    // SAFETY: the caller says that L0's tables are in use; they work with PAE alone. CR0's value is the one that L0
    // boots with.
    unsafe {
        Cr4::write_raw(cr4.bits());
        Cr0::write_raw(CR0_L0.bits());
    }
}

/// Stops this CPU for good, but for NMIs, which are noted and slept through.
pub(crate) fn halt_forever() -> ! {
    loop {
        interrupts::disable();
        instructions::hlt();
    }
}

/// Waits until `done`, at most `ticks` of the TSC. False if that was too short.
pub(crate) fn wait_until(ticks: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = tsc();
    loop {
        if done() {
            return true;
        }
        if tsc().wrapping_sub(start) > ticks {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// The time stamp counter, not serialised.
pub(crate) fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}
