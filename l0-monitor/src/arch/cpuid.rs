//! CPUID (SDM vol. 2A), only what L0 asks for.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use crate::id::{self, CpuIndex};

/// Leaf 1 ECX: MONITOR and MWAIT.
const LEAF1_ECX_MONITOR: u32 = 1 << 3;
/// Leaf 1 ECX: VMX.
pub(crate) const LEAF1_ECX_VMX: u32 = 1 << 5;
/// Leaf 1 ECX: XSAVE.
pub(crate) const LEAF1_ECX_XSAVE: u32 = 1 << 26;
/// Leaf 1 ECX: CR4.OSXSAVE.
pub(crate) const LEAF1_ECX_OSXSAVE: u32 = 1 << 27;
/// Leaf 7 ECX: CR4.PKE.
pub(crate) const LEAF7_ECX_OSPKE: u32 = 1 << 4;
/// Extended leaf 1.
pub(crate) const EXTENDED_1: u32 = 0x8000_0001;
/// Extended leaf 1 EDX: SYSCALL, which code outside 64-bit mode has not.
pub(crate) const EXTENDED_1_EDX_SYSCALL: u32 = 1 << 11;
/// Leaf 7 ECX: five-level paging.
const LEAF7_ECX_LA57: u32 = 1 << 16;
/// Leaf 7 EBX: SGX.
const LEAF7_EBX_SGX: u32 = 1 << 2;
/// Leaf 7 ECX: SGX launch control.
const LEAF7_ECX_SGX_LC: u32 = 1 << 30;
/// Leaf 7 ECX: CET, shadow stacks.
const LEAF7_ECX_SHSTK: u32 = 1 << 7;
/// Leaf 7 EDX: CET, indirect branch tracking.
const LEAF7_EDX_IBT: u32 = 1 << 20;
/// Leaf 7 EDX: IBRS and IBPB.
const LEAF7_EDX_IBPB: u32 = 1 << 26;
/// Leaf 0x80000001 EDX: no-execute pages.
const EXT1_EDX_NX: u32 = 1 << 20;
/// Leaf 0x80000001 EDX: 1 GiB pages.
const EXT1_EDX_PAGE1GB: u32 = 1 << 26;

/// EBX of leaf 1 has the initial APIC id in its upper byte. It stays what the CPU got at reset, even where software
/// changes the id in the LAPIC.
pub(crate) fn apic_id() -> u32 {
    __cpuid(1).ebx >> 24
}

/// The CPU that executes this; `None` on one that L0 does not manage.
pub(crate) fn current() -> Option<CpuIndex> {
    id::index_of_apic(apic_id())
}

/// Whether the CPU has VMX.
pub(crate) fn has_vmx() -> bool {
    __cpuid(1).ecx & LEAF1_ECX_VMX != 0
}

/// Whether the CPU has MONITOR and MWAIT.
pub(crate) fn has_monitor() -> bool {
    __cpuid(1).ecx & LEAF1_ECX_MONITOR != 0
}

/// Whether the CPU has five-level paging.
pub(crate) fn has_la57() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & LEAF7_ECX_LA57 != 0
}

/// Whether the CPU has CET, in whole or in part: IA32_S_CET is there.
pub(crate) fn has_cet() -> bool {
    __cpuid(0).eax >= 7 && (__cpuid_count(7, 0).ecx & LEAF7_ECX_SHSTK != 0 || has_ibt())
}

/// Whether the CPU has indirect branch tracking.
pub(crate) fn has_ibt() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & LEAF7_EDX_IBT != 0
}

/// Whether the CPU has the indirect branch predictor barrier.
pub(crate) fn has_ibpb() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & LEAF7_EDX_IBPB != 0
}

/// Whether the CPU has SGX.
pub(crate) fn has_sgx() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ebx & LEAF7_EBX_SGX != 0
}

/// Whether the launch key of SGX can be changed.
pub(crate) fn has_sgx_launch_control() -> bool {
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).ecx & LEAF7_ECX_SGX_LC != 0
}

/// Whether the CPU has no-execute pages.
pub(crate) fn has_nx() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).edx & EXT1_EDX_NX != 0
}

/// Whether the CPU has pages of 1 GiB.
pub(crate) fn has_1gib_pages() -> bool {
    __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).edx & EXT1_EDX_PAGE1GB != 0
}

/// Rate of the TSC in Hz, from leaf 15H or, less exactly, leaf 16H; `None` where the CPU tells neither.
pub(crate) fn tsc_hz() -> Option<u64> {
    let highest = __cpuid(0).eax;
    let exact = (highest >= 0x15).then(|| __cpuid(0x15)).and_then(|leaf| {
        let crystal = u64::from(leaf.ecx) * u64::from(leaf.ebx);
        crystal.checked_div(leaf.eax.into()).filter(|&hz| hz > 0)
    });
    let base = || (highest >= 0x16).then(|| u64::from(__cpuid(0x16).eax & 0xffff) * 1_000_000);
    exact.or_else(|| base().filter(|&hz| hz > 0))
}

/// Width of a physical address in bits, at most 52.
pub(crate) fn max_phys_bits() -> u8 {
    if __cpuid(0x8000_0000).eax >= 0x8000_0008 {
        (__cpuid(0x8000_0008).eax as u8).min(52)
    } else {
        36
    }
}
