//! The steady state against the ordinary way: the same life of a host and its guest, once with and once without, must
//! look the same to both.

use std::boxed::Box;
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::nested::exits::Next;
use crate::nested::model::{Done, Model};
use crate::nested::shadow::Use;
use crate::nested::shadow_tests::shadowed_without;
use crate::nested::steady::Steady;
use crate::nested::test_bed::{FIXED, GUEST, USES, VMCS01, access, context, instruction, landing, nested_on};
use crate::nested::vcpu::VCpu;
use crate::vmx::controls::{ExitControls, SecondaryControls};
use crate::vmx::exit::{Interruption, Reason};
use crate::vmx::field::{self, Area, Field, Segment};
use crate::vmx::guest::{AccessRights, Interruptibility};

/// Numbers that look random and are the same each time (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 20
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Often one that was there before.
    fn value_of(&mut self, field: Field) -> u64 {
        let end = if self.below(2) == 0 { 2 } else { 1 << 40 };
        field.truncate(self.below(end))
    }

    fn of(&mut self, fields: &[Field]) -> Field {
        fields[self.below(fields.len() as u64) as usize]
    }
}

/// What exits of these reasons report, in the words of SDM vol. 3C, 29.2.
fn exit_information(reason: Reason, numbers: &mut Numbers) -> Vec<(Field, u64)> {
    let event = numbers.next() & 0xffff | Interruption::VALID;
    let qualified = matches!(
        reason,
        Reason::INVLPG
            | Reason::CR_ACCESS
            | Reason::MOV_DR
            | Reason::IO
            | Reason::MWAIT
            | Reason::APIC_ACCESS
            | Reason::VIRTUALIZED_EOI
            | Reason::EPT_VIOLATION
            | Reason::APIC_WRITE
            | Reason::PML_FULL
    );
    let interrupted = matches!(reason, Reason::EXCEPTION_NMI | Reason::EXTERNAL_INTERRUPT);
    let mut fields = Vec::from([
        (field::EXIT_REASON, reason.0.into()),
        (field::EXIT_QUALIFICATION, if qualified { numbers.next() } else { 0 }),
        (field::EXIT_INTERRUPTION, if interrupted { event } else { 0 }),
        (field::IDT_VECTORING, if numbers.below(8) == 0 { event } else { 0 }),
        (field::INSTRUCTION_LENGTH, 1 + numbers.below(15)),
    ]);
    if has_address(reason) {
        fields.push((field::GUEST_PHYSICAL_ADDRESS, numbers.next()));
    }
    fields
}

fn has_address(reason: Reason) -> bool {
    matches!(reason, Reason::EPT_VIOLATION | Reason::EPT_MISCONFIG)
}

/// Exits of a guest, usual ones more often.
const REASONS: [Reason; 17] = [
    Reason::EXCEPTION_NMI,
    Reason::EXTERNAL_INTERRUPT,
    Reason::EXTERNAL_INTERRUPT,
    Reason::INTERRUPT_WINDOW,
    Reason::CPUID,
    Reason::CPUID,
    Reason::HLT,
    Reason::CR_ACCESS,
    Reason::IO,
    Reason::RDMSR,
    Reason::WRMSR,
    Reason::VIRTUALIZED_EOI,
    Reason::EPT_VIOLATION,
    Reason::EPT_VIOLATION,
    Reason::EPT_MISCONFIG,
    Reason::PREEMPTION_TIMER,
    Reason::PML_FULL,
];

/// Fields that a guest changes while it runs.
const GUESTS: [Field; 8] = [
    field::GUEST_RIP,
    field::GUEST_RFLAGS,
    field::GUEST_RSP,
    field::GUEST_CR3,
    field::GUEST_INTERRUPTIBILITY,
    field::GUEST_INTERRUPT_STATUS,
    field::PML_INDEX,
    Segment::Cs.guest_rights(),
];

/// Fields that a host writes.
const HOSTS: [Field; 16] = [
    field::SECONDARY_CONTROLS,
    field::TPR_THRESHOLD,
    field::GUEST_RIP,
    field::GUEST_RFLAGS,
    field::GUEST_INTERRUPTIBILITY,
    field::GUEST_INTERRUPT_STATUS,
    field::PML_INDEX,
    field::PRIMARY_CONTROLS,
    field::PREEMPTION_TIMER,
    field::ENTRY_INTERRUPTION,
    field::GUEST_CR3,
    field::HOST_RSP,
    field::HOST_FS_BASE,
    field::HOST_SYSENTER_EIP,
    field::HOST_TR_BASE,
    field::EXIT_REASON,
];

/// What the host changes of itself without an exit.
fn host_lives(hw: &mut Model, numbers: &mut Numbers) {
    for field in [
        field::GUEST_RIP,
        field::GUEST_RSP,
        field::GUEST_CR3,
        field::GUEST_RFLAGS,
        field::GUEST_DR7,
        field::GUEST_DEBUGCTL,
        field::GUEST_SYSENTER_ESP,
        Segment::Fs.guest_base(),
        Segment::Gs.guest_base(),
    ] {
        if numbers.below(3) == 0 {
            hw.set(VMCS01, field, numbers.next());
        }
    }
    if numbers.below(4) == 0 {
        hw.set(VMCS01, field::GUEST_INTERRUPTIBILITY, Interruptibility::STI.bits());
        hw.set(VMCS01, Segment::Tr.guest_limit(), 0x206f);
        hw.set(VMCS01, field::GUEST_GDTR_LIMIT, 0x7f);
        let cr4 = hw.field(VMCS01, field::GUEST_CR4);
        hw.set(VMCS01, field::GUEST_CR4, cr4 ^ 0x80);
    }
    if numbers.below(4) == 0 {
        // A selector, and all that is loaded with it.
        let segment = Segment::ALL[numbers.below(8) as usize];
        let same = segment == Segment::Cs;
        if !same {
            hw.set(VMCS01, segment.guest_selector(), 8 + 8 * numbers.below(20));
            let (base, rights) = match segment {
                Segment::Tr => (numbers.next(), AccessRights::BUSY_TSS),
                Segment::Fs | Segment::Gs | Segment::Ldtr => (numbers.next(), AccessRights::DATA),
                _ => (0, AccessRights::DATA),
            };
            hw.set(VMCS01, segment.guest_base(), base);
            hw.set(VMCS01, segment.guest_rights(), rights.bits());
        }
    }
}

/// What is seen in a life.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// VMREADs of the host.
    reads: Vec<(u32, u64)>,
    /// The state in which the host finds itself after each exit of its guest.
    landings: Vec<BTreeMap<u32, u64>>,
    /// Its VMCS at each entry.
    entries: Vec<BTreeMap<u32, u64>>,
}

fn exits(vcpu: &mut VCpu, hw: &mut Model, steady: bool, used: &mut u32) -> Next {
    hw.assert_put_down();
    let was_guest = vcpu.in_guest;
    if steady && context(vcpu, hw).steady() {
        *used += 1;
        return if was_guest { Next::Host } else { Next::Guest(false) };
    }
    context(vcpu, hw).serve().0
}

/// How often the host enters its guest in a life.
const ROUNDS: u32 = if cfg!(miri) { 24 } else { 300 };

/// A life of so many guest exits. How many exits took the steady way is returned, too.
fn live(shadowing: Use, seed: u64, steady: bool) -> (Seen, u32) {
    let (mut vcpu, mut hw): (Box<VCpu>, Model) = nested_on(shadowing);
    if seed == 2 {
        // No APICv, no PML.
        let missing = [field::GUEST_INTERRUPT_STATUS, field::PML_INDEX];
        if shadowing != Use::Off {
            (vcpu, hw) = shadowed_without(&missing, shadowing);
        } else {
            hw.missing = missing.into();
        }
    }
    let mut numbers = Numbers(seed);
    let mut seen = Seen::default();
    let mut used = 0;
    hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
    hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
    for _ in 0..ROUNDS {
        host_lives(&mut hw, &mut numbers);
        for _ in 0..numbers.below(3) {
            let field = numbers.of(&HOSTS);
            let value = if field == field::ENTRY_INTERRUPTION {
                Interruption::VALID | numbers.below(2)
            } else {
                numbers.value_of(field)
            };
            if field.area() != Area::ExitInformation || shadowing != Use::Off {
                access(&mut vcpu, &mut hw, Reason::VMWRITE, field, value);
            }
        }
        if numbers.below(40) == 0 {
            hw.put(0x5000, GUEST);
            hw.set(VMCS01, field::GUEST_CR3, 0x1000);
            instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
        }
        let reason = if numbers.below(20) == 0 {
            Reason::VMLAUNCH
        } else {
            Reason::VMRESUME
        };
        hw.set(VMCS01, field::EXIT_REASON, reason.0.into());
        // An exit for an instruction saves none (SDM vol. 3C, 29.3.4).
        hw.set(VMCS01, field::GUEST_PENDING_DEBUG, 0);
        let next = exits(&mut vcpu, &mut hw, steady, &mut used);
        assert_eq!(next, Next::Guest(reason == Reason::VMLAUNCH));
        assert_eq!(hw.current, Some(GUEST));
        seen.entries.push(hw.vmcs[&GUEST].clone());

        // The guest: the event is delivered, it runs, it exits.
        let event = hw.field(GUEST, field::ENTRY_INTERRUPTION);
        hw.set(GUEST, field::ENTRY_INTERRUPTION, event & !Interruption::VALID);
        for _ in 0..3 {
            let field = numbers.of(&GUESTS);
            let value = numbers.value_of(field);
            let needs = match field {
                field::GUEST_INTERRUPT_STATUS => SecondaryControls::VIRTUAL_INTERRUPTS,
                field::PML_INDEX => SecondaryControls::PML,
                _ => SecondaryControls::empty(),
            };
            let controls = hw.field(GUEST, field::SECONDARY_CONTROLS) as u32;
            if SecondaryControls::from_bits_retain(controls).contains(needs) {
                hw.set(GUEST, field, value);
            }
        }
        let reason = REASONS[numbers.below(REASONS.len() as u64) as usize];
        for (field, value) in exit_information(reason, &mut numbers) {
            hw.set(GUEST, field, field.truncate(value));
        }
        assert_eq!(exits(&mut vcpu, &mut hw, steady, &mut used), Next::Host);
        assert_eq!((hw.current, vcpu.in_guest), (Some(VMCS01), false));
        seen.landings.push(landing(&vcpu, &hw));

        let mut fields = Vec::from(HOSTS);
        fields.extend([
            field::EXIT_QUALIFICATION,
            field::EXIT_INTERRUPTION,
            field::IDT_VECTORING,
            field::INSTRUCTION_LENGTH,
        ]);
        if has_address(reason) {
            fields.push(field::GUEST_PHYSICAL_ADDRESS);
        }
        // An exit for a VMREAD changes VMCS01's own exit information and flags; the landing is recorded already.
        for field in fields {
            let value = access(&mut vcpu, &mut hw, Reason::VMREAD, field, !0).1;
            seen.reads.push((field.0, value));
        }
    }
    context(&mut vcpu, &mut hw).leave_steady();
    context(&mut vcpu, &mut hw).give_back_all();
    seen.entries.push(hw.vmcs[&GUEST].clone());
    (seen, used)
}

fn assert_same(name: &str, left: &[BTreeMap<u32, u64>], right: &[BTreeMap<u32, u64>]) {
    assert_eq!(left.len(), right.len());
    for (i, (a, b)) in left.iter().zip(right).enumerate() {
        for field in a.keys().chain(b.keys()) {
            assert_eq!(a.get(field), b.get(field), "{name} {i}, field {field:#x}");
        }
    }
}

#[test]
fn a_life_looks_the_same_with_and_without() {
    let (uses, seeds) = if cfg!(miri) { (1, 1) } else { (USES.len(), 3) };
    for shadowing in USES.into_iter().take(uses) {
        for seed in 1..=seeds {
            let (ordinary, _) = live(shadowing, seed, false);
            let (steady, used) = live(shadowing, seed, true);
            assert!(used > ROUNDS * 2 / 3, "it is the usual way: {used}");
            assert_same("landing", &ordinary.landings, &steady.landings);
            assert_same("entry", &ordinary.entries, &steady.entries);
            for (i, (a, b)) in ordinary.reads.iter().zip(&steady.reads).enumerate() {
                assert_eq!(a, b, "read {i}");
            }
        }
    }
}

/// A CPU on which the next VMRESUME is of the steady state; KVM has APICv.
fn settled_on(shadowing: Use) -> (Box<VCpu>, Model) {
    let (mut vcpu, mut hw) = nested_on(shadowing);
    hw.set(
        GUEST,
        field::SECONDARY_CONTROLS,
        SecondaryControls::VIRTUAL_INTERRUPTS.bits().into(),
    );
    hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
    hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
    for _ in 0..2 {
        hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        exits(&mut vcpu, &mut hw, true, &mut 0);
        hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
        exits(&mut vcpu, &mut hw, true, &mut 0);
    }
    hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
    assert!(vcpu.steady.ready);
    (vcpu, hw)
}

/// The same as CPUs are by default.
fn settled() -> (Box<VCpu>, Model) {
    settled_on(Use::default())
}

/// The host runs at such a code segment.
fn code(hw: &mut Model, rights: AccessRights) {
    hw.set(VMCS01, Segment::Cs.guest_rights(), rights.bits());
}

fn is_steady(vcpu: &mut VCpu, hw: &mut Model) -> bool {
    context(vcpu, hw).steady()
}

#[test]
fn only_what_is_usual_is_steady() {
    let (mut vcpu, mut hw) = settled();
    assert!(is_steady(&mut vcpu, &mut hw) && vcpu.in_guest);

    type Change = fn(&mut VCpu, &mut Model);
    let changes: [Change; 8] = [
        |_, hw| hw.set(VMCS01, field::EXIT_REASON, Reason::VMLAUNCH.0.into()),
        // CPL 3, compatibility mode, a conforming segment.
        |_, hw| code(hw, AccessRights::CODE_64.with_dpl(3)),
        |_, hw| {
            code(
                hw,
                AccessRights::CODE_64.difference(AccessRights::LONG) | AccessRights::DEFAULT_32,
            )
        },
        |_, hw| code(hw, AccessRights::CODE_64 | AccessRights::CONFORMING),
        |vcpu, hw| {
            access(vcpu, hw, Reason::VMWRITE, field::HOST_RIP, 1 << 60);
            hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        },
        |vcpu, hw| {
            hw.set(VMCS01, field::GUEST_CR3, 0x1000);
            instruction(vcpu, hw, Reason::VMCLEAR, 0x5000);
            hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        },
        // What is copied after an exit depends on it.
        |vcpu, hw| {
            access(vcpu, hw, Reason::VMWRITE, field::SECONDARY_CONTROLS, 0);
            hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        },
        |vcpu, _| vcpu.steady = Steady::NONE,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let (mut vcpu, mut hw) = settled();
        change(&mut vcpu, &mut hw);
        let before = hw.vmcs.clone();
        assert!(!is_steady(&mut vcpu, &mut hw), "change {i}");
        assert_eq!((&hw.vmcs, vcpu.in_guest), (&before, false), "nothing is done");
    }
    // Exits of the guest: INIT, an exception, a triple fault, a failed entry, one that is not known.
    for reason in [3, 0, 2, 0x8000_0021, 0x2000_000a, 77] {
        let (mut vcpu, mut hw) = settled();
        assert!(is_steady(&mut vcpu, &mut hw));
        hw.set(GUEST, field::EXIT_REASON, reason);
        assert!(!is_steady(&mut vcpu, &mut hw) && vcpu.in_guest);
        assert_eq!(hw.current, Some(GUEST));
    }
}

#[test]
fn what_the_steady_state_cannot_do_is_not_prepared() {
    let cases = [
        // The timer is saved at exits: the shadow would have to follow.
        (
            field::EXIT_CONTROLS,
            ExitControls::HOST_64 | ExitControls::SAVE_PREEMPTION_TIMER,
        ),
        // Exits to 32-bit code.
        (field::EXIT_CONTROLS, ExitControls::empty()),
    ];
    for (field, value) in cases {
        let (mut vcpu, mut hw) = settled();
        access(&mut vcpu, &mut hw, Reason::VMWRITE, field, value.bits().into());
        hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        let next = exits(&mut vcpu, &mut hw, true, &mut 0);
        assert_eq!((next, vcpu.steady.ready), (Next::Guest(false), false));
    }
    // The host's CR4 without VMXE, or its CR0 without NE.
    for field in [field::CR0_SHADOW, field::CR4_SHADOW] {
        let (mut vcpu, mut hw) = settled();
        vcpu.steady.ready = false;
        hw.set(VMCS01, field, 0);
        exits(&mut vcpu, &mut hw, true, &mut 0);
        assert!(!vcpu.steady.ready);
    }
}

#[test]
fn what_was_there_before_can_be_written_again() {
    let event = Interruption::VALID | 5;
    for (field, before, after) in [
        (field::GUEST_RIP, 0x1000, 0x2000),
        (field::GUEST_INTERRUPTIBILITY, Interruptibility::STI.bits(), 0),
        (field::GUEST_INTERRUPT_STATUS, 0x31, 0x30),
        (field::ENTRY_INTERRUPTION, event, event & !Interruption::VALID),
    ] {
        for steady in [true, false] {
            let (mut vcpu, mut hw) = settled();
            for _ in 0..2 {
                access(&mut vcpu, &mut hw, Reason::VMWRITE, field, before);
                hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
                let next = exits(&mut vcpu, &mut hw, steady, &mut 0);
                assert_eq!(next, Next::Guest(false));
                assert_eq!(hw.field(GUEST, field), before, "field {:#x}", field.0);
                hw.set(GUEST, field, after);
                hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
                assert_eq!(exits(&mut vcpu, &mut hw, steady, &mut 0), Next::Host);
                assert_eq!(hw.host_vmread(VMCS01, field), Some(Ok(after)));
            }
        }
    }
}

/// Rounds of a guest's exit and its resumption, as KVM does CPUID: it reads what it likes and moves RIP on. `lacking`
/// is what the CPU does not have, `controls` are the secondary ones; the last round is counted.
fn round(shadowing: Use, lacking: &[Field], controls: SecondaryControls, reason: Reason) -> Done {
    let (mut vcpu, mut hw) = settled_on(shadowing);
    if !lacking.is_empty() {
        (vcpu, hw) = shadowed_without(lacking, shadowing);
        hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
        hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
    }
    access(
        &mut vcpu,
        &mut hw,
        Reason::VMWRITE,
        field::SECONDARY_CONTROLS,
        controls.bits().into(),
    );
    for _ in 0..3 {
        hw.done = Done::default();
        hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        assert_eq!(exits(&mut vcpu, &mut hw, true, &mut 0), Next::Guest(false));
        let rip = hw.field(GUEST, field::GUEST_RIP);
        hw.set(GUEST, field::EXIT_REASON, reason.0.into());
        hw.set(GUEST, field::GUEST_RIP, rip + 20);
        assert_eq!(exits(&mut vcpu, &mut hw, true, &mut 0), Next::Host);
        hw.host_vmwrite(VMCS01, field::GUEST_RIP, rip + 22);
        hw.set(VMCS01, field::GUEST_RIP, 0x1234);
    }
    hw.done
}

/// What the model of the benchmark charges for (bench/costs.toml).
#[test]
fn a_round_does_no_more_than_it_must() {
    let apicv = SecondaryControls::VIRTUAL_INTERRUPTS;
    let logged = apicv | SecondaryControls::PML;
    let lacking = [field::GUEST_INTERRUPT_STATUS, field::PML_INDEX];
    for (lacking, controls, reason, reads) in [
        (&[][..], apicv, Reason::CPUID, 44),
        (&[], apicv, Reason::EPT_VIOLATION, 46),
        (&[], logged, Reason::CPUID, 45),
        (&lacking, SecondaryControls::empty(), Reason::CPUID, 44),
    ] {
        for (shadowing, clears) in [(Use::Active, 0), (Use::Cleared, 2)] {
            let done = Done {
                reads,
                writes: 4,
                pointers: 4,
                clears,
            };
            assert_eq!(round(shadowing, lacking, controls, reason), done);
        }
    }
}

#[test]
fn whatever_single_thing_the_host_changed_is_as_an_exit_leaves_it() {
    let (mut vcpu, mut hw) = settled();
    let mut fields = Vec::from([
        field::GUEST_CR0,
        field::GUEST_CR3,
        field::GUEST_CR4,
        field::GUEST_RSP,
        field::GUEST_RIP,
        field::GUEST_RFLAGS,
        field::GUEST_DR7,
        field::GUEST_DEBUGCTL,
        field::GUEST_INTERRUPTIBILITY,
        field::GUEST_GDTR_BASE,
        field::GUEST_GDTR_LIMIT,
        field::GUEST_IDTR_BASE,
        field::GUEST_IDTR_LIMIT,
        field::GUEST_SYSENTER_CS,
        field::GUEST_SYSENTER_ESP,
        field::GUEST_SYSENTER_EIP,
        Segment::Fs.guest_base(),
        Segment::Gs.guest_base(),
        Segment::Tr.guest_base(),
        Segment::Tr.guest_limit(),
    ]);
    fields.extend(Segment::ALL.map(Segment::guest_selector));
    let usual = landing(&vcpu, &hw);
    for field in fields {
        let value = hw.field(VMCS01, field);
        hw.set(VMCS01, field, value ^ 1);
        hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
        assert!(is_steady(&mut vcpu, &mut hw), "field {:#x}", field.0);
        hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
        assert!(is_steady(&mut vcpu, &mut hw));
        assert_same("after field", &[landing(&vcpu, &hw)], std::slice::from_ref(&usual));
    }
}
