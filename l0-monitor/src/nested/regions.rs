//! The VMXON region and VMCS01 of every CPU.

use core::sync::atomic::{AtomicU32, Ordering};

use locum_abi::MAX_CPUS;

use crate::cpu::CpuIndex;

/// A page that begins with a VMCS revision identifier.
#[repr(C, align(4096))]
struct Region([AtomicU32; 1024]);

impl Region {
    const fn new() -> Self {
        Self([const { AtomicU32::new(0) }; 1024])
    }

    fn prepare(&self, revision: u32) -> u64 {
        if let Some(first) = self.0.first() {
            first.store(revision, Ordering::Relaxed);
        }
        core::ptr::from_ref(self) as u64
    }
}

static VMXON: [Region; MAX_CPUS] = [const { Region::new() }; MAX_CPUS];
static VMCS01: [Region; MAX_CPUS] = [const { Region::new() }; MAX_CPUS];

/// Physical addresses of a CPU's VMXON region and VMCS01, with the revision identifier in place.
pub fn prepare(cpu: CpuIndex, revision: u32) -> (u64, u64) {
    // A CpuIndex is below MAX_CPUS by construction.
    (
        VMXON[cpu.get()].prepare(revision),
        VMCS01[cpu.get()].prepare(revision),
    )
}
