//! The two maps that Locum hands out.

use super::map::{E820Error, E820Map, MemoryType};
use core::ops::Range;

/// What the first host must know of memory that is not its own.
#[derive(Clone, Debug)]
pub struct FirstHostMemory<'a> {
    /// L0's own memory, firmware region included: Reserved.
    pub l0: Range<u64>,
    /// The part of it that holds the host's tables and mailboxes: ACPI NVS, as ACPI 6.5, 5.2.12.19 asks.
    pub firmware: Range<u64>,
    /// Guest RAM: Soft Reserved.
    pub pools: &'a [Range<u64>],
    /// Trampoline memory below 1 MiB of the next generation: Reserved.
    pub other_slice: Range<u64>,
}

/// The first host's map: the machine's, less what L0, the pool and the other slice take.
///
/// # Errors
/// [`E820Error::NotAvailable`] if a range is not usable RAM of the machine; [`E820Error::Full`].
pub fn for_first_host(machine: &E820Map, memory: &FirstHostMemory<'_>) -> Result<E820Map, E820Error> {
    let mut map = machine.clone();
    take(machine, &mut map, "L0's memory", &memory.l0, MemoryType::Reserved)?;
    if !contains(&memory.l0, &memory.firmware) {
        return Err(E820Error::NotAvailable {
            what: "the firmware region",
            range: memory.firmware.clone(),
            wanted: "within L0's memory",
        });
    }
    map.set(memory.firmware.clone(), MemoryType::AcpiNvs)?;
    for pool in memory.pools {
        disjoint("the pool", pool, &memory.l0, "L0's memory")?;
        take(machine, &mut map, "the pool", pool, MemoryType::SoftReserved)?;
    }
    take(
        machine,
        &mut map,
        "the other generation's trampoline slice",
        &memory.other_slice,
        MemoryType::Reserved,
    )?;
    Ok(map)
}

/// What a successor may use; all else is Reserved.
#[derive(Clone, Debug)]
pub struct SuccessorMemory<'a> {
    /// Its RAM, as the incumbent gave it up.
    pub blocks: &'a [Range<u64>],
    /// Its trampoline memory below 1 MiB.
    pub slices: &'a [Range<u64>],
    /// Guest RAM: Soft Reserved.
    pub pools: &'a [Range<u64>],
    /// Where its tables and mailbox are: ACPI NVS.
    pub firmware: Range<u64>,
}

/// A successor's map: its blocks and slices usable, the pool Soft Reserved, its tables ACPI NVS. All other RAM of the
/// machine is listed as Reserved, or Linux would place PCI windows there.
///
/// `map` is the machine's map or that of any host on it: what is RAM to another host is Reserved there or here alike.
///
/// # Errors
/// [`E820Error::NotAvailable`] if a range is a hole, ACPI memory or defective; [`E820Error::Overlap`];
/// [`E820Error::Full`].
pub fn for_successor(machine: &E820Map, memory: &SuccessorMemory<'_>) -> Result<E820Map, E820Error> {
    const EVERYTHING: Range<u64> = 0..u64::MAX;
    let mut map = machine.clone();
    for other in [MemoryType::Usable, MemoryType::SoftReserved] {
        map.replace(EVERYTHING, other, MemoryType::Reserved)?;
    }
    let groups = [
        ("memory block", memory.blocks, MemoryType::Usable),
        ("trampoline slice", memory.slices, MemoryType::Usable),
        ("pool", memory.pools, MemoryType::SoftReserved),
    ];
    let mut given = E820Map::new();
    for (what, ranges, kind) in groups {
        for range in ranges {
            let ram = |kind| {
                matches!(
                    kind,
                    MemoryType::Usable | MemoryType::Reserved | MemoryType::SoftReserved
                )
            };
            if !machine.covers(range, ram) {
                return Err(E820Error::NotAvailable {
                    what,
                    range: range.clone(),
                    wanted: "RAM",
                });
            }
            for earlier in given.entries() {
                disjoint(what, range, &(earlier.start..earlier.end), "another range of this host")?;
            }
            given.set(range.clone(), kind)?;
            map.set(range.clone(), kind)?;
        }
    }
    map.set(memory.firmware.clone(), MemoryType::AcpiNvs)?;
    Ok(map)
}

fn take(
    machine: &E820Map,
    map: &mut E820Map,
    what: &'static str,
    range: &Range<u64>,
    kind: MemoryType,
) -> Result<(), E820Error> {
    if !machine.covers(range, |kind| kind == MemoryType::Usable) {
        return Err(E820Error::NotAvailable {
            what,
            range: range.clone(),
            wanted: "usable RAM",
        });
    }
    map.set(range.clone(), kind)
}

fn contains(outer: &Range<u64>, inner: &Range<u64>) -> bool {
    !inner.is_empty() && outer.start <= inner.start && inner.end <= outer.end
}

fn disjoint(what: &'static str, range: &Range<u64>, other: &Range<u64>, name: &'static str) -> Result<(), E820Error> {
    if range.start < other.end && other.start < range.end {
        return Err(E820Error::Overlap {
            what,
            range: range.clone(),
            other: name,
        });
    }
    Ok(())
}
