//! Exceptions and interrupts while L0 runs: one IDT for all CPUs, every vector handled.
//!
//! | what arrives | what happens |
//! | --- | --- |
//! | NMI | under a host's CPU: sent again, and held pending until the host runs (see [`hold_nmi`]); on a parked CPU: ignored |
//! | a machine check | under a host's CPU: noted for the host; else answered, and execution goes on (see [`crate::machine_check`]) |
//! | #GP or #UD at an instruction of [`crate::arch::msr`] that may fault | execution goes on at its landing |
//! | an interrupt (vector 32 and up) | nothing: only parked CPUs take interrupts, and end them in their loop |
//! | anything else | a bug of L0 or a broken machine: traced, logged, and the end of this CPU ([`fatal`]) |
#![expect(unsafe_code, reason = "the CPU reads the table, and the handlers begin in assembly")]

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use locum_abi::{Event, MAX_CPUS};
use x86_64::VirtAddr;
use x86_64::instructions::tables::lidt;
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::SegmentSelector;
use x86_64::structures::idt::{Entry, ExceptionVector, HandlerFunc};

use crate::arch::{cpuid, gdt, lapic, msr, registers};
use crate::fatal;
use crate::id::{CpuIndex, PerCpu};
use crate::machine_check::{self, McgStatus};
use crate::shared::{self, Counter};
use crate::stage::{self, Stage};

const VECTORS: usize = 256;
const NMI: u64 = ExceptionVector::NonMaskableInterrupt as u64;
const INVALID_OPCODE: u64 = ExceptionVector::InvalidOpcode as u64;
const DOUBLE_FAULT: usize = ExceptionVector::Double as usize;
const GENERAL_PROTECTION: u64 = ExceptionVector::GeneralProtection as u64;
const PAGE_FAULT: u64 = ExceptionVector::Page as u64;
const MACHINE_CHECK: u64 = ExceptionVector::MachineCheck as u64;
/// The vectors below it are for exceptions (SDM vol. 3A, 6.2).
const FIRST_INTERRUPT: u64 = 32;
/// Bytes between two entry stubs.
const STUB_STRIDE: u64 = 16;
/// Limit of the IDT.
pub(crate) const LIMIT: u16 = size_of::<[Gate; VECTORS]>() as u16 - 1;

/// A gate of the table. The crate's whole table has no place for the reserved vectors, and this one answers all.
type Gate = Entry<HandlerFunc>;

/// Zero at first, so that the image need not hold it.
#[repr(C, align(4096))]
struct Idt(UnsafeCell<MaybeUninit<[Gate; VECTORS]>>);

// SAFETY: written by the boot CPU in `init` before any CPU loads it, only read afterwards.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new(MaybeUninit::zeroed()));

// Vectors 8, 10-14, 17, 21, 29 and 30 push an error code (SDM vol. 3A, table 6-1); the others get a zero, so that all
// frames look alike. L0 runs with CET off; ENDBR64 is for events that come before it is.
global_asm!(
    ".pushsection .text",
    ".global l0_trap_stubs",
    ".balign 16",
    "l0_trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    "endbr64",
    ".if (vector == 8) || (vector >= 10 && vector <= 14) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)",
    ".else",
    "push 0",
    ".endif",
    "push vector",
    "jmp l0_trap_common",
    ".set vector, vector + 1",
    ".endr",
    "l0_trap_common:",
    "push rax", "push rcx", "push rdx", "push rbx", "push rbp", "push rsi", "push rdi",
    "push r8", "push r9", "push r10", "push r11", "push r12", "push r13", "push r14", "push r15",
    "cld",
    "mov rdi, rsp",
    "call {trap}",
    "test al, al",
    "jnz 2f",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
    "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax",
    "add rsp, 16",
    "iretq",
    // As IRET, but NMIs stay blocked: RIP and RFLAGS go below the interrupted stack's top, where L0 (without a red
    // zone) has nothing.
    "2:",
    "mov rax, [rsp + {rsp}]",
    "mov rcx, [rsp + {rip}]",
    "mov rdx, [rsp + {rflags}]",
    "mov [rax - 8], rcx",
    "mov [rax - 16], rdx",
    "sub rax, 16",
    "mov [rsp + {vector}], rax",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop r11", "pop r10", "pop r9", "pop r8",
    "pop rdi", "pop rsi", "pop rbp", "pop rbx", "pop rdx", "pop rcx", "pop rax",
    "pop rsp",
    "popfq",
    "ret",
    ".popsection",
    trap = sym trap,
    rsp = const core::mem::offset_of!(TrapFrame, rsp),
    rip = const core::mem::offset_of!(TrapFrame, rip),
    rflags = const core::mem::offset_of!(TrapFrame, rflags),
    vector = const core::mem::offset_of!(TrapFrame, vector),
);

unsafe extern "C" {
    safe static l0_trap_stubs: u8;
    // Of the assembly around VM entry, `doors/vm_exit.rs`.
    safe static l0_steady_enter_look: u8;
    safe static l0_steady_enter_again: u8;
    safe static l0_vm_enter_look: u8;
    safe static l0_vm_enter_last: u8;
    safe static l0_vm_enter_again: u8;
}

/// What the stub leaves on the stack, lowest address first.
#[repr(C)]
struct TrapFrame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// An interrupt gate to `handler`, on the current stack or on the one for double faults.
fn gate(handler: u64, own_stack: bool) -> Gate {
    let mut gate = Gate::missing();
    // SAFETY: nothing uses a gate before it is in the table, see `init`; the selector and the stack are L0's own.
    unsafe {
        let options = gate.set_handler_addr(VirtAddr::new_truncate(handler));
        options.set_code_selector(SegmentSelector(gdt::CODE));
        if own_stack {
            options.set_stack_index(gdt::FAULT_IST);
        }
    }
    gate
}

/// Fills the table.
///
/// # Safety
/// Called once, by the boot CPU, before any CPU has loaded the table.
pub(crate) unsafe fn init() {
    let stubs = (&raw const l0_trap_stubs).addr() as u64;
    for vector in 0..VECTORS {
        let gate = gate(stubs + vector as u64 * STUB_STRIDE, vector == DOUBLE_FAULT);
        // SAFETY: the caller says that nobody else uses the table yet; `vector` is inside it.
        unsafe { IDT.0.get().cast::<Gate>().add(vector).write(gate) };
    }
}

/// Address of the table.
pub(crate) fn base() -> u64 {
    IDT.0.get() as u64
}

/// Loads IDTR.
///
/// # Safety
/// [`init`] has run, and this CPU has L0's GDT and page tables.
pub(crate) unsafe fn load() {
    let register = DescriptorTablePointer {
        limit: LIMIT,
        base: VirtAddr::new_truncate(base()),
    };
    // SAFETY: the table is filled and static; its gates use the selector that L0's GDT has.
    unsafe { lidt(&register) };
}

/// An NMI arrived while L0 ran. If it interrupted L0 on its way back to a host, it is the host's: L0 sends it to itself
/// again and returns with NMIs still blocked, so that it stays pending in the CPU. VM entry sets the blocking that the
/// host (or its guest) had, and the CPU delivers the NMI as it would have without L0: to the host, after the IRET of a
/// handler that it is in, or as an NMI exit of the guest. A parked CPU's NMI is for nobody.
fn hold_nmi() -> bool {
    let Some(cpu) = cpu_of_host() else {
        return false;
    };
    shared::status().cpu(cpu).count(Counter::Nmis);
    lapic::send_nmi_self();
    true
}

/// This CPU, if L0 was interrupted between two moments of a host.
fn cpu_of_host() -> Option<CpuIndex> {
    cpuid::current().filter(|&cpu| {
        matches!(stage::of(cpu), Stage::Native | Stage::Nested | Stage::InitSent) || HELD[cpu].load(Relaxed)
    })
}

/// CPUs that are tried without a host.
static HELD: PerCpu<AtomicBool> = PerCpu([const { AtomicBool::new(false) }; MAX_CPUS]);

/// Has what arrives on `cpu` treated as if a host were there, for the self-test.
pub(crate) fn hold_nmis_of(cpu: CpuIndex, on: bool) {
    HELD[cpu].store(on, Relaxed);
}

/// How a machine check ends.
enum Check {
    /// The host's: return, with NMIs blocked if they were.
    Noted,
    /// Nobody's, and answered.
    Answered,
    /// What it interrupted can't go on.
    Fatal,
}

/// A machine check came. Where VM entry is about to happen the host's must not wait for the next exit: execution goes
/// on at the entry's beginning, which looks for it.
fn take_machine_check(frame: &mut TrapFrame) -> Check {
    if let Some(cpu) = cpu_of_host() {
        machine_check::note(cpu);
        let address = |label: *const u8| label.addr() as u64;
        let steady = address(&raw const l0_steady_enter_look);
        let ordinary = address(&raw const l0_vm_enter_look);
        if (steady..ordinary).contains(&frame.rip) {
            frame.rip = address(&raw const l0_steady_enter_again);
        } else if (ordinary..=address(&raw const l0_vm_enter_last)).contains(&frame.rip) {
            frame.rip = address(&raw const l0_vm_enter_again);
        }
        return Check::Noted;
    }
    let status = machine_check::answer(msr::read_safe, shared::trace);
    msr::write_safe(msr::MCG_STATUS, 0);
    if let Some(cpu) = cpuid::current() {
        machine_check::remember(cpu, status);
    }
    if status.contains(McgStatus::RIPV) {
        Check::Answered
    } else {
        Check::Fatal
    }
}

/// Every exception and interrupt under L0 comes here. True: return with NMIs blocked.
extern "C" fn trap(frame: &mut TrapFrame) -> bool {
    match frame.vector {
        NMI => return hold_nmi(),
        MACHINE_CHECK => match take_machine_check(frame) {
            Check::Noted => return true,
            Check::Answered => return false,
            Check::Fatal => {}
        },
        INVALID_OPCODE | GENERAL_PROTECTION => {
            if let Some(landing) = msr::fixup(frame.rip) {
                frame.rip = landing;
                return false;
            }
        }
        // The parked CPU ends it when it goes on.
        FIRST_INTERRUPT.. => return false,
        _ => {}
    }
    let detail = if frame.vector == PAGE_FAULT {
        registers::cr2()
    } else {
        frame.error
    };
    shared::trace(Event::Fault {
        vector: frame.vector as u8,
        rip: frame.rip,
        detail,
    });
    log::error!(
        "exception {} at {:#x} (error {:#x}, CR2 {:#x}, RSP {:#x}): this CPU ends here",
        frame.vector,
        frame.rip,
        frame.error,
        registers::cr2(),
        frame.rsp,
    );
    fatal::end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "asks the CPU whether it has CET")]
    fn gates_are_as_the_cpu_reads_them() {
        for (own_stack, ist) in [(false, 0), (true, 1)] {
            // SAFETY: both are 16 bytes without padding.
            let [low, high] = unsafe { core::mem::transmute::<Gate, [u64; 2]>(gate(0x3344_5566_7788, own_stack)) };
            assert_eq!((low >> 48, low & 0xffff, high), (0x5566, 0x7788, 0x3344));
            assert_eq!(low >> 16 & 0xffff, u64::from(gdt::CODE));
            assert_eq!(low >> 32 & 0xffff, 0x8e00 | ist, "present, DPL 0, interrupt gate");
        }
    }
}
