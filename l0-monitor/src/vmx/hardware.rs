//! The CPU as the nested code sees it, and nothing else: no policy, no trace. One implementation executes instructions
//! ([`super::instructions::Cpu`]); the tests have another, a model of VMX on the host.

use super::field::Field;
use crate::arch::registers::RFlags;

/// What every VMX instruction clears (SDM vol. 3C, 31.2).
const ARITHMETIC_FLAGS: RFlags = RFlags::CARRY_FLAG
    .union(RFlags::PARITY_FLAG)
    .union(RFlags::AUXILIARY_CARRY_FLAG)
    .union(RFlags::ZERO_FLAG)
    .union(RFlags::SIGN_FLAG)
    .union(RFlags::OVERFLOW_FLAG);

/// Outcome of a VMX instruction (SDM vol. 3C, 31.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VmxStatus {
    /// VMsucceed: all arithmetic flags clear.
    Succeed,
    /// VMfailInvalid: CF. There is no current VMCS to hold an error number.
    FailInvalid,
    /// VMfailValid: ZF. The number is in the current VMCS.
    FailValid,
}

impl VmxStatus {
    /// From RFLAGS after the instruction.
    pub(crate) const fn from_rflags(rflags: u64) -> Self {
        let flags = RFlags::from_bits_retain(rflags);
        if flags.contains(RFlags::CARRY_FLAG) {
            Self::FailInvalid
        } else if flags.contains(RFlags::ZERO_FLAG) {
            Self::FailValid
        } else {
            Self::Succeed
        }
    }

    /// RFLAGS as the instruction leaves them: CF, PF, AF, ZF, SF, OF are clear but for the one that tells.
    pub(crate) const fn apply(self, rflags: u64) -> u64 {
        let clear = RFlags::from_bits_retain(rflags).difference(ARITHMETIC_FLAGS);
        match self {
            Self::Succeed => clear,
            Self::FailInvalid => clear.union(RFlags::CARRY_FLAG),
            Self::FailValid => clear.union(RFlags::ZERO_FLAG),
        }
        .bits()
    }

    /// True for [`VmxStatus::Succeed`].
    pub(crate) const fn ok(self) -> bool {
        matches!(self, Self::Succeed)
    }
}

/// An INVEPT or INVVPID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalidate {
    /// INVEPT.
    Ept,
    /// INVVPID.
    Vpid,
}

/// Type of an INVEPT or INVVPID that L0 makes: the translations of one EPT pointer or VPID (SDM vol. 3C, 30.4.3.1).
pub(crate) const SINGLE_CONTEXT: u64 = 1;

/// What the nested code asks of the CPU it runs on.
///
/// Physical addresses that reach `read_phys` and `write_phys` have been checked against the caller's partition.
pub(crate) trait Hardware {
    /// VMREAD from the current VMCS.
    fn vmread(&mut self, field: Field) -> Result<u64, VmxStatus>;
    /// VMWRITE to the current VMCS.
    fn vmwrite(&mut self, field: Field, value: u64) -> VmxStatus;
    /// VMPTRLD.
    fn vmptrld(&mut self, phys: u64) -> VmxStatus;
    /// VMREAD of a field that the current VMCS is known to have.
    fn get(&mut self, field: Field) -> u64;
    /// VMWRITE of such a field.
    fn put(&mut self, field: Field, value: u64);
    /// VMPTRLD of a VMCS that is known to be good: of L0, or one that was current on this CPU already.
    fn select(&mut self, phys: &u64);
    /// VMCLEAR.
    fn vmclear(&mut self, phys: u64) -> VmxStatus;
    /// VMCLEAR of such a VMCS.
    fn clear(&mut self, phys: &u64);
    /// VMXON. CR4.VMXE must be set.
    fn vmxon(&mut self, phys: u64) -> VmxStatus;
    /// VMXOFF.
    fn vmxoff(&mut self) -> VmxStatus;
    /// VMCALL, in VMX root operation.
    fn vmcall(&mut self) -> VmxStatus;
    /// VMPTRST.
    fn vmptrst(&mut self) -> u64;
    /// INVEPT or INVVPID with a descriptor.
    fn invalidate(&mut self, instruction: Invalidate, kind: u64, descriptor: [u64; 2]) -> VmxStatus;
    /// CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(&mut self, leaf: u32, subleaf: u32) -> [u32; 4];
    /// RDMSR; `None` where the CPU raises #GP.
    fn rdmsr(&mut self, msr: u32) -> Option<u64>;
    /// WRMSR; false where the CPU raises #GP.
    fn wrmsr(&mut self, msr: u32, value: u64) -> bool;
    /// XSETBV; false where the CPU raises #GP.
    fn xsetbv(&mut self, index: u32, value: u64) -> bool;
    /// An indirect branch predictor barrier. The CPU has it.
    fn predictor_barrier(&mut self);
    /// WBINVD.
    fn wbinvd(&mut self);
    /// Writes CR2.
    fn set_cr2(&mut self, value: u64);
    /// IN of 1, 2 or 4 bytes.
    fn port_in(&mut self, port: u16, size: u8) -> u32;
    /// OUT of 1, 2 or 4 bytes.
    fn port_out(&mut self, port: u16, size: u8, value: u32);
    /// Reads 1, 2, 4 or 8 aligned bytes of physical memory or MMIO.
    fn read_phys(&mut self, address: u64, size: u8) -> u64;
    /// Writes 1, 2, 4 or 8 aligned bytes of physical memory or MMIO.
    fn write_phys(&mut self, address: u64, size: u8, value: u64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        assert_eq!(VmxStatus::from_rflags(0x2), VmxStatus::Succeed);
        assert_eq!(VmxStatus::from_rflags(0x3), VmxStatus::FailInvalid);
        assert_eq!(VmxStatus::from_rflags(0x42), VmxStatus::FailValid);
        assert_eq!(VmxStatus::Succeed.apply(0x8d7), 0x2);
        assert_eq!(VmxStatus::FailValid.apply(0x203), 0x242);
    }
}
