//! The native call: a host in VMX root jumps here, on L0's page tables, to become nested (see [`locum_abi::frame`]).
#![expect(unsafe_code, reason = "the entry is assembly that switches stacks")]

use core::arch::global_asm;

use locum_abi::{Errno, Frame};

use crate::arch::{gdt, idt};
use crate::{cpu, nested};

// RDI is the frame. The caller has saved what it needs, so every register may be used.
global_asm!(
    ".pushsection .text",
    ".global l0_native_entry",
    "l0_native_entry:",
    "cli",
    "cld",
    "mov eax, 1",
    "cpuid",
    "shr ebx, 24",
    "lea rsi, [rip + {stacks}]",
    "mov rax, [rsi + rbx * 8]",
    "test rax, rax",
    "jz 2f",
    "mov rsp, rax",
    "call {arrive}",
    "2:", // not a CPU of L0's: refuse, on the frame's own stack
    "mov qword ptr [rdi + {result}], -{errno}",
    "jmp [rdi + {back}]",
    ".popsection",
    stacks = sym cpu::STACK_TOP_OF,
    arrive = sym arrive,
    result = const core::mem::offset_of!(Frame, result),
    errno = const Errno::Frame as u32,
    back = const core::mem::offset_of!(Frame, return_native),
);

unsafe extern "C" {
    safe static l0_native_entry: u8;
}

/// Address of the native entry, the same under every L0 page table.
pub fn native_entry() -> u64 {
    (&raw const l0_native_entry).addr() as u64
}

extern "C" fn arrive(frame: *mut Frame) -> ! {
    // The entry found this CPU in the same table.
    let Some(cpu) = cpu::current() else {
        crate::arch::registers::halt_forever()
    };
    // SAFETY: on the CPU itself, interrupts off, on L0's page tables; the IDT was filled at boot.
    unsafe {
        gdt::load_segments(cpu);
        idt::load();
    }
    nested::native_call(frame, cpu)
}
