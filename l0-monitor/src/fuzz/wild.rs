//! A host that does anything at all: any exit, with any registers, memory and state.

use std::boxed::Box;
use std::vec::Vec;

use arbitrary::{Result, Unstructured};
use locum_abi::Event;

use super::STEPS;
use crate::arch::general::Register;
use crate::nested::context::{Context, Surroundings};
use crate::nested::exits::Next;
use crate::nested::host_area::{REPLACED, replaced};
use crate::nested::model::Model;
use crate::nested::shadow::Use;
use crate::nested::test_bed::{BITMAPS, GUEST, KVM_VMXON, OTHER, OWN_VMXON, SHADOW, VMCS01, nested_on};
use crate::nested::vcpu::VCpu;
use crate::partition::Violation;
use crate::partition::io_filter::Verdict;
use crate::vmx::exit::{IoAccess, Reason};
use crate::vmx::field::{self, Field, Segment};

/// L0's own memory; the rest below [`RAM_END`] is the host's, and behind that is the other's.
pub(super) const L0: core::ops::Range<u64> = 0x10_0000..0x20_0000;
const RAM_END: u64 = 4 << 30;

/// A partition that lets a host touch its own memory and nothing else.
pub(super) struct Around;

impl Surroundings<Model> for Around {
    fn may_touch(&self, address: u64, bytes: u64) -> bool {
        let end = address.checked_add(bytes).filter(|end| *end <= RAM_END);
        end.is_some_and(|end| end <= L0.start || address >= L0.end)
    }

    fn port(&self, _: &mut Model, io: IoAccess, value: u32) -> Verdict {
        match value % 3 {
            0 => Verdict::Power,
            _ if io.input => Verdict::Value(value),
            _ => Verdict::Done,
        }
    }

    fn violation(&self, address: u64, _: bool) -> Violation {
        match address >> 28 & 3 {
            0 => Violation::Retry,
            1 => Violation::Fatal,
            2 => Violation::IoApic,
            _ => Violation::Refused,
        }
    }

    fn ioapic(&self, _: &mut Model, _: u64, _: Option<u32>) -> u32 {
        0
    }

    fn trace(&self, event: Event) {
        assert!(!matches!(event, Event::VmxFail { .. }), "{event:?}");
    }
}

pub(super) fn context<'a>(vcpu: &'a mut VCpu, hw: &'a mut Model) -> Context<'a, Model> {
    Context {
        vcpu,
        hw,
        around: &Around,
    }
}

/// How the life's CPU uses VMCS shadowing.
pub(super) fn shadowing(u: &mut Unstructured<'_>) -> Use {
    match u.arbitrary::<u8>().unwrap_or(1) & 3 {
        0 => Use::Windows,
        1 => Use::Active,
        3 => Use::Cleared,
        _ => Use::Off,
    }
}

/// Addresses that a host may have in mind.
const ADDRESSES: [u64; 12] = [
    GUEST,
    OTHER,
    KVM_VMXON,
    OWN_VMXON,
    VMCS01,
    SHADOW,
    BITMAPS[0],
    0x20_3000,
    RAM_END - 0x1000,
    RAM_END,
    1 << 39,
    !0xfff,
];

/// Reasons for which a host exits or may exit, and some for which none does.
const REASONS: [Reason; 32] = [
    Reason::VMREAD,
    Reason::VMWRITE,
    Reason::VMRESUME,
    Reason::VMLAUNCH,
    Reason::VMPTRLD,
    Reason::VMCLEAR,
    Reason::VMPTRST,
    Reason::INVEPT,
    Reason::INVVPID,
    Reason::VMXON,
    Reason::VMXOFF,
    Reason::VMFUNC,
    Reason::CPUID,
    Reason::RDMSR,
    Reason::WRMSR,
    Reason::XSETBV,
    Reason::INVD,
    Reason::CR_ACCESS,
    Reason::IO,
    Reason::EPT_VIOLATION,
    Reason::INIT,
    Reason::VMCALL,
    Reason::EXCEPTION_NMI,
    Reason::MONITOR_TRAP,
    Reason::GETSEC,
    Reason::TRIPLE_FAULT,
    Reason::EXTERNAL_INTERRUPT,
    Reason::HLT,
    Reason::EPT_MISCONFIG,
    Reason::PREEMPTION_TIMER,
    Reason::PAUSE,
    Reason::PML_FULL,
];

/// State of the host that its exits depend on.
const STATE: [Field; 20] = [
    field::EXIT_QUALIFICATION,
    field::INSTRUCTION_INFO,
    field::GUEST_PHYSICAL_ADDRESS,
    field::EXIT_INTERRUPTION,
    field::IDT_VECTORING,
    field::GUEST_RIP,
    field::GUEST_RSP,
    field::GUEST_RFLAGS,
    field::GUEST_CR0,
    field::GUEST_CR3,
    field::GUEST_CR4,
    field::CR0_SHADOW,
    field::CR4_SHADOW,
    field::GUEST_EFER,
    field::GUEST_INTERRUPTIBILITY,
    field::GUEST_DEBUGCTL,
    Segment::Cs.guest_rights(),
    Segment::Ss.guest_rights(),
    Segment::Fs.guest_base(),
    Segment::Gs.guest_base(),
];

fn value(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => *u.choose(&ADDRESSES)?,
        1 => u64::from(u.arbitrary::<u16>()?),
        2 => 0x5000 + u64::from(u.arbitrary::<u8>()?) * 8,
        _ => u.arbitrary()?,
    })
}

struct World {
    vcpu: Box<VCpu>,
    hw: Model,
}

impl World {
    fn new(shadowing: Use) -> Self {
        let (vcpu, mut hw) = nested_on(shadowing);
        // From here on an access to it by its address panics.
        hw.private = L0;
        Self { vcpu, hw }
    }

    fn set(&mut self, vmcs: u64, field: Field, value: u64) {
        self.hw.set(vmcs, field, field.truncate(value));
    }

    /// The host is as a host on a CPU can be, and exits.
    fn host(&mut self, u: &mut Unstructured<'_>) -> Result<bool> {
        for _ in 0..u.int_in_range(0..=4)? {
            let (field, value) = (*u.choose(&STATE)?, value(u)?);
            self.set(VMCS01, field, value);
        }
        for _ in 0..u.int_in_range(0..=2)? {
            let (register, value) = (*u.choose(&Register::ALL)?, value(u)?);
            self.vcpu.gprs[register] = value;
        }
        if u.ratio(1, 3)? {
            let (at, value) = ((value(u)? % RAM_END) & !7, value(u)?);
            if !L0.contains(&at) {
                self.hw.put(at, value);
            }
        }
        if u.ratio(1, 2)? {
            // Able to name a memory operand.
            self.set(VMCS01, field::GUEST_CR3, 0x1000);
            self.set(VMCS01, Segment::Ss.guest_rights(), 0);
        }
        let reason = *u.choose(&REASONS)?;
        if reason == Reason::IO {
            // Sizes that there are.
            let qualification = self.hw.field(VMCS01, field::EXIT_QUALIFICATION) & !7 | u.choose(&[0, 1, 3])?;
            self.set(VMCS01, field::EXIT_QUALIFICATION, qualification);
        }
        if reason == Reason::EXCEPTION_NMI {
            let event = 0x8000_0300 | u64::from(u.arbitrary::<u8>()? & 31);
            self.set(VMCS01, field::EXIT_INTERRUPTION, event);
        }
        let entry_failure = if u.ratio(1, 40)? { 1 << 31 } else { 0 };
        self.set(VMCS01, field::EXIT_REASON, u64::from(reason.0) | entry_failure);
        self.set(VMCS01, field::INSTRUCTION_LENGTH, u.int_in_range(1..=15)?);
        let next = self.exit();
        Ok(match next {
            Next::Guest(launch) => self.enter(launch, u)?,
            // A call goes to the hypercalls; it is gone past.
            Next::Host | Next::Call => true,
            Next::Init | Next::Die(..) => false,
        })
    }

    fn exit(&mut self) -> Next {
        let was_guest = self.vcpu.in_guest;
        let mut context = context(&mut self.vcpu, &mut self.hw);
        let next = if context.steady() {
            if was_guest { Next::Host } else { Next::Guest(false) }
        } else {
            context.serve().0
        };
        self.check(next);
        next
    }

    /// The guest is entered, or cannot be; it does anything, and exits. False if that is the end.
    fn enter(&mut self, launch: bool, u: &mut Unstructured<'_>) -> Result<bool> {
        let current = self.hw.current.unwrap_or(0);
        let launched = self.hw.launched.contains(&current);
        let bad_area = self.hw.field(current, field::HOST_CR3) >> self.vcpu.caps.phys_bits != 0;
        if launch == launched || bad_area || u.ratio(1, 10)? {
            self.set(current, field::INSTRUCTION_ERROR, 7);
            let next = context(&mut self.vcpu, &mut self.hw).entry_failed(0x42);
            self.check(next);
            return Ok(next == Next::Host);
        }
        self.hw.launched.push(current);
        for _ in 0..u.int_in_range(0..=4)? {
            let (field, value) = (Field(u.int_in_range(0..=0x6fff)?), value(u)?);
            if field.area() != field::Area::Host && field.area() != field::Area::Control {
                self.set(current, field, value);
            }
        }
        let reason: u16 = u.int_in_range(0..=80)?;
        self.set(current, field::EXIT_REASON, reason.into());
        Ok(matches!(self.exit(), Next::Host))
    }

    /// What holds whenever L0 is done.
    fn check(&self, next: Next) {
        let (vcpu, hw) = (&self.vcpu, &self.hw);
        assert_eq!(vcpu.in_guest, matches!(next, Next::Guest(_)));
        if vcpu.in_guest {
            assert!(vcpu.belief.vmx_on && vcpu.belief.current.is_some());
            assert_eq!(hw.current, vcpu.belief.current, "the guest's own VMCS runs");
        } else {
            assert_eq!(hw.current, Some(VMCS01), "the host runs on VMCS01");
        }
        assert!(hw.vmxon.is_some(), "in VMX operation");
        if !vcpu.belief.vmx_on {
            assert_eq!(vcpu.belief.current, None);
            assert_eq!(vcpu.adopted.len(), 0);
        }
        let adopted: Vec<_> = vcpu.adopted.addresses().collect();
        if let Some(current) = vcpu.belief.current {
            assert!(adopted.contains(&current), "what is current is adopted");
        }
        for vmcs in &adopted {
            assert!(hw.active.contains(vmcs), "{vmcs:#x} was cleared");
            assert!(!L0.contains(vmcs) && *vmcs < RAM_END, "{vmcs:#x} is no host's");
            for (index, field) in REPLACED.into_iter().enumerate() {
                let bad = vcpu.in_guest && index == replaced::CR3;
                if !bad || Some(*vmcs) != vcpu.belief.current {
                    let held = hw.field(*vmcs, field);
                    assert_eq!(held, field.truncate(vcpu.own_area.0[index]), "{vmcs:#x} lands in L0");
                }
            }
        }
    }
}

/// Any host: nothing panics, an exit of a guest always lands in L0, and L0's memory is its own.
pub(super) fn wild(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut world = World::new(shadowing(&mut u));
    for _ in 0..STEPS {
        if u.is_empty() || !world.host(&mut u).unwrap_or(false) {
            break;
        }
    }
}
