//! Writes of CR0 and CR4 against the model: the host sees its own values, and faults where it would natively.

use x86_64::structures::idt::ExceptionVector;

use crate::arch::general::Register;
use crate::arch::registers::{CR0_L0, Cr0Flags, Cr4Flags, EFER_LONG_MODE, EferFlags};
use crate::nested::model::Model;
use crate::nested::vcpu::{Belief, VCpu};
use crate::vmx::controls::EntryControls;
use crate::vmx::exit::{Interruption, Reason};
use crate::vmx::field::{self, Segment};
use crate::vmx::guest::AccessRights;

use crate::nested::test_bed::*;

#[test]
fn cr0_and_cr4_show_the_hosts_values() {
    for (mut vcpu, mut hw) in nested() {
        let pae = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
        hw.set(VMCS01, field::GUEST_CR0, CR0_L0.bits());
        hw.set(VMCS01, field::CR0_SHADOW, CR0_L0.bits());
        hw.set(VMCS01, field::GUEST_EFER, EFER_LONG_MODE.bits());
        let ia32e = EntryControls::IA32E.bits().into();
        hw.set(VMCS01, field::ENTRY_CONTROLS, ia32e);
        // As the trampoline of an AP does, outside VMX operation: paging and NE off.
        let vmx_on = core::mem::take(&mut vcpu.belief);
        vcpu.gprs[Register::Rax] = Cr0Flags::PROTECTED_MODE_ENABLE.bits();
        hw.set(VMCS01, field::EXIT_QUALIFICATION, 0);
        exit_host(&mut vcpu, &mut hw, Reason::CR_ACCESS);
        let seen = Cr0Flags::PROTECTED_MODE_ENABLE | Cr0Flags::EXTENSION_TYPE;
        assert_eq!(
            (hw.field(VMCS01, field::GUEST_CR0), hw.field(VMCS01, field::CR0_SHADOW)),
            ((seen | FIXED.cr0).bits(), seen.bits())
        );
        assert_eq!(
            (
                hw.field(VMCS01, field::GUEST_EFER),
                hw.field(VMCS01, field::ENTRY_CONTROLS)
            ),
            (EferFlags::LONG_MODE_ENABLE.bits(), 0)
        );
        hw.set(VMCS01, field::GUEST_CR4, (pae | FIXED.cr4).bits());
        vcpu.gprs[Register::Rax] = KVM_CR0.bits();
        exit_host(&mut vcpu, &mut hw, Reason::CR_ACCESS);
        assert_eq!(
            (
                hw.field(VMCS01, field::GUEST_EFER),
                hw.field(VMCS01, field::ENTRY_CONTROLS)
            ),
            (EFER_LONG_MODE.bits(), ia32e)
        );
        // CR4.VMXE can't be cleared in VMX operation.
        vcpu.belief = vmx_on;
        vcpu.gprs[Register::Rax] = pae.bits();
        hw.set(VMCS01, field::EXIT_QUALIFICATION, 4);
        exit_host(&mut vcpu, &mut hw, Reason::CR_ACCESS);
        assert_eq!(
            injected(&hw),
            Interruption::exception(ExceptionVector::GeneralProtection, true)
        );
        vcpu.belief = Belief::default();
        exit_host(&mut vcpu, &mut hw, Reason::CR_ACCESS);
        assert_eq!(
            (hw.field(VMCS01, field::GUEST_CR4), hw.field(VMCS01, field::CR4_SHADOW)),
            ((pae | FIXED.cr4).bits(), pae.bits())
        );
    }
}

/// SDM vol. 2B, MOV to a control register, and vol. 3C, 24.8: what faults natively.
#[test]
fn cr0_keeps_what_vmx_operation_and_64_bit_mode_want() {
    let gp = Interruption::exception(ExceptionVector::GeneralProtection, true);
    let whole = CR0_L0 | FIXED.cr0;
    for (mut vcpu, mut hw) in nested() {
        hw.set(VMCS01, field::GUEST_EFER, EFER_LONG_MODE.bits());
        hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
        let write = |vcpu: &mut VCpu, hw: &mut Model, value: Cr0Flags| {
            hw.set(VMCS01, field::GUEST_CR0, whole.bits());
            hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            vcpu.gprs[Register::Rax] = value.bits();
            hw.set(VMCS01, field::EXIT_QUALIFICATION, 0);
            exit_host(vcpu, hw, Reason::CR_ACCESS);
            injected(hw) != gp
        };
        assert!(write(&mut vcpu, &mut hw, whole));
        assert!(!write(&mut vcpu, &mut hw, whole.difference(Cr0Flags::NUMERIC_ERROR)));
        let unpaged = whole.difference(Cr0Flags::PAGING);
        assert!(!write(&mut vcpu, &mut hw, unpaged));
        vcpu.belief = Belief::default();
        assert!(write(&mut vcpu, &mut hw, whole.difference(Cr0Flags::NUMERIC_ERROR)));
        assert!(!write(&mut vcpu, &mut hw, unpaged), "64-bit code");
        let compatible = AccessRights::CODE_64.difference(AccessRights::LONG);
        hw.set(VMCS01, Segment::Cs.guest_rights(), compatible.bits());
        assert!(write(&mut vcpu, &mut hw, unpaged));
    }
}

/// SDM vol. 2B, MOV to a control register: 32 bits are written outside of 64-bit mode. A register's upper half may hold
/// anything there, from before.
#[test]
fn outside_64_bit_mode_a_control_register_gets_32_bits() {
    const STALE: u64 = 0xdead_beef << 32;
    let gp = Interruption::exception(ExceptionVector::GeneralProtection, true);
    let compatible = AccessRights::CODE_64.difference(AccessRights::LONG);
    let whole = CR0_L0 | FIXED.cr0;
    let pae = FIXED.cr4 | Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
    for (mut vcpu, mut hw) in nested() {
        hw.set(VMCS01, field::GUEST_EFER, EFER_LONG_MODE.bits());
        hw.set(VMCS01, field::GUEST_CR0, whole.bits());
        for (number, value, shadow) in [(0, whole.bits(), field::CR0_SHADOW), (4, pae.bits(), field::CR4_SHADOW)] {
            let write = |vcpu: &mut VCpu, hw: &mut Model, rights: AccessRights| {
                hw.set(VMCS01, Segment::Cs.guest_rights(), rights.bits());
                hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
                hw.set(VMCS01, shadow, 0);
                hw.set(VMCS01, field::EXIT_QUALIFICATION, number);
                vcpu.gprs[Register::Rax] = STALE | value;
                exit_host(vcpu, hw, Reason::CR_ACCESS);
                (hw.field(VMCS01, shadow), injected(hw) == gp)
            };
            assert_eq!(write(&mut vcpu, &mut hw, compatible), (value, false), "CR{number}");
            assert_eq!(
                write(&mut vcpu, &mut hw, AccessRights::CODE_64),
                (0, true),
                "CR{number}"
            );
        }
    }
}
