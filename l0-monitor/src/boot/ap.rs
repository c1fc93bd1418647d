//! Starting the other CPUs: INIT, SIPI, SIPI (SDM vol. 3A, 9.4.4), one at a time, each into [`crate::doors::parking`].
#![expect(unsafe_code, reason = "starts CPUs on code that is copied below 1 MiB")]

use core::arch::global_asm;

use locum_abi::{PAGE_SIZE, Slot};

use super::memory::move_bytes;
use crate::arch::registers::{CR0_L0, CR4_L0, EferFlags};
use crate::arch::{gdt, lapic, msr, paging, registers, stack};
use crate::doors::parking;
use crate::id::{self, CpuIndex};
use crate::shared;
use crate::stage;
use crate::vmx::caps::FeatureControl;

/// Where the trampoline lies while CPUs start: conventional memory that the BIOS and GRUB leave alone. What was there
/// is put back.
const TRAMPOLINE: u64 = 0x8000;
/// TSC ticks between INIT and SIPI: 10 ms at 1 GHz, and as long as CPUs of this century need at any rate.
const INIT_TICKS: u64 = 10_000_000;
/// TSC ticks before the second SIPI.
const SIPI_TICKS: u64 = 1_000_000;
/// TSC ticks until a CPU is given up: above a second at any rate there is.
const START_TICKS: u64 = 6_000_000_000;

// Real mode, CS = TRAMPOLINE / 16, straight into long mode on L0's page tables.
global_asm!(
    ".pushsection .rodata",
    ".global l0_ap_start, l0_ap_cr3, l0_ap_stack, l0_ap_entry, l0_ap_end",
    ".balign 16",
    "l0_ap_start:",
    ".code16",
    "cli",
    "cld",
    "xor eax, eax",
    "mov ds, ax",
    "lgdtd [l0_ap_gdtr_at]",
    "mov eax, {cr4}",
    "mov cr4, eax",
    "mov eax, [l0_ap_cr3_at]",
    "mov cr3, eax",
    "mov ecx, {efer}",
    "rdmsr",
    "or eax, {lme}",
    "wrmsr",
    "mov eax, {cr0}",
    "mov cr0, eax",
    ".byte 0x66, 0xea", // far jump to 64-bit code
    ".long {base} + l0_ap_start64 - l0_ap_start",
    ".short {code_selector}",
    ".code64",
    "l0_ap_start64:",
    "mov eax, {data_selector}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "xor ebp, ebp",
    "mov rsp, [l0_ap_stack_at]",
    "call [l0_ap_entry_at]",
    "ud2",
    ".balign 8",
    "l0_ap_gdt: .quad 0, 0, {code}, {data}",
    "l0_ap_gdtr:",
    ".short {limit}",
    ".long {base} + l0_ap_gdt - l0_ap_start",
    ".balign 8",
    "l0_ap_cr3: .quad 0",
    "l0_ap_stack: .quad 0",
    "l0_ap_entry: .quad 0",
    "l0_ap_end:",
    ".set l0_ap_gdtr_at, {base} + l0_ap_gdtr - l0_ap_start",
    ".set l0_ap_cr3_at, {base} + l0_ap_cr3 - l0_ap_start",
    ".set l0_ap_stack_at, {base} + l0_ap_stack - l0_ap_start",
    ".set l0_ap_entry_at, {base} + l0_ap_entry - l0_ap_start",
    ".popsection",
    base = const TRAMPOLINE,
    code = const gdt::CODE_DESCRIPTOR,
    data = const gdt::DATA_DESCRIPTOR,
    limit = const gdt::FLAT_LIMIT,
    code_selector = const gdt::CODE,
    data_selector = const gdt::DATA,
    cr0 = const CR0_L0.bits(),
    cr4 = const CR4_L0.bits(),
    efer = const msr::EFER,
    lme = const EferFlags::LONG_MODE_ENABLE.bits(),
);

unsafe extern "C" {
    safe static l0_ap_start: u8;
    safe static l0_ap_cr3: u8;
    safe static l0_ap_stack: u8;
    safe static l0_ap_entry: u8;
    safe static l0_ap_end: u8;
}

/// Starts and parks every registered CPU but `me`. Returns how many came up; the others are logged and stay absent.
///
/// # Safety
/// Called once by the boot CPU, with L0's page tables and descriptor tables in use, before any host runs.
pub(crate) unsafe fn start_all(me: CpuIndex) -> usize {
    let len = (&raw const l0_ap_end).addr() - (&raw const l0_ap_start).addr();
    let mut saved = [0u8; 512];
    assert!(len <= saved.len(), "AP trampoline fits its save area");
    let entry: unsafe extern "C" fn() -> ! = arrive;
    let mut started = 0;
    // SAFETY: conventional memory that only L0 uses now; everything is put back below.
    unsafe {
        move_bytes(saved.as_mut_ptr() as u64, TRAMPOLINE, len as u64);
        move_bytes(TRAMPOLINE, (&raw const l0_ap_start).addr() as u64, len as u64);
        put(&raw const l0_ap_cr3, paging::l0_cr3(Slot::Even));
        put(&raw const l0_ap_entry, entry as usize as u64);
    }
    for cpu in id::all().filter(|&cpu| cpu != me) {
        // SAFETY: the CPU is not in use, and the trampoline leads it to its own stack.
        let up = unsafe {
            put(&raw const l0_ap_stack, stack::top(cpu));
            start(cpu)
        };
        if up {
            started += 1;
        } else {
            log::error!("CPU with APIC id {} does not start; it stays unused", id::apic_id(cpu));
            shared::status().cpu(cpu).set_owner(None);
        }
    }
    // SAFETY: no CPU is in the trampoline any more: those that came up are parked. One that comes up later finds what
    // was there before, as it would after any failed start.
    unsafe { move_bytes(TRAMPOLINE, saved.as_ptr() as u64, len as u64) };
    started
}

/// Writes a word of the copied trampoline.
///
/// # Safety
/// `field` is in the trampoline, which has been copied.
unsafe fn put(field: *const u8, value: u64) {
    let address = TRAMPOLINE as usize + (field.addr() - (&raw const l0_ap_start).addr());
    // SAFETY: an aligned word of the copy.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// # Safety
/// The trampoline is in place for this CPU.
unsafe fn start(cpu: CpuIndex) -> bool {
    let id = id::apic_id(cpu);
    let page = (TRAMPOLINE / PAGE_SIZE) as u8;
    let parked = || stage::is_parked(cpu);
    // SAFETY: the caller's word.
    unsafe {
        lapic::send_init(id);
        registers::wait_until(INIT_TICKS, || false);
        lapic::send_sipi(id, page);
        if registers::wait_until(SIPI_TICKS, parked) {
            return true;
        }
        lapic::send_sipi(id, page);
    }
    registers::wait_until(START_TICKS, parked)
}

/// # Safety
/// Only called by the trampoline.
unsafe extern "C" fn arrive() -> ! {
    allow_vmx();
    // SAFETY: on L0's page tables and this CPU's stack.
    unsafe { parking::arrive() }
}

/// Does what firmware should have done: allows VMX outside SMX and locks IA32_FEATURE_CONTROL (SDM vol. 3C, 24.7).
/// False if VMX is missing, or locked off.
pub(crate) fn allow_vmx() -> bool {
    if !crate::arch::cpuid::has_vmx() {
        return false;
    }
    let Some(control) = msr::read_safe(msr::FEATURE_CONTROL) else {
        return false;
    };
    let control = FeatureControl::from_bits_retain(control);
    if control.contains(FeatureControl::LOCK) {
        return control.contains(FeatureControl::VMX_OUTSIDE_SMX);
    }
    let allowed = control | FeatureControl::LOCK | FeatureControl::VMX_OUTSIDE_SMX;
    msr::write_safe(msr::FEATURE_CONTROL, allowed.bits())
}
