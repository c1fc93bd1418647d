//! Information

use super::number::ior;
use crate::Slot;

/// Family of the layouts here: 1 as long as no field moves. A program refuses another one.
pub const UAPI_FAMILY: u32 = 1;

/// All that [`Info::features`] of this release tells: nothing yet. A bit that a release adds has a constant of its own
/// and is never used again.
pub const UAPI_FEATURES: u64 = 0;

/// What does not change while the module is loaded. All out.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Info {
    /// [`UAPI_FAMILY`] of the module.
    pub family: u32,
    /// [`FAMILY`](crate::FAMILY) of L0.
    pub l0_family: u32,
    /// Slot of this host: 0 or 1, see [`Slot`](crate::Slot).
    pub slot: u32,
    /// CPUs of the machine.
    pub cpu_count: u32,
    /// Physical address of L0's header.
    pub header: u64,
    /// Physical address of the shared region.
    pub shared: u64,
    /// Bytes of the shared region.
    pub shared_size: u64,
    /// Bytes of a Linux memory block: granularity of [`IOC_MEM_REMOVE`](super::IOC_MEM_REMOVE) and
    /// [`IOC_MEM_ADD`](super::IOC_MEM_ADD).
    pub memory_block: u64,
    /// This kernel's exact rate of the TSC in kHz, for the successor's `tsc_early_khz=`.
    pub tsc_khz: u64,
    /// What the module can do beyond the first release, of which it is 0: bits of [`UAPI_FEATURES`].
    pub features: u64,
    /// 0.
    pub reserved: [u64; 4],
}

impl Info {
    /// Slot of this host; `None` if the module says what cannot be.
    #[must_use]
    pub const fn slot(&self) -> Option<Slot> {
        Slot::from_raw(self.slot)
    }
}

/// Never fails on an open file. Allowed on files opened read-only.
pub const IOC_INFO: u32 = ior::<Info>(0x01);
