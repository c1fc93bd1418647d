//! The time stamp counter.
#![expect(unsafe_code, reason = "RDTSC is an intrinsic")]

/// Ticks since reset. In the emulator one tick is one instruction of each running CPU.
pub(crate) fn read() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU, and Linux allows it in user mode.
    unsafe { core::arch::x86_64::_rdtsc() }
}
