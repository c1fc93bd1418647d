//! Starting the other CPUs: INIT, SIPI, SIPI (SDM vol. 3A, 9.4.4), one at a time, each into [`crate::doors::parking`].
#![expect(unsafe_code, reason = "starts CPUs on code that is copied below 1 MiB")]

use core::arch::global_asm;

use locum_abi::{PAGE_SIZE, Slot};

use super::memory::move_bytes;
use crate::arch::registers::{CR0_L0, CR4_L0, EferFlags};
use crate::arch::{cpuid, gdt, lapic, msr, paging, registers, stack};
use crate::doors::parking;
use crate::id::{self, CpuIndex};
use crate::shared;
use crate::stage;
use crate::vmx::caps::FeatureControl;

/// TSC ticks between INIT and SIPI: 10 ms at 1 GHz, and as long as CPUs of this century need at any rate.
const INIT_TICKS: u64 = 10_000_000;
/// TSC ticks before the second SIPI.
const SIPI_TICKS: u64 = 1_000_000;
/// TSC ticks until a CPU is given up: above a second at any rate there is.
const START_TICKS: u64 = 6_000_000_000;

// Copied to a page below 640 KiB: real mode, CS = page / 16, straight into long mode on L0's page tables. In real mode
// everything is reached by its offset in the page; two operands are linear addresses, which are filled in.
global_asm!(
    ".pushsection .rodata",
    ".global l0_ap_start, l0_ap_start64, l0_ap_jump, l0_ap_gdt, l0_ap_gdt_base, l0_ap_cr3, l0_ap_stack, l0_ap_entry, l0_ap_end",
    ".balign 16",
    "l0_ap_start:",
    ".code16",
    "cli",
    "cld",
    "mov ax, cs",
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
    "l0_ap_jump: .long 0",
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
    "mov rsp, [rip + l0_ap_stack]",
    "call [rip + l0_ap_entry]",
    "ud2",
    ".balign 8",
    "l0_ap_gdt: .quad 0, 0, {code}, {data}",
    "l0_ap_gdtr:",
    ".short {limit}",
    "l0_ap_gdt_base: .long 0",
    ".balign 8",
    "l0_ap_cr3: .quad 0",
    "l0_ap_stack: .quad 0",
    "l0_ap_entry: .quad 0",
    "l0_ap_end:",
    ".set l0_ap_gdtr_at, l0_ap_gdtr - l0_ap_start",
    ".set l0_ap_cr3_at, l0_ap_cr3 - l0_ap_start",
    ".popsection",
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
    safe static l0_ap_start64: u8;
    safe static l0_ap_jump: u8;
    safe static l0_ap_gdt: u8;
    safe static l0_ap_gdt_base: u8;
    safe static l0_ap_cr3: u8;
    safe static l0_ap_stack: u8;
    safe static l0_ap_entry: u8;
    safe static l0_ap_end: u8;
}

/// Starts and parks every registered CPU but `me`. Returns how many came up; the others are logged and stay absent.
/// `page` is where the trampoline lies meanwhile, below 1 MiB; what was there is put back.
///
/// # Safety
/// Called once by the boot CPU, with L0's page tables and descriptor tables in use, before any host runs. `page` is a
/// page of RAM that the firmware does not use.
pub(crate) unsafe fn start_all(me: CpuIndex, page: u64) -> usize {
    let len = (&raw const l0_ap_end).addr() - (&raw const l0_ap_start).addr();
    let mut saved = [0u8; 512];
    assert!(len <= saved.len(), "AP trampoline fits its save area");
    // SAFETY: the caller says that only L0 uses the page now; everything is put back below.
    let trampoline = unsafe {
        move_bytes(saved.as_mut_ptr() as u64, page, len as u64);
        Trampoline::place(page, len)
    };
    let mut started = 0;
    for cpu in id::all().filter(|&cpu| cpu != me) {
        // SAFETY: the CPU is not in use, and the trampoline leads it to its own stack.
        if unsafe { trampoline.start(cpu) } {
            started += 1;
        } else {
            log::error!("CPU with APIC id {} does not start; it stays unused", id::apic_id(cpu));
            // It may still come, when the page is another's: it waits for a SIPI again.
            // SAFETY: nobody runs on it.
            unsafe { lapic::send_init(id::apic_id(cpu)) };
            shared::status().cpu(cpu).set_owner(None);
        }
    }
    // SAFETY: no CPU is in the trampoline any more: those that came up are parked. One that comes up later finds what
    // was there before, as it would after any failed start.
    unsafe { move_bytes(page, saved.as_ptr() as u64, len as u64) };
    started
}

/// The copied code.
struct Trampoline {
    page: u64,
}

impl Trampoline {
    /// # Safety
    /// `len` bytes at `page`, below 1 MiB, are L0's.
    unsafe fn place(page: u64, len: usize) -> Self {
        let this = Self { page };
        let entry: unsafe extern "C" fn() -> ! = arrive;
        // SAFETY: the caller's word; all of these are in the copied code. What is below 1 MiB fits 32 bits.
        unsafe {
            move_bytes(page, (&raw const l0_ap_start).addr() as u64, len as u64);
            let here = |symbol| this.address(symbol) as u32;
            (this.address(&raw const l0_ap_jump) as *mut u32).write_unaligned(here(&raw const l0_ap_start64));
            (this.address(&raw const l0_ap_gdt_base) as *mut u32).write_unaligned(here(&raw const l0_ap_gdt));
            this.put(&raw const l0_ap_cr3, paging::l0_cr3(Slot::Even));
            this.put(&raw const l0_ap_entry, entry as usize as u64);
        }
        this
    }

    /// Where the copy has what is at `symbol` in the original.
    fn address(&self, symbol: *const u8) -> u64 {
        self.page + (symbol.addr() - (&raw const l0_ap_start).addr()) as u64
    }

    /// Writes a word.
    ///
    /// # Safety
    /// `symbol` is an aligned word of the trampoline.
    unsafe fn put(&self, symbol: *const u8, value: u64) {
        // SAFETY: the caller's word.
        unsafe { (self.address(symbol) as *mut u64).write_volatile(value) };
    }

    /// Starts a CPU; false if it does not come up.
    ///
    /// # Safety
    /// The CPU is not in use.
    unsafe fn start(&self, cpu: CpuIndex) -> bool {
        let id = id::apic_id(cpu);
        let page = (self.page / PAGE_SIZE) as u8;
        let parked = || stage::is_parked(cpu);
        // SAFETY: the stack is that CPU's own; the rest is the caller's word.
        unsafe {
            self.put(&raw const l0_ap_stack, stack::top(cpu));
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
    if !cpuid::has_vmx() {
        return false;
    }
    let Some(control) = msr::read_safe(msr::FEATURE_CONTROL) else {
        return false;
    };
    let control = FeatureControl::from_bits_retain(control);
    if control.contains(FeatureControl::LOCK) {
        return control.contains(FeatureControl::VMX_OUTSIDE_SMX);
    }
    let locked = control.locked(cpuid::has_sgx(), cpuid::has_sgx_launch_control());
    msr::write_safe(msr::FEATURE_CONTROL, locked.bits())
}
