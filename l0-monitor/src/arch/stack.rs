//! The stacks on which L0 runs, one per CPU, each with a guard page below it.
#![expect(unsafe_code, reason = "stacks are memory that CPUs write without Rust knowing")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use locum_abi::MAX_CPUS;

use crate::id::{self, APIC_IDS, CpuIndex};

/// Bytes of one CPU's stack, its guard page included.
pub(crate) const SIZE: usize = 20 * 1024;

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; SIZE]; MAX_CPUS]>);

// SAFETY: only used as memory of stacks, one per CPU.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; SIZE]; MAX_CPUS]));

/// Top of the stack per xAPIC id, for entry code that has no stack yet; 0 for ids that L0 does not manage.
pub(crate) static TOP_OF: [AtomicU64; APIC_IDS] = [const { AtomicU64::new(0) }; APIC_IDS];

/// Fills [`TOP_OF`]. Called once, by the boot CPU, when the CPUs are registered.
pub(crate) fn publish_tops() {
    for cpu in id::all() {
        if let Some(place) = TOP_OF.get(id::apic_id(cpu) as usize) {
            place.store(top(cpu), Relaxed);
        }
    }
}

/// Top of a CPU's stack, 16-byte aligned.
pub(crate) fn top(cpu: CpuIndex) -> u64 {
    STACKS.0.get() as u64 + (cpu.get() as u64 + 1) * SIZE as u64
}

/// First byte of the page below a CPU's stack, which L0's page tables leave out.
pub(crate) fn guard(cpu: CpuIndex) -> u64 {
    top(cpu) - SIZE as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_do_not_overlap() {
        let tops: std::vec::Vec<u64> = (0..MAX_CPUS).filter_map(CpuIndex::new).map(top).collect();
        assert!(tops.windows(2).all(|w| w[1] - w[0] == SIZE as u64));
        assert!(tops.iter().all(|top| top % 4096 == 0));
    }
}
