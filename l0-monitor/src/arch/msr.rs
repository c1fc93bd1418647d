//! Model-specific registers and XCR0, with variants that survive a #GP.
//!
//! The crate `x86_64` reads and writes MSRs that are there; what may not be there, or may be refused, goes through the
//! functions in assembly, whose addresses the #GP handler knows. The crate does not tell an MSR's number again, so the
//! numbers are L0's.
#![expect(unsafe_code, reason = "RDMSR, WRMSR and XSETBV have no safe form")]

use core::arch::global_asm;

use x86_64::registers::model_specific::Msr;

/// IA32_APIC_BASE (this and all others: SDM vol. 4, table 2-2).
pub(crate) const APIC_BASE: u32 = 0x1b;
/// IA32_FEATURE_CONTROL.
pub(crate) const FEATURE_CONTROL: u32 = 0x3a;
/// IA32_PRED_CMD.
pub(crate) const PRED_CMD: u32 = 0x49;
/// Indirect branch predictor barrier, a command of IA32_PRED_CMD.
pub(crate) const IBPB: u32 = 1 << 0;
/// IA32_BIOS_UPDT_TRIG: a write loads a microcode update.
pub(crate) const BIOS_UPDT_TRIG: u32 = 0x79;
/// IA32_PEBS_ENABLE, where there is PEBS.
pub(crate) const PEBS_ENABLE: u32 = 0x3f1;
/// IA32_RTIT_CTL, where there is Intel PT.
pub(crate) const RTIT_CTL: u32 = 0x570;
/// IA32_LBR_CTL, where there are architectural LBRs.
pub(crate) const LBR_CTL: u32 = 0x14ce;
/// MSRs with which the CPU is told to write down what it executes, and the bits that switch it on: of PEBS one for each
/// counter, of the others "enable". They stay off under L0 (`nested/tracing.rs`).
pub(crate) const TRACING: [(u32, u64); 3] = [(PEBS_ENABLE, !0), (RTIT_CTL, 1), (LBR_CTL, 1)];
/// IA32_MTRRCAP.
pub(crate) const MTRR_CAP: u32 = 0xfe;
/// IA32_MCG_CAP, where there is a machine-check architecture.
pub(crate) const MCG_CAP: u32 = 0x179;
/// IA32_MCG_STATUS.
pub(crate) const MCG_STATUS: u32 = 0x17a;
/// IA32_MC0_CTL; the bank's status, address and miscellaneous register follow, and then the next bank's four.
pub(crate) const MC0_CTL: u32 = 0x400;
/// IA32_SYSENTER_CS, IA32_SYSENTER_ESP, IA32_SYSENTER_EIP.
pub(crate) const SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];
/// IA32_DEBUGCTL.
pub(crate) const DEBUGCTL: u32 = 0x1d9;
/// IA32_MTRR_PHYSBASE0; the mask is the next one, the second pair the two after it.
pub(crate) const MTRR_PHYS_BASE0: u32 = 0x200;
/// The fixed-range MTRRs: 64 KiB steps from 0, 16 KiB from 512 KiB, 4 KiB from 768 KiB (SDM vol. 3A, table 12-9).
pub(crate) const MTRR_FIXED: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// IA32_MTRR_DEF_TYPE.
pub(crate) const MTRR_DEF_TYPE: u32 = 0x2ff;
/// IA32_VMX_BASIC.
pub(crate) const VMX_BASIC: u32 = 0x480;
/// IA32_VMX_MISC.
pub(crate) const VMX_MISC: u32 = 0x485;
/// IA32_VMX_CR0_FIXED0.
pub(crate) const VMX_CR0_FIXED0: u32 = 0x486;
/// IA32_VMX_CR4_FIXED0.
pub(crate) const VMX_CR4_FIXED0: u32 = 0x488;
/// IA32_VMX_CR4_FIXED1.
pub(crate) const VMX_CR4_FIXED1: u32 = 0x489;
/// IA32_VMX_PROCBASED_CTLS2.
pub(crate) const VMX_PROCBASED_CTLS2: u32 = 0x48b;
/// IA32_VMX_PROCBASED_CTLS3, where there are tertiary controls.
pub(crate) const VMX_PROCBASED_CTLS3: u32 = 0x492;
/// IA32_VMX_EPT_VPID_CAP.
pub(crate) const VMX_EPT_VPID_CAP: u32 = 0x48c;
/// IA32_VMX_TRUE_PINBASED_CTLS.
pub(crate) const VMX_TRUE_PINBASED_CTLS: u32 = 0x48d;
/// IA32_VMX_TRUE_PROCBASED_CTLS.
pub(crate) const VMX_TRUE_PROCBASED_CTLS: u32 = 0x48e;
/// IA32_VMX_TRUE_EXIT_CTLS.
pub(crate) const VMX_TRUE_EXIT_CTLS: u32 = 0x48f;
/// IA32_VMX_TRUE_ENTRY_CTLS.
pub(crate) const VMX_TRUE_ENTRY_CTLS: u32 = 0x490;
/// IA32_XAPIC_DISABLE_STATUS.
pub(crate) const XAPIC_DISABLE_STATUS: u32 = 0xbd;
/// IA32_ARCH_CAPABILITIES.
pub(crate) const ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_S_CET, where there is CET.
pub(crate) const S_CET: u32 = 0x6a2;
/// First MSR of the x2APIC's registers; a register at MMIO offset `o` is MSR `X2APIC + o / 16`.
pub(crate) const X2APIC: u32 = 0x800;
/// IA32_EFER.
pub(crate) const EFER: u32 = 0xc000_0080;

// Each function has one instruction that may fault and a landing for it; `fixup` below knows both. RAX is the second
// half of the result: 0 where the instruction succeeded.
global_asm!(
    ".pushsection .text",
    ".global l0_rdmsr_safe, l0_wrmsr_safe, l0_xsetbv_safe, l0_vmxoff_safe, l0_rdmsr_insn, l0_wrmsr_insn, l0_xsetbv_insn, l0_vmxoff_insn, l0_faulted",
    "l0_rdmsr_safe:", // edi = MSR, rsi = where to put the value
    "mov ecx, edi",
    "l0_rdmsr_insn:",
    "rdmsr",
    "shl rdx, 32",
    "or rax, rdx",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    "l0_wrmsr_safe:", // edi = MSR, rsi = value
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "l0_wrmsr_insn:",
    "wrmsr",
    "xor eax, eax",
    "ret",
    "l0_xsetbv_safe:", // edi = register, rsi = value
    "mov ecx, edi",
    "mov eax, esi",
    "mov rdx, rsi",
    "shr rdx, 32",
    "l0_xsetbv_insn:",
    "xsetbv",
    "xor eax, eax",
    "ret",
    "l0_vmxoff_safe:",
    "l0_vmxoff_insn:",
    "vmxoff",
    "xor eax, eax",
    "ret",
    "l0_faulted:",
    "mov eax, 1",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn l0_rdmsr_safe(msr: u32, value: *mut u64) -> u32;
    fn l0_wrmsr_safe(msr: u32, value: u64) -> u32;
    fn l0_xsetbv_safe(register: u32, value: u64) -> u32;
    fn l0_vmxoff_safe() -> u32;
    safe static l0_rdmsr_insn: u8;
    safe static l0_wrmsr_insn: u8;
    safe static l0_xsetbv_insn: u8;
    safe static l0_vmxoff_insn: u8;
    safe static l0_faulted: u8;
}

/// Where to go on after a #GP or #UD at `rip`, `None` if the fault was not expected there.
pub(crate) fn fixup(rip: u64) -> Option<u64> {
    [
        &raw const l0_rdmsr_insn,
        &raw const l0_wrmsr_insn,
        &raw const l0_xsetbv_insn,
        &raw const l0_vmxoff_insn,
    ]
    .iter()
    .any(|insn| insn.addr() as u64 == rip)
    .then_some((&raw const l0_faulted).addr() as u64)
}

/// Reads an MSR that every CPU with VMX has. L0 stops the CPU where it does not exist.
pub(crate) fn read(msr: u32) -> u64 {
    // SAFETY: RDMSR changes nothing but its output registers; a #GP ends in L0's own handler.
    unsafe { Msr::new(msr).read() }
}

/// Writes an MSR.
///
/// # Safety
/// The value must leave the CPU in a state in which L0's code and its memory behave as the compiler assumes.
pub(crate) unsafe fn write(msr: u32, value: u64) {
    // SAFETY: the caller answers for the effect.
    unsafe { Msr::new(msr).write(value) };
}

/// Reads an MSR that the CPU may not have: `None` if RDMSR raised #GP.
pub(crate) fn read_safe(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: the function writes one u64 through a valid pointer; its only faulting instruction has a fix-up.
    let faulted = unsafe { l0_rdmsr_safe(msr, &raw mut value) };
    (faulted == 0).then_some(value)
}

/// Writes an MSR with a value that the CPU may refuse: false if WRMSR raised #GP.
///
/// For MSRs whose value L0's own code does not depend on (a host's, or VMX's); [`write`] is for the others.
pub(crate) fn write_safe(msr: u32, value: u64) -> bool {
    // SAFETY: see the function's purpose; its only faulting instruction has a fix-up.
    unsafe { l0_wrmsr_safe(msr, value) == 0 }
}

/// Writes an extended control register (XCR0 is 0): false if XSETBV raised #GP or #UD. L0 uses no state that XSAVE
/// manages, so any value that the CPU takes is sound. CR4.OSXSAVE must be set.
pub(crate) fn xsetbv_safe(register: u32, value: u64) -> bool {
    // SAFETY: L0 is soft-float; the function's only faulting instruction has a fix-up.
    unsafe { l0_xsetbv_safe(register, value) == 0 }
}

/// Leaves VMX operation: false if the CPU was not in it.
///
/// # Safety
/// No VMCS whose data still matters may be active on this CPU (SDM vol. 3C, "Managing VMCS Regions and Pointers").
pub(crate) unsafe fn vmxoff_safe() -> bool {
    // SAFETY: the caller answers for the VMCSs; the function's only faulting instruction has a fix-up.
    unsafe { l0_vmxoff_safe() == 0 }
}
