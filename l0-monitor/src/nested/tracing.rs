//! PEBS, Intel PT and last branch records: the CPU writes down what it executes. While nested it does not.
//!
//! A VM exit does not stop them where the CPU has no control for it. PEBS would then write its records, for what L0
//! executes, at the host's linear address (IA32_DS_AREA) in L0's address space, where that is a page fault in L0; PT and
//! LBRs would show L0's own branches. So the bits that switch them on stay off in the CPU while it is nested: the host's
//! accesses to these MSRs exit, it reads what it wrote, and gets it when L0 leaves. What it traces meanwhile is empty.
//! The module switches them off around the change itself (`kmod/switch.c`).
//!
//! Not held: BTS, LBRs of the older kind and single-stepping of branches (a VM exit clears IA32_DEBUGCTL), and counters
//! without PEBS. These count what L0 does for the host as the host's own; an NMI that one raises meanwhile is the host's.
//!
//! KVM lets a VM exit load IA32_PEBS_ENABLE, if its host samples itself and not its guest
//! (`intel_guest_get_msrs()` in Linux `arch/x86/events/intel/core.c`): L0 puts 0 into KVM's list then, before each entry.
//! KVM writes the list anew before it enters.

use crate::arch::msr::{self, TRACING};
use crate::nested::context::Context;
use crate::vmx::Hardware;
use crate::vmx::field;

/// Longest VM-exit MSR-load list that is looked at; KVM's have 8 entries. The CPU recommends no more than 512
/// (IA32_VMX_MISC, SDM vol. 3D, appendix A.6).
const LONGEST_LIST: u64 = 512;
/// Bytes of an entry: number of the MSR, reserved, value (SDM vol. 3C, table 26-15).
const ENTRY: u64 = 16;

/// What the host has in the bits that are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held([u64; TRACING.len()]);

impl Held {
    /// Nothing.
    pub(crate) const NONE: Self = Self([0; TRACING.len()]);

    /// Takes what is on from the CPU.
    pub(crate) fn take(hw: &mut impl Hardware) -> Self {
        Self(TRACING.map(|(msr, bits)| match hw.rdmsr(msr) {
            Some(value) if value & bits != 0 => {
                hw.wrmsr(msr, value & !bits);
                value & bits
            }
            _ => 0,
        }))
    }

    /// Gives it back to the CPU.
    pub(crate) fn give_back(self, hw: &mut impl Hardware) {
        for ((msr, _), held) in TRACING.into_iter().zip(self.0).filter(|(_, held)| *held != 0) {
            if let Some(value) = hw.rdmsr(msr) {
                hw.wrmsr(msr, value | held);
            }
        }
    }

    /// What is held of `msr`.
    pub(crate) fn of(&self, msr: u32) -> u64 {
        let held = TRACING.iter().zip(self.0).find(|((held, _), _)| *held == msr);
        held.map_or(0, |(_, value)| value)
    }

    /// The host writes an MSR: the CPU gets all but what is held of it. False where the CPU raises #GP.
    pub(crate) fn write(&mut self, hw: &mut impl Hardware, msr: u32, value: u64) -> bool {
        let mut places = TRACING.into_iter().zip(&mut self.0);
        let Some(((_, bits), place)) = places.find(|((held, _), _)| *held == msr) else {
            return hw.wrmsr(msr, value);
        };
        let written = hw.wrmsr(msr, value & !bits);
        if written {
            *place = value & bits;
        }
        written
    }
}

impl<H: Hardware> Context<'_, H> {
    /// Has the next exit of the guest leave PEBS off. The host's VMCS is current. True if its list has to be looked at
    /// before each entry.
    pub(super) fn calm_exit_list(&mut self) -> bool {
        let count = self.hw.get(field::EXIT_MSR_LOAD_COUNT).min(LONGEST_LIST);
        if count == 0 {
            return false;
        }
        let list = self.hw.get(field::EXIT_MSR_LOAD);
        let mut found = false;
        for entry in (0..count).map(|i| list.wrapping_add(i * ENTRY)) {
            if self.around.may_touch(entry, ENTRY) && self.hw.read_phys(entry, 4) == u64::from(msr::PEBS_ENABLE) {
                self.hw.write_phys(entry + 8, 8, 0);
                found = true;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::general::Register;
    use crate::nested::exits::Next;
    use crate::nested::model::Model;
    use crate::nested::test_bed::*;
    use crate::nested::vcpu::VCpu;
    use crate::vmx::exit::Reason;
    use crate::vmx::field::Segment;
    use crate::vmx::guest::AccessRights;

    fn read(vcpu: &mut VCpu, hw: &mut Model, msr: u32) -> u64 {
        vcpu.gprs[Register::Rcx] = msr.into();
        assert_eq!(exit_host(vcpu, hw, Reason::RDMSR), Next::Host);
        vcpu.gprs[Register::Rdx] << 32 | vcpu.gprs[Register::Rax]
    }

    fn write(vcpu: &mut VCpu, hw: &mut Model, msr: u32, value: u64) {
        vcpu.gprs[Register::Rcx] = msr.into();
        (vcpu.gprs[Register::Rax], vcpu.gprs[Register::Rdx]) = (value & 0xffff_ffff, value >> 32);
        assert_eq!(exit_host(vcpu, hw, Reason::WRMSR), Next::Host);
    }

    #[test]
    fn what_a_host_traces_is_off_in_the_cpu_and_on_for_the_host() {
        for (mut vcpu, mut hw) in nested() {
            hw.msrs
                .extend([(msr::PEBS_ENABLE, 3), (msr::RTIT_CTL, 0x2001), (msr::LBR_CTL, 0)]);
            vcpu.held = Held::take(&mut hw);
            let cpu = |hw: &Model| TRACING.map(|(msr, _)| hw.msrs[&msr]);
            assert_eq!(cpu(&hw), [0, 0x2000, 0]);
            assert_eq!(TRACING.map(|(msr, _)| read(&mut vcpu, &mut hw, msr)), [3, 0x2001, 0]);
            write(&mut vcpu, &mut hw, msr::PEBS_ENABLE, 1 << 32 | 1);
            write(&mut vcpu, &mut hw, msr::RTIT_CTL, 0x4000);
            write(&mut vcpu, &mut hw, msr::LBR_CTL, 0x7f);
            assert_eq!(cpu(&hw), [0, 0x4000, 0x7e]);
            assert_eq!(
                TRACING.map(|(msr, _)| read(&mut vcpu, &mut hw, msr)),
                [1 << 32 | 1, 0x4000, 0x7f]
            );
            vcpu.held.give_back(&mut hw);
            assert_eq!(cpu(&hw), [1 << 32 | 1, 0x4000, 0x7f]);
        }
    }

    #[test]
    fn a_cpu_that_has_none_of_it_stays_so() {
        for (mut vcpu, mut hw) in nested() {
            vcpu.held = Held::take(&mut hw);
            assert_eq!(vcpu.held, Held::NONE);
            write(&mut vcpu, &mut hw, msr::PEBS_ENABLE, 1);
            assert_eq!(
                (hw.field(VMCS01, field::ENTRY_INTERRUPTION), vcpu.held),
                (0x8000_0b0d, Held::NONE)
            );
            vcpu.held.give_back(&mut hw);
            assert!(hw.msrs.is_empty());
        }
    }

    #[test]
    fn an_exit_of_the_guest_does_not_switch_pebs_on() {
        const LIST: u64 = 0x6000;
        for (mut vcpu, mut hw) in nested() {
            hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
            hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
            let mut resume = |hw: &mut Model| {
                hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
                let steady = context(&mut vcpu, hw).steady();
                if !steady {
                    assert_eq!(context(&mut vcpu, hw).serve().0, Next::Guest(false));
                }
                hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
                if !context(&mut vcpu, hw).steady() {
                    assert_eq!(context(&mut vcpu, hw).serve().0, Next::Host);
                }
                (steady, vcpu.steady.ready)
            };
            resume(&mut hw);
            assert_eq!(resume(&mut hw), (true, true));
            // KVM's list: another MSR, then PEBS.
            hw.set(GUEST, field::EXIT_MSR_LOAD, LIST);
            hw.put(LIST, msr::EFER.into());
            hw.put(LIST + 8, 0xd01);
            hw.put(LIST + 16, msr::PEBS_ENABLE.into());
            access(&mut vcpu, &mut hw, Reason::VMWRITE, field::EXIT_MSR_LOAD_COUNT, 2);
            for _ in 0..2 {
                hw.put(LIST + 24, 0xf);
                let mut resume = |hw: &mut Model| {
                    hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
                    assert!(!context(&mut vcpu, hw).steady());
                    assert_eq!(context(&mut vcpu, hw).serve().0, Next::Guest(false));
                    hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
                    assert_eq!(context(&mut vcpu, hw).serve().0, Next::Host);
                };
                resume(&mut hw);
                assert_eq!((hw.read_phys(LIST + 24, 8), hw.read_phys(LIST + 8, 8)), (0, 0xd01));
            }
            // A list that is not the host's memory is left alone.
            hw.put(LIST + 24, 0xf);
            set_limit(LIST);
            hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
            assert_eq!(context(&mut vcpu, &mut hw).serve().0, Next::Guest(false));
            assert_eq!(hw.read_phys(LIST + 24, 8), 0xf);
        }
    }
}
