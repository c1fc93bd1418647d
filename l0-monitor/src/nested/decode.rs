//! Decodes the MOV between a register and memory by which a host touches a filtered device register.
//!
//! Only what compilers make of `readl` and `writel` in 64-bit code: opcodes 88 to 8b and c6, c7 with ModR/M (SDM vol.
//! 2A, chapter 2). Everything else is refused, and the host gets #GP.

use bitflags::bitflags;

use crate::arch::general::Register;

/// Bytes of the longest instruction (SDM vol. 2A, 2.3.11).
pub(crate) const LONGEST: usize = 15;

/// A decoded access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mov {
    /// 1, 2, 4 or 8 bytes.
    pub(crate) size: u8,
    /// What it does.
    pub(crate) operation: Operation,
    /// Bytes of the instruction.
    pub(crate) length: u8,
}

/// Direction and partner of the memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Memory to register.
    Load(Register),
    /// Register to memory.
    Store(Register),
    /// Immediate to memory.
    StoreImmediate(u64),
}

bitflags! {
    /// A REX prefix (SDM vol. 2A, table 2-4); empty if there is none.
    #[derive(Clone, Copy)]
    struct Rex: u8 {
        const PRESENT = 1 << 6;
        /// W: operands of 64 bits.
        const WIDE = 1 << 3;
        /// R: bit 3 of ModR/M.reg.
        const REGISTER = 1 << 2;
        const _ = !0;
    }
}

/// A ModR/M byte (SDM vol. 2A, 2.1.5).
#[derive(Clone, Copy)]
struct ModRm(u8);

impl ModRm {
    /// `mode` of an operand that is a register.
    const REGISTER: u8 = 3;
    /// `rm` of an operand with a SIB byte.
    const SIB: u8 = 4;
    /// `rm`, or the base in a SIB byte, that means a displacement alone in mode 0.
    const DISPLACEMENT: u8 = 5;

    const fn mode(self) -> u8 {
        self.0 >> 6
    }

    const fn register(self) -> u8 {
        self.0 >> 3 & 7
    }

    const fn rm(self) -> u8 {
        self.0 & 7
    }
}

/// The bytes of an instruction that are still to be read.
struct Code<'a>(&'a [u8]);

impl Code<'_> {
    fn next(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Prefixes, of which only the operand size (true: 16 bits) and REX matter, and the opcode.
    fn opcode(&mut self) -> Option<(bool, Rex, u8)> {
        let mut operand_16 = false;
        loop {
            match self.next()? {
                0x66 => operand_16 = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
                rex @ 0x40..=0x4f => return Some((operand_16, Rex::from_bits_retain(rex), self.next()?)),
                opcode => return Some((operand_16, Rex::empty(), opcode)),
            }
        }
    }

    /// Goes past what follows ModR/M of a memory operand: SIB and displacement. The address is not needed, the CPU has
    /// reported it.
    fn skip_address(&mut self, modrm: ModRm) -> Option<()> {
        let base = match modrm.rm() {
            ModRm::SIB => self.next()? & 7,
            rm => rm,
        };
        let displacement = match modrm.mode() {
            ModRm::REGISTER => return None,
            0 if base == ModRm::DISPLACEMENT => 4,
            0 => 0,
            1 => 1,
            _ => 4,
        };
        self.take(displacement).map(drop)
    }
}

/// Decodes the instruction at the start of `bytes`. `None` if it is not such a MOV, or cut off.
pub(crate) fn mov(bytes: &[u8]) -> Option<Mov> {
    let mut code = Code(bytes);
    let (operand_16, rex, opcode) = code.opcode()?;
    let byte_sized = opcode & 1 == 0;
    let size = match (byte_sized, rex.contains(Rex::WIDE), operand_16) {
        (true, ..) => 1,
        (_, true, _) => 8,
        (_, _, true) => 2,
        _ => 4,
    };
    let modrm = ModRm(code.next()?);
    let high = if rex.contains(Rex::REGISTER) { 8 } else { 0 };
    let register = Register::from_bits(u32::from(modrm.register() | high));
    code.skip_address(modrm)?;
    // AH to BH are never used by the accessors; without REX, byte registers 4 to 7 would mean them.
    let high_byte = byte_sized && rex.is_empty() && modrm.register() >= 4;
    let operation = match opcode {
        0x88 | 0x89 if !high_byte => Operation::Store(register),
        0x8a | 0x8b if !high_byte => Operation::Load(register),
        0xc6 | 0xc7 if modrm.register() == 0 => {
            // With 64-bit operands the immediate is of 32 bits, and sign-extended.
            let raw = code.take(usize::from(size).min(4))?;
            let value = raw.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            Operation::StoreImmediate(if size == 8 { value as u32 as i32 as u64 } else { value })
        }
        _ => return None,
    };
    let length = bytes.len() - code.0.len();
    (length <= LONGEST).then_some(Mov {
        size,
        operation,
        length: length as u8,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accessors_of_linux() {
        // mov %eax,(%rdx); mov 0x10(%rax),%eax; mov %r9d,0x100(%rbx,%rcx,4); movl $5,0x0(%rip)
        assert_eq!(
            mov(&[0x89, 0x02]),
            Some(Mov {
                size: 4,
                operation: Operation::Store(Register::Rax),
                length: 2
            })
        );
        assert_eq!(
            mov(&[0x8b, 0x40, 0x10]),
            Some(Mov {
                size: 4,
                operation: Operation::Load(Register::Rax),
                length: 3
            })
        );
        let sib = [0x44, 0x89, 0x8c, 0x8b, 0, 1, 0, 0];
        assert_eq!(
            mov(&sib),
            Some(Mov {
                size: 4,
                operation: Operation::Store(Register::R9),
                length: 8
            })
        );
        let immediate = [0xc7, 0x05, 0, 0, 0, 0, 5, 0, 0, 0];
        assert_eq!(
            mov(&immediate),
            Some(Mov {
                size: 4,
                operation: Operation::StoreImmediate(5),
                length: 10
            })
        );
        assert_eq!(mov(&[0x66, 0x89, 0x02]).unwrap().size, 2);
        assert_eq!(
            mov(&[0x40, 0x88, 0x32]),
            Some(Mov {
                size: 1,
                operation: Operation::Store(Register::Rsi),
                length: 3
            })
        );
        assert_eq!(
            mov(&[0x48, 0xc7, 0x00, 0xff, 0xff, 0xff, 0xff]),
            Some(Mov {
                size: 8,
                operation: Operation::StoreImmediate(u64::MAX),
                length: 7
            })
        );
    }

    #[test]
    fn others_are_refused() {
        for bytes in [
            &[0xa4][..],
            &[0x89, 0xc2],
            &[0x0f, 0xb6, 0x02],
            &[0x88, 0x22],
            &[0x89],
            &[0xc7, 0x00, 1],
            &[],
        ] {
            assert_eq!(mov(bytes), None, "{bytes:x?}");
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm() {
        let mut seed = 1_u64;
        for _ in 0..if cfg!(miri) { 500 } else { 100_000 } {
            let mut bytes = [0_u8; 15];
            for byte in &mut bytes {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (seed >> 56) as u8;
            }
            if let Some(decoded) = mov(&bytes) {
                assert!(decoded.length <= 15);
            }
        }
    }
}
