//! The decoder of MOVs against a decoder of all instructions.

use iced_x86::{Code, Decoder, DecoderOptions, OpKind, Register as Theirs};

use crate::arch::general::Register;
use crate::nested::decode::{self, LONGEST, Operation};

/// Whatever the decoder takes for a MOV of memory is one, of this size, partner and length.
pub(super) fn decode(data: &[u8]) {
    let bytes = data.get(..LONGEST).unwrap_or(data);
    let Some(mov) = decode::mov(bytes) else {
        return;
    };
    let theirs = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    let name = || std::format!("{bytes:02x?}: {mov:?}, but {theirs:?}");
    let (size, memory_first) = match theirs.code() {
        Code::Mov_rm8_r8 | Code::Mov_rm8_imm8 => (1, true),
        Code::Mov_rm16_r16 | Code::Mov_rm16_imm16 => (2, true),
        Code::Mov_rm32_r32 | Code::Mov_rm32_imm32 => (4, true),
        Code::Mov_rm64_r64 | Code::Mov_rm64_imm32 => (8, true),
        Code::Mov_r8_rm8 => (1, false),
        Code::Mov_r16_rm16 => (2, false),
        Code::Mov_r32_rm32 => (4, false),
        Code::Mov_r64_rm64 => (8, false),
        _ => panic!("{}", name()),
    };
    assert_eq!((usize::from(mov.length), mov.size), (theirs.len(), size), "{}", name());
    let (memory, partner) = if memory_first { (0, 1) } else { (1, 0) };
    assert_eq!(theirs.op_kind(memory), OpKind::Memory, "{}", name());
    let register = |register: Register| {
        let full = theirs.op_register(partner).full_register();
        assert_eq!(full as u32 - Theirs::RAX as u32, register as u32, "{}", name());
        // One of AH to BH is not the lowest byte of its register.
        assert!(
            !matches!(
                theirs.op_register(partner),
                Theirs::AH | Theirs::BH | Theirs::CH | Theirs::DH
            ),
            "{}",
            name()
        );
    };
    match mov.operation {
        Operation::Load(to) => {
            assert!(!memory_first, "{}", name());
            register(to);
        }
        Operation::Store(from) => {
            assert!(memory_first, "{}", name());
            register(from);
        }
        Operation::StoreImmediate(value) => {
            let mask = u64::MAX >> (64 - 8 * u32::from(size));
            assert_eq!(value & mask, theirs.immediate(partner) & mask, "{}", name());
        }
    }
}
