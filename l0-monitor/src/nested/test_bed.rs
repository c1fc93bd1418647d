//! What the tests of the nested path have in common: a host with its KVM on the model of a CPU.

use std::boxed::Box;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::vec::Vec;

use locum_abi::Event;

use crate::arch::general::Register;
use crate::arch::port::RESET_CONTROL;
use crate::arch::registers::{CR0_L0, Cr0Flags, Cr4Flags, EFER_LONG_MODE, EferFlags};
use crate::nested::context::{Context, Surroundings};
use crate::nested::exits::Next;
use crate::nested::host_area::{REPLACED, replaced};
use crate::nested::model::{Model, REVISION};
use crate::nested::shadow::{Shadow, Use};
use crate::nested::vcpu::{Belief, VCpu};
use crate::partition::Violation;
use crate::partition::io_filter::Verdict;
use crate::vmx::VmxStatus;
use crate::vmx::caps::FixedBits;
use crate::vmx::controls::ExitControls;
use crate::vmx::exit::{InstructionInfo, Interruption, IoAccess, Reason};
use crate::vmx::field::{self, Area, Field};

pub(crate) const VMCS01: u64 = 0x10_0000;
pub(crate) const OWN_VMXON: u64 = 0x10_1000;
pub(crate) const KVM_VMXON: u64 = 0x20_0000;
pub(crate) const GUEST: u64 = 0x20_1000;
pub(crate) const OTHER: u64 = 0x20_2000;
pub(crate) const SHADOW: u64 = 0x10_2000;
pub(crate) const BITMAPS: [u64; 2] = [0x10_3000, 0x10_4000];
pub(crate) const RIP: u64 = 0xffff_8000_0000_1000;

/// Bits that VMX fixes on the CPU of the tests.
pub(crate) const FIXED: FixedBits = FixedBits {
    cr0: Cr0Flags::NUMERIC_ERROR,
    cr4: Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS.union(Cr4Flags::MACHINE_CHECK_EXCEPTION),
};
/// Bits of CR4 that it has: those of a Haswell, and SMAP.
pub(crate) const CR4_ALLOWED: Cr4Flags = Cr4Flags::from_bits_truncate(0x37_67ff);
/// CR0 of a host.
pub(crate) const KVM_CR0: Cr0Flags = CR0_L0.union(Cr0Flags::ALIGNMENT_MASK);
/// IA32_EFER of a host.
pub(crate) const KVM_EFER: EferFlags = EFER_LONG_MODE
    .union(EferFlags::NO_EXECUTE_ENABLE)
    .union(EferFlags::SYSTEM_CALL_EXTENSIONS);

/// What is around the CPU: a successor that owns RAM up to a limit; there is more RAM behind it, and devices behind
/// that.
pub(crate) struct Open;

std::thread_local! {
    static LIMIT: Cell<u64> = const { Cell::new(4 << 30) };
}

/// Sets the end of the host's RAM, until the next host is made.
pub(crate) fn set_limit(limit: u64) {
    LIMIT.set(limit);
}

impl Surroundings<Model> for Open {
    fn may_touch(&self, address: u64, bytes: u64) -> bool {
        address.checked_add(bytes).is_some_and(|end| end <= LIMIT.get())
    }

    fn port(&self, _: &mut Model, io: IoAccess, _: u32) -> Verdict {
        if io.port == RESET_CONTROL && !io.input {
            return Verdict::Power;
        }
        Verdict::Value(0xffff_ffff)
    }

    fn violation(&self, address: u64, _: bool) -> Violation {
        match address >> 30 {
            0..4 => Violation::Retry,
            4..6 => Violation::Fatal,
            _ => Violation::Refused,
        }
    }

    fn ioapic(&self, _: &mut Model, _: u64, _: Option<u32>) -> u32 {
        0
    }

    fn trace(&self, _: Event) {}
}

/// An exit of this CPU.
pub(crate) fn context<'a>(vcpu: &'a mut VCpu, hw: &'a mut Model) -> Context<'a, Model> {
    Context {
        vcpu,
        hw,
        around: &Open,
    }
}

/// Every way to use VMCS shadowing; a CPU without it is as one that does not use it.
pub(crate) const USES: [Use; 4] = [Use::Active, Use::Cleared, Use::Off, Use::Windows];

/// A host in VMX operation with an adopted, current VMCS, as KVM is most of the time; on a CPU with VMCS shadowing and
/// on one without.
pub(crate) fn nested() -> impl Iterator<Item = (Box<VCpu>, Model)> {
    USES.into_iter().map(nested_on)
}

pub(crate) fn nested_on(shadowing: Use) -> (Box<VCpu>, Model) {
    set_limit(4 << 30);
    let mut vcpu = Box::new(VCpu::new());
    let mut hw = Model::new(KVM_VMXON, VMCS01);
    vcpu.vmcs01 = VMCS01;
    vcpu.vmxon_region = OWN_VMXON;
    vcpu.launched = true;
    vcpu.caps.revision = REVISION;
    vcpu.caps.fixed = FIXED;
    vcpu.caps.cr4_allowed = CR4_ALLOWED;
    vcpu.caps.phys_bits = 39;
    for (i, value) in vcpu.own_area.0.iter_mut().enumerate() {
        *value = 0x4c30_0000 + i as u64;
    }
    hw.set(VMCS01, field::GUEST_CR3, 0x1000);
    hw.set(VMCS01, field::GUEST_RIP, RIP);
    hw.set(VMCS01, field::INSTRUCTION_LENGTH, 3);
    hw.set(VMCS01, field::CR4_SHADOW, FIXED.cr4.bits());
    hw.set(VMCS01, field::GUEST_RFLAGS, 0x8d7);
    for vmcs in [GUEST, OTHER] {
        for (i, field) in REPLACED.into_iter().enumerate() {
            hw.set(vmcs, field, kvm_value(vmcs, i));
        }
        hw.set(
            vmcs,
            field::EXIT_CONTROLS,
            u64::from((ExitControls::HOST_64 | ExitControls::LOAD_EFER).bits()),
        );
        hw.set(vmcs, field::HOST_EFER, KVM_EFER.bits());
        hw.set(vmcs, field::HOST_SYSENTER_CS, 0x10);
        hw.set(vmcs, field::HOST_TR_SELECTOR, 0x40);
        hw.set(vmcs, field::HOST_TR_BASE, 0xffff_fe00_0000_3000);
    }
    vcpu.belief = Belief {
        vmx_on: true,
        vmxon_region: None,
        current: None,
    };
    hw.set(VMCS01, field::VMCS_LINK, !0);
    hw.writes_all = shadowing != Use::Off;
    prepare_shadow(&mut vcpu, &mut hw, shadowing);
    hw.put(0x5000, GUEST);
    instruction(&mut vcpu, &mut hw, Reason::VMPTRLD, 0x5000);
    assert_eq!(vcpu.belief.current, Some(GUEST));
    hw.set(VMCS01, field::GUEST_RIP, RIP);
    (vcpu, hw)
}

/// The CPU as L0 finds it, once more, with this use of VMCS shadowing.
pub(crate) fn prepare_shadow(vcpu: &mut VCpu, hw: &mut Model, shadowing: Use) {
    vcpu.shadow = Shadow::NONE;
    if shadowing == Use::Off {
        return;
    }
    for bitmap in BITMAPS {
        hw.fill(bitmap, !0);
    }
    hw.put_down = (shadowing == Use::Cleared).then_some(SHADOW);
    vcpu.shadow.prepare(hw, SHADOW, BITMAPS, shadowing);
}

/// What KVM has in a replaced field; valid for VM entry.
pub(crate) fn kvm_value(vmcs: u64, index: usize) -> u64 {
    match index {
        replaced::CR0 => KVM_CR0.bits(),
        replaced::CR3 => 0x7000_0000 + vmcs,
        replaced::CR4 => 0x17_66f0 & CR4_ALLOWED.bits(),
        replaced::RSP => 0xffff_c900_0000_0000 + vmcs,
        replaced::RIP => 0xffff_ffff_c0a0_0000,
        i if (replaced::SELECTORS..replaced::FS_BASE).contains(&i) => match i - replaced::SELECTORS {
            1 => 0x10,
            2 => 0x18,
            _ => 0,
        },
        _ => 0xffff_8880_0000_0000 + ((index as u64) << 12),
    }
}

pub(crate) fn exit_host(vcpu: &mut VCpu, hw: &mut Model, reason: Reason) -> Next {
    hw.assert_put_down();
    hw.set(VMCS01, field::EXIT_REASON, reason.0.into());
    context(vcpu, hw).serve().0
}

/// The guest exits.
pub(crate) fn exit_guest(vcpu: &mut VCpu, hw: &mut Model, reason: Reason) -> Next {
    hw.assert_put_down();
    hw.set(GUEST, field::EXIT_REASON, reason.0.into());
    context(vcpu, hw).serve().0
}

/// A VMX instruction with its memory operand at `address` (base none, 64-bit).
pub(crate) fn instruction(vcpu: &mut VCpu, hw: &mut Model, reason: Reason, address: u64) -> VmxStatus {
    let info = 2 << InstructionInfo::ADDRESS_SIZE | InstructionInfo::NO_INDEX | InstructionInfo::NO_BASE;
    hw.set(VMCS01, field::INSTRUCTION_INFO, info.into());
    hw.set(VMCS01, field::EXIT_QUALIFICATION, address);
    assert_eq!(exit_host(vcpu, hw, reason), Next::Host);
    assert_eq!(hw.current, Some(VMCS01), "VMCS01 is current whenever the host runs");
    VmxStatus::from_rflags(hw.field(VMCS01, field::GUEST_RFLAGS))
}

/// VMREAD or VMWRITE by the host: without an exit if the CPU says so, else with register operands, RAX the value, RCX
/// the field.
pub(crate) fn access(vcpu: &mut VCpu, hw: &mut Model, reason: Reason, field: Field, value: u64) -> (VmxStatus, u64) {
    let direct = if reason == Reason::VMREAD {
        hw.host_vmread(VMCS01, field)
            .map(|r| r.map_or_else(|status| (status, value), |v| (VmxStatus::Succeed, v)))
    } else {
        hw.host_vmwrite(VMCS01, field, value).map(|status| (status, value))
    };
    direct.unwrap_or_else(|| exiting_access(vcpu, hw, reason, field, value))
}

pub(crate) fn exiting_access(
    vcpu: &mut VCpu,
    hw: &mut Model,
    reason: Reason,
    field: Field,
    value: u64,
) -> (VmxStatus, u64) {
    vcpu.gprs[Register::Rax] = value;
    vcpu.gprs[Register::Rcx] = field.0.into();
    let info = InstructionInfo::REGISTER | (Register::Rcx as u32) << InstructionInfo::REGISTER2;
    hw.set(VMCS01, field::INSTRUCTION_INFO, info.into());
    assert_eq!(exit_host(vcpu, hw, reason), Next::Host);
    (
        VmxStatus::from_rflags(hw.field(VMCS01, field::GUEST_RFLAGS)),
        vcpu.gprs[Register::Rax],
    )
}

pub(crate) fn snapshot(hw: &Model) -> Vec<BTreeMap<u32, u64>> {
    [GUEST, OTHER].into_iter().map(|v| hw.vmcs[&v].clone()).collect()
}

/// VMCS01 as far as its host can tell: of the control registers' read shadows only the bits that VMX fixes show.
pub(crate) fn landing(vcpu: &VCpu, hw: &Model) -> BTreeMap<u32, u64> {
    let mut fields = hw.vmcs[&VMCS01].clone();
    fields.retain(|f, _| Field(*f).area() == Area::Guest || *f == field::CR0_SHADOW.0 || *f == field::CR4_SHADOW.0);
    fields.remove(&field::VMCS_LINK.0);
    // What was never written is 0.
    fields.retain(|_, v| *v != 0);
    for (field, mask) in [
        (field::CR0_SHADOW, vcpu.caps.fixed.cr0.bits()),
        (field::CR4_SHADOW, vcpu.caps.fixed.cr4.bits()),
    ] {
        fields.entry(field.0).and_modify(|v| *v &= mask);
    }
    fields
}

/// What the host finds injected.
pub(crate) fn injected(hw: &Model) -> Interruption {
    Interruption(hw.field(VMCS01, field::ENTRY_INTERRUPTION))
}
