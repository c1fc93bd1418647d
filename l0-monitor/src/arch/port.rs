//! I/O ports.
#![expect(
    unsafe_code,
    reason = "IN and OUT are instructions without a safe form"
)]

use core::arch::asm;

/// Reads a byte.
pub fn read8(port: u16) -> u8 {
    let value;
    // SAFETY: IN touches no memory. What a device does on being read is its matter, not the language's.
    unsafe {
        asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags))
    };
    value
}

/// Writes a byte.
///
/// # Safety
/// The device behind `port` must not, on this value, do what Rust code relies on not to happen (DMA into memory that
/// L0 uses, reset).
pub unsafe fn write8(port: u16, value: u8) {
    // SAFETY: the caller answers for the device; OUT itself touches no memory.
    unsafe {
        asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
    };
}
