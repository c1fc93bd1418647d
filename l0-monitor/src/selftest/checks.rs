//! What each CPU is tried for. See [`Check`].
#![expect(unsafe_code, reason = "brings the CPU into VMX operation, and sends INIT to it")]

use crate::arch::{cpuid, lapic, msr, registers, stack};
use crate::id::{self, CpuIndex};
use crate::nested::vcpu::{self, VCpu};
use crate::nested::{regions, transition};
use crate::selftest::costs;
use crate::selftest::guest::{Code, FIELD, Guest, Registers, unblock_nmis};
use crate::selftest::table::{Check, Outcome, Tried};
use crate::trap;
use crate::vmx::Hardware;
use crate::vmx::exit::{Interruption, Reason};
use crate::vmx::field;
use crate::vmx::instructions::Cpu;
use locum_abi::Slot;
use x86_64::structures::idt::ExceptionVector;

/// Tries this CPU, which is `cpu`.
pub(super) fn run(cpu: CpuIndex) -> Tried {
    let mut tried = Tried::default();
    // SAFETY: on L0's page tables with interrupts off, and no host runs: nobody else holds this CPU's state.
    let (vcpu, mut hw) = unsafe { (vcpu::of(cpu), Cpu::new()) };
    match transition::caps(&mut hw) {
        Ok(caps) => vcpu.caps = caps,
        Err(errno) => {
            tried.note(Check::Vmx, Outcome::Failed(errno as u64));
            return tried;
        }
    }
    tried.note(Check::Vmx, Outcome::Passed);
    vcpu.stack_top = stack::top(cpu);
    vcpu.own_area = transition::own_area(&mut hw, cpu, Slot::Even, 0);
    in_vmx(vcpu, &mut hw, cpu, &mut tried);
    tried
}

/// Brings the CPU into VMX operation, tries it, and leaves again.
fn in_vmx(vcpu: &VCpu, hw: &mut Cpu, cpu: CpuIndex, tried: &mut Tried) {
    let regions = regions::prepare(cpu, vcpu.caps.revision);
    registers::allow_vmx();
    let status = [
        hw.vmxon(regions.vmxon),
        hw.vmclear(regions.vmcs01),
        hw.vmptrld(regions.vmcs01),
    ];
    if let Some(failed) = status.iter().find(|status| !status.ok()) {
        tried.note(Check::Vmxon, Outcome::Failed(failed.apply(0)));
    } else {
        tried.note(Check::Vmxon, Outcome::Passed);
        let mut guest = Guest::new(hw, vcpu, cpu, regions);
        if tried.note(Check::Guest, runs(&mut guest)) {
            for (check, clear) in [(Check::ShadowCleared, true), (Check::Shadow, false)] {
                tried.note(check, shadow(&mut guest, vcpu.caps.shadowing, clear));
            }
            tried.note(Check::NmiHeld, nmi(&mut guest, cpu));
            tried.note(Check::Ept, ept(&mut guest));
            tried.note(Check::Cet, cet(&mut guest));
            costs::measure(&mut guest, vcpu.caps.revision, tried);
            if !tried.note(Check::Init, init(&mut guest, cpu)) {
                // It may come yet, and would reset the CPU outside VMX operation.
                return;
            }
            tried.note(Check::InitHeld, init_held(&mut guest, cpu));
        }
        hw.vmclear(regions.vmcs01);
    }
    hw.vmxoff();
    // SAFETY: VMXOFF has just been executed.
    unsafe { registers::forbid_vmx() };
}

/// Passed if the guest exited for `reason`.
fn exited(result: Result<(crate::vmx::exit::ExitReason, Registers), u64>, reason: Reason) -> Outcome {
    match result {
        Ok((exit, _)) if exit.0 == u32::from(reason.0) => Outcome::Passed,
        Ok((exit, _)) => Outcome::Failed(exit.0.into()),
        Err(rflags) => Outcome::Failed(rflags),
    }
}

fn runs(guest: &mut Guest<'_>) -> Outcome {
    for value in [0x1234_5678_9abc, !0] {
        let registers = Registers {
            rax: value,
            rbx: value - 1,
            rcx: value - 2,
        };
        let result = guest.run(Code::Call, registers);
        match exited(result, Reason::VMCALL) {
            Outcome::Passed => {}
            failed => return failed,
        }
        if result.is_ok_and(|(_, after)| after != registers) {
            return Outcome::Failed(value);
        }
    }
    Outcome::Passed
}

fn shadow(guest: &mut Guest<'_>, has: bool, clear: bool) -> Outcome {
    if !has {
        return Outcome::Absent;
    }
    guest.hw.vmclear(guest.regions.shadow);
    guest.attach_shadow();
    let outcome = shadow_both_ways(guest, clear);
    guest.detach_shadow();
    guest.hw.vmclear(guest.regions.shadow);
    outcome
}

fn shadow_both_ways(guest: &mut Guest<'_>, clear: bool) -> Outcome {
    let field = u64::from(FIELD.0);
    for value in 1..=16_u64 {
        let down = value << 32 | 0x5a;
        guest.with_shadow(clear, |hw| hw.put(FIELD, down));
        let registers = Registers {
            rcx: field,
            ..Registers::default()
        };
        match guest.run(Code::Read, registers) {
            Ok((exit, after)) if exit.basic() == Reason::VMCALL && after.rax == down => {}
            Ok((exit, after)) if exit.basic() == Reason::VMCALL => return Outcome::Failed(after.rax),
            other => return exited(other, Reason::VMCALL),
        }
        let up = down + 1;
        let registers = Registers {
            rax: up,
            rcx: field,
            ..registers
        };
        let result = guest.run(Code::Write, registers);
        if exited(result, Reason::VMCALL) != Outcome::Passed {
            return exited(result, Reason::VMCALL);
        }
        if clear {
            guest.hw.vmclear(guest.regions.shadow);
        }
        let found = guest.with_shadow(clear, |hw| hw.get(FIELD));
        if found != up {
            return Outcome::Failed(found);
        }
    }
    Outcome::Passed
}

/// The way of every NMI that comes while L0 serves a host: see [`trap`].
fn nmi(guest: &mut Guest<'_>, cpu: CpuIndex) -> Outcome {
    guest.exit_by_nmi(true);
    trap::hold_nmis_of(cpu, true);
    lapic::send_nmi_self();
    let result = guest.run(Code::Call, Registers::default());
    trap::hold_nmis_of(cpu, false);
    let outcome = match exited(result, Reason::EXCEPTION_NMI) {
        Outcome::Passed => match Interruption(guest.hw.get(field::EXIT_INTERRUPTION)) {
            nmi if nmi.is_nmi() => Outcome::Passed,
            other => Outcome::Failed(other.0),
        },
        failed => failed,
    };
    unblock_nmis();
    guest.exit_by_nmi(false);
    // And once only.
    match exited(guest.run(Code::Call, Registers::default()), Reason::VMCALL) {
        Outcome::Passed => outcome,
        failed => failed,
    }
}

fn ept(guest: &mut Guest<'_>) -> Outcome {
    for allowed in [true, false, true] {
        guest.allow(allowed);
        let status = guest.flush();
        if !status.ok() {
            return Outcome::Failed(status.apply(0));
        }
        let as_expected = match guest.probe() {
            Ok((Reason::VMCALL, value)) => allowed && Guest::is_probe(value),
            Ok((Reason::EPT_VIOLATION, _)) => !allowed,
            Ok((other, _)) => return Outcome::Failed(other.0.into()),
            Err(rflags) => return Outcome::Failed(rflags),
        };
        if !as_expected {
            return Outcome::Failed(allowed.into());
        }
    }
    Outcome::Passed
}

/// IA32_S_CET, ENDBR_EN: indirect branches of the supervisor are tracked (SDM vol. 1, 17.3.1).
const ENDBR_EN: u64 = 1 << 2;

/// A host's IA32_S_CET stays in the CPU while L0 runs, and means nothing there.
fn cet(guest: &mut Guest<'_>) -> Outcome {
    if !cpuid::has_ibt() {
        return Outcome::Absent;
    }
    let before = guest.hw.rdmsr(msr::S_CET).unwrap_or(0);
    if !guest.hw.wrmsr(msr::S_CET, ENDBR_EN) {
        return Outcome::Failed(before);
    }
    guest.set_cet(true);
    let outcome = tracked(guest);
    guest.set_cet(false);
    guest.hw.wrmsr(msr::S_CET, before);
    outcome
}

fn tracked(guest: &mut Guest<'_>) -> Outcome {
    for (endbr, reason) in [(true, Reason::VMCALL), (false, Reason::EXCEPTION_NMI)] {
        let registers = Registers {
            rbx: Guest::landing(endbr),
            ..Registers::default()
        };
        let outcome = exited(guest.run(Code::Jump, registers), reason);
        if outcome != Outcome::Passed {
            return outcome;
        }
        if registers::cr4().contains(registers::CR4_CET) {
            return Outcome::Failed(registers::cr4().bits());
        }
        let left = guest.hw.rdmsr(msr::S_CET).unwrap_or(0);
        if endbr && left != ENDBR_EN {
            return Outcome::Failed(left);
        }
    }
    let event = Interruption(guest.hw.get(field::EXIT_INTERRUPTION));
    if event.is_exception(ExceptionVector::ControlProtection) {
        Outcome::Passed
    } else {
        Outcome::Failed(event.0)
    }
}

/// The guest sends INIT to its own CPU: as one of a dead host's, which runs, gets it from another.
fn init(guest: &mut Guest<'_>, cpu: CpuIndex) -> Outcome {
    let registers = Registers {
        rax: lapic::INIT.into(),
        rbx: lapic::registers_at().unwrap_or(0),
        rcx: id::apic_id(cpu).into(),
    };
    guest.allow_msrs(true);
    let result = guest.run(Code::Init, registers);
    guest.allow_msrs(false);
    exited(result, Reason::INIT)
}

/// How often a guest is entered until an INIT counts as lost.
const TRIES: u32 = 1000;

/// INIT is sent in VMX root. An emulator may lose it, and L0 then sends another.
fn init_held(guest: &mut Guest<'_>, cpu: CpuIndex) -> Outcome {
    // SAFETY: the CPU is in VMX root, which holds it.
    unsafe { lapic::send_init(id::apic_id(cpu)) };
    for _ in 0..TRIES {
        let result = guest.run(Code::Call, Registers::default());
        if exited(result, Reason::VMCALL) != Outcome::Passed {
            return exited(result, Reason::INIT);
        }
    }
    Outcome::Absent
}
