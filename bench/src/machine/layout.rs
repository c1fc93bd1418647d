//! Where what lies in the RAM of the lab's server.
//!
//! ```text
//!   0        1 GiB           pool begin       pool end        memory
//!   | incumbent | successor | guests' RAM | Linux' boot-time |
//! ```
//!
//! Linux takes its boot-time memory from the end of RAM downwards, and blocks that hold such memory can't be offlined.
//! So some RAM lies above the pool for that, and `movablecore` counts it in: what lies between 1 GiB and the pool stays
//! free of it.

/// All in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// RAM of the server.
    pub memory: u32,
    /// First of the pool.
    pub pool: u32,
    /// First behind the pool.
    pub pool_end: u32,
    /// What a successor boots with. Linux on it counts the pool as used when it decides how many threads there may be,
    /// so this is more than the pool.
    pub successor: u32,
}

impl Layout {
    /// For all but big guests.
    pub(crate) const USUAL: Self = Self {
        memory: 2048,
        pool: 1536,
        pool_end: 1872,
        successor: 512,
    };

    /// For 512 MiB of guests.
    pub(crate) const LARGE: Self = Self {
        memory: 2560,
        pool: 1792,
        pool_end: 2304,
        successor: 768,
    };

    /// With room above the pool for a crash kernel's memory: Linux takes that from the end of RAM downwards, too
    /// (`reserve_crashkernel_generic()` in kernel/crash_reserve.c).
    pub(crate) const CRASH: Self = Self {
        memory: 2304,
        ..Self::USUAL
    };

    /// With RAM above 4 GiB. All that can go is there: Linux takes movable memory from the highest zone that it has
    /// (`find_usable_zone_for_movable()` in mm/mm_init.c).
    pub(crate) const HIGH: Self = Self {
        memory: 5120,
        pool: 4096 + 512,
        pool_end: 4096 + 512 + 336,
        successor: 512,
    };

    /// For hosts that are a whole Debian: its initramfs alone takes some 300 MiB where it is unpacked.
    pub(crate) const DEBIAN: Self = Self {
        memory: 3072,
        pool: 2048,
        pool_end: 2560,
        successor: 1024,
    };

    /// L0's argument.
    #[must_use]
    pub(crate) fn l0_pool(&self) -> String {
        format!("pool={:x}-{:x}", byte(self.pool), byte(self.pool_end))
    }

    /// For a kernel without L0, which declares the pool itself, as Soft Reserved. Needs addresses that stay.
    #[must_use]
    pub(crate) fn plain_pool(&self) -> String {
        format!(
            "nokaslr memmap={:#x}%{:#x}-1+0xefffffff",
            byte(self.pool_end - self.pool),
            byte(self.pool)
        )
    }

    /// Linux' `movablecore`: what a successor boots with, what lies above the pool, and a little.
    #[must_use]
    pub(crate) fn movable(&self) -> u32 {
        self.successor + (self.memory - self.pool_end) + 16
    }
}

fn byte(mib: u32) -> u64 {
    u64::from(mib) << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_name_the_pool() {
        let usual = Layout::USUAL;
        assert_eq!(usual.l0_pool(), "pool=60000000-75000000");
        assert_eq!(usual.plain_pool(), "nokaslr memmap=0x15000000%0x60000000-1+0xefffffff");
        assert_eq!(usual.movable(), 704);
    }

    #[test]
    fn parts_lie_one_behind_the_other() {
        for layout in [
            Layout::USUAL,
            Layout::LARGE,
            Layout::CRASH,
            Layout::HIGH,
            Layout::DEBIAN,
        ] {
            assert!(1024 + layout.successor <= layout.pool);
            assert!(layout.pool < layout.pool_end && layout.pool_end < layout.memory);
            assert!(layout.successor > layout.pool_end - layout.pool);
            // Memory blocks of Linux have 128 MiB.
            assert_eq!(layout.memory % 128, 0);
        }
    }
}
