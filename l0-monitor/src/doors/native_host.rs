//! Handing a CPU to a native host: the state that firmware leaves (ACPI 6.5, 5.2.12.19; Linux' 64-bit boot protocol).
//!
//! Long mode on an identity map of the low 4 GiB and all RAM, readable, writable and executable, of five levels if the
//! last host on the CPU had it so (Linux changes to what it wants by itself, in `trampoline_start64`); a flat GDT with code at 0x10 and
//! data at 0x18; no-execute pages enabled; interrupts off; no IDT. Tables and GDT are in the shared region, so nothing
//! of L0's private memory is used any more after the jump.
#![expect(unsafe_code, reason = "leaves Rust for good")]

use core::arch::asm;
use core::ops::Range;

use crate::arch::gdt::{CODE, DATA, FLAT, FLAT_LIMIT, TableRegister};
use crate::arch::paging::{self, PRESENT_WRITABLE, Table};
use crate::arch::registers::{self, Cr4Flags, EferFlags};
use crate::arch::{cpuid, msr};
use crate::shared::{self, layout::FirmwareTables};
use locum_abi::Slot;

/// Fills a slot's firmware page tables and GDT; returns the end of what the tables map, all of `ram` below it included.
/// Called at boot.
pub(crate) fn install(slot: Slot, ram: impl Iterator<Item = Range<u64>>) -> u64 {
    let area = shared::slot_area(slot);
    // SAFETY: inside the shared region; no CPU uses them yet.
    unsafe {
        (&raw mut (*area).gdt).cast::<[u64; 4]>().write(FLAT);
        fill(&mut (*area).firmware_tables, ram)
    }
}

fn fill(tables: &mut FirmwareTables, ram: impl Iterator<Item = Range<u64>>) -> u64 {
    let entry = |table: &Table| table.as_ptr() as u64 | PRESENT_WRITABLE;
    for (gib, directory) in tables.pd.iter_mut().enumerate() {
        paging::fill_directory(directory, gib);
    }
    for (place, directory) in tables.pdpt.as_flattened_mut().iter_mut().zip(&tables.pd) {
        *place = entry(directory);
    }
    tables.pml5[0] = entry(&tables.pml4);
    for (place, pdpt) in tables.pml4.iter_mut().zip(&tables.pdpt) {
        *place = entry(pdpt);
    }
    // Without pages of 1 GiB there are no tables for more.
    let ram = ram.filter(|_| cpuid::has_1gib_pages());
    paging::map_high(&mut tables.pdpt, ram)
}

/// Hands this CPU to the native host of `slot` at `rip` with RSI = `rsi`.
///
/// # Safety
/// L0 has nothing more to do on this CPU, and what is at `rip` is the host's. The CPU is on L0's page tables with
/// interrupts off. If it is in VMX operation, no VMCS is active on it whose data matters.
pub(crate) unsafe fn enter(slot: Slot, rip: u64, rsi: u64) -> ! {
    let gdtr = TableRegister {
        pad: [0; 3],
        limit: FLAT_LIMIT,
        base: shared::firmware_gdt(slot),
    };
    let no_idt = TableRegister::default();
    if registers::cr4().contains(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS) {
        // A host that starts a CPU believes it outside VMX operation, and the kernel's own first value of CR4 would
        // fault otherwise. The CPU may have parked after VMXON, or before it.
        // SAFETY: the caller's word about VMCSs.
        unsafe { msr::vmxoff_safe() };
    }
    if cpuid::has_nx() {
        // Linux' 64-bit trampoline loads page tables with no-execute bits before it writes EFER itself.
        // SAFETY: L0's and the firmware's page tables have no such bits.
        unsafe { msr::write(msr::EFER, msr::read(msr::EFER) | EferFlags::NO_EXECUTE_ENABLE.bits()) };
    }
    let five_levels = registers::cr4().intersection(Cr4Flags::L5_PAGING);
    let cr3 = if five_levels.is_empty() {
        shared::firmware_cr3(slot)
    } else {
        shared::firmware_cr3_five(slot)
    };
    // SAFETY: the firmware tables map everything below 4 GiB where it is, so also this code and this stack, and the GDT
    // has the selectors that are loaded. The rest is the caller's word.
    unsafe {
        asm!(
            "mov cr4, {cr4}",
            "mov cr3, {cr3}",
            "lgdt [{gdtr}]",
            "lidt [{idtr}]",
            "push {code}",
            "lea rax, [rip + 2f]",
            "push rax",
            "retfq",
            "2:",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            "mov fs, {data:x}",
            "mov gs, {data:x}",
            "mov dr7, {dr7}",
            "jmp {rip}",
            cr4 = in(reg) (registers::CR4_HOST | five_levels).bits(),
            cr3 = in(reg) cr3,
            gdtr = in(reg) &raw const gdtr.limit,
            idtr = in(reg) &raw const no_idt.limit,
            code = const CODE as i32,
            data = in(reg) u32::from(DATA),
            in("rax") 0,
            dr7 = in(reg) registers::DR7_CLEAR,
            rip = in(reg) rip,
            in("rsi") rsi,
            options(noreturn),
        )
    }
}
