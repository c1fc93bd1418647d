//! The reset vector: where a host's CPU goes when it is taken offline or stopped (ACPI 6.5, 5.2.12.19, mailbox version
//! 1), native or nested, on the host's page tables, with its stale descriptor tables.
//!
//! One page per slot in the shared region: this code, then its data, all reached relative to RIP, because of the host's
//! page tables only this one page is certain. The code asks CPUID for the APIC id and the page's table for the CPU's
//! mode, which L0 keeps there ([`set_nested`]). A nested CPU calls L0; a native one switches to L0's page tables, GDT,
//! IDT and its own L0 stack, then goes on in [`crate::park::arrive`]. CR4.PCIDE may be set: L0's CR3 has PCID 0.
#![expect(unsafe_code, reason = "code is copied to where a host jumps")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicU8, Ordering::Release};

use locum_abi::Op;

use crate::arch::gdt::{self, TableRegister};
use crate::arch::{idt, paging};
use crate::cpu::{self, APIC_IDS};
use crate::shared;
use locum_abi::Slot;

/// The data behind the code, at [`DATA_OFFSET`] in the page.
#[repr(C)]
struct Data {
    /// Mode of the CPU with each APIC id: 1 nested, 0 native.
    nested: [u8; APIC_IDS],
    /// Top of L0's stack per APIC id; 0 for ids that L0 does not manage.
    stack: [u64; APIC_IDS],
    /// `arrive`.
    entry: u64,
    /// L0's CR3.
    cr3: u64,
    /// GDT of CPU 0: good for the few instructions until `arrive` loads the CPU's own.
    gdtr: TableRegister,
    /// L0's IDT.
    idtr: TableRegister,
}

/// Offset of [`Data`] in the page.
const DATA_OFFSET: usize = 256;

const _: () = assert!(DATA_OFFSET + size_of::<Data>() <= 4096);

global_asm!(
    ".pushsection .rodata",
    ".global l0_reset_vector, l0_reset_vector_end",
    ".balign 16",
    "l0_reset_vector:",
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
    "mov rax, [rsi + {cr3}]",
    "mov cr3, rax",
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
    stack = const core::mem::offset_of!(Data, stack),
    cr3 = const core::mem::offset_of!(Data, cr3),
    gdtr = const core::mem::offset_of!(Data, gdtr) + TABLE_REGISTER_OPERAND,
    idtr = const core::mem::offset_of!(Data, idtr) + TABLE_REGISTER_OPERAND,
    entry = const core::mem::offset_of!(Data, entry),
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
pub fn address(slot: Slot) -> u64 {
    page(slot) as u64
}

/// Fills a slot's page. Called at boot, when the CPUs are registered.
pub fn install(slot: Slot) {
    let code = &raw const l0_reset_vector;
    let len = (&raw const l0_reset_vector_end).addr() - code.addr();
    assert!(len <= DATA_OFFSET, "reset vector code fits before its data");
    let first = cpu::CpuIndex::new(0).map_or(0, gdt::base);
    let page = page(slot);
    // SAFETY: code and data fit the page (asserted), which is inside the shared region; no CPU uses it yet.
    unsafe {
        page.copy_from_nonoverlapping(code, len);
        let data = page.add(DATA_OFFSET).cast::<Data>();
        for cpu in cpu::all() {
            let stack = (&raw mut (*data).stack).cast::<u64>();
            stack.add(cpu::apic_id(cpu) as usize).write(cpu::stack_top(cpu));
        }
        let entry: unsafe extern "C" fn() -> ! = crate::park::arrive;
        (&raw mut (*data).entry).write(entry as usize as u64);
        (&raw mut (*data).cr3).write(paging::l0_cr3(slot));
        let gdtr = TableRegister {
            pad: [0; 3],
            limit: gdt::GDT_LIMIT,
            base: first,
        };
        (&raw mut (*data).gdtr).write(gdtr);
        let idtr = TableRegister {
            pad: [0; 3],
            limit: idt::LIMIT,
            base: idt::base(),
        };
        (&raw mut (*data).idtr).write(idtr);
    }
}

/// Says how the CPU with `apic_id` is to come back when the host of `slot` gives it up. Ids above 255 are ignored.
pub fn set_nested(apic_id: u32, slot: Slot, nested: bool) {
    if apic_id as usize >= APIC_IDS {
        return;
    }
    // SAFETY: inside the table in the slot's page, a byte that is only accessed atomically after boot.
    let mode = unsafe { AtomicU8::from_ptr(page(slot).add(DATA_OFFSET + apic_id as usize)) };
    mode.store(u8::from(nested), Release);
}
