//! Characters to a UART or to the emulators' debug port.
#![expect(unsafe_code, reason = "OUT has no safe form")]

use super::port::{read8, write8};

/// Port of Bochs and QEMU that takes characters.
pub(crate) const DEBUG_PORT: u16 = 0xe9;

/// Offset of the line status register.
const LINE_STATUS: u16 = 5;
/// Line status: the transmitter takes a byte.
const TRANSMITTER_EMPTY: u8 = 1 << 5;
/// How often the line status is read before the byte is written all the same: over a character's time at 9600 baud.
const POLLS: u32 = 100_000;

/// Writes a byte to port 0xE9.
pub(crate) fn debug_port(byte: u8) {
    // SAFETY: the port is either an emulator's debug port or decoded by nothing.
    unsafe { write8(DEBUG_PORT, byte) };
}

/// Writes a byte to a 16550 as firmware or a boot loader left it set up.
pub(crate) fn uart(base: u16, byte: u8) {
    for _ in 0..POLLS {
        if read8(base.wrapping_add(LINE_STATUS)) & TRANSMITTER_EMPTY != 0 {
            break;
        }
        core::hint::spin_loop();
    }
    // SAFETY: the transmit register of a UART only sends.
    unsafe { write8(base, byte) };
}
