//! The time-stamp counter.
#![expect(unsafe_code, reason = "RDTSC and LFENCE are intrinsics of core::arch")]

use core::arch::x86_64::{_mm_lfence, _rdtsc};

/// Reads the TSC, ordered after all earlier loads (SDM vol. 3, "Time-Stamp Counter": LFENCE before RDTSC).
#[must_use]
pub fn read_ordered() -> u64 {
    // SAFETY: both instructions exist on every x86-64 CPU and touch no memory.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}
