//! VM exits, and VM entry: the assembly around both, and what carries out [`run::Onward`].
#![expect(unsafe_code, reason = "VM entry and exit switch the whole CPU")]

use core::arch::global_asm;

use locum_abi::Event;

use super::{native_call, parking};
use crate::arch::port;
use crate::nested::run::{self, Onward};
use crate::nested::vcpu::{GPRS, VCpu};
use crate::shared;
use crate::vmx::instructions::Cpu;

const STACK_TOP: usize = core::mem::offset_of!(VCpu, stack_top);
const NOTED_AT: usize = core::mem::offset_of!(VCpu, noted_at);

/// Registers that a call changes, and RBX, to or from the register area at RSP. RBX comes last: until then it holds the
/// address of the `VCpu`.
macro_rules! caller_saved {
    ($op:ident) => {
        concat!(
            $op!("0x00", "rax"),
            $op!("0x08", "rcx"),
            $op!("0x10", "rdx"),
            $op!("0x30", "rsi"),
            $op!("0x38", "rdi"),
            $op!("0x40", "r8"),
            $op!("0x48", "r9"),
            $op!("0x50", "r10"),
            $op!("0x58", "r11"),
            $op!("0x18", "rbx"),
        )
    };
}

/// The others, but RSP, which VMCSs hold.
macro_rules! callee_saved {
    ($op:ident) => {
        concat!(
            $op!("0x28", "rbp"),
            $op!("0x60", "r12"),
            $op!("0x68", "r13"),
            $op!("0x70", "r14"),
            $op!("0x78", "r15"),
        )
    };
}

macro_rules! save {
    ($offset:literal, $register:literal) => {
        concat!("mov [rsp + ", $offset, "], ", $register, "\n")
    };
}

macro_rules! load {
    ($offset:literal, $register:literal) => {
        concat!("mov ", $register, ", [rsp + ", $offset, "]\n")
    };
}

// A VM exit loads RSP with the address of the register area; an NMI before the stack is switched uses the room below
// it. RBX holds the address of the VCpu across calls. RSP is the same when VM entry is tried, so that a failed one
// saves the registers the same way; neither LEA nor MOV change the flags that tell why. The direction flag is clear: VM
// exits clear it, and L0 never sets it.
//
// A machine check that L0 took is looked for last of all. One that comes between the look and VM entry has the trap
// handler (`trap.rs`, which knows the labels) go back: all registers are still in the area then, but for those that the
// steady path never saves.
global_asm!(
    ".pushsection .text",
    ".balign 64",
    ".globl l0_vm_exit",
    "l0_vm_exit:",
    caller_saved!(save),
    "lea rbx, [rsp - {gprs}]",
    "mov rsp, [rbx + {stack}]",
    "mov rdi, rbx",
    "call {steady}",
    "lea rsp, [rbx + {gprs}]",
    "test al, al",
    "jz 1f",
    ".globl l0_steady_enter_look, l0_steady_enter_again, l0_vm_enter_look, l0_vm_enter_last, l0_vm_enter_again",
    "l0_steady_enter_look:",
    "mov rax, [rbx + {noted}]",
    "cmp byte ptr [rax], 0",
    "jne l0_steady_enter_again",
    caller_saved!(load),
    "vmresume",
    "jmp 3f",
    "l0_vm_enter_look:",
    "mov rcx, [rbx + {noted}]",
    "cmp byte ptr [rcx], 0",
    "jne l0_vm_enter_again",
    "cmp al, 0",
    callee_saved!(load),
    caller_saved!(load),
    "jne l0_vm_enter_last",
    "vmresume",
    "jmp 3f",
    "l0_vm_enter_last:",
    "vmlaunch",
    "3:",
    caller_saved!(save),
    callee_saved!(save),
    "lea rbx, [rsp - {gprs}]",
    "mov rsp, [rbx + {stack}]",
    "pushfq",
    "pop rsi",
    "mov rdi, rbx",
    "call {failed}",
    "l0_vm_enter:", // rbx = VCpu, al = 0 VMRESUME, 1 VMLAUNCH
    "lea rsp, [rbx + {gprs}]",
    "jmp l0_vm_enter_look",
    "1:",
    callee_saved!(save),
    "mov rsp, [rbx + {stack}]",
    "mov rdi, rbx",
    "call {handle}",
    "jmp l0_vm_enter",
    "l0_steady_enter_again:",
    callee_saved!(save),
    "l0_vm_enter_again:",
    "lea rbx, [rsp - {gprs}]",
    "mov rsp, [rbx + {stack}]",
    "mov rdi, rbx",
    "call {machine_check}",
    "jmp l0_vm_enter",
    ".globl l0_vm_first_enter",
    "l0_vm_first_enter:", // rdi = VCpu
    "mov rbx, rdi",
    "mov eax, 1",
    "jmp l0_vm_enter",
    ".popsection",
    gprs = const GPRS,
    stack = const STACK_TOP,
    noted = const NOTED_AT,
    steady = sym steady,
    handle = sym exit,
    failed = sym entry_failed,
    machine_check = sym machine_check,
);

/// Every VM exit comes here first. True: VMRESUME is next. False: it is still to be handled.
extern "C" fn steady(vcpu: *mut VCpu) -> bool {
    // SAFETY: as in `exit`.
    let (vcpu, mut hw) = unsafe { (&mut *vcpu, Cpu::new()) };
    run::steady(vcpu, &mut hw)
}

/// Every other VM exit. Returns what the assembly enters with: 0 VMRESUME, 1 VMLAUNCH.
extern "C" fn exit(vcpu: *mut VCpu) -> u8 {
    // SAFETY: the assembly passes this CPU's state, and nobody else holds it: L0 runs on this CPU only after an exit.
    // On L0's page tables with interrupts off, as every exit leaves it.
    let (vcpu, mut hw) = unsafe { (&mut *vcpu, Cpu::new()) };
    let onward = run::exit(vcpu, &mut hw);
    carry_out(vcpu, onward)
}

/// A VM entry that did not happen.
extern "C" fn entry_failed(vcpu: *mut VCpu, rflags: u64) -> u8 {
    // SAFETY: as in `exit`.
    let (vcpu, mut hw) = unsafe { (&mut *vcpu, Cpu::new()) };
    let onward = run::entry_failed(vcpu, &mut hw, rflags);
    carry_out(vcpu, onward)
}

/// A machine check came while L0 served this CPU.
extern "C" fn machine_check(vcpu: *mut VCpu) -> u8 {
    // SAFETY: as in `exit`.
    let (vcpu, mut hw) = unsafe { (&mut *vcpu, Cpu::new()) };
    let onward = run::machine_check(vcpu, &mut hw);
    carry_out(vcpu, onward)
}

fn carry_out(vcpu: &VCpu, onward: Onward) -> u8 {
    match onward {
        Onward::Enter { launch } => u8::from(launch),
        Onward::Park => {
            shared::trace(Event::Park { from_nested: true });
            parking::park(vcpu.cpu)
        }
        // SAFETY: the only host has just ended.
        Onward::Reset => unsafe { port::reset_machine() },
        // SAFETY: the frame holds the host's state, and VMX is as the host believes.
        Onward::Leave { frame } => unsafe { native_call::return_native(vcpu.cpu, frame) },
    }
}
