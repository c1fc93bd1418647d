//! Exits that are answered by the instruction itself: CPUID, RDMSR, WRMSR, XSETBV, INVD.

use x86_64::registers::model_specific::ApicBaseFlags;

use crate::arch::general::Register;
use crate::arch::registers::Cr4Flags;
use crate::arch::{cpuid, msr};
use crate::nested::context::{Context, Exception};
use crate::vmx::Hardware;
use crate::vmx::field;

/// CPUID as the host gets it natively: OSXSAVE and OSPKE follow its CR4, not L0's (SDM vol. 2A, CPUID).
pub(crate) fn cpuid_for(leaf: u32, subleaf: u32, mut regs: [u32; 4], cr4: Cr4Flags) -> [u32; 4] {
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
        let [a, b, c, d] = cpuid_for(leaf, subleaf, regs, cr4);
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
        let msr = self.vcpu.gprs[Register::Rcx] as u32;
        match self.hw.rdmsr(msr) {
            Some(mut value) => {
                if msr == msr::APIC_BASE && self.vcpu.pretend_bsp {
                    value |= ApicBaseFlags::BSP.bits();
                }
                self.vcpu.gprs[Register::Rax] = value & 0xffff_ffff;
                self.vcpu.gprs[Register::Rdx] = value >> 32;
                self.advance();
            }
            None => self.inject(Exception::GeneralProtection),
        }
    }

    /// WRMSR, likewise.
    pub(crate) fn wrmsr(&mut self) {
        let value = self.edx_eax();
        if self.hw.wrmsr(self.vcpu.gprs[Register::Rcx] as u32, value) {
            self.advance();
        } else {
            self.inject(Exception::GeneralProtection);
        }
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

    #[test]
    fn cpuid_follows_the_hosts_cr4() {
        let none = Cr4Flags::empty();
        assert_eq!(cpuid_for(1, 0, [0, 0, 1 << 27, 0], none)[2], 0);
        assert_eq!(cpuid_for(1, 0, [0; 4], Cr4Flags::OSXSAVE)[2], 1 << 27);
        assert_eq!(cpuid_for(7, 0, [0, 0, 1 << 4, 0], none)[2], 0);
        assert_eq!(cpuid_for(7, 1, [0, 0, 1 << 4, 0], none)[2], 1 << 4);
    }
}
