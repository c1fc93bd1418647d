//! The general registers, numbered as instructions, exit information and VMX operands encode them in four bits (SDM
//! vol. 2A, table 2-4 and 2.2.1.2; vol. 3C, table 29-3).

use core::ops::{Index, IndexMut};

/// A general register.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Register {
    /// RAX.
    Rax,
    /// RCX.
    Rcx,
    /// RDX.
    Rdx,
    /// RBX.
    Rbx,
    /// RSP.
    Rsp,
    /// RBP.
    Rbp,
    /// RSI.
    Rsi,
    /// RDI.
    Rdi,
    /// R8.
    R8,
    /// R9.
    R9,
    /// R10.
    R10,
    /// R11.
    R11,
    /// R12.
    R12,
    /// R13.
    R13,
    /// R14.
    R14,
    /// R15.
    R15,
}

impl Register {
    /// All of them.
    pub(crate) const ALL: [Self; 16] = [
        Self::Rax,
        Self::Rcx,
        Self::Rdx,
        Self::Rbx,
        Self::Rsp,
        Self::Rbp,
        Self::Rsi,
        Self::Rdi,
        Self::R8,
        Self::R9,
        Self::R10,
        Self::R11,
        Self::R12,
        Self::R13,
        Self::R14,
        Self::R15,
    ];

    /// The register that the four lowest bits of `bits` name.
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self::ALL[(bits & 15) as usize]
    }
}

/// A register that holds `old` after an instruction has written `size` bytes of it: four clear the rest, one and two
/// keep it (SDM vol. 1, 3.4.1.1).
pub(crate) const fn written(old: u64, size: u8, value: u64) -> u64 {
    match size {
        1 => old & !0xff | value & 0xff,
        2 => old & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// The values of all general registers. A [`Register`] indexes it, and cannot miss.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers([u64; 16]);

impl Registers {
    /// All zero.
    pub(crate) const ZERO: Self = Self([0; 16]);
}

impl Index<Register> for Registers {
    type Output = u64;

    #[inline(always)]
    fn index(&self, register: Register) -> &u64 {
        &self.0[register as usize]
    }
}

impl IndexMut<Register> for Registers {
    #[inline(always)]
    fn index_mut(&mut self, register: Register) -> &mut u64 {
        &mut self.0[register as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_writes_keep_the_rest() {
        let sizes = [1, 2, 4, 8].map(|size| written(0x1111_2222_3333_4444, size, 0xaaaa_bbbb_cccc_dddd));
        let wanted = [
            0x1111_2222_3333_44dd,
            0x1111_2222_3333_dddd,
            0xcccc_dddd,
            0xaaaa_bbbb_cccc_dddd,
        ];
        assert_eq!(sizes, wanted);
    }

    #[test]
    fn numbers_are_those_of_the_encoding() {
        for (number, register) in (0..).zip(Register::ALL) {
            assert_eq!(register as u32, number);
            assert_eq!(Register::from_bits(0xff_fff0 | number), register);
        }
    }
}
