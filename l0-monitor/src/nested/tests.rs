//! The nested path against the model: what KVM sees must be what it would see without L0.

use locum_abi::StopReason;
use x86_64::structures::idt::{ExceptionVector, PageFaultErrorCode};

use crate::arch::general::Register;
use crate::arch::registers::{
    CR4_CET, Cr0Flags, Cr4Flags, DEBUGCTL_BTF, DEBUGCTL_CLEAR, DR7_CLEAR, EFER_LONG_MODE, RFLAGS_CLEAR, RFlags,
};
use crate::nested::adopt::CAPACITY;
use crate::nested::context::Exception;
use crate::nested::exits::Next;
use crate::nested::host_area::{HostArea, REPLACED, TABLE_LIMIT, TSS_LIMIT, replaced};
use crate::nested::model::{Model, REVISION, error};
use crate::nested::vcpu::{Belief, VCpu};
use crate::vmx::caps::Caps;
use crate::vmx::exit::{Interruption, Reason};
use crate::vmx::field::{self, Field, Segment};
use crate::vmx::guest::{AccessRights, Interruptibility, PendingDebug};
use crate::vmx::{Hardware, VmxStatus};

use crate::nested::test_bed::*;

#[test]
fn every_field_is_what_it_would_have_been() {
    for (mut vcpu, mut hw) in nested() {
        let mut expected = snapshot(&hw);
        for (i, field) in REPLACED.into_iter().enumerate() {
            expected[0].insert(field.0, kvm_value(GUEST, i));
            assert_eq!(
                hw.field(GUEST, field),
                field.truncate(vcpu.own_area.0[i]),
                "L0's value is in the VMCS while adopted"
            );
        }
        // What KVM writes while L0 is above it counts, in both kinds of field.
        for (field, value) in [(field::HOST_RSP, 0x1234_5678), (field::GUEST_RIP, 0xfff0)] {
            assert_eq!(
                access(&mut vcpu, &mut hw, Reason::VMWRITE, field, value).0,
                VmxStatus::Succeed
            );
            assert_eq!(
                access(&mut vcpu, &mut hw, Reason::VMREAD, field, 0),
                (VmxStatus::Succeed, value)
            );
            expected[0].insert(field.0, value);
        }
        hw.put(0x5000, OTHER);
        instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
        assert_eq!(vcpu.adopted.len(), 2);
        assert_eq!(context(&mut vcpu, &mut hw).give_back_all(), 2);
        assert_eq!(snapshot(&hw), expected);
    }
}

#[test]
fn vmclear_gives_back_one() {
    for (mut vcpu, mut hw) in nested() {
        hw.put(0x5000, GUEST);
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMCLEAR, 0x5000),
            VmxStatus::Succeed
        );
        assert_eq!((vcpu.adopted.len(), vcpu.belief.current), (0, None));
        for (i, field) in REPLACED.into_iter().enumerate() {
            assert_eq!(hw.field(GUEST, field), kvm_value(GUEST, i));
        }
        assert_eq!(
            access(&mut vcpu, &mut hw, Reason::VMREAD, field::GUEST_RIP, 0).0,
            VmxStatus::FailInvalid
        );
    }
}

#[test]
fn more_vmcss_than_places() {
    let (ways, uses) = if cfg!(miri) {
        (1, CAPACITY + 2)
    } else {
        (usize::MAX, 2 * CAPACITY)
    };
    for (mut vcpu, mut hw) in nested().take(ways) {
        for i in 0..uses as u64 {
            let vmcs = 0x100_0000 + (i << 12);
            hw.set(vmcs, field::HOST_RIP, vmcs);
            hw.put(0x5000, vmcs);
            assert_eq!(
                instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000),
                VmxStatus::Succeed
            );
            assert_eq!(access(&mut vcpu, &mut hw, Reason::VMREAD, field::HOST_RIP, 0).1, vmcs);
        }
        assert_eq!(vcpu.adopted.len(), CAPACITY);
        context(&mut vcpu, &mut hw).give_back_all();
        for i in 0..uses as u64 {
            let vmcs = 0x100_0000 + (i << 12);
            assert_eq!(hw.field(vmcs, field::HOST_RIP), vmcs);
        }
        assert_eq!(hw.field(GUEST, field::HOST_RIP), kvm_value(GUEST, replaced::RIP));
    }
}

#[test]
fn a_guest_exit_lands_where_kvm_wants_it() {
    for (mut vcpu, mut hw) in nested() {
        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMRESUME), Next::Guest(false));
        assert_eq!(hw.current, Some(GUEST), "the instruction runs on KVM's own VMCS");
        assert_eq!(hw.field(VMCS01, field::GUEST_RIP), RIP, "and has not ended yet");
        vcpu.gprs[Register::Rax] = 0xabcd;
        assert_eq!(exit_guest(&mut vcpu, &mut hw, Reason::CPUID), Next::Host);
        assert_eq!(hw.current, Some(VMCS01));
        let state = |f| hw.field(VMCS01, f);
        assert_eq!(state(field::GUEST_RIP), kvm_value(GUEST, replaced::RIP));
        assert_eq!(state(field::GUEST_RSP), kvm_value(GUEST, replaced::RSP));
        assert_eq!(state(field::GUEST_CR3), kvm_value(GUEST, replaced::CR3));
        assert_eq!(state(field::GUEST_EFER), KVM_EFER.bits());
        assert_eq!(state(field::GUEST_SYSENTER_CS), 0x10);
        assert_eq!(
            (
                state(field::GUEST_RFLAGS),
                state(field::GUEST_DR7),
                state(field::GUEST_DEBUGCTL)
            ),
            (RFLAGS_CLEAR, DR7_CLEAR, DEBUGCTL_CLEAR)
        );
        assert_eq!(
            (state(field::GUEST_GDTR_LIMIT), state(field::GUEST_IDTR_LIMIT)),
            (TABLE_LIMIT, TABLE_LIMIT)
        );
        assert_eq!(state(Segment::Tr.guest_selector()), 0x40);
        assert_eq!(
            (state(Segment::Tr.guest_limit()), state(Segment::Tr.guest_rights())),
            (TSS_LIMIT, AccessRights::BUSY_TSS.bits())
        );
        assert_eq!(state(Segment::Ldtr.guest_rights()), AccessRights::UNUSABLE.bits());
        assert_eq!(state(Segment::Gs.guest_base()), kvm_value(GUEST, replaced::GS_BASE));
        assert_eq!(
            state(Segment::Ds.guest_rights()),
            AccessRights::UNUSABLE.bits(),
            "null selectors are unusable"
        );
        assert_eq!(state(field::GUEST_INTERRUPTIBILITY), 0);
        assert_eq!(vcpu.gprs[Register::Rax], 0xabcd, "registers pass through");
    }
}

#[test]
fn an_nmi_exit_leaves_nmis_blocked() {
    for (mut vcpu, mut hw) in nested() {
        exit_host(&mut vcpu, &mut hw, Reason::VMRESUME);
        hw.set(GUEST, field::EXIT_REASON, Reason::EXCEPTION_NMI.0.into());
        hw.set(GUEST, field::EXIT_INTERRUPTION, 0x8000_0202);
        context(&mut vcpu, &mut hw).serve();
        assert_eq!(
            hw.field(VMCS01, field::GUEST_INTERRUPTIBILITY),
            Interruptibility::NMI.bits()
        );
    }
}

#[test]
fn a_failed_entry_is_kvms_to_see() {
    for (mut vcpu, mut hw) in nested() {
        exit_host(&mut vcpu, &mut hw, Reason::VMLAUNCH);
        let next = context(&mut vcpu, &mut hw).entry_failed(0x42);
        assert_eq!(next, Next::Host);
        assert_eq!(hw.field(VMCS01, field::GUEST_RIP), RIP + 3);
        assert_eq!(
            VmxStatus::from_rflags(hw.field(VMCS01, field::GUEST_RFLAGS)),
            VmxStatus::FailValid
        );
        assert!(!vcpu.in_guest);
    }
}

#[test]
fn a_bad_host_area_fails_the_entry() {
    for (mut vcpu, mut hw) in nested() {
        access(&mut vcpu, &mut hw, Reason::VMWRITE, field::HOST_RIP, 1 << 60);
        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMLAUNCH), Next::Guest(true));
        assert!(hw.field(GUEST, field::HOST_CR3) >> 39 != 0, "the CPU will refuse it");
        context(&mut vcpu, &mut hw).entry_failed(0x42);
        assert_eq!(hw.field(GUEST, field::HOST_CR3), vcpu.own_area.0[replaced::CR3]);
        assert_eq!(
            access(&mut vcpu, &mut hw, Reason::VMREAD, field::HOST_RIP, 0).1,
            1 << 60
        );
    }
}

#[test]
fn errors_are_the_cpus_own() {
    for (mut vcpu, mut hw) in nested() {
        let found = |hw: &Model| hw.field(GUEST, field::INSTRUCTION_ERROR);
        hw.put(0x5000, 0x123);
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000),
            VmxStatus::FailValid
        );
        assert_eq!((found(&hw), vcpu.belief.current), (error::VMPTRLD_ADDRESS, Some(GUEST)));
        hw.put(0x5000, VMCS01 | 1 << 38);
        set_limit(1 << 38);
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMCLEAR, 0x5000),
            VmxStatus::FailValid,
            "not the host's memory"
        );
        assert_eq!(found(&hw), error::VMCLEAR_ADDRESS);
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMXON, 0x5000),
            VmxStatus::FailValid
        );
        assert_eq!(found(&hw), error::VMXON_IN_ROOT);
        assert_eq!(
            access(&mut vcpu, &mut hw, Reason::VMREAD, Field(0x7ffe), 0).0,
            VmxStatus::FailValid
        );
        assert_eq!(found(&hw), error::UNSUPPORTED_FIELD);
        if !hw.writes_all {
            assert_eq!(
                access(&mut vcpu, &mut hw, Reason::VMWRITE, field::EXIT_REASON, 0).0,
                VmxStatus::FailValid
            );
            assert_eq!(found(&hw), error::READ_ONLY_FIELD);
        }
    }
}

#[test]
fn vmx_instructions_need_vmx_operation_and_cpl_0() {
    for (mut vcpu, mut hw) in nested() {
        hw.set(VMCS01, Segment::Ss.guest_rights(), AccessRights::DPL.bits());
        instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
        assert_eq!(
            injected(&hw),
            Interruption::exception(ExceptionVector::GeneralProtection, true)
        );
        vcpu.belief = Belief::default();
        instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
        assert_eq!(
            injected(&hw),
            Interruption::exception(ExceptionVector::InvalidOpcode, false)
        );
        assert_eq!(
            hw.field(VMCS01, field::GUEST_RIP),
            RIP,
            "a faulting instruction is not passed"
        );
    }
}

#[test]
fn vmxoff_moves_to_l0s_region_and_vmxon_needs_a_good_one() {
    for (mut vcpu, mut hw) in nested() {
        assert_eq!(instruction(&mut vcpu, &mut hw, Reason::VMXOFF, 0), VmxStatus::Succeed);
        assert_eq!(
            (hw.vmxon, vcpu.own_vmxon, vcpu.launched),
            (Some(OWN_VMXON), true, false)
        );
        assert_eq!(hw.field(GUEST, field::HOST_RIP), kvm_value(GUEST, replaced::RIP));
        hw.put(0x5000, 0x30_0000);
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMXON, 0x5000),
            VmxStatus::FailInvalid,
            "no revision there"
        );
        hw.put(0x30_0000, REVISION.into());
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMXON, 0x5000),
            VmxStatus::Succeed
        );
        assert!(vcpu.belief.vmx_on && hw.vmxon == Some(OWN_VMXON));
        hw.put(0x5000, 0x30_0000);
        assert_eq!(
            instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000),
            VmxStatus::FailInvalid,
            "the VMXON pointer"
        );
    }
}

#[test]
fn vmptrst_and_page_faults() {
    for (mut vcpu, mut hw) in nested() {
        instruction(&mut vcpu, &mut hw, Reason::VMPTRST, 0x6ffc);
        assert_eq!(hw.read_phys(0x6ffc, 8), GUEST);
        instruction(&mut vcpu, &mut hw, Reason::VMPTRST, 5 << 30);
        assert_eq!(
            (injected(&hw), hw.cr2),
            (Interruption::exception(ExceptionVector::Page, true), 5 << 30)
        );
        let code = PageFaultErrorCode::CAUSED_BY_WRITE.bits();
        assert_eq!(hw.field(VMCS01, field::ENTRY_ERROR_CODE), code);
    }
}

#[test]
fn wild_accesses_and_triple_faults_end_the_host() {
    for (mut vcpu, mut hw) in nested() {
        hw.set(VMCS01, field::GUEST_PHYSICAL_ADDRESS, 5 << 30);
        let next = exit_host(&mut vcpu, &mut hw, Reason::EPT_VIOLATION);
        assert!(matches!(next, Next::Die(StopReason::WildAccess, [_, address, _]) if address == 5 << 30));
        let next = exit_host(&mut vcpu, &mut hw, Reason::TRIPLE_FAULT);
        assert!(matches!(next, Next::Die(StopReason::TripleFault, _)));
        let next = exit_host(&mut vcpu, &mut hw, Reason::TPR_BELOW_THRESHOLD);
        assert!(matches!(next, Next::Die(StopReason::Unhandled, [_, 43, _])));
    }
}

/// Page tables are a host's word: none of them is read that is not its own, and what they map to neither.
#[test]
fn page_tables_outside_the_partition_are_not_read() {
    let gp = Interruption::exception(ExceptionVector::GeneralProtection, true);
    // The root at 0x1000, the next table at 0x2000, the operand at 0x5000: each of them is the other host's.
    for limit in [0x1000, 0x2000, 0x5000] {
        for (mut vcpu, mut hw) in nested() {
            hw.put(0x5000, OTHER);
            hw.private = limit..4 << 30;
            set_limit(limit);
            let before = (snapshot(&hw), vcpu.belief, vcpu.adopted.len());
            for reason in [Reason::VMPTRLD, Reason::VMCLEAR, Reason::VMPTRST, Reason::INVEPT] {
                instruction(&mut vcpu, &mut hw, reason, 0x5000);
                assert_eq!(injected(&hw).0, gp.0, "{reason:?} below {limit:#x}");
                assert_eq!(hw.field(VMCS01, field::GUEST_RIP), RIP, "{reason:?} is not gone past");
            }
            assert_eq!((snapshot(&hw), vcpu.belief, vcpu.adopted.len()), before);
        }
    }
}

/// SDM vol. 3C, 29.2.4: an EPT violation in the middle of the delivery of an event leaves it in the IDT-vectoring
/// information. The access is made good, and then the event is delivered from its beginning.
#[test]
fn an_event_that_ept_interrupted_is_delivered_again() {
    const NMI: u64 = 0x8000_0202;
    const PAGE_FAULT: u64 = 0x8000_0b0e;
    const SOFTWARE: u64 = 0x8000_0480;
    for (mut vcpu, mut hw) in nested() {
        hw.set(VMCS01, field::GUEST_PHYSICAL_ADDRESS, 1 << 30);
        let mut exit = |event: u64, blocking: Interruptibility, qualification: u64| {
            hw.set(VMCS01, field::EXIT_QUALIFICATION, qualification);
            hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            hw.set(VMCS01, field::IDT_VECTORING, event);
            hw.set(VMCS01, field::IDT_VECTORING_ERROR, 6);
            hw.set(VMCS01, field::INSTRUCTION_LENGTH, 2);
            hw.set(VMCS01, field::GUEST_INTERRUPTIBILITY, blocking.bits());
            assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::EPT_VIOLATION), Next::Host);
            assert_eq!(hw.field(VMCS01, field::GUEST_RIP), RIP);
            let blocking = hw.field(VMCS01, field::GUEST_INTERRUPTIBILITY);
            (injected(&hw).0, Interruptibility::from_bits_retain(blocking), {
                let of_entry = [field::ENTRY_ERROR_CODE, field::ENTRY_INSTRUCTION_LENGTH];
                of_entry.map(|field| hw.field(VMCS01, field))
            })
        };
        let none = Interruptibility::empty();
        assert_eq!(exit(PAGE_FAULT, none, 1), (PAGE_FAULT, none, [6, 2]));
        assert_eq!(exit(SOFTWARE, none, 1), (SOFTWARE, none, [6, 2]));
        // An NMI that was on its way blocks none that is to be delivered.
        assert_eq!(exit(NMI, Interruptibility::NMI, 1).1, none);
        // Bit 12 is undefined in the vectoring information, and must be 0 at an entry.
        assert_eq!(exit(NMI | 1 << 12, none, 1).0, NMI);
        // An IRET had ended the blocking of NMIs, and is executed anew.
        assert_eq!(exit(0, none, 1 | 1 << 12).1, Interruptibility::NMI);
        assert_eq!(exit(0, none, 1), (0, none, [6, 2]));
    }
}

#[test]
fn a_host_that_resets_the_machine_beside_another_ends_itself() {
    for (mut vcpu, mut hw) in nested() {
        vcpu.gprs[Register::Rax] = 6;
        // An OUT of a byte to 0xCF9 (SDM vol. 3C, table "Exit Qualification for I/O Instructions").
        hw.set(VMCS01, field::EXIT_QUALIFICATION, 0xcf9 << 16);
        let next = exit_host(&mut vcpu, &mut hw, Reason::IO);
        assert_eq!(next, Next::Die(StopReason::PoweredOff, [RIP, 0xcf9, 6]));
        // An IN is none.
        hw.set(VMCS01, field::EXIT_QUALIFICATION, 0xcf9 << 16 | 1 << 3);
        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::IO), Next::Host);
    }
}

#[test]
fn init_is_seen_under_host_and_guest() {
    for (mut vcpu, mut hw) in nested() {
        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::INIT), Next::Init);
        exit_host(&mut vcpu, &mut hw, Reason::VMRESUME);
        assert_eq!(exit_guest(&mut vcpu, &mut hw, Reason::INIT), Next::Init);
        assert_eq!((hw.current, vcpu.in_guest), (Some(VMCS01), false));
    }
}

/// SDM vol. 2B, MOV to a control register, and vol. 3C, 28.2.2: CR4.CET is set only while CR0.WP is.
#[test]
fn cet_wants_write_protection() {
    let gp = Interruption::exception(ExceptionVector::GeneralProtection, true);
    for (mut vcpu, mut hw) in nested() {
        vcpu.caps.cr4_allowed |= CR4_CET;
        hw.set(VMCS01, field::GUEST_EFER, EFER_LONG_MODE.bits());
        let cr4 = Cr4Flags::from_bits_retain(kvm_value(GUEST, replaced::CR4));
        let no_wp = KVM_CR0.difference(Cr0Flags::WRITE_PROTECT);
        let mut write = |hw: &mut Model, register, value| {
            hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            vcpu.gprs[Register::Rax] = value;
            hw.set(VMCS01, field::EXIT_QUALIFICATION, register);
            exit_host(&mut vcpu, hw, Reason::CR_ACCESS);
            injected(hw) != gp
        };
        hw.set(VMCS01, field::GUEST_CR4, cr4.bits());
        hw.set(VMCS01, field::GUEST_CR0, no_wp.bits());
        assert!(!write(&mut hw, 4, (cr4 | CR4_CET).bits()));
        assert_eq!(hw.field(VMCS01, field::GUEST_CR4), cr4.bits());
        hw.set(VMCS01, field::GUEST_CR0, KVM_CR0.bits());
        assert!(write(&mut hw, 4, (cr4 | CR4_CET).bits()));
        assert_eq!(hw.field(VMCS01, field::GUEST_CR4), (cr4 | CR4_CET).bits());
        assert!(!write(&mut hw, 0, no_wp.bits()));
        assert!(write(&mut hw, 0, KVM_CR0.bits()));

        let mut area = HostArea::read(&mut hw);
        for (i, value) in area.0.iter_mut().enumerate() {
            *value = kvm_value(GUEST, i);
        }
        area.0[replaced::CR3] = 0x7000_0000;
        area.0[replaced::CR4] |= CR4_CET.bits();
        assert!(area.valid(&vcpu.caps));
        area.0[replaced::CR0] = no_wp.bits();
        assert!(!area.valid(&vcpu.caps));
    }
}

#[test]
fn host_area_rules() {
    let mut area = HostArea::ZERO;
    for (i, value) in area.0.iter_mut().enumerate() {
        *value = kvm_value(GUEST, i);
    }
    let caps = Caps {
        fixed: FIXED,
        cr4_allowed: CR4_ALLOWED,
        phys_bits: 39,
        ..Caps::NONE
    };
    assert!(area.valid(&caps));
    for (index, bad) in [
        (replaced::CR0, KVM_CR0.difference(Cr0Flags::NUMERIC_ERROR).bits()),
        (replaced::CR3, 1 << 39),
        (replaced::CR4, Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits()),
        (replaced::RIP, 1 << 47),
        (replaced::SELECTORS, 0x2b),
        (replaced::SELECTORS + 1, 0),
        (replaced::GS_BASE, 1 << 63),
    ] {
        let mut wrong = area;
        wrong.0[index] = bad;
        assert!(!wrong.valid(&caps), "field {index}");
    }
}

#[test]
fn a_stray_vmcall_ends_as_natively() {
    for (mut vcpu, mut hw) in nested() {
        let vmcall = |vcpu: &mut VCpu, hw: &mut Model| {
            hw.set(VMCS01, field::GUEST_RIP, RIP);
            hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            vcpu.gprs[Register::Rax] = 1;
            assert_eq!(exit_host(vcpu, hw, Reason::VMCALL), Next::Host);
            let passed = hw.field(VMCS01, field::GUEST_RIP) != RIP;
            (
                injected(hw),
                passed,
                VmxStatus::from_rflags(hw.field(VMCS01, field::GUEST_RFLAGS)),
            )
        };
        let undefined = Interruption::exception(ExceptionVector::InvalidOpcode, false);
        let protection = Interruption::exception(ExceptionVector::GeneralProtection, true);
        // In VMX root operation at CPL 0: VMfail with error 1.
        assert_eq!(
            vmcall(&mut vcpu, &mut hw),
            (Interruption(0), true, VmxStatus::FailValid)
        );
        assert_eq!(hw.field(GUEST, field::INSTRUCTION_ERROR), error::VMCALL_IN_ROOT);
        let current = vcpu.belief.current.take();
        assert_eq!(
            vmcall(&mut vcpu, &mut hw),
            (Interruption(0), true, VmxStatus::FailInvalid)
        );
        vcpu.belief.current = current;
        // Above CPL 0: #GP; a call to L0 is none there.
        hw.set(VMCS01, Segment::Ss.guest_rights(), AccessRights::DPL.bits());
        assert_eq!(vmcall(&mut vcpu, &mut hw).0, protection);
        vcpu.gprs[Register::Rax] = locum_abi::Op::Ping as u64;
        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMCALL), Next::Host);
        assert_eq!(injected(&hw), protection);
        // In compatibility mode: #UD, whatever the privilege level.
        let code = hw.field(VMCS01, Segment::Cs.guest_rights());
        let compatible = AccessRights::from_bits_retain(code).difference(AccessRights::LONG);
        hw.set(VMCS01, field::GUEST_EFER, EFER_LONG_MODE.bits());
        hw.set(VMCS01, Segment::Cs.guest_rights(), compatible.bits());
        assert_eq!(vmcall(&mut vcpu, &mut hw).0, undefined);
        hw.set(
            VMCS01,
            Segment::Cs.guest_rights(),
            (compatible | AccessRights::LONG).bits(),
        );
        // Outside VMX operation: #UD.
        hw.set(VMCS01, Segment::Ss.guest_rights(), 0);
        vcpu.belief.vmx_on = false;
        assert_eq!(vmcall(&mut vcpu, &mut hw).0, undefined);
        vcpu.gprs[Register::Rax] = locum_abi::Op::Ping as u64;
        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMCALL), Next::Call);
    }
}

#[test]
fn a_fault_is_raised_with_the_resume_flag_and_an_instruction_clears_it() {
    const RF: u64 = RFlags::RESUME_FLAG.bits();
    for (mut vcpu, mut hw) in nested() {
        let rflags = hw.field(VMCS01, field::GUEST_RFLAGS);
        context(&mut vcpu, &mut hw).inject(Exception::InvalidOpcode);
        assert_eq!(hw.field(VMCS01, field::GUEST_RFLAGS), rflags | RF);
        context(&mut vcpu, &mut hw).advance_by(3);
        assert_eq!(hw.field(VMCS01, field::GUEST_RFLAGS), rflags);
    }
}

#[test]
fn the_single_step_trap_follows_an_instruction_unless_it_is_for_branches() {
    for (mut vcpu, mut hw) in nested() {
        hw.set(VMCS01, field::GUEST_RFLAGS, RFLAGS_CLEAR | RFlags::TRAP_FLAG.bits());
        hw.set(VMCS01, field::GUEST_DEBUGCTL, DEBUGCTL_BTF);
        context(&mut vcpu, &mut hw).advance_by(3);
        assert_eq!(hw.field(VMCS01, field::GUEST_PENDING_DEBUG), 0);
        hw.set(VMCS01, field::GUEST_DEBUGCTL, 0);
        context(&mut vcpu, &mut hw).advance_by(3);
        let step = PendingDebug::SINGLE_STEP.bits();
        assert_eq!(hw.field(VMCS01, field::GUEST_PENDING_DEBUG), step);
    }
}
