//! The logical CPUs that L0 manages: their numbers, APIC ids and stacks.
//!
//! Written once while L0 boots (before any other CPU runs), read-only afterwards.
#![expect(unsafe_code, reason = "stacks are memory that CPUs write without Rust knowing")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use locum_abi::MAX_CPUS;

/// Bytes of one CPU's L0 stack, its guard page included.
pub const STACK_SIZE: usize = 20 * 1024;

/// How many xAPIC ids there are; 255 is the broadcast id and belongs to no CPU.
pub const APIC_IDS: usize = 256;

const NO_CPU: u16 = u16::MAX;

static COUNT: AtomicU32 = AtomicU32::new(0);
static ID_OF: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(u32::MAX) }; MAX_CPUS];
static INDEX_OF: [AtomicU16; APIC_IDS] = [const { AtomicU16::new(NO_CPU) }; APIC_IDS];

/// Top of the L0 stack per xAPIC id, for entry code that has no stack yet; 0 for ids that L0 does not manage.
pub static STACK_TOP_OF: [AtomicU64; APIC_IDS] = [const { AtomicU64::new(0) }; APIC_IDS];

/// Number of a logical CPU, in the order of the machine's MADT. Always below [`MAX_CPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CpuIndex(u16);

impl CpuIndex {
    /// The first CPU of the MADT.
    pub const FIRST: Self = Self(0);

    /// CPU `index`, `None` if L0 could not manage so many.
    pub const fn new(index: usize) -> Option<Self> {
        if index < MAX_CPUS {
            Some(Self(index as u16))
        } else {
            None
        }
    }

    /// As an array index, below [`MAX_CPUS`].
    pub const fn get(self) -> usize {
        self.0 as usize
    }
}

/// Makes the CPUs known, in the order of the MADT. CPUs beyond [`MAX_CPUS`], ids above 254 and repeated ids are left
/// out. Called once, by the boot CPU, before any other runs L0. Returns how many were taken.
pub fn register(apic_ids: impl IntoIterator<Item = u32>) -> usize {
    let mut count = 0;
    for id in apic_ids {
        let Some(index_of) = INDEX_OF.get(id as usize).filter(|_| id < 255) else {
            continue;
        };
        let Some(id_of) = ID_OF.get(count) else { break };
        if index_of.load(Relaxed) != NO_CPU {
            continue;
        }
        index_of.store(count as u16, Relaxed);
        id_of.store(id, Relaxed);
        if let (Some(top), Some(cpu)) = (STACK_TOP_OF.get(id as usize), CpuIndex::new(count)) {
            top.store(stack_top(cpu), Relaxed);
        }
        count += 1;
    }
    COUNT.store(count as u32, Relaxed);
    count
}

/// How many CPUs there are.
pub fn count() -> usize {
    COUNT.load(Relaxed) as usize
}

/// All CPUs.
pub fn all() -> impl Iterator<Item = CpuIndex> {
    (0..count()).filter_map(CpuIndex::new)
}

/// The CPU with an xAPIC id, `None` if L0 does not manage it.
pub fn index_of_apic(apic_id: u32) -> Option<CpuIndex> {
    let index = INDEX_OF.get(apic_id as usize)?.load(Relaxed);
    CpuIndex::new(index as usize)
}

/// The xAPIC id of a CPU (`u32::MAX` for an index beyond [`count`]).
pub fn apic_id(cpu: CpuIndex) -> u32 {
    ID_OF[cpu.get()].load(Relaxed)
}

/// Top of a CPU's L0 stack, 16-byte aligned.
pub fn stack_top(cpu: CpuIndex) -> u64 {
    STACKS.0.get() as u64 + (cpu.get() as u64 + 1) * STACK_SIZE as u64
}

/// First byte of the page below a CPU's stack, which L0's page tables leave out.
pub fn stack_guard(cpu: CpuIndex) -> u64 {
    stack_top(cpu) - STACK_SIZE as u64
}

#[repr(C, align(4096))]
struct Stacks(UnsafeCell<[[u8; STACK_SIZE]; MAX_CPUS]>);

// SAFETY: only used as memory of stacks, one per CPU.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK_SIZE]; MAX_CPUS]));

/// The CPU that executes this, by its initial APIC id in CPUID leaf 1 (SDM vol. 2A, CPUID). `None` on a CPU that L0
/// does not manage.
pub fn current() -> Option<CpuIndex> {
    index_of_apic(crate::arch::cpuid::apic_id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_indexes_are_inverse_and_bad_ids_are_left_out() {
        assert_eq!(register([4, 0, 4, 255, 300, 9]), 3);
        assert_eq!(count(), 3);
        for cpu in all() {
            assert_eq!(index_of_apic(apic_id(cpu)), Some(cpu));
        }
        assert_eq!(index_of_apic(255), None);
        assert_eq!(index_of_apic(1), None);
        assert_eq!(index_of_apic(70_000), None);
    }

    #[test]
    fn stacks_do_not_overlap() {
        let tops: std::vec::Vec<u64> = (0..MAX_CPUS).filter_map(CpuIndex::new).map(stack_top).collect();
        assert!(tops.windows(2).all(|w| w[1] - w[0] == STACK_SIZE as u64));
        assert!(tops.iter().all(|top| top % 4096 == 0));
    }
}
