//! What L0's status region does not tell: how much memory each host has, and where guests are. None of it is worth an error:
//! what cannot be looked at is not shown.

use std::collections::BTreeMap;

use locum_abi::Slot;
use locum_abi::pool::PoolState;
use serde::{Deserialize, Serialize};

use crate::guest::pool::{Pool, pieces};
use crate::inventory;
use crate::machine::{Access, Device};
use crate::pool::seen::{self, Seen};
use crate::pool::table::Entry;
use crate::sysroot::SysRoot;

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Around {
    /// Slot of this host: 0 or 1.
    pub slot: Option<u32>,
    /// Memory.
    pub memory: Memory,
    /// Guests by name; none if they cannot be looked at.
    pub guests: Option<Vec<GuestView>>,
}

/// Bytes of memory by owner; none where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// System RAM of this host, as its Linux has it now.
    pub this: Option<u64>,
    /// What the other host was given.
    pub other: Option<u64>,
    /// The pool.
    pub pool: Option<u64>,
    /// What is lost until a refresh takes it up, or the next boot.
    pub nobody: Option<u64>,
}

/// A guest that has a piece of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestView {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: Place,
}

/// Where a guest is, as this host sees it.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    strum::IntoStaticStr,
    strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Place {
    /// Its QEMU is in this host.
    Here,
    /// It belongs to the other host.
    There,
    /// On the way between them.
    Crossing,
    /// It has a piece of the pool, and no QEMU here.
    Off,
}

impl Around {
    /// Looks at Linux and at the pool's table. Nothing changes.
    pub fn look(sys: &SysRoot, device: &Device, beside_another: bool) -> Self {
        let slot = device.info().slot();
        let ram = inventory::system_ram(sys).ok();
        let pool: u64 = pieces(device.header()).iter().map(|range| range.len()).sum();
        Self {
            slot: slot.map(Slot::raw),
            memory: Memory {
                this: ram.map(|ranges| ranges.iter().map(|(range, _)| range.len()).sum()),
                pool: Some(pool),
                ..Memory::default()
            },
            guests: slot.and_then(|slot| guests(sys, slot, beside_another)),
        }
    }
}

fn guests(sys: &SysRoot, slot: Slot, beside_another: bool) -> Option<Vec<GuestView>> {
    let device = Device::open(sys, Access::Control).ok()?;
    let entries = match device.extents().ok()? {
        Some(extents) => extents.entries().ok()?,
        None => Vec::new(),
    };
    let seen = seen::look(sys, &Pool::of(device.header()).parts(sys));
    Some(places(&entries, &seen, slot, beside_another))
}

/// Guests of the table, and those that only a process of this host shows.
fn places(entries: &[Entry], seen: &[Seen], slot: Slot, beside_another: bool) -> Vec<GuestView> {
    let mut places: BTreeMap<&str, Place> = BTreeMap::new();
    for entry in entries {
        let mapped = || {
            let mut ranges = seen.iter().flat_map(|seen| &seen.ranges);
            ranges.any(|range| range.overlaps(entry.extent.range))
        };
        let place = match entry.state {
            PoolState::Crossing if beside_another => Place::Crossing,
            PoolState::Used if beside_another && entry.word.slot() != slot => Place::There,
            PoolState::Used | PoolState::Crossing if mapped() => Place::Here,
            PoolState::Used | PoolState::Crossing => Place::Off,
            PoolState::Empty | PoolState::Writing | PoolState::Claimed | PoolState::Scrubbing => continue,
        };
        places.insert(&entry.extent.name, place);
    }
    for seen in seen {
        let known = |range| entries.iter().any(|entry| entry.extent.range.overlaps(range));
        if !seen.ranges.iter().any(|range| known(*range)) {
            places.insert(&seen.name, Place::Here);
        }
    }
    let view = |(name, place): (&str, Place)| GuestView {
        name: name.to_owned(),
        place,
    };
    places.into_iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::table::{Extent, Uuid};
    use locum_abi::pool::StateWord;
    use partitioner::MemRange;

    fn range(start: u64) -> MemRange {
        MemRange::with_len(start, 0x1000).unwrap()
    }

    fn entry(name: &str, state: PoolState, slot: Slot, start: u64) -> Entry {
        Entry {
            index: 0,
            word: StateWord(state as u64 | u64::from(slot.raw()) << 8),
            state,
            extent: Extent {
                range: range(start),
                uuid: Uuid::default(),
                node: None,
                name: name.to_owned(),
                seen: false,
            },
        }
    }

    #[test]
    fn guests_are_where_the_table_and_the_processes_say() {
        let entries = [
            entry("crosses", PoolState::Crossing, Slot::Even, 0x1000),
            entry("here", PoolState::Used, Slot::Even, 0x2000),
            entry("off", PoolState::Used, Slot::Even, 0x3000),
            entry("there", PoolState::Used, Slot::Odd, 0x4000),
            entry("new", PoolState::Scrubbing, Slot::Even, 0x5000),
        ];
        let process = |name: &str, start| Seen {
            pid: 1,
            name: name.to_owned(),
            uuid: Uuid::default(),
            ranges: vec![range(start)],
        };
        // The successor's QEMU waits already for one that is there, and one was started by hand.
        let seen = [
            process("here", 0x2000),
            process("there", 0x4000),
            process("by hand", 0x9000),
        ];
        let told = |beside_another| -> Vec<_> {
            let views = places(&entries, &seen, Slot::Even, beside_another);
            views.into_iter().map(|view| (view.name, view.place)).collect()
        };
        let named = |name: &str, place| (name.to_owned(), place);
        assert_eq!(
            told(true),
            [
                named("by hand", Place::Here),
                named("crosses", Place::Crossing),
                named("here", Place::Here),
                named("off", Place::Off),
                named("there", Place::There),
            ]
        );
        // With no other host, none can be there.
        assert_eq!(told(false)[4], named("there", Place::Here));
        assert_eq!(told(false)[1], named("crosses", Place::Off));
    }
}
