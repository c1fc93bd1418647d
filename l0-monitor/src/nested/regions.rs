//! The VMXON region, VMCS01 and shadow VMCS of every CPU, and the bitmaps of VMCS shadowing.

use core::sync::atomic::{AtomicU32, Ordering};

use locum_abi::MAX_CPUS;

use crate::id::{CpuIndex, PerCpu};

/// A page that begins with a VMCS revision identifier.
#[repr(C, align(4096))]
struct Region([AtomicU32; 1024]);

impl Region {
    const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; 1024])
    }

    fn prepare(&self, revision: u32) -> u64 {
        let [first, ..] = &self.0;
        first.store(revision, Ordering::Relaxed);
        core::ptr::from_ref(self) as u64
    }
}

/// Bit 31 of the first word makes a shadow VMCS (SDM vol. 3C, 26.2).
const SHADOW: u32 = 1 << 31;

static SHADOWS: PerCpu<Region> = PerCpu([const { Region::new() }; MAX_CPUS]);
static BITMAPS: [Region; 2] = [const { Region::new() }; 2];
static VMXON: PerCpu<Region> = PerCpu([const { Region::new() }; MAX_CPUS]);
static VMCS01: PerCpu<Region> = PerCpu([const { Region::new() }; MAX_CPUS]);

/// Lets every VMREAD and VMWRITE exit. Called once, at boot.
pub(crate) fn init() {
    for word in BITMAPS.iter().flat_map(|bitmap| &bitmap.0) {
        word.store(!0, Ordering::Relaxed);
    }
}

/// Physical addresses of one CPU's regions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    /// L0's VMXON region.
    pub(crate) vmxon: u64,
    /// VMCS01.
    pub(crate) vmcs01: u64,
    /// Shadow VMCS.
    pub(crate) shadow: u64,
    /// VMREAD and VMWRITE bitmaps, the same for all CPUs.
    pub(crate) bitmaps: [u64; 2],
}

/// The regions of a CPU, with the revision identifier in place.
pub(crate) fn prepare(cpu: CpuIndex, revision: u32) -> Regions {
    Regions {
        vmxon: VMXON[cpu].prepare(revision),
        vmcs01: VMCS01[cpu].prepare(revision),
        shadow: SHADOWS[cpu].prepare(revision | SHADOW),
        bitmaps: [0, 1].map(|i: usize| core::ptr::from_ref(&BITMAPS[i]) as u64),
    }
}
