//! The native call: a host in VMX root jumps here, on L0's page tables, to become nested (see [`locum_abi::frame`]).
#![expect(unsafe_code, reason = "the entry is assembly that switches stacks")]

use core::arch::global_asm;

use locum_abi::{Errno, Event, Frame};

use super::vm_entry;
use crate::arch::{cpuid, gdt, msr, registers, stack};
use crate::id::CpuIndex;
use crate::machine_check::McgStatus;
use crate::nested::{transition, vcpu};
use crate::vmx::instructions::Cpu;
use crate::{machine_check, shared, trap};

// RDI is the frame. The caller has saved what it needs, so every register may be used.
global_asm!(
    ".pushsection .text",
    ".global l0_native_entry",
    "l0_native_entry:",
    "endbr64",
    "cli",
    "cld",
    // L0's code has no more ENDBR64 and no shadow stack. VM entry and the stub's return load the host's CR4.
    "mov rax, cr4",
    "btr rax, {cet}",
    "jnc 1f",
    "mov cr4, rax",
    "1:",
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
    cet = const registers::CR4_CET.bits().trailing_zeros(),
    stacks = sym stack::TOP_OF,
    arrive = sym arrive,
    result = const core::mem::offset_of!(Frame, result),
    errno = const Errno::Frame as u32,
    back = const core::mem::offset_of!(Frame, return_native),
);

unsafe extern "C" {
    safe static l0_native_entry: u8;
}

/// Address of the native entry, the same under every L0 page table.
pub(crate) fn entry() -> u64 {
    (&raw const l0_native_entry).addr() as u64
}

/// The only call there is: "enter".
extern "C" fn arrive(frame: *mut Frame) -> ! {
    // The entry found this CPU in the same table.
    let Some(cpu) = cpuid::current() else {
        registers::halt_forever()
    };
    // SAFETY: on the CPU itself, interrupts off, on L0's page tables; the IDT was filled at boot. No exit handler runs
    // on a native CPU, so its state is this call's. The stub mapped its frame at this address under L0's CR3 and gives
    // it to this CPU until it is back; the entry has already read from it.
    let (vcpu, mut hw, frame) = unsafe {
        gdt::load_segments(cpu);
        trap::load();
        (vcpu::of(cpu), Cpu::new(), &mut *frame)
    };
    match transition::enter(vcpu, &mut hw, frame, cpu, vm_entry::address()) {
        // SAFETY: `enter` made VMCS01 current and filled it in.
        Ok(()) => unsafe { vm_entry::launch(vcpu) },
        Err(errno) => {
            let address = core::ptr::from_mut(frame) as u64;
            shared::trace(Event::CallRefused {
                errno,
                op: None,
                argument: address,
            });
            shared::status().count_refusal();
            frame.result = -i64::from(errno as u32);
            // SAFETY: nothing was changed, the frame is as the stub made it.
            unsafe { return_native(cpu, address) }
        }
    }
}

/// Goes back to the host through its stub, on this CPU, which is `cpu`. A machine check that L0 took goes with it.
///
/// # Safety
/// The frame is mapped at `frame` under this CR3, with the stub, and describes the host as it is to go on.
pub(crate) unsafe fn return_native(cpu: CpuIndex, frame: u64) -> ! {
    if machine_check::take(cpu)
        && let status = machine_check::status(msr::read_safe)
        && status.contains(McgStatus::MCIP)
    {
        shared::trace(Event::MachineCheck {
            to_host: true,
            status: status.bits(),
        });
        // SAFETY: the caller says that the frame is there; the stub's handler is its only other writer now.
        unsafe { (&raw mut (*(frame as *mut Frame)).machine_check).write_volatile(1) };
    }
    // SAFETY: the stub's contract (`locum_abi::frame`): its GDT and IDT are mapped under both page tables, its stack
    // ends with the frame.
    unsafe { l0_to_stub(frame, machine_check::noted_at(cpu)) }
}

// RDI is the frame, RSI the byte that a check of this CPU is noted in. Once the stub's IDT is loaded, its handler
// remembers a check in the frame; one that came before is a note still, and nobody would look for it again.
global_asm!(
    ".pushsection .text",
    ".global l0_to_stub",
    "l0_to_stub:",
    "lgdt [rdi + {gdtr}]",
    "lidt [rdi + {idtr}]",
    "xor eax, eax",
    "xchg byte ptr [rsi], al",
    "or byte ptr [rdi + {checked}], al",
    "lea rsp, [rdi + {size}]",
    "mov rax, [rdi + {target}]",
    "jmp rax",
    ".popsection",
    gdtr = const core::mem::offset_of!(Frame, stub_gdtr) + 6,
    idtr = const core::mem::offset_of!(Frame, stub_idtr) + 6,
    checked = const core::mem::offset_of!(Frame, machine_check),
    size = const size_of::<Frame>(),
    target = const core::mem::offset_of!(Frame, return_native),
);

unsafe extern "C" {
    fn l0_to_stub(frame: u64, noted: u64) -> !;
}
