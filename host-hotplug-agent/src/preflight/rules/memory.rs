//! The memory map, and what of it can move.

use firmware_shim::e820::{E820Map, MemoryType, SLICES_END, low_slices_below};
use partitioner::MemRange;

use crate::preflight::facts::Facts;
use crate::preflight::finding::Finding;

const GIB: u64 = 1 << 30;
/// What L0 reaches of RAM with 1 GiB pages, and without (`arch::paging` of L0).
const REACH_1G: u64 = 8192 * GIB;
const REACH_2M: u64 = 64 * GIB;
/// What 32-bit DMA reaches.
const LOW_END: u64 = 4 * GIB;
/// Blocks of this size and more are coarse for a successor's memory.
const COARSE: u64 = GIB;

fn map(facts: &Facts) -> Result<E820Map, String> {
    let ranges = facts.memmap.as_ref().map_err(Clone::clone)?;
    E820Map::from_firmware(ranges.iter().copied()).map_err(|error| error.to_string())
}

/// Room below 640 KiB for the trampolines of two hosts.
pub fn low(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "low memory";
    // L0 has chosen already.
    if facts.above_l0 {
        return Vec::new();
    }
    let below = facts.bios_area.clone().unwrap_or(SLICES_END);
    let slices = map(facts).and_then(|map| low_slices_below(&map, below).map_err(|error| error.to_string()));
    let [even, odd] = match slices {
        Ok(slices) => slices,
        Err(error) => {
            let remedy = "use a kernel with CONFIG_FIRMWARE_MEMMAP; turn off what the firmware keeps below 640 KiB (legacy option ROMs, CSM)";
            let bios = match &facts.bios_area {
                Ok(start) if *start < SLICES_END => {
                    format!("; the BIOS data area gives the BIOS all from {start:#x} on")
                }
                _ => String::new(),
            };
            return vec![Finding::refuses(NAME, error + &bios, remedy)];
        }
    };
    let found = format!(
        "trampolines at {:#x}-{:#x} and {:#x}-{:#x}",
        even.start, even.end, odd.start, odd.end
    );
    vec![match &facts.bios_area {
        Ok(_) => Finding::fine(NAME, found),
        Err(error) => Finding::hurts(
            NAME,
            format!("{found} by the memory map; could not look at the BIOS data area, which may leave less ({error})"),
            "run as root, under a kernel that is not locked down; else L0 finds out at boot, and says so",
        ),
    }]
}

/// RAM beyond what L0 maps.
pub fn reach(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "RAM";
    let Ok(map) = map(facts) else { return Vec::new() };
    let usable = map.entries().iter().filter(|entry| entry.kind == MemoryType::Usable);
    let Some(end) = usable.map(|entry| entry.end).max() else {
        return Vec::new();
    };
    let limit = if facts.every_cpu_has("pdpe1gb") {
        REACH_1G
    } else {
        REACH_2M
    };
    let total = map.total(MemoryType::Usable) >> 20;
    match end > limit {
        true => vec![Finding::refuses(
            NAME,
            format!(
                "up to {end:#x}, and L0 maps no more than {} GiB on this CPU",
                limit / GIB
            ),
            "take memory out, or interleave it lower in the firmware's set-up",
        )],
        false => vec![Finding::fine(NAME, format!("{total} MiB"))],
    }
}

/// Memory that Linux uses and no successor boots in.
pub fn kinds(facts: &Facts) -> Vec<Finding> {
    let foreign = match &facts.ram {
        Ok(ram) => &ram.foreign,
        Err(error) => {
            return vec![Finding::hurts(
                "kinds of memory",
                format!("could not look ({error})"),
                "run as root",
            )];
        }
    };
    let merged = merge(foreign);
    let finding = |(range, what): (MemRange, String)| {
        Finding::hurts(
            "kinds of memory",
            format!("{range} is {what}: no successor boots in it"),
            "nothing need be done, but to leave it out of ranges in `memory` and to keep enough ordinary RAM",
        )
    };
    merged.into_iter().map(finding).collect()
}

/// Ranges of one kind that follow each other as one.
fn merge(foreign: &[(MemRange, String)]) -> Vec<(MemRange, String)> {
    let mut merged: Vec<(MemRange, String)> = Vec::new();
    for (range, what) in foreign {
        match merged.last_mut() {
            Some((last, same)) if last.end() == range.start() && same == what => {
                *last = MemRange::new(last.start(), range.end()).unwrap_or(*last);
            }
            _ => merged.push((*range, what.clone())),
        }
    }
    merged
}

/// Blocks: how large they are, how many can go, and where.
pub fn blocks(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "memory blocks";
    let (size, blocks) = match &facts.blocks {
        Ok(found) => found,
        Err(error) => {
            let remedy = "use a kernel with CONFIG_MEMORY_HOTPLUG and CONFIG_MEMORY_HOTREMOVE";
            return vec![Finding::refuses(NAME, format!("none ({error})"), remedy)];
        }
    };
    let mut findings = Vec::new();
    let own: Vec<MemRange> = facts.ram.as_ref().map(|ram| ram.own.clone()).unwrap_or_default();
    let whole = |block: MemRange| own.is_empty() || covered(&own, block);
    let ordinary = |block: MemRange| facts.ram.as_ref().map_or(true, |ram| ram.foreign(block).is_none());
    let can_go: Vec<MemRange> = blocks
        .iter()
        .filter(|block| block.removable && whole(block.range) && ordinary(block.range))
        .map(|block| block.range)
        .collect();
    let bytes = can_go.len() as u64 * size;
    let described = format!(
        "{} of {} MiB, {} can be offlined ({} MiB)",
        blocks.len(),
        size >> 20,
        can_go.len(),
        bytes >> 20
    );
    let low = can_go.iter().filter(|block| block.end() <= LOW_END).count();
    if can_go.is_empty() {
        findings.push(Finding::hurts(
            NAME,
            described,
            "give the Locum entry movable_node or movablecore=SIZE: a successor boots in what can be offlined",
        ));
    } else if low == 0 {
        findings.push(Finding::hurts(
            NAME,
            format!("{described}, none of them below 4 GiB: a successor has nothing there for 32-bit DMA"),
            "give it devices that reach all memory: Linux makes movable memory of its highest zone only",
        ));
    } else {
        findings.push(Finding::fine(NAME, format!("{described}, {low} of them below 4 GiB")));
    }
    let holes = blocks
        .iter()
        .filter(|block| !whole(block.range) && ordinary(block.range))
        .count();
    if holes > 1 {
        findings.push(Finding::hurts(
            NAME,
            format!("{holes} have holes; what is in them belongs to nobody after a refresh, until the next one"),
            "nothing need be done; smaller blocks lose less",
        ));
    }
    if *size >= COARSE {
        findings.push(Finding::hurts(
            NAME,
            format!("each is {} MiB: a successor's memory goes in such steps", size >> 20),
            "ask for multiples of that in `memory`",
        ));
    }
    findings
}

/// Pages of the kernel's own map that are larger than blocks: Linux takes such a page for a page table when a part of it
/// is removed, and breaks.
pub fn direct_map(facts: &Facts) -> Vec<Finding> {
    const NAME: &str = "direct map";
    let Some(block) = facts.block_size else {
        return Vec::new();
    };
    if facts.in_gib_pages == 0 || block >= GIB {
        return vec![Finding::fine(NAME, "no page is larger than a memory block")];
    }
    if !facts.above_l0 {
        return vec![Finding::fine(
            NAME,
            "in pages of 1 GiB, which L0 has its hosts leave out (nogbpages)",
        )];
    }
    vec![Finding::refuses(
        NAME,
        format!(
            "{} MiB in pages of 1 GiB, of which Linux cannot remove a block of {} MiB",
            facts.in_gib_pages >> 20,
            block >> 20
        ),
        "boot with nogbpages; L0 of this release adds it",
    )]
}

/// Whether ranges, ascending, cover all of a block.
fn covered(ranges: &[MemRange], block: MemRange) -> bool {
    let mut at = block.start();
    for range in ranges {
        if range.start() <= at && at < range.end() {
            at = range.end();
        }
    }
    at >= block.end()
}
