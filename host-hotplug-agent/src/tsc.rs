//! The time-stamp counter. Both hosts read the same one, so its values order events across them.
#![expect(unsafe_code, reason = "RDTSC is an intrinsic")]

/// The counter's value now, in ticks.
pub fn now() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux does not forbid it to user space (CR4.TSD is clear).
    unsafe { core::arch::x86_64::_rdtsc() }
}
