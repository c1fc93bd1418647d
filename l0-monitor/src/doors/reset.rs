//! The reset vector: where a host's CPU goes when it is taken offline or stopped (ACPI 6.5, 5.2.12.19, mailbox version
//! 1), native or nested, on the host's page tables, with its stale descriptor tables.
//!
//! One page per slot in the shared region: this code, then its data, all reached relative to RIP, because of the host's
//! page tables only this one page is certain. The code asks CPUID for the APIC id and the page's table for the CPU's
//! mode, which L0 keeps there ([`shared::set_reset_mode`]). A nested CPU calls L0; a native one switches to L0's CR4,
//! page tables, GDT, IDT and its own L0 stack, then goes on in [`super::parking`].
//!
//! The host jumps here as its CR4 has it. With CET, an indirect jump must meet ENDBR64, and L0's own code has none
//! behind this, and no shadow stack: so CET is switched off first. LA57 can't be switched in 64-bit mode: L0 has page
//! tables of five levels for such a CPU.
#![expect(unsafe_code, reason = "code is copied to where a host jumps")]

use core::arch::global_asm;

use locum_abi::{Op, Slot};

use crate::arch::gdt::{self, TableRegister};
use crate::arch::registers::{CR4_KEPT, CR4_L0, Cr4Flags};
use crate::arch::{paging, stack};
use crate::id::{self, CpuIndex};
use crate::shared::{
    self,
    layout::{ResetData, ResetPage},
};
use crate::trap;

/// Offset of the data in the page.
const DATA_OFFSET: usize = core::mem::offset_of!(ResetPage, data);

global_asm!(
    ".pushsection .rodata",
    ".global l0_reset_vector, l0_reset_vector_end",
    ".balign 16",
    "l0_reset_vector:",
    "endbr64",
    "cli",
    "cld",
    "mov eax, 1",
    "cpuid",
    "shr ebx, 24",
    "lea rsi, [rip + l0_reset_vector + {data}]",
    "cmp byte ptr [rsi + rbx], 0",
    "jne 2f",
    "mov rsp, [rsi + rbx * 8 + {stack}]",
    "test rsp, rsp",
    "jz 3f",
    "mov rax, cr4",
    "mov rcx, [rsi + {cr3}]",
    "bt eax, {la57}",
    "cmovc rcx, [rsi + {cr3_five}]",
    "and eax, {kept}",
    "or eax, {cr4}",
    "mov cr4, rax",
    "mov cr3, rcx",
    "lgdt [rsi + {gdtr}]",
    "lidt [rsi + {idtr}]",
    "call [rsi + {entry}]",
    "2:",
    "movabs rax, {park}",
    "vmcall",
    "3:",
    "hlt",
    "jmp 3b",
    "l0_reset_vector_end:",
    ".popsection",
    data = const DATA_OFFSET,
    stack = const core::mem::offset_of!(ResetData, stack),
    cr3 = const core::mem::offset_of!(ResetData, cr3),
    cr3_five = const core::mem::offset_of!(ResetData, cr3_five),
    la57 = const Cr4Flags::L5_PAGING.bits().trailing_zeros(),
    kept = const CR4_KEPT.bits(),
    cr4 = const CR4_L0.bits(),
    gdtr = const core::mem::offset_of!(ResetData, gdtr) + TABLE_REGISTER_OPERAND,
    idtr = const core::mem::offset_of!(ResetData, idtr) + TABLE_REGISTER_OPERAND,
    entry = const core::mem::offset_of!(ResetData, entry),
    park = const Op::Park as u64,
);

/// Where LGDT's operand begins in a [`TableRegister`].
const TABLE_REGISTER_OPERAND: usize = core::mem::offset_of!(TableRegister, limit);

unsafe extern "C" {
    safe static l0_reset_vector: u8;
    safe static l0_reset_vector_end: u8;
}

fn page(slot: Slot) -> *mut u8 {
    // SAFETY: only an address is computed.
    unsafe { (&raw mut (*shared::slot_area(slot)).reset_vector).cast::<u8>() }
}

/// Physical address of a slot's reset vector.
pub(crate) fn address(slot: Slot) -> u64 {
    page(slot) as u64
}

/// Fills a slot's page. Called at boot, when the CPUs are registered.
pub(crate) fn install(slot: Slot) {
    let code = &raw const l0_reset_vector;
    let len = (&raw const l0_reset_vector_end).addr() - code.addr();
    assert!(len <= DATA_OFFSET, "reset vector code fits before its data");
    let first = gdt::base(CpuIndex::FIRST);
    let page = page(slot);
    // SAFETY: code and data fit the page (asserted), which is inside the shared region; no CPU uses it yet.
    unsafe {
        page.copy_from_nonoverlapping(code, len);
        let data = page.add(DATA_OFFSET).cast::<ResetData>();
        for cpu in id::all() {
            let stack = (&raw mut (*data).stack).cast::<u64>();
            stack.add(id::apic_id(cpu) as usize).write(stack::top(cpu));
        }
        let entry: unsafe extern "C" fn() -> ! = super::parking::arrive;
        (&raw mut (*data).entry).write(entry as usize as u64);
        (&raw mut (*data).cr3).write(paging::l0_cr3(slot));
        (&raw mut (*data).cr3_five).write(paging::l0_cr3_five(slot));
        let gdtr = TableRegister {
            pad: [0; 3],
            limit: gdt::GDT_LIMIT,
            base: first,
        };
        (&raw mut (*data).gdtr).write(gdtr);
        let idtr = TableRegister {
            pad: [0; 3],
            limit: trap::LIMIT,
            base: trap::base(),
        };
        (&raw mut (*data).idtr).write(idtr);
    }
}
