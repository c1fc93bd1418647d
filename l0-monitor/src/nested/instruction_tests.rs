//! The lab's table of instructions on the model of a CPU: what is known of each has to come of it above L0.
//!
//! The lab holds the same table against an emulated CPU, native and nested (scenario `instructions`). Here it is decoded by
//! another's decoder, the CPU's own checks are those of the SDM (vol. 3C, 27.1.1), and what exits is served by L0: at CPL
//! 0 and 3, in 64-bit and compatibility mode, with everything that an instruction's end has to see to.

use std::boxed::Box;
use std::format;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register as Theirs};
use lab_instructions::{Case, DATA, Outcome, PAGE, TABLE};
use x86_64::structures::idt::ExceptionVector;

use crate::arch::general::Register;
use crate::arch::registers::{EFER_LONG_MODE, RFLAGS_CLEAR, RFlags};
use crate::nested::exits::Next;
use crate::nested::model::Model;
use crate::nested::shadow::Use;
use crate::nested::test_bed::*;
use crate::nested::vcpu::VCpu;
use crate::vmx::exit::{InstructionInfo, Interruption, Reason};
use crate::vmx::field::{self, Segment};
use crate::vmx::guest::{AccessRights, Interruptibility, PendingDebug};

/// Where an operand of [`VMCLEAR`](Reason::VMCLEAR) is, to end with no current VMCS.
const OPERAND: u64 = 0x5000;
/// Tries that L0 has to serve at the least: the table is not empty, nor is it all the CPU's.
const LEAST: usize = 500;

/// What a CPU makes of an instruction in non-root operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cpu {
    /// It fails without an exit.
    Fails(Outcome),
    /// It exits.
    Exits(Reason),
    /// It is executed.
    Runs,
}

/// Where an instruction is executed.
#[derive(Clone, Copy, Debug)]
struct Place {
    cpl: u8,
    compatibility: bool,
}

/// What the CPU does under L0's controls (`nested/vmcs01.rs`): faults for privilege and undefined instructions come before
/// an exit, but for VMX instructions, which check privilege behind it, and VMCALL, which checks nothing.
fn non_root(instruction: &Instruction, case: &Case, place: Place) -> Cpu {
    let vmx = |reason| {
        if place.compatibility {
            Cpu::Fails(Outcome::InvalidOpcode)
        } else {
            Cpu::Exits(reason)
        }
    };
    let privileged = |then| {
        if place.cpl == 0 {
            then
        } else {
            Cpu::Fails(Outcome::GeneralProtection)
        }
    };
    let [_, rcx, _] = case.registers;
    match instruction.mnemonic() {
        Mnemonic::Cpuid => Cpu::Exits(Reason::CPUID),
        Mnemonic::Vmcall => Cpu::Exits(Reason::VMCALL),
        Mnemonic::Invd => privileged(Cpu::Exits(Reason::INVD)),
        Mnemonic::Xsetbv => privileged(Cpu::Exits(Reason::XSETBV)),
        Mnemonic::Rdmsr if rcx == 0x4000_0000 => privileged(Cpu::Exits(Reason::RDMSR)),
        Mnemonic::Wrmsr if rcx == 0x4000_0000 => privileged(Cpu::Exits(Reason::WRMSR)),
        Mnemonic::Mov if matches!(instruction.op0_register(), Theirs::CR0 | Theirs::CR4) => {
            privileged(Cpu::Exits(Reason::CR_ACCESS))
        }
        Mnemonic::Mov if instruction.op1_register().is_cr() => privileged(Cpu::Runs),
        Mnemonic::Hlt | Mnemonic::Wbinvd => privileged(Cpu::Runs),
        Mnemonic::Invept => vmx(Reason::INVEPT),
        Mnemonic::Invvpid => vmx(Reason::INVVPID),
        Mnemonic::Vmclear => vmx(Reason::VMCLEAR),
        Mnemonic::Vmlaunch => vmx(Reason::VMLAUNCH),
        Mnemonic::Vmptrld => vmx(Reason::VMPTRLD),
        Mnemonic::Vmptrst => vmx(Reason::VMPTRST),
        Mnemonic::Vmread => vmx(Reason::VMREAD),
        Mnemonic::Vmresume => vmx(Reason::VMRESUME),
        Mnemonic::Vmwrite => vmx(Reason::VMWRITE),
        Mnemonic::Vmxoff => vmx(Reason::VMXOFF),
        Mnemonic::Vmxon => vmx(Reason::VMXON),
        // CR4.SMXE is 0, no control enables VMFUNC, and nobody is in SMM.
        Mnemonic::Getsec | Mnemonic::Vmfunc | Mnemonic::Rsm | Mnemonic::Ud2 => Cpu::Fails(Outcome::InvalidOpcode),
        Mnemonic::Nop => Cpu::Runs,
        other => panic!("what {other:?} does is told in the table, and not here"),
    }
}

fn ours(register: Theirs) -> Register {
    Register::from_bits(register.full_register() as u32 - Theirs::RAX as u32)
}

/// The CPU exits from an instruction at [`PAGE`]: what it reports, and the host's state.
fn report(hw: &mut Model, vcpu: &mut VCpu, case: &Case, instruction: &Instruction, place: Place) {
    let [rax, rcx, rdx] = case.registers;
    for (register, value) in [(Register::Rax, rax), (Register::Rcx, rcx), (Register::Rdx, rdx)] {
        vcpu.gprs[register] = value;
    }
    let code = if place.compatibility {
        AccessRights::CODE_64.difference(AccessRights::LONG)
    } else {
        AccessRights::CODE_64
    };
    let stack = if place.cpl == 0 {
        AccessRights::empty()
    } else {
        AccessRights::DPL
    };
    let mut info = (if place.compatibility { 1 } else { 2 }) << InstructionInfo::ADDRESS_SIZE
        | (Segment::Ds as u32) << 15
        | InstructionInfo::NO_INDEX;
    let kinds = [0, 1].map(|operand| (operand < instruction.op_count()).then(|| instruction.op_kind(operand)));
    let registers = [instruction.op0_register(), instruction.op1_register()];
    match (kinds, instruction.mnemonic()) {
        ([Some(OpKind::Register), Some(OpKind::Register)], Mnemonic::Vmread | Mnemonic::Vmwrite) => {
            // The field is named by VMREAD's second operand and by VMWRITE's first.
            let field = usize::from(instruction.mnemonic() == Mnemonic::Vmread);
            info |= InstructionInfo::REGISTER
                | (ours(registers[1 - field]) as u32) << 3
                | (ours(registers[field]) as u32) << InstructionInfo::REGISTER2;
        }
        ([Some(OpKind::Memory), second], _) => {
            info |= (ours(instruction.memory_base()) as u32) << 23;
            if second == Some(OpKind::Register) {
                info |= (ours(registers[1]) as u32) << InstructionInfo::REGISTER2;
            }
        }
        ([Some(OpKind::Register), Some(OpKind::Memory)], _) => {
            info |= (ours(instruction.memory_base()) as u32) << 23
                | (ours(registers[0]) as u32) << InstructionInfo::REGISTER2;
        }
        _ => {}
    }
    let qualification = if registers[0].is_cr() {
        u64::from(registers[0] as u32 - Theirs::CR0 as u32) | (ours(registers[1]) as u64) << 8
    } else {
        0
    };
    for (field, value) in [
        (field::GUEST_RIP, PAGE),
        (field::INSTRUCTION_LENGTH, case.code.len() as u64),
        (field::INSTRUCTION_INFO, info.into()),
        (field::EXIT_QUALIFICATION, qualification),
        (field::GUEST_EFER, EFER_LONG_MODE.bits()),
        (Segment::Cs.guest_rights(), code.bits()),
        (Segment::Ss.guest_rights(), stack.bits()),
        (field::GUEST_CR0, KVM_CR0.bits()),
        (field::CR0_SHADOW, KVM_CR0.bits()),
        (field::ENTRY_INTERRUPTION, 0),
        (field::GUEST_PENDING_DEBUG, 0),
    ] {
        hw.set(VMCS01, field, value);
    }
}

/// What an instruction begins under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    SingleStep,
    /// A breakpoint on it was passed.
    ResumeFlag,
    /// The instruction before it holds interrupts back.
    Behind(Interruptibility),
}

const HOW: [How; 4] = [
    How::SingleStep,
    How::ResumeFlag,
    How::Behind(Interruptibility::STI),
    How::Behind(Interruptibility::MOV_SS),
];

/// A host in VMX operation without a current VMCS.
fn host(shadowing: Use) -> (Box<VCpu>, Model) {
    let (mut vcpu, mut hw) = nested_on(shadowing);
    hw.put(OPERAND, GUEST);
    instruction(&mut vcpu, &mut hw, Reason::VMCLEAR, OPERAND);
    assert_eq!(vcpu.belief.current, None);
    (vcpu, hw)
}

#[test]
#[cfg_attr(
    miri,
    ignore = "the decoder that it compares with goes beyond what its own references allow"
)]
fn an_instruction_comes_to_what_the_table_says() {
    let mut served = 0;
    for (case, native) in TABLE.iter().filter_map(|case| Some((case, case.native?))) {
        for (cpl, compatibility) in [(0, false), (0, true), (3, false), (3, true)] {
            let place = Place { cpl, compatibility };
            let bits = if compatibility { 32 } else { 64 };
            let decoded = Decoder::with_ip(bits, case.code, PAGE, DecoderOptions::NONE).decode();
            assert_eq!(decoded.len(), case.code.len(), "{}", case.name);
            let expected = native.at(cpl, compatibility);
            match non_root(&decoded, case, place) {
                Cpu::Fails(outcome) => assert_eq!(outcome, expected, "{} {place:?}", case.name),
                Cpu::Runs => assert_eq!(Outcome::Passes, expected, "{} {place:?}", case.name),
                Cpu::Exits(reason) => {
                    // How an instruction ends does not depend on the shadow.
                    let plain = USES.map(|shadowing| (How::Plain, shadowing));
                    for (how, shadowing) in plain.into_iter().chain(HOW.map(|how| (how, Use::Off))) {
                        try_one(case, &decoded, place, reason, how, shadowing, expected);
                        served += 1;
                    }
                }
            }
        }
    }
    assert!(served >= LEAST, "L0 served {served} tries only");
}

fn try_one(
    case: &Case,
    decoded: &Instruction,
    place: Place,
    reason: Reason,
    how: How,
    shadowing: Use,
    expected: Outcome,
) {
    let name = format!("{} {place:?} {how:?} {shadowing:?}", case.name);
    let (mut vcpu, mut hw) = host(shadowing);
    report(&mut hw, &mut vcpu, case, decoded, place);
    let (rflags, blocking) = match how {
        How::Plain => (RFlags::empty(), Interruptibility::empty()),
        How::SingleStep => (RFlags::TRAP_FLAG, Interruptibility::empty()),
        How::ResumeFlag => (RFlags::RESUME_FLAG, Interruptibility::empty()),
        How::Behind(blocking) => (RFlags::INTERRUPT_FLAG, blocking),
    };
    hw.set(VMCS01, field::GUEST_RFLAGS, RFLAGS_CLEAR | rflags.bits());
    hw.set(VMCS01, field::GUEST_INTERRUPTIBILITY, blocking.bits());
    assert_eq!(exit_host(&mut vcpu, &mut hw, reason), Next::Host, "{name}");

    let after = |field| hw.field(VMCS01, field);
    let injected = Interruption(after(field::ENTRY_INTERRUPTION));
    let passed = after(field::GUEST_RIP) == PAGE + case.code.len() as u64;
    let came = match (passed, injected) {
        (true, Interruption(0)) => Outcome::Passes,
        (false, injected) if injected == Interruption::exception(ExceptionVector::InvalidOpcode, false) => {
            Outcome::InvalidOpcode
        }
        (false, injected) if injected == Interruption::exception(ExceptionVector::GeneralProtection, true) => {
            Outcome::GeneralProtection
        }
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(came, expected, "{name}");
    // A fault is at the instruction, and its handler returns with RF; what passed leaves RF clear.
    if !passed {
        assert_eq!(after(field::GUEST_RIP), PAGE, "{name}");
    }
    let rflags = RFlags::from_bits_retain(after(field::GUEST_RFLAGS));
    assert_eq!(rflags.contains(RFlags::RESUME_FLAG), !passed, "{name}");
    // An interrupt that waits is taken behind the instruction: nothing holds it back any longer.
    let blocking = Interruptibility::from_bits_retain(after(field::GUEST_INTERRUPTIBILITY));
    if passed {
        assert_eq!(blocking, Interruptibility::empty(), "{name}");
    }
    // So is the trap of a step.
    let pending = PendingDebug::from_bits_retain(after(field::GUEST_PENDING_DEBUG));
    let steps = pending.contains(PendingDebug::SINGLE_STEP);
    assert_eq!(steps, passed && how == How::SingleStep, "{name}");
}

/// Where operands lie is the host's RAM on the model, too.
const _: () = assert!(PAGE + DATA < 4 << 30);
