//! The pool's table: which guest's RAM lies where, in memory that both hosts write. L0 clears it at boot and takes no part.
//!
//! `pool_table` in the header is an array `[PoolExtent; POOL_EXTENTS]`. One word of an entry decides: [`PoolExtent::state`].
//! It is changed by compare-and-swap, and every change adds one to its count; all other fields are written only by who
//! brought the entry to [`PoolState::Writing`], and count for nothing before [`PoolState::Claimed`]. A range is claimed first
//! and compared with all other entries afterwards, each access sequentially consistent: of two hosts that claim one byte, at
//! least one sees the other and gives up.
//!
//! ```text
//!  Empty -> Writing -> Claimed -> Scrubbing -> Used <-> Crossing
//!    ^---------'----------'-----------'---------'
//! ```

use crate::Slot;
use crate::raw::from_raw;

/// How many extents there are.
pub const POOL_EXTENTS: usize = 1024;
/// Extents begin and end at multiples of this: Linux maps device-DAX memory in pages of 2 MiB.
pub const POOL_GRAIN: u64 = 2 << 20;
/// A flag of [`PoolExtent`]: nobody asked for it. A guest that was started by hand was found there.
pub const POOL_SEEN: u32 = 1;
/// Bytes of a name, the zero at its end included.
pub const POOL_NAME: usize = 64;

/// What an entry says of its range.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolState {
    /// Nothing: there is no such entry.
    Empty = 0,
    /// Nothing yet: the fields are being written.
    Writing = 1,
    /// It is to be taken, unless another entry has some of it.
    Claimed = 2,
    /// It is taken, and being cleared.
    Scrubbing = 3,
    /// It holds the RAM of a guest of the host that [`StateWord::slot`] names.
    Used = 4,
    /// Its guest is on the way from that host to the other one.
    Crossing = 5,
}

from_raw!(PoolState: u32 { Empty, Writing, Claimed, Scrubbing, Used, Crossing });

/// [`PoolExtent::state`], taken apart. Bits 0-7: [`PoolState`]. Bit 8: the slot. Bits 32-63: the count. All others: zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateWord(pub u64);

impl StateWord {
    /// The state; `None` if it is one of a later release.
    #[must_use]
    pub const fn state(self) -> Option<PoolState> {
        PoolState::from_raw(self.0 as u8 as u32)
    }

    /// Whose host brought it into this state.
    #[must_use]
    pub const fn slot(self) -> Slot {
        if self.0 & 1 << 8 == 0 { Slot::Even } else { Slot::Odd }
    }

    /// What follows it: another state, brought about by the host in `slot`.
    #[must_use]
    pub const fn next(self, state: PoolState, slot: Slot) -> Self {
        let count = ((self.0 >> 32) as u32).wrapping_add(1) as u64;
        Self(count << 32 | (slot.raw() as u64) << 8 | state as u64)
    }
}

/// An entry.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct PoolExtent {
    /// See [`StateWord`].
    pub state: u64,
    /// Physical address, a multiple of [`POOL_GRAIN`].
    pub start: u64,
    /// Bytes, a multiple of [`POOL_GRAIN`].
    pub size: u64,
    /// UUID of the guest, in the order of its text.
    pub uuid: [u8; 16],
    /// NUMA node, as the host that entered it numbers them; !0 if it is not known.
    pub node: u32,
    /// [`POOL_SEEN`]; all else zero.
    pub flags: u32,
    /// Name of the guest in UTF-8, then zeroes.
    pub name: [u8; POOL_NAME],
    /// Not used, zero.
    pub reserved2: [u64; 2],
}

const _: () = assert!(size_of::<PoolExtent>() == 128);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_state_is_told_from_every_other() {
        let empty = StateWord(0);
        assert_eq!((empty.state(), empty.slot()), (Some(PoolState::Empty), Slot::Even));
        let used = empty.next(PoolState::Used, Slot::Odd);
        assert_eq!(used.0, 1 << 32 | 1 << 8 | 4);
        assert_eq!((used.state(), used.slot()), (Some(PoolState::Used), Slot::Odd));
        assert_ne!(used.next(PoolState::Used, Slot::Odd), used);
        assert_eq!(StateWord(77).state(), None);
        assert_eq!(StateWord(!0).next(PoolState::Empty, Slot::Even).0, 0, "the count wraps");
    }
}
