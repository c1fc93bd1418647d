//! Control registers, flags, and the instructions that wait.
#![expect(unsafe_code, reason = "control registers have no safe form")]

use core::arch::asm;

/// CR4: physical address extension.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: VMX operation allowed.
pub const CR4_VMXE: u64 = 1 << 13;
/// CR0 of L0: PE, MP, ET, NE, WP, PG. NE is fixed to 1 in VMX operation (SDM vol. 3D, appendix A.7).
pub const CR0_L0: u64 = 0x8001_0033;

/// CR2: linear address of the last page fault.
pub fn cr2() -> u64 {
    let value;
    // SAFETY: reading a control register has no effect.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// CR4.
pub fn cr4() -> u64 {
    let value;
    // SAFETY: reading a control register has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Brings CR0 and CR4 to L0's own values; CR4.VMXE stays as it is, since clearing it in VMX operation faults.
///
/// # Safety
/// L0's page tables are in use (they need neither PCIDs nor global pages).
pub unsafe fn normalise() {
    let cr4 = CR4_PAE | (cr4() & CR4_VMXE);
    // SAFETY: the caller says that L0's tables are in use; they work with PAE alone. CR0's value is the one that L0
    // boots with.
    unsafe {
        asm!("mov cr4, {}", in(reg) cr4, options(nostack, preserves_flags));
        asm!("mov cr0, {}", in(reg) CR0_L0, options(nostack, preserves_flags));
    }
}

/// Stops this CPU for good, but for NMIs, which are noted and slept through.
pub fn halt_forever() -> ! {
    loop {
        // SAFETY: with interrupts off, HLT only waits.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Waits until `done`, at most `ticks` of the TSC. False if that was too short.
pub fn wait_until(ticks: u64, mut done: impl FnMut() -> bool) -> bool {
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
pub fn tsc() -> u64 {
    // SAFETY: RDTSC reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}
