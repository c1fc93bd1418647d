//! I/O ports of L0's own: log and reset. Those of hosts are reached through [`crate::vmx::Hardware`], and what resets the
//! machine is filtered there.
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
pub(crate) const RESET_CONTROL: u16 = 0xcf9;
/// What kind of reset, without doing it: a hard one.
const HARD_RESET: u8 = 1 << 1;
/// The change of this bit from 0 to 1 resets.
pub(crate) const RESET_CPU: u8 = 1 << 2;

/// Command port of the 8042.
pub(crate) const KEYBOARD: u16 = 0x64;
/// Its command to pulse the reset line.
const PULSE_RESET: u8 = 0xfe;
/// TSC ticks that a reset may take: a second at any rate there is.
const RESET_TICKS: u64 = 6_000_000_000;

/// Resets the machine: by the chipset, else by the 8042, else by a triple fault.
///
/// # Safety
/// No host may be running that has not asked for it.
pub(crate) unsafe fn reset_machine() -> ! {
    // SAFETY: the caller answers for the hosts; L0 itself ends here.
    unsafe {
        write8(RESET_CONTROL, HARD_RESET);
        write8(RESET_CONTROL, HARD_RESET | RESET_CPU);
        super::registers::wait_until(RESET_TICKS, || false);
        write8(KEYBOARD, PULSE_RESET);
        super::registers::wait_until(RESET_TICKS, || false);
        let none = super::gdt::TableRegister::default();
        core::arch::asm!("lidt [{}]", "ud2", in(reg) &raw const none.limit, options(noreturn));
    }
}
