//! I/O ports of L0's own: log and reset. Those of hosts are reached through [`crate::vmx::Hardware`].
#![expect(unsafe_code, reason = "IN and OUT are instructions without a safe form")]

use x86_64::structures::port::{PortRead, PortWrite};

/// Reads a byte.
pub(crate) fn read8(port: u16) -> u8 {
    // SAFETY: IN touches no memory. What a device does on being read is its matter, not the language's.
    unsafe { u8::read_from_port(port) }
}

/// Writes a byte.
///
/// # Safety
/// The device behind `port` must not, on this value, do what Rust code relies on not to happen (DMA into memory that
/// L0 uses, reset).
pub(crate) unsafe fn write8(port: u16, value: u8) {
    // SAFETY: the caller answers for the device; OUT itself touches no memory.
    unsafe { u8::write_to_port(port, value) };
}

/// The chipset's reset control register (Intel ICH and PCH datasheets, RST_CNT).
const RESET_CONTROL: u16 = 0xcf9;
/// What kind of reset, without doing it: a hard one.
const HARD_RESET: u8 = 1 << 1;
/// The change of this bit from 0 to 1 resets.
const RESET_CPU: u8 = 1 << 2;

/// Resets the machine, as a triple fault does without L0; if the chipset does not, this CPU stops.
///
/// # Safety
/// No host may be running that has not asked for it.
pub(crate) unsafe fn reset_machine() -> ! {
    // SAFETY: the caller answers for the hosts; L0 itself ends here.
    unsafe {
        write8(RESET_CONTROL, HARD_RESET);
        write8(RESET_CONTROL, HARD_RESET | RESET_CPU);
    }
    super::registers::halt_forever()
}
