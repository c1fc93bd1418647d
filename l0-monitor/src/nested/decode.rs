//! Decodes the MOV between a register and memory by which a host touches a filtered device register.
//!
//! Only what compilers make of `readl` and `writel` in 64-bit code: opcodes 88 to 8b and c6, c7 with ModR/M (SDM vol.
//! 2A, chapter 2). Everything else is refused, and the host gets #GP.

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

/// Decodes the instruction at the start of `bytes`. `None` if it is not such a MOV, or cut off.
pub(crate) fn mov(bytes: &[u8]) -> Option<Mov> {
    let mut at = 0;
    let mut operand_16 = false;
    let mut rex = 0_u8;
    let next = |at: &mut usize| -> Option<u8> {
        let byte = *bytes.get(*at)?;
        *at += 1;
        Some(byte)
    };
    let opcode = loop {
        match next(&mut at)? {
            0x66 => operand_16 = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
            byte @ 0x40..=0x4f => {
                rex = byte;
                break next(&mut at)?;
            }
            byte => break byte,
        }
    };
    let byte_sized = opcode & 1 == 0;
    let size = match (byte_sized, rex & 8 != 0, operand_16) {
        (true, ..) => 1,
        (_, true, _) => 8,
        (_, _, true) => 2,
        _ => 4,
    };
    let modrm = next(&mut at)?;
    let register = modrm >> 3 & 7 | (rex & 4) << 1;
    let displacement = match (modrm >> 6, modrm & 7) {
        (3, _) => return None,
        (mode, 4) => {
            let sib = next(&mut at)?;
            match mode {
                0 if sib & 7 == 5 => 4,
                0 => 0,
                1 => 1,
                _ => 4,
            }
        }
        (0, 5) => 4,
        (0, _) => 0,
        (1, _) => 1,
        _ => 4,
    };
    at += displacement;
    // AH to BH are never used by the accessors; without REX, byte registers 4 to 7 would mean them.
    if byte_sized && rex == 0 && register >= 4 && opcode < 0xc0 {
        return None;
    }
    let operation = match opcode {
        0x88 | 0x89 => Operation::Store(Register::from_bits(register.into())),
        0x8a | 0x8b => Operation::Load(Register::from_bits(register.into())),
        0xc6 | 0xc7 if modrm >> 3 & 7 == 0 => {
            let width = if size == 8 { 4 } else { usize::from(size) };
            let raw = bytes.get(at..at + width)?;
            at += width;
            let mut value = 0_u64;
            for (i, byte) in raw.iter().enumerate() {
                value |= u64::from(*byte) << (8 * i);
            }
            Operation::StoreImmediate(if size == 8 { value as u32 as i32 as u64 } else { value })
        }
        _ => return None,
    };
    (at <= bytes.len() && at <= LONGEST).then_some(Mov {
        size,
        operation,
        length: at as u8,
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
        for _ in 0..100_000 {
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
