//! The logical CPUs that L0 manages: their numbers, and their APIC ids.
//!
//! Written once while L0 boots (before any other CPU runs), read-only afterwards. A host's place is a
//! [`locum_abi::Slot`].

use core::ops::{Index, IndexMut};
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed};

use locum_abi::MAX_CPUS;

/// How many xAPIC ids there are; 255 is the broadcast id and belongs to no CPU.
pub(crate) const APIC_IDS: usize = 256;

const NO_CPU: u16 = u16::MAX;

static COUNT: AtomicU32 = AtomicU32::new(0);
static ID_OF: PerCpu<AtomicU32> = PerCpu([const { AtomicU32::new(u32::MAX) }; MAX_CPUS]);
static INDEX_OF: [AtomicU16; APIC_IDS] = [const { AtomicU16::new(NO_CPU) }; APIC_IDS];

/// Number of a logical CPU, in the order of the machine's MADT. Always below [`MAX_CPUS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CpuIndex(u16);

impl CpuIndex {
    /// The first CPU of the MADT.
    pub(crate) const FIRST: Self = Self(0);

    /// CPU `index`, `None` if L0 could not manage so many.
    pub(crate) const fn new(index: usize) -> Option<Self> {
        if index < MAX_CPUS {
            Some(Self(index as u16))
        } else {
            None
        }
    }

    /// As an index into memory that hosts or assembly lay out, below [`MAX_CPUS`]; what Rust keeps is a [`PerCpu`].
    pub(crate) const fn get(self) -> usize {
        self.0 as usize
    }
}

/// One value for each CPU that L0 could manage. A [`CpuIndex`] indexes it, and cannot miss.
#[repr(transparent)]
#[derive(Debug)]
pub(crate) struct PerCpu<T>(pub(crate) [T; MAX_CPUS]);

impl<T> Index<CpuIndex> for PerCpu<T> {
    type Output = T;

    #[inline(always)]
    fn index(&self, cpu: CpuIndex) -> &T {
        &self.0[cpu.get()]
    }
}

impl<T> IndexMut<CpuIndex> for PerCpu<T> {
    #[inline(always)]
    fn index_mut(&mut self, cpu: CpuIndex) -> &mut T {
        &mut self.0[cpu.get()]
    }
}

/// Makes the CPUs known, in the order of the MADT. CPUs beyond [`MAX_CPUS`], ids above 254 and repeated ids are left
/// out. Called once, by the boot CPU, before any other runs L0. Returns how many were taken.
pub(crate) fn register(apic_ids: impl IntoIterator<Item = u32>) -> usize {
    let mut count = 0;
    for id in apic_ids {
        let Some(index_of) = INDEX_OF.get(id as usize).filter(|_| id < 255) else {
            continue;
        };
        let Some(cpu) = CpuIndex::new(count) else { break };
        if index_of.load(Relaxed) != NO_CPU {
            continue;
        }
        index_of.store(cpu.0, Relaxed);
        ID_OF[cpu].store(id, Relaxed);
        count += 1;
    }
    COUNT.store(count as u32, Relaxed);
    count
}

/// How many CPUs there are.
pub(crate) fn count() -> usize {
    COUNT.load(Relaxed) as usize
}

/// All CPUs.
pub(crate) fn all() -> impl Iterator<Item = CpuIndex> + Clone {
    (0..count()).filter_map(CpuIndex::new)
}

/// The CPU with an xAPIC id, `None` if L0 does not manage it.
pub(crate) fn index_of_apic(apic_id: u32) -> Option<CpuIndex> {
    let index = INDEX_OF.get(apic_id as usize)?.load(Relaxed);
    CpuIndex::new(index as usize)
}

/// The xAPIC id of a CPU (`u32::MAX` for an index beyond [`count`]).
pub(crate) fn apic_id(cpu: CpuIndex) -> u32 {
    ID_OF[cpu].load(Relaxed)
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
}
