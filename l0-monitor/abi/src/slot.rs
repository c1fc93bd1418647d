//! The two places for a host.

use core::ops::{Index, IndexMut};

/// Number of hosts that can exist at a time.
pub const SLOTS: usize = 2;

/// One of the two places for a host: its generation modulo [`SLOTS`]. Each holds one host or none, and has a mailbox, a
/// reset vector, page tables, a table area and a console of its own ([`crate::SlotInfo`]).
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Slot {
    /// Hosts of generation 0, 2, 4...
    #[default]
    Even = 0,
    /// Hosts of generation 1, 3, 5...
    Odd = 1,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; SLOTS] = [Self::Even, Self::Odd];

    /// The slot of a generation.
    #[must_use]
    pub const fn of_generation(generation: u32) -> Self {
        if generation.is_multiple_of(2) {
            Self::Even
        } else {
            Self::Odd
        }
    }

    /// The slot of a raw word: 0 or 1.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Even),
            1 => Some(Self::Odd),
            _ => None,
        }
    }

    /// As a raw word.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self as u32
    }

    /// As an array index, 0 or 1. What L0 and the agents keep per slot is a [`PerSlot`]; this is for memory that other
    /// programs lay out.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Even => Self::Odd,
            Self::Odd => Self::Even,
        }
    }
}

/// One value for each slot. A [`Slot`] indexes it, and cannot miss.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct PerSlot<T>([T; SLOTS]);

impl<T> PerSlot<T> {
    /// The values of the even and of the odd slot.
    pub const fn new(even: T, odd: T) -> Self {
        Self([even, odd])
    }

    /// The value that `make` gives for each slot.
    pub fn from_fn(make: impl FnMut(Slot) -> T) -> Self {
        Self(Slot::ALL.map(make))
    }

    /// Slots and values, the even slot first.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        Slot::ALL.into_iter().zip(&self.0)
    }

    /// Slots and values, the even slot first.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Slot, &mut T)> {
        Slot::ALL.into_iter().zip(&mut self.0)
    }
}

impl<T> Index<Slot> for PerSlot<T> {
    type Output = T;

    fn index(&self, slot: Slot) -> &T {
        let [even, odd] = &self.0;
        match slot {
            Slot::Even => even,
            Slot::Odd => odd,
        }
    }
}

impl<T> IndexMut<Slot> for PerSlot<T> {
    fn index_mut(&mut self, slot: Slot) -> &mut T {
        let [even, odd] = &mut self.0;
        match slot {
            Slot::Even => even,
            Slot::Odd => odd,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_alternate_with_generations() {
        assert_eq!(Slot::of_generation(6), Slot::Even);
        assert_eq!(Slot::of_generation(7), Slot::Odd);
        for slot in Slot::ALL {
            assert_eq!(Slot::from_raw(slot.raw()), Some(slot));
            assert_eq!(slot.other().other(), slot);
            assert_ne!(slot.other(), slot);
        }
        assert_eq!(Slot::from_raw(2), None);
    }

    #[test]
    fn each_slot_has_a_value_of_its_own() {
        let mut names = PerSlot::from_fn(|slot| slot.raw() * 10);
        names[Slot::Even] += 1;
        assert_eq!(names, PerSlot::new(1, 10));
        assert!(names.iter().eq([(Slot::Even, &1), (Slot::Odd, &10)]));
    }
}
