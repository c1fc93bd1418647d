//! Which memory goes. What nobody owns goes always: it costs the incumbent nothing, and it lies where no hotplug
//! reaches, so a successor that boots there keeps the blocks around it movable.

use alloc::{format, string::String, vec::Vec};
use core::cmp::Reverse;

use rangemap::RangeSet;

use super::check_firmware;
use crate::{
    BlockState, BootSize, Inventory, MemRange, MemoryBlock, MemoryRequest, PlanError, Request, Resource, Warning,
    error::Stuck,
};

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

/// Chooses the memory of the successor.
pub fn choose(inventory: &Inventory, request: &Request) -> Result<Memory, PlanError> {
    let ram = inventory.own_ram();
    let mut candidates: Vec<&MemoryBlock> = inventory
        .blocks
        .iter()
        .filter(|block| why_not(&ram, block).is_ok())
        .filter(|block| inventory.used_by_firmware(Resource::Memory(block.range)).is_none())
        .collect();
    candidates.sort_by_key(|block| block.range);
    let finish = |blocks: &[&MemoryBlock]| finish(inventory, &request.boot, blocks);
    match &request.memory {
        MemoryRequest::Blocks(ranges) => {
            let blocks = named(inventory, &ram, ranges)?;
            let asked = blocks.len() as u64 * inventory.block_size;
            check_amount(inventory, &candidates, asked, &blocks)?;
            finish(&blocks)
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
            if count == 0 {
                return finish(&[]);
            }
            // The highest run in which the kernel fits too; else pieces, the longest run first.
            let runs = candidates.windows(count).rev();
            let runs = runs.filter(|run| is_run(run) && cost(inventory, run) <= inventory.spare);
            runs.filter_map(|run| finish(run).ok())
                .next()
                .map_or_else(|| finish(&pieces(inventory, &candidates, count)), Ok)
        }
    }
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

/// `count` blocks where no run is long enough: from the longest run down, within what can be spared.
fn pieces<'a>(inventory: &Inventory, candidates: &[&'a MemoryBlock], count: usize) -> Vec<&'a MemoryBlock> {
    let mut runs: Vec<&[&MemoryBlock]> = candidates.chunk_by(|a, b| a.range.end() == b.range.start()).collect();
    runs.sort_by_key(|run| Reverse((run.len(), run.first().map(|block| block.range))));
    let mut affordable = inventory.spare / inventory.block_size;
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
    let place = ranges.iter().filter(|&&range| boot.fits(range));
    match place.max_by_key(|&range| (hard_to_move(range), range.len(), range.start())) {
        Some(&boot) => Ok(Memory {
            blocks: blocks.iter().map(|&block| block.clone()).collect(),
            boot,
            ranges,
        }),
        None => Err(PlanError::TooSmallToBoot {
            needed: boot.needed_at(0),
            longest: ranges.iter().map(|range| range.len()).max().unwrap_or(0),
        }),
    }
}
