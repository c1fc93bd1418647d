//! Memory

use super::number::iowr;

/// A range of physical memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Range {
    /// In: physical address, a multiple of [`Info::memory_block`](super::Info::memory_block) ([`IOC_MEM_WIPE`]: of
    /// 4096).
    pub start: u64,
    /// In: bytes, likewise, not 0.
    pub size: u64,
    /// In: NUMA node for [`IOC_MEM_ADD`], -1: that of the address; others: 0.
    pub nid: i32,
    /// In: 0.
    pub reserved: u32,
    /// In: 0.
    pub reserved2: u64,
}

impl Range {
    /// For [`IOC_MEM_REMOVE`] and [`IOC_MEM_WIPE`]: first byte and bytes.
    #[must_use]
    pub fn new(start: u64, size: u64) -> Self {
        Self {
            start,
            size,
            ..Self::default()
        }
    }

    /// For [`IOC_MEM_ADD`]: first byte, bytes, NUMA node. A node that cannot be stands for that of the address.
    #[must_use]
    pub fn on_node(start: u64, size: u64, node: u32) -> Self {
        Self {
            nid: i32::try_from(node).unwrap_or(-1),
            ..Self::new(start, size)
        }
    }
}

/// Offline and remove memory blocks from Linux. All of the range or nothing if it lies within one "System RAM" line of
/// /proc/iomem; else line by line, and after an error it may be done in part: pread(2) works where it is. The module
/// remembers what it removed, and cannot be unloaded meanwhile. Errors: -EINVAL (not multiples of
/// [`Info::memory_block`](super::Info::memory_block), or holes in the blocks), -EBUSY (a page could not be migrated, or
/// the range is not all System RAM, or the kernel's image or crash kernel lies above the range in the same line of
/// /proc/iomem, which Linux can't split then; or an end of it lies within a page of 1 GiB of the direct map), -ENOSPC
/// (the module's table is full), -EINTR.
pub const IOC_MEM_REMOVE: u32 = iowr::<Range>(0x30);

/// Add memory to Linux as "System RAM (locum)". Each block is then offline, or online in the movable zone where the
/// kernel's policy (auto_online_blocks) chose that; it never goes to a kernel zone, which the module refuses while it
/// adds. So afterwards: read each block's state in sysfs, and write online_movable where it says offline. The range must
/// be memory removed before, or, while no other host is being prepared or runs, memory which this kernel never had (a
/// retired host's). Add block by block where e820 has several entries side by side: a range may not straddle two of them
/// (-EBUSY). Errors: -EEXIST (part is System RAM already), -EBUSY (granted; or owned by the other host; or a resource in
/// its way), -EINVAL (alignment, or no such node), -EACCES (L0's memory or the pool).
pub const IOC_MEM_ADD: u32 = iowr::<Range>(0x31);

/// Overwrite memory with zeroes. Allowed where [`IOC_MEM_ADD`] would be allowed. Takes about 10 ms for 128 MiB on a
/// server. Errors: as [`IOC_MEM_ADD`], -EINTR (call again).
pub const IOC_MEM_WIPE: u32 = iowr::<Range>(0x32);
