//! A host with its KVM and guests, three times: natively, above L0 with its steady path, and above L0 without.
//!
//! All three do the same. What a host sees of its VMX instructions and of its guests' exits must be the same, and so must
//! its VMCSs be, once L0 has left.

use std::boxed::Box;
use std::collections::BTreeSet;
use std::vec::Vec;

use arbitrary::{Result, Unstructured};

use super::STEPS;
use super::wild::{L0, context, shadowing};
use crate::arch::general::Register;
use crate::nested::exits::Next;
use crate::nested::host_area::{HostArea, REPLACED, replaced};
use crate::nested::model::{Model, REVISION};
use crate::nested::shadow::Use;
use crate::nested::test_bed::{
    CR4_ALLOWED, FIXED, GUEST, KVM_EFER, KVM_VMXON, OTHER, RIP, VMCS01, kvm_value, landing, nested_on,
};
use crate::nested::vcpu::VCpu;
use crate::vmx::controls::SecondaryControls;
use crate::vmx::exit::{InstructionInfo, Interruption, Reason};
use crate::vmx::field::{self, Area, Field, Segment};
use crate::vmx::guest::AccessRights;
use crate::vmx::hardware::Invalidate;
use crate::vmx::{Hardware, VmxStatus};

/// Where a host has its operands.
const OPERAND: u64 = 0x5000;
const RESULT: u64 = 0x6000;
/// VMCSs that a host can have: more than L0 can have adopted.
const VMCSS: u64 = 160;
/// An address that no VMPTRLD accepts.
const NOWHERE: u64 = 1 << 50;

/// Errors of VM entry (SDM vol. 3C, 31.4).
const LAUNCH_OF_LAUNCHED: u64 = 4;
const RESUME_OF_CLEAR: u64 = 5;
const BAD_HOST_STATE: u64 = 8;

/// Fields that a host writes, those more often that L0 treats in a way of their own.
const WRITTEN: [Field; 24] = [
    field::HOST_CR0,
    field::HOST_CR3,
    field::HOST_CR4,
    field::HOST_RSP,
    field::HOST_RIP,
    field::HOST_CS_SELECTOR,
    field::HOST_FS_BASE,
    field::HOST_GDTR_BASE,
    field::HOST_TR_SELECTOR,
    field::HOST_TR_BASE,
    field::HOST_SYSENTER_EIP,
    field::HOST_EFER,
    field::EXIT_CONTROLS,
    field::PRIMARY_CONTROLS,
    field::SECONDARY_CONTROLS,
    field::TPR_THRESHOLD,
    field::ENTRY_INTERRUPTION,
    field::PREEMPTION_TIMER,
    field::GUEST_RIP,
    field::GUEST_RFLAGS,
    field::GUEST_INTERRUPTIBILITY,
    field::GUEST_INTERRUPT_STATUS,
    field::PML_INDEX,
    field::GUEST_CR3,
];

/// What an exit of a guest may report.
const EXIT: [Field; 5] = [
    field::EXIT_QUALIFICATION,
    field::EXIT_INTERRUPTION,
    field::IDT_VECTORING,
    field::INSTRUCTION_LENGTH,
    field::GUEST_PHYSICAL_ADDRESS,
];

/// What a guest changes while it runs.
const GUESTS: [Field; 7] = [
    field::GUEST_RIP,
    field::GUEST_RSP,
    field::GUEST_RFLAGS,
    field::GUEST_CR3,
    field::GUEST_INTERRUPTIBILITY,
    Segment::Cs.guest_rights(),
    Segment::Ss.guest_rights(),
];

/// Exits of a guest with a qualification, and those with an address.
const QUALIFIED: [Reason; 10] = [
    Reason::INVLPG,
    Reason::CR_ACCESS,
    Reason::MOV_DR,
    Reason::IO,
    Reason::MWAIT,
    Reason::APIC_ACCESS,
    Reason::VIRTUALIZED_EOI,
    Reason::EPT_VIOLATION,
    Reason::APIC_WRITE,
    Reason::PML_FULL,
];
const WITH_ADDRESS: [Reason; 2] = [Reason::EPT_VIOLATION, Reason::EPT_MISCONFIG];

/// A CPU with L0 and the host above it.
struct Cpu {
    vcpu: Box<VCpu>,
    hw: Model,
    steady: bool,
}

impl Cpu {
    fn new(shadowing: Use, steady: bool) -> Self {
        let (vcpu, mut hw) = nested_on(shadowing);
        hw.private = L0;
        hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
        hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
        hw.set(VMCS01, field::GUEST_EFER, KVM_EFER.bits());
        Self { vcpu, hw, steady }
    }

    fn exit(&mut self, vmcs: u64, reason: Reason) -> Next {
        self.hw.set(vmcs, field::EXIT_REASON, reason.0.into());
        let was_guest = self.vcpu.in_guest;
        let mut context = context(&mut self.vcpu, &mut self.hw);
        if self.steady && context.steady() {
            return if was_guest { Next::Host } else { Next::Guest(false) };
        }
        context.serve().0
    }

    /// A VMX instruction with an operand in memory; `register` is what its register operand, RDX, holds.
    fn instruction(&mut self, reason: Reason, operand: u64, register: u64) -> VmxStatus {
        let info = 2 << InstructionInfo::ADDRESS_SIZE | InstructionInfo::NO_INDEX | InstructionInfo::NO_BASE;
        let info = info | (Register::Rdx as u32) << InstructionInfo::REGISTER2;
        self.vcpu.gprs[Register::Rdx] = register;
        self.hw.set(VMCS01, field::GUEST_CR3, 0x1000);
        self.hw.set(VMCS01, field::INSTRUCTION_INFO, info.into());
        self.hw.set(VMCS01, field::EXIT_QUALIFICATION, operand);
        self.finished(reason)
    }

    /// The host executes an instruction that exits, and goes on.
    fn finished(&mut self, reason: Reason) -> VmxStatus {
        self.hw.set(VMCS01, field::GUEST_RIP, RIP);
        self.hw.set(VMCS01, field::INSTRUCTION_LENGTH, 4);
        self.hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
        assert_eq!(self.exit(VMCS01, reason), Next::Host);
        self.went_on(4);
        VmxStatus::from_rflags(self.hw.field(VMCS01, field::GUEST_RFLAGS))
    }

    fn went_on(&self, length: u64) {
        assert_eq!(self.hw.current, Some(VMCS01));
        assert_eq!(self.hw.field(VMCS01, field::ENTRY_INTERRUPTION), 0, "no exception");
        assert_eq!(self.hw.field(VMCS01, field::GUEST_RIP), RIP + length);
    }

    /// VMREAD or VMWRITE, with an exit or without.
    fn access(&mut self, reason: Reason, field: Field, value: u64) -> (VmxStatus, u64) {
        let direct = if reason == Reason::VMREAD {
            let read = self.hw.host_vmread(VMCS01, field);
            read.map(|read| read.map_or_else(|status| (status, value), |read| (VmxStatus::Succeed, read)))
        } else {
            let written = self.hw.host_vmwrite(VMCS01, field, value);
            written.map(|status| (status, value))
        };
        if let Some(done) = direct {
            return done;
        }
        self.vcpu.gprs[Register::Rax] = value;
        self.vcpu.gprs[Register::Rcx] = field.0.into();
        let info = InstructionInfo::REGISTER | (Register::Rcx as u32) << InstructionInfo::REGISTER2;
        self.hw.set(VMCS01, field::INSTRUCTION_INFO, info.into());
        (self.finished(reason), self.vcpu.gprs[Register::Rax])
    }

    /// L0 leaves: what is in the host's VMCSs is the host's again.
    fn leave(&mut self) {
        let mut context = context(&mut self.vcpu, &mut self.hw);
        context.leave_steady();
        context.vcpu.shadow.clear(context.hw);
        context.give_back_all();
    }
}

/// The three.
struct World {
    above: [Cpu; 2],
    native: Model,
    /// The last exit of a guest had an address; without one, that field is undefined.
    has_address: bool,
    /// VMWRITE reaches every field.
    writes_all: bool,
}

impl World {
    fn new(shadowing: Use) -> Self {
        let above = [true, false].map(|steady| Cpu::new(shadowing, steady));
        let mut native = Model::new(KVM_VMXON, GUEST);
        native.writes_all = shadowing != Use::Off;
        for vmcs in [GUEST, OTHER] {
            let fields = above[0].hw.vmcs[&vmcs].clone();
            native.vmcs.insert(vmcs, fields);
            for (index, field) in REPLACED.into_iter().enumerate() {
                native.set(vmcs, field, kvm_value(vmcs, index));
            }
        }
        Self {
            above,
            native,
            has_address: false,
            writes_all: shadowing != Use::Off,
        }
    }

    /// The host stores a word.
    fn store(&mut self, address: u64, value: u64) {
        for cpu in &mut self.above {
            cpu.hw.put(address, value);
        }
    }

    /// All three end an instruction alike.
    #[track_caller]
    fn same(&mut self, native: VmxStatus, mut above: impl FnMut(&mut Cpu) -> VmxStatus) {
        for cpu in &mut self.above {
            assert_eq!(above(cpu), native, "steady: {}", cpu.steady);
        }
    }

    fn vmcs(u: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match u.int_in_range(0..=9)? {
            0..=2 => GUEST,
            3 | 4 => OTHER,
            5..=7 => GUEST + u.int_in_range(0..=VMCSS)? * 0x1000,
            8 => KVM_VMXON,
            _ => *u.choose(&[GUEST + 8, NOWHERE, VMCS01, 4 << 30])?,
        })
    }

    /// What natively stands for an address that a host above L0 may not name.
    fn allowed(address: u64) -> u64 {
        if L0.contains(&address) || address >= 4 << 30 {
            NOWHERE
        } else {
            address
        }
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        if !self.above[0].vcpu.belief.vmx_on {
            return self.vmxon(u);
        }
        match u.int_in_range(0..=19)? {
            0..=2 => {
                let phys = Self::vmcs(u)?;
                self.store(OPERAND, phys);
                let native = self.native.vmptrld(Self::allowed(phys));
                self.same(native, |cpu| cpu.instruction(Reason::VMPTRLD, OPERAND, 0));
            }
            3 => {
                let phys = Self::vmcs(u)?;
                self.store(OPERAND, phys);
                let native = self.native.vmclear(Self::allowed(phys));
                self.same(native, |cpu| cpu.instruction(Reason::VMCLEAR, OPERAND, 0));
            }
            4..=7 => self.vmwrite(u)?,
            8 | 9 => {
                let field = Self::field(u)?;
                self.vmread(field);
            }
            10 => {
                self.same(VmxStatus::Succeed, |cpu| cpu.instruction(Reason::VMPTRST, RESULT, 0));
                let current = self.native.vmptrst();
                for cpu in &mut self.above {
                    assert_eq!(cpu.hw.read_phys(RESULT, 8), current);
                }
            }
            11 => {
                let kind = u.int_in_range(0..=5)?;
                let native = self.native.invalidate(Invalidate::Ept, kind, [0; 2]);
                self.same(native, |cpu| cpu.instruction(Reason::INVEPT, OPERAND, kind));
            }
            12 => {
                // No VMX instruction: L0 has no part in what the host's VMCSs are.
                let reason = *u.choose(&[Reason::CPUID, Reason::RDMSR, Reason::VMCALL])?;
                if reason == Reason::VMCALL {
                    let native = self.native.vmcall();
                    self.same(native, |cpu| {
                        cpu.vcpu.gprs[Register::Rax] = 5;
                        cpu.finished(reason)
                    });
                } else {
                    for cpu in &mut self.above {
                        assert_eq!(cpu.exit(VMCS01, reason), Next::Host);
                    }
                }
            }
            13 if u.ratio(1, 4)? => {
                self.native.vmxoff();
                self.same(VmxStatus::Succeed, |cpu| cpu.finished(Reason::VMXOFF));
            }
            _ => self.run_guest(u)?,
        }
        Ok(())
    }

    fn vmxon(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let region = *u.choose(&[KVM_VMXON, 0x21_0000, VMCS01, NOWHERE])?;
        let is_hosts = Self::allowed(region) != NOWHERE;
        let good = u.ratio(3, 4)? && is_hosts;
        if is_hosts {
            self.store(region, if good { REVISION.into() } else { 0 });
        }
        self.store(OPERAND, region);
        let native = if good {
            self.native.vmxon(region)
        } else {
            VmxStatus::FailInvalid
        };
        self.same(native, |cpu| {
            cpu.hw.set(VMCS01, field::CR4_SHADOW, CR4_ALLOWED.bits());
            cpu.instruction(Reason::VMXON, OPERAND, 0)
        });
        Ok(())
    }

    /// Encodings of whole fields, known or not.
    fn field(u: &mut Unstructured<'_>) -> Result<Field> {
        Ok(match u.int_in_range(0..=3)? {
            0 => *u.choose(&EXIT)?,
            1 => Field(u.int_in_range(0..=0x7800)? & !1),
            _ => *u.choose(&WRITTEN)?,
        })
    }

    fn vmwrite(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let field = Self::field(u)?;
        if field == field::INSTRUCTION_ERROR || field.area() == Area::ExitInformation && !u.ratio(1, 4)? {
            return Ok(());
        }
        let index = REPLACED.iter().position(|replaced| *replaced == field);
        let value = match index {
            // Mostly good ones, or no guest would ever run.
            Some(index) if u.ratio(7, 8)? => match index {
                replaced::RSP => u.arbitrary()?,
                _ => kvm_value(*u.choose(&[GUEST, OTHER])?, index),
            },
            _ if field == field::EXIT_CONTROLS => {
                self.native.vmread(field).unwrap_or(0) ^ u.choose(&[0, 1 << 21, 1 << 2])?
            }
            _ => u.arbitrary()?,
        };
        let native = self.native.vmwrite(field, value);
        self.same(native, |cpu| cpu.access(Reason::VMWRITE, field, value).0);
        Ok(())
    }

    fn vmread(&mut self, field: Field) {
        if field == field::GUEST_PHYSICAL_ADDRESS && !self.has_address {
            return;
        }
        let (status, value) = match self.native.vmread(field) {
            Ok(value) => (VmxStatus::Succeed, value),
            Err(status) => (status, 7),
        };
        for cpu in &mut self.above {
            let seen = cpu.access(Reason::VMREAD, field, 7);
            assert_eq!(seen, (status, value), "{field:x?}, steady: {}", cpu.steady);
        }
    }

    /// Why the host's VMCS cannot be entered.
    fn refused(hw: &mut Model, caps: &crate::vmx::caps::Caps, launch: bool, above_l0: bool) -> Option<u64> {
        let current = hw.current?;
        let area = HostArea::read(hw);
        let bad = if above_l0 {
            area.0[replaced::CR3] >> caps.phys_bits != 0
        } else {
            !area.valid(caps)
        };
        match (launch, hw.launched.contains(&current)) {
            (true, true) => Some(LAUNCH_OF_LAUNCHED),
            (false, false) => Some(RESUME_OF_CLEAR),
            _ if bad => Some(BAD_HOST_STATE),
            _ => None,
        }
    }

    fn run_guest(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let current = self.native.current;
        let launched = current.is_some_and(|current| self.native.launched.contains(&current));
        let launch = if u.ratio(1, 16)? { launched } else { !launched };
        let reason = if launch { Reason::VMLAUNCH } else { Reason::VMRESUME };
        let Some(current) = current else {
            self.same(VmxStatus::FailInvalid, |cpu| cpu.finished(reason));
            return Ok(());
        };
        let caps = &self.above[0].vcpu.caps;
        let refused = Self::refused(&mut self.native, caps, launch, false);
        for cpu in &mut self.above {
            cpu.hw.set(VMCS01, field::GUEST_RIP, RIP);
            cpu.hw.set(VMCS01, field::INSTRUCTION_LENGTH, 4);
            cpu.hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            // An exit for an instruction saves none (SDM vol. 3C, 29.3.4).
            cpu.hw.set(VMCS01, field::GUEST_PENDING_DEBUG, 0);
            assert_eq!(cpu.exit(VMCS01, reason), Next::Guest(launch));
            assert_eq!(cpu.hw.current, Some(current));
            let above = Self::refused(&mut cpu.hw, &cpu.vcpu.caps, launch, true);
            assert_eq!(above, refused, "steady: {}", cpu.steady);
        }
        if let Some(error) = refused {
            self.native.set(current, field::INSTRUCTION_ERROR, error);
            for cpu in &mut self.above {
                cpu.hw.set(current, field::INSTRUCTION_ERROR, error);
                let next = context(&mut cpu.vcpu, &mut cpu.hw).entry_failed(VmxStatus::FailValid.apply(2));
                assert_eq!(next, Next::Host);
                cpu.went_on(4);
                let rflags = cpu.hw.field(VMCS01, field::GUEST_RFLAGS);
                assert_eq!(VmxStatus::from_rflags(rflags), VmxStatus::FailValid);
            }
            return Ok(());
        }
        self.guest(current, u)?;
        self.land(current);
        Ok(())
    }

    /// The guest runs and exits: the same in all three.
    fn guest(&mut self, current: u64, u: &mut Unstructured<'_>) -> Result<()> {
        let mut changes = Vec::new();
        let entry = self.native.field(current, field::ENTRY_INTERRUPTION);
        changes.push((field::ENTRY_INTERRUPTION, entry & !Interruption::VALID));
        for _ in 0..u.int_in_range(0..=3)? {
            changes.push((*u.choose(&GUESTS)?, u.arbitrary()?));
        }
        let controls = self.native.field(current, field::SECONDARY_CONTROLS) as u32;
        let controls = SecondaryControls::from_bits_retain(controls);
        for (field, needs) in [
            (field::GUEST_INTERRUPT_STATUS, SecondaryControls::VIRTUAL_INTERRUPTS),
            (field::PML_INDEX, SecondaryControls::PML),
        ] {
            if controls.contains(needs) && u.ratio(1, 4)? {
                changes.push((field, u.arbitrary()?));
            }
        }
        let reason = Reason(u.int_in_range(0..=63)?);
        let reason = if reason == Reason::INIT { Reason::CPUID } else { reason };
        self.has_address = WITH_ADDRESS.contains(&reason);
        let interrupted = matches!(reason, Reason::EXCEPTION_NMI | Reason::EXTERNAL_INTERRUPT);
        let event = |u: &mut Unstructured<'_>, valid: bool| -> Result<u64> {
            Ok(if valid {
                u.arbitrary::<u64>()? & 0x7ff | Interruption::VALID
            } else {
                0
            })
        };
        let qualification = if QUALIFIED.contains(&reason) { u.arbitrary()? } else { 0 };
        changes.push((field::EXIT_REASON, reason.0.into()));
        changes.push((field::EXIT_QUALIFICATION, qualification));
        changes.push((field::EXIT_INTERRUPTION, event(u, interrupted)?));
        let vectoring = u.ratio(1, 8)?;
        changes.push((field::IDT_VECTORING, event(u, vectoring)?));
        changes.push((field::INSTRUCTION_LENGTH, u.int_in_range(1..=15)?));
        if self.has_address {
            changes.push((field::GUEST_PHYSICAL_ADDRESS, u.arbitrary()?));
        }
        let models = self.above.iter_mut().map(|cpu| &mut cpu.hw);
        for hw in models.chain([&mut self.native]) {
            if !hw.launched.contains(&current) {
                hw.launched.push(current);
            }
            for (field, value) in &changes {
                hw.set(current, *field, field.truncate(*value));
            }
        }
        let reason = self.native.field(current, field::EXIT_REASON);
        for cpu in &mut self.above {
            assert_eq!(cpu.exit(current, Reason(reason as u16)), Next::Host);
        }
        Ok(())
    }

    /// The host finds itself where its VMCS says.
    fn land(&mut self, current: u64) {
        for cpu in &self.above {
            assert_eq!((cpu.hw.current, cpu.vcpu.in_guest), (Some(VMCS01), false));
            for (lands, host) in [
                (field::GUEST_RIP, field::HOST_RIP),
                (field::GUEST_RSP, field::HOST_RSP),
                (field::GUEST_CR3, field::HOST_CR3),
                (Segment::Fs.guest_base(), field::HOST_FS_BASE),
                (Segment::Gs.guest_base(), field::HOST_GS_BASE),
                (field::GUEST_GDTR_BASE, field::HOST_GDTR_BASE),
                (field::GUEST_IDTR_BASE, field::HOST_IDTR_BASE),
                (Segment::Tr.guest_base(), field::HOST_TR_BASE),
            ] {
                let found = cpu.hw.field(VMCS01, lands);
                assert_eq!(
                    found,
                    self.native.field(current, host),
                    "{host:x?}, steady: {}",
                    cpu.steady
                );
            }
        }
        let [steady, ordinary] = &self.above;
        assert_eq!(landing(&steady.vcpu, &steady.hw), landing(&ordinary.vcpu, &ordinary.hw));
    }

    fn check(&self) {
        for cpu in &self.above {
            let belief = cpu.vcpu.belief;
            assert_eq!(
                (belief.vmx_on, belief.current),
                (self.native.vmxon.is_some(), self.native.current)
            );
            for vmcs in cpu.vcpu.adopted.addresses() {
                assert!(
                    self.native.active.contains(&vmcs),
                    "{vmcs:#x} is adopted and not active"
                );
            }
        }
    }

    /// L0 leaves: everything is as natively.
    fn end(&mut self) {
        let undefined = [field::GUEST_PHYSICAL_ADDRESS.0];
        for cpu in &mut self.above {
            cpu.leave();
            assert_eq!(cpu.vcpu.adopted.len(), 0);
            let own = |vmcs: &u64| L0.contains(vmcs);
            let active: BTreeSet<_> = cpu.hw.active.iter().copied().filter(|vmcs| !own(vmcs)).collect();
            assert_eq!(active, self.native.active);
            let launched: BTreeSet<_> = cpu.hw.launched.iter().copied().collect();
            assert_eq!(launched, self.native.launched.iter().copied().collect());
            for (vmcs, fields) in &self.native.vmcs {
                let above = &cpu.hw.vmcs[vmcs];
                for code in fields.keys().chain(above.keys()) {
                    if undefined.contains(code) {
                        continue;
                    }
                    let (now, native) = (
                        cpu.hw.field(*vmcs, Field(*code)),
                        self.native.field(*vmcs, Field(*code)),
                    );
                    assert_eq!(now, native, "{vmcs:#x}, field {code:#x}, steady: {}", cpu.steady);
                }
            }
        }
    }
}

/// A host sees no difference, whatever it does, and after it none is left.
pub(super) fn life(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut world = World::new(shadowing(&mut u));
    for _ in 0..STEPS {
        if u.is_empty() || world.step(&mut u).is_err() {
            break;
        }
        world.check();
    }
    world.end();
}
