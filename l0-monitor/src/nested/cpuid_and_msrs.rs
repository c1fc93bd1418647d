//! Exits that are answered by the instruction itself: CPUID, RDMSR and WRMSR in all their forms, XSETBV, INVD.

use core::sync::atomic::{AtomicU32, Ordering};

use x86_64::registers::model_specific::ApicBaseFlags;

use crate::arch::general::Register;
use crate::arch::registers::Cr4Flags;
use crate::arch::{cpuid, msr};
use crate::nested::context::{Context, Exception};
use crate::nested::walk;
use crate::vmx::Hardware;
use crate::vmx::exit::InstructionInfo;
use crate::vmx::field;

/// Microcode updates that hosts asked for while nested.
static UPDATES: AtomicU32 = AtomicU32::new(0);

/// CPUID as the host gets it natively: OSXSAVE and OSPKE follow its CR4, not L0's, and SYSCALL is told in 64-bit mode only,
/// which L0 is always in (SDM vol. 2A, CPUID).
pub(crate) fn cpuid_for(
    leaf: u32,
    subleaf: u32,
    mut regs: [u32; 4],
    cr4: Cr4Flags,
    in_64_bit_mode: impl FnOnce() -> bool,
) -> [u32; 4] {
    let follow = |word: u32, bit: u32, on: bool| if on { word | bit } else { word & !bit };
    match (leaf, subleaf) {
        (1, _) => regs[2] = follow(regs[2], cpuid::LEAF1_ECX_OSXSAVE, cr4.contains(Cr4Flags::OSXSAVE)),
        (7, 0) => {
            regs[2] = follow(
                regs[2],
                cpuid::LEAF7_ECX_OSPKE,
                cr4.contains(Cr4Flags::PROTECTION_KEY_USER),
            )
        }
        (cpuid::EXTENDED_1, _) => {
            let told = regs[3] & cpuid::EXTENDED_1_EDX_SYSCALL != 0;
            regs[3] = follow(regs[3], cpuid::EXTENDED_1_EDX_SYSCALL, told && in_64_bit_mode());
        }
        _ => {}
    }
    regs
}

impl<H: Hardware> Context<'_, H> {
    /// CPUID.
    pub(crate) fn cpuid(&mut self) {
        let (leaf, subleaf) = (
            self.vcpu.gprs[Register::Rax] as u32,
            self.vcpu.gprs[Register::Rcx] as u32,
        );
        let regs = self.hw.cpuid(leaf, subleaf);
        let cr4 = Cr4Flags::from_bits_retain(self.read(field::GUEST_CR4));
        let [a, b, c, d] = cpuid_for(leaf, subleaf, regs, cr4, || self.is_64_bit_mode());
        for (register, value) in [
            (Register::Rax, a),
            (Register::Rbx, b),
            (Register::Rcx, c),
            (Register::Rdx, d),
        ] {
            self.vcpu.gprs[register] = u64::from(value);
        }
        self.advance();
    }

    /// RDMSR: those the bitmap names, and those outside its two ranges, which exit always.
    pub(crate) fn rdmsr(&mut self) {
        match self.read_msr(self.vcpu.gprs[Register::Rcx] as u32) {
            Some(value) => {
                self.vcpu.gprs[Register::Rax] = value & 0xffff_ffff;
                self.vcpu.gprs[Register::Rdx] = value >> 32;
                self.advance();
            }
            None => self.inject(Exception::GeneralProtection),
        }
    }

    /// WRMSR and WRMSRNS, likewise.
    pub(crate) fn wrmsr(&mut self) {
        let value = self.edx_eax();
        if self.write_msr(self.vcpu.gprs[Register::Rcx] as u32, value) {
            self.advance();
        } else {
            self.inject(Exception::GeneralProtection);
        }
    }

    /// RDMSR or WRMSRNS (`write`) with the MSR's number in the instruction: it is in the exit qualification, and the
    /// register in the instruction information.
    pub(crate) fn immediate_msr(&mut self, write: bool) {
        let msr = self.read(field::EXIT_QUALIFICATION) as u32;
        let register = InstructionInfo(self.read(field::INSTRUCTION_INFO) as u32).register1();
        let done = if write {
            let value = self.gpr(register);
            self.write_msr(msr, value)
        } else {
            let value = self.read_msr(msr);
            value.map(|value| self.set_gpr(register, value)).is_some()
        };
        if done {
            self.advance();
        } else {
            self.inject(Exception::GeneralProtection);
        }
    }

    /// RDMSRLIST or WRMSRLIST (`write`) at one MSR of its list: that of the lowest bit in RCX. Its number is in the exit
    /// qualification, and what is to be written in a field of its own. The host executes the instruction once more for
    /// the rest of the list (SDM vol. 2B, RDMSRLIST: it may be interrupted between two MSRs).
    pub(crate) fn msr_list(&mut self, write: bool) {
        let left = self.vcpu.gprs[Register::Rcx];
        let msr = self.read(field::EXIT_QUALIFICATION) as u32;
        if write {
            let value = self.read(field::MSR_DATA);
            if !self.write_msr(msr, value) {
                return self.inject(Exception::GeneralProtection);
            }
        } else {
            let Some(value) = self.read_msr(msr) else {
                return self.inject(Exception::GeneralProtection);
            };
            let place = 8 * u64::from(left.trailing_zeros());
            let linear = self.vcpu.gprs[Register::Rdi].wrapping_add(place);
            let paging = self.paging();
            let may_touch = |address, bytes| self.around.may_touch(address, bytes);
            if let Err(fault) = walk::write_word(self.hw, &may_touch, paging, linear, value) {
                return self.inject(Self::operand_exception(fault, linear));
            }
        }
        let left = left & left.wrapping_sub(1);
        self.vcpu.gprs[Register::Rcx] = left;
        if left == 0 {
            self.advance();
        }
    }

    /// What the host reads of an MSR; `None` where the CPU raises #GP.
    fn read_msr(&mut self, msr: u32) -> Option<u64> {
        let mut value = self.hw.rdmsr(msr)?;
        if msr == msr::APIC_BASE && self.vcpu.pretend_bsp {
            value |= ApicBaseFlags::BSP.bits();
        }
        Some(value | self.vcpu.held.of(msr))
    }

    /// The host writes an MSR; false where the CPU raises #GP.
    ///
    /// A microcode update loads nothing in non-root operation (SDM vol. 3C, 27.3, WRMSR), and L0 does not load it instead:
    /// hyperthreads of the same core may be the other host's, and are to rest meanwhile (vol. 3A, "Microcode Update
    /// Facilities"). Linux finds the revision unchanged and reports that.
    fn write_msr(&mut self, msr: u32, value: u64) -> bool {
        if msr == msr::BIOS_UPDT_TRIG {
            let times = UPDATES.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if times.is_power_of_two() {
                log::warn!("{times} microcode updates were not loaded, the CPU being nested: load it again natively");
            }
            return true;
        }
        self.vcpu.held.write(self.hw, msr, value)
    }

    /// XSETBV.
    pub(crate) fn xsetbv(&mut self) {
        let value = self.edx_eax();
        if self.cpl() == 0 && self.hw.xsetbv(self.vcpu.gprs[Register::Rcx] as u32, value) {
            self.advance();
        } else {
            self.inject(Exception::GeneralProtection);
        }
    }

    /// INVD: caches are written back first, they hold others' data too.
    pub(crate) fn invd(&mut self) {
        self.hw.wbinvd();
        self.advance();
    }

    fn edx_eax(&self) -> u64 {
        self.vcpu.gprs[Register::Rdx] << 32 | self.vcpu.gprs[Register::Rax] & 0xffff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::registers::EferFlags;
    use crate::nested::exits::Next;
    use crate::nested::model::Model;
    use crate::nested::test_bed::*;
    use crate::nested::vcpu::VCpu;
    use crate::vmx::exit::Reason;
    use crate::vmx::field::Segment;
    use crate::vmx::guest::AccessRights;

    /// #GP(0) and #PF as VM entry injects them.
    const GP: u64 = 0x8000_0b0d;
    const PF: u64 = 0x8000_0b0e;
    /// An MSR outside of the bitmap's ranges.
    const HIGH: u32 = 0x4000_0000;

    #[test]
    fn cpuid_follows_the_hosts_cr4() {
        let none = Cr4Flags::empty();
        let cpuid_for = |leaf, subleaf, regs, cr4| cpuid_for(leaf, subleaf, regs, cr4, || true);
        assert_eq!(cpuid_for(1, 0, [0, 0, 1 << 27, 0], none)[2], 0);
        assert_eq!(cpuid_for(1, 0, [0; 4], Cr4Flags::OSXSAVE)[2], 1 << 27);
        assert_eq!(cpuid_for(7, 0, [0, 0, 1 << 4, 0], none)[2], 0);
        assert_eq!(cpuid_for(7, 1, [0, 0, 1 << 4, 0], none)[2], 1 << 4);
    }

    #[test]
    fn cpuid_tells_of_syscall_in_64_bit_mode_only() {
        for (mut vcpu, mut hw) in nested() {
            for (rights, told) in [
                (AccessRights::CODE_64, cpuid::EXTENDED_1_EDX_SYSCALL),
                (AccessRights::CODE_64.difference(AccessRights::LONG), 0),
            ] {
                hw.set(VMCS01, field::GUEST_EFER, EferFlags::LONG_MODE_ACTIVE.bits());
                hw.set(VMCS01, Segment::Cs.guest_rights(), rights.bits());
                vcpu.gprs[Register::Rax] = cpuid::EXTENDED_1.into();
                execute(&mut vcpu, &mut hw, Reason::CPUID);
                assert_eq!(vcpu.gprs[Register::Rdx], u64::from(told));
            }
        }
    }

    /// The host executes an instruction; what is injected, and whether it went past it.
    fn execute(vcpu: &mut VCpu, hw: &mut Model, reason: Reason) -> (u64, bool) {
        hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
        hw.set(VMCS01, field::GUEST_RIP, RIP);
        assert_eq!(exit_host(vcpu, hw, reason), Next::Host);
        (
            hw.field(VMCS01, field::ENTRY_INTERRUPTION),
            hw.field(VMCS01, field::GUEST_RIP) != RIP,
        )
    }

    #[test]
    fn msrs_of_a_list_are_read_one_by_one() {
        for (mut vcpu, mut hw) in nested() {
            hw.msrs.insert(HIGH, 0x1234_5678_9abc);
            vcpu.gprs[Register::Rcx] = 1 << 3 | 1 << 63;
            vcpu.gprs[Register::Rdi] = 0x5000;
            hw.set(VMCS01, field::EXIT_QUALIFICATION, HIGH.into());
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::RDMSRLIST), (0, false));
            assert_eq!(
                (vcpu.gprs[Register::Rcx], hw.read_phys(0x5018, 8)),
                (1 << 63, 0x1234_5678_9abc)
            );
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::RDMSRLIST), (0, true));
            assert_eq!(
                (vcpu.gprs[Register::Rcx], hw.read_phys(0x51f8, 8)),
                (0, 0x1234_5678_9abc)
            );

            // What fails leaves the list as it is.
            vcpu.gprs[Register::Rcx] = 1;
            vcpu.gprs[Register::Rdi] = 5 << 30;
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::RDMSRLIST), (PF, false));
            hw.set(VMCS01, field::EXIT_QUALIFICATION, u64::from(HIGH) + 1);
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::RDMSRLIST), (GP, false));
            assert_eq!(vcpu.gprs[Register::Rcx], 1);
        }
    }

    #[test]
    fn msrs_of_a_list_are_written_one_by_one() {
        for (mut vcpu, mut hw) in nested() {
            hw.msrs.insert(HIGH, 0);
            vcpu.gprs[Register::Rcx] = 1 << 3 | 1 << 4;
            hw.set(VMCS01, field::EXIT_QUALIFICATION, HIGH.into());
            hw.set(VMCS01, field::MSR_DATA, 0x77);
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::WRMSRLIST), (0, false));
            assert_eq!((vcpu.gprs[Register::Rcx], hw.msrs[&HIGH]), (1 << 4, 0x77));
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::WRMSRLIST), (0, true));
            hw.set(VMCS01, field::EXIT_QUALIFICATION, u64::from(HIGH) + 1);
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::WRMSRLIST), (GP, false));
        }
    }

    #[test]
    fn an_msr_named_by_the_instruction() {
        for (mut vcpu, mut hw) in nested() {
            hw.msrs.insert(HIGH, 0x1234_5678_9abc);
            hw.set(VMCS01, field::EXIT_QUALIFICATION, HIGH.into());
            hw.set(VMCS01, field::INSTRUCTION_INFO, (Register::R9 as u64) << 3);
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::RDMSR_IMMEDIATE), (0, true));
            assert_eq!(vcpu.gprs[Register::R9], 0x1234_5678_9abc);
            vcpu.gprs[Register::R9] = !0;
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::WRMSRNS_IMMEDIATE), (0, true));
            assert_eq!(hw.msrs[&HIGH], !0);
            hw.msrs.clear();
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::RDMSR_IMMEDIATE), (GP, false));
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::WRMSRNS_IMMEDIATE), (GP, false));
        }
    }

    #[test]
    fn no_microcode_is_loaded() {
        for (mut vcpu, mut hw) in nested() {
            hw.msrs.insert(msr::BIOS_UPDT_TRIG, 0);
            vcpu.gprs[Register::Rcx] = msr::BIOS_UPDT_TRIG.into();
            vcpu.gprs[Register::Rax] = 0x1000;
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::WRMSR), (0, true));
            assert_eq!(hw.msrs[&msr::BIOS_UPDT_TRIG], 0);
        }
    }

    #[test]
    fn xsetbv_is_for_cpl_0_and_takes_what_the_cpu_takes() {
        for (mut vcpu, mut hw) in nested() {
            vcpu.gprs[Register::Rax] = 7;
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::XSETBV), (0, true));
            hw.set(VMCS01, Segment::Ss.guest_rights(), AccessRights::DPL.bits());
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::XSETBV), (GP, false));
            hw.set(VMCS01, Segment::Ss.guest_rights(), 0);
            vcpu.gprs[Register::Rax] = 2;
            assert_eq!(execute(&mut vcpu, &mut hw, Reason::XSETBV), (GP, false));
        }
    }
}
