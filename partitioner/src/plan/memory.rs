//! Which memory goes. What nobody owns goes always: it costs the incumbent nothing, and it lies where no hotplug
//! reaches, so a successor that boots there keeps the blocks around it movable.

use alloc::{format, string::String, vec::Vec};
use core::cmp::Reverse;

use rangemap::RangeSet;

use super::check_firmware;
use crate::{
    BlockState, BootSize, Cpu, Inventory, MemRange, MemoryBlock, MemoryRequest, NodeId, PlanError, Request, Resource,
    Warning, error::Stuck,
};

/// What 32-bit DMA reaches, and Linux's zone DMA32.
const LOW_END: u64 = 4 << 30;
/// What Linux takes of that for bounce buffers at boot (`IO_TLB_DEFAULT_SIZE`, include/linux/swiotlb.h).
const BOUNCE_BUFFERS: u64 = 64 << 20;

/// The chosen memory.
pub struct Memory {
    /// Blocks that go, ascending.
    pub blocks: Vec<MemoryBlock>,
    /// They and the unreclaimed memory, merged.
    pub ranges: Vec<MemRange>,
    /// Where the kernel goes.
    pub boot: MemRange,
}

impl Memory {
    /// Bytes in use that Linux must migrate off the blocks.
    pub fn to_migrate(&self, block_size: u64) -> u64 {
        let online = self.blocks.iter().filter(|block| block.state == BlockState::Online);
        online.map(|block| block_size.saturating_sub(block.free)).sum()
    }
}

/// Chooses the memory of the successor, near its `cpus` if only a size is asked for.
pub fn choose(inventory: &Inventory, request: &Request, cpus: &[Cpu]) -> Result<Memory, PlanError> {
    let ram = inventory.own_ram();
    let candidates = candidates(inventory, &ram);
    match &request.memory {
        MemoryRequest::Blocks(ranges) => {
            let blocks = named(inventory, &ram, ranges)?;
            let asked = blocks.len() as u64 * inventory.block_size;
            check_amount(inventory, &candidates, asked, &blocks)?;
            finish(inventory, &request.boot, &blocks)
        }
        MemoryRequest::Size(bytes) => {
            let gift = inventory.unreclaimed.iter().map(|left| left.range.len()).sum();
            let blocks = bytes.saturating_sub(gift).div_ceil(inventory.block_size);
            let Some(count) = usize::try_from(blocks)
                .ok()
                .filter(|&n| n <= obtainable(inventory, &candidates))
            else {
                return Err(too_much(inventory, &candidates, *bytes));
            };
            sized(inventory, &request.boot, &candidates, count, cpus)
        }
    }
}

/// Blocks that can go, ascending.
fn candidates<'a>(inventory: &'a Inventory, ram: &RangeSet<u64>) -> Vec<&'a MemoryBlock> {
    let mut candidates: Vec<&MemoryBlock> = inventory
        .blocks
        .iter()
        .filter(|block| why_not(ram, block).is_ok())
        .filter(|block| inventory.used_by_firmware(Resource::Memory(block.range)).is_none())
        .collect();
    candidates.sort_by_key(|block| block.range);
    candidates
}

/// Whether all that is asked for can be had on that node.
pub fn has_on_node(inventory: &Inventory, request: &MemoryRequest, node: NodeId) -> bool {
    match request {
        MemoryRequest::Blocks(ranges) => {
            let asked = |block: &&MemoryBlock| ranges.iter().any(|range| range.contains(block.range));
            inventory.blocks.iter().filter(asked).all(|block| block.node == node)
        }
        MemoryRequest::Size(bytes) => {
            let mut there = candidates(inventory, &inventory.own_ram());
            there.retain(|block| block.node == node);
            obtainable(inventory, &there) as u64 * inventory.block_size >= *bytes
        }
    }
}

/// `count` blocks. A run that the kernel fits into is best, near the CPUs, the highest; pieces near them are next. Where
/// these leave the successor without memory below 4 GiB, or the kernel where L0 cannot enter it, as few blocks as are
/// needed come from down there, and the rest from near the CPUs as far as there are.
fn sized(
    inventory: &Inventory,
    boot: &BootSize,
    candidates: &[&MemoryBlock],
    count: usize,
    cpus: &[Cpu],
) -> Result<Memory, PlanError> {
    if count == 0 {
        return finish(inventory, boot, &[]);
    }
    let is_near = |block: &&MemoryBlock| cpus.iter().any(|cpu| cpu.node == block.node);
    let near: Vec<&MemoryBlock> = candidates.iter().copied().filter(is_near).collect();
    let made_of = |blocks: &[&MemoryBlock]| finish(inventory, boot, blocks).ok();
    let has_low = |memory: &Memory| low_spare(inventory, boot, memory).is_none_or(|spare| spare >= BOUNCE_BUFFERS);
    let scattered = pieces(inventory, &near, count, 0);
    let of_near = || {
        let pieces = (scattered.len() == count).then_some(&scattered[..]);
        runs(inventory, &near, count).chain(pieces).filter_map(made_of)
    };
    if let Some(memory) = of_near().find(has_low) {
        return Ok(memory);
    }
    let low_end = inventory.entry_reach.min(LOW_END);
    let is_low = |block: &&MemoryBlock| block.range.end() <= low_end;
    let sources = [&near[..], candidates].map(|from| from.iter().copied().filter(is_low).collect::<Vec<_>>());
    let starts = || (0..=count).flat_map(|few| sources.iter().flat_map(move |low| runs(inventory, low, few)));
    let is_start = |start: &&[&MemoryBlock]| made_of(start).is_some_and(|memory| has_low(&memory));
    let Some(start) = starts().find(is_start) else {
        let or_else = || finish(inventory, boot, &pieces(inventory, candidates, count, 0));
        return of_near().next().map_or_else(or_else, Ok);
    };
    let mut chosen = start.to_vec();
    for from in [&near[..], candidates] {
        let wanted = count - chosen.len();
        let left: Vec<&MemoryBlock> = from.iter().copied().filter(|block| !chosen.contains(block)).collect();
        let spent = cost(inventory, &chosen);
        let run = runs(inventory, &left, wanted).find(|run| spent + cost(inventory, run) <= inventory.spare);
        match run {
            Some(run) => chosen.extend(run),
            None => chosen.extend(pieces(inventory, &left, wanted, spent)),
        }
    }
    chosen.sort_by_key(|block| block.range);
    finish(inventory, boot, &chosen)
}

/// Runs of `count` blocks that can be spared, the highest first; one empty run if `count` is 0.
fn runs<'b, 'a>(
    inventory: &Inventory,
    blocks: &'b [&'a MemoryBlock],
    count: usize,
) -> impl Iterator<Item = &'b [&'a MemoryBlock]> {
    let none = (count == 0).then_some(&[][..]);
    let some = blocks.windows(count.max(1)).rev().filter(move |_| count > 0);
    none.into_iter()
        .chain(some.filter(|run| is_run(run) && cost(inventory, run) <= inventory.spare))
}

/// Bytes for 32-bit DMA that the successor has beside its image. `None` if the machine has no memory but such.
fn low_spare(inventory: &Inventory, boot: &BootSize, memory: &Memory) -> Option<u64> {
    let mut all = inventory.ram.iter().chain(&inventory.pool);
    all.any(|range| range.end() > LOW_END).then(|| {
        let low = memory.ranges.iter();
        let low = low.map(|range| range.end().min(LOW_END).saturating_sub(range.start()));
        let image = match memory.boot.start() < LOW_END {
            true => boot.needed_at(memory.boot.start()),
            false => 0,
        };
        low.sum::<u64>().saturating_sub(image)
    })
}

/// Warns of a successor with next to no memory for 32-bit DMA.
pub fn check_low(inventory: &Inventory, boot: &BootSize, memory: &Memory, warnings: &mut Vec<Warning>) {
    let spare = low_spare(inventory, boot, memory).filter(|&spare| spare < BOUNCE_BUFFERS);
    warnings.extend(spare.map(|spare| Warning::LittleLowMemory { spare }));
}

/// Why Linux would not give that block away.
fn why_not(ram: &RangeSet<u64>, block: &MemoryBlock) -> Result<(), PlanError> {
    let range = block.range;
    if let Some(what) = &block.foreign {
        Err(PlanError::ForeignMemory {
            range,
            what: what.clone(),
        })
    } else if ram.gaps(&range.range()).next().is_some() {
        let why = Stuck::Holes;
        Err(PlanError::NotRemovable { range, why })
    } else if !block.removable {
        let why = Stuck::Unmovable;
        Err(PlanError::NotRemovable { range, why })
    } else if let Some(what) = &block.kept {
        let what = what.clone();
        Err(PlanError::KeptMemory { range, what })
    } else {
        Ok(())
    }
}

/// Warns of blocks that the incumbent uses and no successor finds.
pub fn check_lost(inventory: &Inventory, warnings: &mut Vec<Warning>) {
    let ram = inventory.own_ram();
    let lost = |block: &&MemoryBlock| block.is_online() && ram.gaps(&block.range.range()).next().is_some();
    let mut found: Vec<(MemRange, String)> = Vec::new();
    for block in inventory.blocks.iter().filter(lost) {
        let Some(what) = &block.foreign else { continue };
        match found.last_mut() {
            Some((range, last)) if range.end() == block.range.start() && last == what => {
                *range = MemRange::new(range.start(), block.range.end()).unwrap_or(*range);
            }
            _ => found.push((block.range, what.clone())),
        }
    }
    warnings.extend(
        found
            .into_iter()
            .map(|(range, what)| Warning::MemoryLost { range, what }),
    );
}

/// Spare bytes that giving up the blocks costs: an offline block holds nothing.
fn cost(inventory: &Inventory, blocks: &[&MemoryBlock]) -> u64 {
    blocks.iter().filter(|block| block.state == BlockState::Online).count() as u64 * inventory.block_size
}

/// How many of the candidates can be had at once.
fn obtainable(inventory: &Inventory, candidates: &[&MemoryBlock]) -> usize {
    let online = candidates
        .iter()
        .filter(|block| block.state == BlockState::Online)
        .count();
    let affordable = usize::try_from(inventory.spare / inventory.block_size).unwrap_or(usize::MAX);
    candidates.len() - online + online.min(affordable)
}

fn too_much(inventory: &Inventory, candidates: &[&MemoryBlock], asked: u64) -> PlanError {
    let gift: u64 = inventory.unreclaimed.iter().map(|left| left.range.len()).sum();
    PlanError::TooMuchMemory {
        asked,
        could: gift + obtainable(inventory, candidates) as u64 * inventory.block_size,
        removable: candidates.len() as u64 * inventory.block_size,
        spare: inventory.spare,
    }
}

fn check_amount(
    inventory: &Inventory,
    candidates: &[&MemoryBlock],
    asked: u64,
    blocks: &[&MemoryBlock],
) -> Result<(), PlanError> {
    if cost(inventory, blocks) > inventory.spare {
        Err(too_much(inventory, candidates, asked))
    } else {
        Ok(())
    }
}

/// The blocks that were asked for by address, ascending.
fn named<'a>(
    inventory: &'a Inventory,
    ram: &RangeSet<u64>,
    ranges: &[MemRange],
) -> Result<Vec<&'a MemoryBlock>, PlanError> {
    let size = inventory.block_size;
    let mut chosen: Vec<&MemoryBlock> = Vec::new();
    for &range in ranges {
        if !range.is_aligned(size) {
            return Err(PlanError::Misaligned {
                range,
                block_size: size,
            });
        }
        if let Some(&pool) = inventory.pool.iter().find(|pool| pool.overlaps(range)) {
            return Err(PlanError::OverlapsPool { range, pool });
        }
        if let Some(&never) = inventory.never_moves.iter().find(|never| never.overlaps(range)) {
            return Err(PlanError::OverlapsNeverMoves { range, never });
        }
        // Found by the blocks that exist, so that an absurdly long range costs no time.
        let mut blocks: Vec<_> = inventory
            .blocks
            .iter()
            .filter(|block| range.contains(block.range))
            .collect();
        blocks.sort_by_key(|block| block.range);
        let mut at = range.start();
        for block in blocks {
            if block.range.start() != at {
                break;
            }
            at = block.range.end();
            why_not(ram, block)?;
            let resource = Resource::Memory(block.range);
            check_firmware(inventory, resource, resource)?;
            chosen.push(block);
        }
        if at != range.end() {
            let missing = MemRange::with_len(at, size).unwrap_or(range);
            return Err(PlanError::UnknownBlock(missing));
        }
    }
    chosen.sort_by_key(|block| block.range);
    match chosen
        .windows(2)
        .find_map(|pair| (pair[0] == pair[1]).then_some(pair[0].range))
    {
        Some(range) => Err(PlanError::Duplicate(format!("memory block {range}"))),
        None => Ok(chosen),
    }
}

/// Whether the blocks, ascending, follow each other without a gap.
fn is_run(blocks: &[&MemoryBlock]) -> bool {
    blocks
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.range.end() == b.range.start()))
}

/// Up to `count` blocks where no run is long enough: from the longest run down, within what can be spared beside what
/// is `spent` already.
fn pieces<'a>(inventory: &Inventory, candidates: &[&'a MemoryBlock], count: usize, spent: u64) -> Vec<&'a MemoryBlock> {
    let mut runs: Vec<&[&MemoryBlock]> = candidates.chunk_by(|a, b| a.range.end() == b.range.start()).collect();
    runs.sort_by_key(|run| Reverse((run.len(), run.first().map(|block| block.range))));
    let mut affordable = inventory.spare.saturating_sub(spent) / inventory.block_size;
    let mut chosen: Vec<&MemoryBlock> = Vec::new();
    for &block in runs.into_iter().flat_map(|run| run.iter().rev()) {
        if chosen.len() == count {
            break;
        }
        if block.state == BlockState::Online {
            let Some(left) = affordable.checked_sub(1) else {
                continue;
            };
            affordable = left;
        }
        chosen.push(block);
    }
    chosen.sort_by_key(|block| block.range);
    chosen
}

/// Merges the blocks with the unreclaimed memory and finds the place for the kernel.
fn finish(inventory: &Inventory, boot: &BootSize, blocks: &[&MemoryBlock]) -> Result<Memory, PlanError> {
    let free = inventory.unreclaimed.iter().map(|left| left.range);
    let merged: RangeSet<u64> = free
        .chain(blocks.iter().map(|block| block.range))
        .map(MemRange::range)
        .collect();
    let ranges: Vec<MemRange> = merged.iter().filter_map(MemRange::from_range).collect();
    let hard_to_move = |range: &MemRange| inventory.unreclaimed.iter().any(|left| range.contains(left.range));
    let reach = inventory.entry_reach;
    let within = |range: &MemRange| MemRange::new(range.start(), range.end().min(reach));
    let reached: Vec<MemRange> = ranges.iter().filter_map(within).collect();
    let place = reached.iter().filter(|&&range| boot.fits(range));
    let longest = |ranges: &[MemRange]| ranges.iter().map(|range| range.len()).max().unwrap_or(0);
    match place.max_by_key(|&range| (hard_to_move(range), range.len(), range.start())) {
        Some(&boot) => Ok(Memory {
            blocks: blocks.iter().map(|&block| block.clone()).collect(),
            boot,
            ranges,
        }),
        None if ranges.iter().any(|&range| boot.fits(range)) => Err(PlanError::OutOfReach {
            needed: boot.needed_at(0),
            longest: longest(&reached),
            reach,
        }),
        None => Err(PlanError::TooSmallToBoot {
            needed: boot.needed_at(0),
            longest: longest(&ranges),
        }),
    }
}
