//! VMCS shadowing against the model: whatever the host reads and writes, exit or not, is what its VMCS holds.

use std::boxed::Box;
use std::vec::Vec;

use crate::nested::exits::Next;
use crate::nested::fingerprint::{self, Fingerprint};
use crate::nested::host_area::replaced;
use crate::nested::model::Model;
use crate::nested::shadow::{FIELDS, Use, WRITTEN};
use crate::nested::test_bed::{
    GUEST, OTHER, SHADOW, VMCS01, access, context, exit_host, instruction, nested_on, prepare_shadow,
};
use crate::nested::vcpu::VCpu;
use crate::vmx::controls::SecondaryControls;
use crate::vmx::exit::Reason;
use crate::vmx::field::{self, Field};
use crate::vmx::{Hardware, VmxStatus};

fn write(vcpu: &mut VCpu, hw: &mut Model, field: Field, value: u64) {
    assert_eq!(access(vcpu, hw, Reason::VMWRITE, field, value).0, VmxStatus::Succeed);
}

/// Values that fit every shadowed field, and differ.
fn values(seed: u64) -> Vec<(Field, u64)> {
    FIELDS
        .into_iter()
        .enumerate()
        .map(|(i, f)| (f, seed + i as u64))
        .collect()
}

/// Whether the host reads `field` without an exit while the shadow is attached.
fn covers(vcpu: &VCpu, field: Field) -> bool {
    let index = FIELDS.iter().position(|f| *f == field);
    index.is_some_and(|index| vcpu.shadow.has(index))
}

/// The host enters its guest, which exits with `fields` in its VMCS.
fn run_guest(vcpu: &mut VCpu, hw: &mut Model, fields: &[(Field, u64)]) {
    assert_eq!(exit_host(vcpu, hw, Reason::VMRESUME), Next::Guest(false));
    assert_eq!(hw.current, Some(GUEST));
    for (field, value) in fields {
        hw.set(GUEST, *field, *value);
    }
    assert_eq!(context(vcpu, hw).serve().0, Next::Host);
}

/// Whether the shadow stays active or not.
pub(crate) const SHADOWED: [Use; 2] = [Use::Active, Use::Cleared];

fn shadowed() -> impl Iterator<Item = (Box<VCpu>, Model)> {
    SHADOWED.into_iter().map(nested_on)
}

/// The same on a CPU that lacks these fields.
pub(crate) fn shadowed_without(missing: &[Field], shadowing: Use) -> (Box<VCpu>, Model) {
    let (mut vcpu, mut hw) = nested_on(shadowing);
    instruction(&mut vcpu, &mut hw, Reason::VMCLEAR, 0x5000);
    hw.missing = missing.into();
    prepare_shadow(&mut vcpu, &mut hw, shadowing);
    instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
    (vcpu, hw)
}

/// With APICv and without.
fn both_kinds() -> impl Iterator<Item = (Box<VCpu>, Model)> {
    let without = SHADOWED
        .into_iter()
        .map(|shadowing| shadowed_without(&[field::GUEST_INTERRUPT_STATUS], shadowing));
    shadowed().chain(without).chain([nested_on(Use::Windows)])
}

#[test]
fn after_a_guest_exit_every_shadowed_field_is_read_without_an_exit() {
    for (mut vcpu, mut hw) in both_kinds() {
        for seed in [0x100, 0x200] {
            let mut fields = values(seed);
            fields.retain(|(f, _)| covers(&vcpu, *f) && *f != field::HOST_RSP);
            assert!(fields.len() >= FIELDS.len() - 3);
            for (field, value) in &mut fields {
                if *field == field::EXIT_REASON {
                    *value = Reason::EPT_VIOLATION.0.into();
                }
            }
            run_guest(&mut vcpu, &mut hw, &fields);
            for (field, value) in fields {
                assert_eq!(hw.host_vmread(VMCS01, field), Some(Ok(value)), "field {:#x}", field.0);
            }
        }
    }
}

#[test]
fn interrupt_windows_are_shadowed_where_there_is_no_apicv() {
    let covered = |vcpu: &VCpu| {
        [
            field::PRIMARY_CONTROLS,
            field::TPR_THRESHOLD,
            field::GUEST_INTERRUPT_STATUS,
        ]
        .map(|f| covers(vcpu, f))
    };
    for shadowing in SHADOWED {
        let without = shadowed_without(&[field::GUEST_INTERRUPT_STATUS], shadowing);
        assert_eq!(covered(&without.0), [true, true, false]);
        assert_eq!(covered(&nested_on(shadowing).0), [false, false, true]);
    }
    assert_eq!(covered(&nested_on(Use::Windows).0), [true, true, false]);
}

#[test]
fn what_the_host_wrote_is_in_its_vmcs_whenever_that_is_used() {
    let uses: [fn(&mut VCpu, &mut Model); 5] = [
        |vcpu, hw| assert_eq!(exit_host(vcpu, hw, Reason::VMRESUME), Next::Guest(false)),
        |vcpu, hw| assert_eq!(exit_host(vcpu, hw, Reason::VMLAUNCH), Next::Guest(true)),
        |vcpu, hw| {
            hw.put(0x5000, OTHER);
            instruction(vcpu, hw, Reason::VMPTRLD, 0x5000);
        },
        |vcpu, hw| {
            instruction(vcpu, hw, Reason::VMCLEAR, 0x5000);
        },
        |vcpu, hw| {
            instruction(vcpu, hw, Reason::VMXOFF, 0);
        },
    ];
    for use_vmcs in uses {
        for (mut vcpu, mut hw) in both_kinds() {
            let mut fields = values(0x300);
            fields.truncate(WRITTEN);
            fields.retain(|(f, _)| covers(&vcpu, *f));
            assert!(fields.len() >= WRITTEN - 2);
            for (field, value) in &fields {
                assert_eq!(hw.host_vmwrite(VMCS01, *field, *value), Some(VmxStatus::Succeed));
            }
            use_vmcs(&mut vcpu, &mut hw);
            for (field, value) in fields {
                let adopted = vcpu.adopted.find(GUEST);
                let found = match adopted.filter(|_| field == field::HOST_RSP) {
                    Some(entry) => entry.area.0[replaced::RSP],
                    None => hw.field(GUEST, field),
                };
                assert_eq!(found, value, "field {:#x}", field.0);
            }
        }
    }
}

#[test]
fn the_host_rsp_is_the_hosts_in_the_shadow_and_l0s_in_the_vmcs() {
    for (mut vcpu, mut hw) in shadowed() {
        let own = vcpu.own_area.0[replaced::RSP];
        for rsp in [0xffff_8000, 0xffff_9000] {
            write(&mut vcpu, &mut hw, field::HOST_RSP, rsp);
            run_guest(
                &mut vcpu,
                &mut hw,
                &[(field::EXIT_REASON, Reason::EXCEPTION_NMI.0.into())],
            );
            assert_eq!(hw.field(GUEST, field::HOST_RSP), own);
            assert_eq!(hw.field(VMCS01, field::GUEST_RSP), rsp, "where it lands");
            assert_eq!(hw.host_vmread(VMCS01, field::HOST_RSP), Some(Ok(rsp)));
        }
    }
}

#[test]
fn a_vmwrite_that_exits_is_seen_by_reads_that_do_not() {
    for (mut vcpu, mut hw) in shadowed() {
        for (field, value) in values(0x400).into_iter().skip(WRITTEN) {
            assert_eq!(hw.host_vmwrite(VMCS01, field, value), None, "it exits");
            write(&mut vcpu, &mut hw, field, value);
            assert_eq!(hw.host_vmread(VMCS01, field), Some(Ok(value)));
            assert_eq!(hw.field(GUEST, field), value);
        }
        // The upper half of a 64-bit field: the model keeps the halves apart, so only the attempt shows.
        let high = Field(field::GUEST_PHYSICAL_ADDRESS.0 | 1);
        hw.set(GUEST, field::GUEST_PHYSICAL_ADDRESS, 0x7777);
        write(&mut vcpu, &mut hw, high, 1);
        assert_eq!(hw.host_vmread(VMCS01, field::GUEST_PHYSICAL_ADDRESS), Some(Ok(0x7777)));
    }
}

#[test]
fn several_virtual_cpus_on_one_cpu() {
    for (mut vcpu, mut hw) in shadowed() {
        for (vmcs, rip) in [(OTHER, 0x1000), (GUEST, 0x2000), (OTHER, 0x3000)] {
            let before = hw.field(vmcs, field::GUEST_RIP);
            hw.put(0x5000, vmcs);
            instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
            assert_eq!(hw.host_vmread(VMCS01, field::GUEST_RIP), Some(Ok(before)), "its own");
            write(&mut vcpu, &mut hw, field::GUEST_RIP, rip);
        }
        instruction(&mut vcpu, &mut hw, Reason::VMCLEAR, 0x5000);
        assert_eq!(hw.field(GUEST, field::GUEST_RIP), 0x2000);
        assert_eq!(hw.field(OTHER, field::GUEST_RIP), 0x3000);
    }
}

#[test]
fn without_a_current_vmcs_everything_exits() {
    for (mut vcpu, mut hw) in shadowed() {
        instruction(&mut vcpu, &mut hw, Reason::VMCLEAR, 0x5000);
        assert_eq!(hw.host_vmread(VMCS01, field::GUEST_RIP), None);
        assert_eq!(hw.field(VMCS01, field::VMCS_LINK), !0);
        assert_eq!(
            access(&mut vcpu, &mut hw, Reason::VMREAD, field::GUEST_RIP, 0).0,
            VmxStatus::FailInvalid
        );
        instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
        assert_eq!(hw.field(VMCS01, field::VMCS_LINK), SHADOW);
        assert!(hw.host_vmread(VMCS01, field::GUEST_RIP).is_some());
    }
}

#[test]
fn a_field_that_the_cpu_does_not_have_exits() {
    for shadowing in SHADOWED {
        let (mut vcpu, mut hw) = shadowed_without(&[field::PML_INDEX], shadowing);
        let missing = field::PML_INDEX;
        assert_eq!(hw.host_vmread(VMCS01, missing), None);
        assert_eq!(
            access(&mut vcpu, &mut hw, Reason::VMREAD, missing, 0).0,
            VmxStatus::FailValid
        );
        run_guest(&mut vcpu, &mut hw, &[(field::GUEST_RIP, 0x1234)]);
        assert_eq!(hw.host_vmread(VMCS01, field::GUEST_RIP), Some(Ok(0x1234)));
    }
}

#[test]
fn without_the_preemption_timer_nothing_is_shadowed() {
    for shadowing in SHADOWED {
        let (mut vcpu, mut hw) = shadowed_without(&[field::PREEMPTION_TIMER], shadowing);
        assert_eq!(hw.host_vmread(VMCS01, field::GUEST_RIP), None);
        run_guest(&mut vcpu, &mut hw, &[(field::GUEST_RIP, 0x1234)]);
        assert_eq!(
            access(&mut vcpu, &mut hw, Reason::VMREAD, field::GUEST_RIP, 0),
            (VmxStatus::Succeed, 0x1234)
        );
    }
}

#[test]
fn outside_vmx_operation_nothing_of_it_is_left() {
    for (mut vcpu, mut hw) in shadowed() {
        assert_eq!(hw.active.contains(&SHADOW), hw.put_down.is_none());
        instruction(&mut vcpu, &mut hw, Reason::VMXOFF, 0);
        assert!(!hw.active.contains(&SHADOW), "cleared before VMXOFF");
        let controls = SecondaryControls::from_bits_retain(hw.field(VMCS01, field::SECONDARY_CONTROLS) as u32);
        assert!(!controls.contains(SecondaryControls::VMCS_SHADOWING));
        assert_eq!(hw.field(VMCS01, field::VMCS_LINK), !0);
    }
}

#[test]
fn a_written_vmcs_is_not_compared_with_what_it_was() {
    for (mut vcpu, mut hw) in shadowed() {
        vcpu.adopted.find(GUEST).unwrap().fingerprint = Some(Fingerprint::take(&mut hw));
        hw.host_vmwrite(VMCS01, field::GUEST_RIP, 0x999);
        context(&mut vcpu, &mut hw).leave_steady();
        assert_eq!(vcpu.adopted.find(GUEST).unwrap().fingerprint, None);
    }
}

#[test]
fn fingerprints_tell_which_field_differs() {
    for (_, mut hw) in shadowed() {
        hw.vmptrld(VMCS01);
        fingerprint::probe(&mut hw);
        hw.vmptrld(GUEST);
        let before = Fingerprint::take(&mut hw);
        assert_eq!(Fingerprint::take(&mut hw), before);
        assert_eq!(before.field_that_differs(before), None);
        for field in [
            field::GUEST_RIP,
            field::EXIT_REASON,
            field::GUEST_INTERRUPTIBILITY,
            field::EPTP,
        ] {
            let old = hw.get(field);
            hw.set(GUEST, field, old + 8);
            let now = Fingerprint::take(&mut hw);
            assert_eq!((now.field_that_differs(before), now.above(before)), (Some(field), 8));
            // One bit at the top is told apart as well.
            hw.set(GUEST, field, field.truncate(old ^ 1 << 63 ^ 1 << 31));
            let now = Fingerprint::take(&mut hw);
            assert_eq!(now.field_that_differs(before), Some(field));
            hw.set(GUEST, field, old);
        }
        hw.set(GUEST, field::GUEST_RIP, 0x1234_5678);
        hw.set(GUEST, field::GUEST_RSP, 0x8765_4321_0000);
        let now = Fingerprint::take(&mut hw);
        assert_ne!(now, before);
        assert_eq!(now.field_that_differs(before), None, "two differ");
    }
}
