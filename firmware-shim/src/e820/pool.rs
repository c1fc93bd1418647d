//! The pool by size: a piece of each NUMA node.

use super::map::{E820Error, E820Map, MemoryType};
use arrayvec::ArrayVec;
use core::ops::Range;

/// Nodes that give a piece at most. Two sockets of four clusters have eight, eight sockets have as many.
pub const POOL_PIECES: usize = 16;

/// Smallest unit of the pool, and of its alignment: guest RAM is mapped by pages of this size.
const UNIT: u64 = 2 << 20;
/// The pool is never below this: kernels and ramdisks are.
const FLOOR: u64 = 1 << 30;
/// Above this is no memory that 32-bit devices reach; the pool is there if it can be.
const HIGH: u64 = 4 << 30;
/// What the hosts keep of the machine's RAM, or half of it if that is less.
const FOR_HOSTS: u64 = 4 << 30;
/// The part of a node's RAM that stays free above its piece: Linux takes its boot-time memory from the end of RAM
/// downwards, above all its page descriptors, which are a 64th of RAM, and blocks that hold such memory never go
/// offline.
const ABOVE: u64 = 32;

/// How much guest RAM is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolSize {
    /// Bytes.
    Bytes(u64),
    /// Hundredths of the RAM that is usable, 1 to 99.
    Percent(u8),
}

/// What a node gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its number, as [`pool_by_size`] was told.
    pub node: u32,
    /// Where it is.
    pub range: Range<u64>,
}

/// A pool that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// A piece of each node that has room, in ascending order of addresses.
    pub pieces: ArrayVec<Piece, POOL_PIECES>,
    /// Nodes with RAM that were asked for a piece, at most [`POOL_PIECES`].
    pub nodes: usize,
    /// Nodes with RAM that were not, since there are more than that.
    pub beyond: usize,
    /// Bytes that were wanted.
    pub wanted: u64,
}

impl Pool {
    /// Bytes that there are. Less than [`Self::wanted`] if nodes lack room, more if pieces were rounded up to whole
    /// memory blocks.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.pieces
            .iter()
            .fold(0, |sum, piece| sum.saturating_add(piece.range.end - piece.range.start))
    }
}

/// Bytes of the blocks in which Linux takes memory off- and online when RAM ends at `end`
/// (`probe_memory_block_size()` in `arch/x86/mm/init_64.c`, on bare metal).
#[must_use]
pub fn memory_block_size(end: u64) -> u64 {
    const LARGE_FROM: u64 = 64 << 30;
    if end < LARGE_FROM { 128 << 20 } else { 2 << 30 }
}

/// Whether Linux, booted with `map`, must not map its memory in pages of 1 GiB (`nogbpages`): its memory blocks are
/// smaller then, and when a part of such a page is removed, it takes the page for a page table and breaks
/// (`remove_pud_table()` in `arch/x86/mm/init_64.c`).
#[must_use]
pub fn needs_small_pages(map: &E820Map) -> bool {
    memory_block_size(usable_end(map)) < 1 << 30
}

/// Chooses a pool of `size` out of what is usable in `map`: of each node an equal part in one piece, as high as can be
/// but for a 32nd of the node, in whole blocks, for what Linux has at the end of RAM.
///
/// `nodes` are the nodes' ranges, in any order; without any, all memory is of one node, 0. A piece is of whole memory
/// blocks, so that no block is half pool and half host: its size is rounded up to that. It is above 4 GiB if there is
/// room for it, else above 1 GiB, and then at most half of what is usable below 4 GiB. Hosts keep [`FOR_HOSTS`] bytes,
/// or half of all, in any case. A node without a fitting piece gives the largest that it has, in units of 2 MiB if that
/// is more than twice as much; what it lacks is not made up for by others. The same map and nodes always give the same pool.
///
/// # Errors
/// [`E820Error::Full`] if a node has more than [`super::CAPACITY`] separate ranges.
pub fn pool_by_size<I>(map: &E820Map, nodes: I, size: PoolSize) -> Result<Pool, E820Error>
where
    I: Iterator<Item = (u32, Range<u64>)> + Clone,
{
    let usable = map.total(MemoryType::Usable);
    let wanted = match size {
        PoolSize::Bytes(bytes) => bytes,
        PoolSize::Percent(percent) => usable / 100 * u64::from(percent.min(100)),
    };
    let block = memory_block_size(usable_end(map));
    let numbers = nodes_with_ram(map, nodes.clone());
    let beyond = count_beyond(map, nodes.clone(), &numbers);
    let mut pool = Pool {
        pieces: ArrayVec::new_const(),
        nodes: numbers.len(),
        beyond,
        wanted,
    };
    let mut room = Room {
        free: map.clone(),
        block,
        left: usable - FOR_HOSTS.min(usable / 2),
        left_low: bytes_below(map, HIGH) / 2,
    };
    let part = wanted / numbers.len().max(1) as u64;
    for node in numbers {
        let memory = memory_of(nodes.clone(), node)?;
        if let Some(range) = room.take(&memory, part)? {
            // No more nodes than pieces were counted.
            let _ = pool.pieces.try_push(Piece { node, range });
        }
    }
    pool.pieces.sort_unstable_by_key(|piece| piece.range.start);
    Ok(pool)
}

/// What is still free.
struct Room {
    free: E820Map,
    /// Size of a memory block.
    block: u64,
    /// Bytes that may be taken.
    left: u64,
    /// Bytes of these that may be below 4 GiB.
    left_low: u64,
}

impl Room {
    /// Takes `wanted` bytes of a node's memory, or what there is.
    fn take(&mut self, node: &E820Map, wanted: u64) -> Result<Option<Range<u64>>, E820Error> {
        let blocks = wanted.checked_next_multiple_of(self.block).unwrap_or(u64::MAX);
        let units = wanted.checked_next_multiple_of(UNIT).unwrap_or(u64::MAX);
        if wanted == 0 {
            return Ok(None);
        }
        let above = (self.bytes(node) / ABOVE).next_multiple_of(self.block);
        let found = [(true, above), (true, 0), (false, above), (false, 0)]
            .into_iter()
            .find_map(|(high, above)| self.highest(node, high, blocks, above))
            .or_else(|| {
                let [whole, fine] = [(self.block, blocks), (UNIT, units)].map(|(align, size)| {
                    let piece = self.largest(node, align, size);
                    (piece.as_ref().map_or(0, |piece| piece.end - piece.start), piece)
                });
                if whole.0 >= fine.0 / 2 { whole.1 } else { fine.1 }
            });
        if let Some(range) = &found {
            let size = range.end - range.start;
            self.free.set(range.clone(), MemoryType::SoftReserved)?;
            self.left -= size;
            if range.start < HIGH {
                self.left_low -= size;
            }
        }
        Ok(found)
    }

    /// The highest piece of exactly `size` bytes, in whole blocks, with `above` bytes of the node above it.
    fn highest(&self, node: &E820Map, high: bool, size: u64, above: u64) -> Option<Range<u64>> {
        if size > self.limit(high) {
            return None;
        }
        let end = self.runs(node, high, self.block).map(|run| run.end).max()?;
        let most = end.checked_sub(above)?;
        self.runs(node, high, self.block)
            .filter_map(|run| {
                let end = run.end.min(most);
                let start = end.checked_sub(size)?;
                (start >= run.start).then_some(start..end)
            })
            .max_by_key(|piece| piece.start)
    }

    /// Bytes of the node that are free.
    fn bytes(&self, node: &E820Map) -> u64 {
        [true, false]
            .into_iter()
            .flat_map(|high| self.runs(node, high, UNIT))
            .fold(0, |sum, run| sum.saturating_add(run.end - run.start))
    }

    /// The largest piece of at most `size` bytes; of equal ones the highest.
    fn largest(&self, node: &E820Map, align: u64, size: u64) -> Option<Range<u64>> {
        [true, false]
            .into_iter()
            .flat_map(|high| {
                let most = size.min(self.limit(high)) / align * align;
                self.runs(node, high, align)
                    .map(move |run| run.start.max(run.end.saturating_sub(most))..run.end)
            })
            .filter(|piece| !piece.is_empty())
            .max_by_key(|piece| (piece.end - piece.start, piece.start))
    }

    /// Bytes that may be taken above or below 4 GiB.
    fn limit(&self, high: bool) -> u64 {
        if high { self.left } else { self.left.min(self.left_low) }
    }

    /// Free memory of the node above or below 4 GiB, cut to multiples of `align`.
    fn runs(&self, node: &E820Map, high: bool, align: u64) -> impl Iterator<Item = Range<u64>> {
        let region = if high { HIGH..u64::MAX } else { FLOOR..HIGH };
        usable(&self.free).flat_map(move |free| {
            let region = region.clone();
            usable(node).filter_map(move |own| {
                let start = free.start.max(own.start).max(region.start);
                let start = start.checked_next_multiple_of(align)?;
                let end = free.end.min(own.end).min(region.end) / align * align;
                (start < end).then_some(start..end)
            })
        })
    }
}

fn usable(map: &E820Map) -> impl Iterator<Item = Range<u64>> {
    map.entries()
        .iter()
        .filter(|entry| entry.kind == MemoryType::Usable)
        .map(|entry| entry.start..entry.end)
}

fn usable_end(map: &E820Map) -> u64 {
    usable(map).map(|range| range.end).max().unwrap_or(0)
}

fn bytes_below(map: &E820Map, end: u64) -> u64 {
    usable(map)
        .map(|range| range.end.min(end).saturating_sub(range.start))
        .fold(0, u64::saturating_add)
}

/// The lowest usable byte of a range, if it has one.
fn lowest(map: &E820Map, range: &Range<u64>) -> Option<u64> {
    usable(map)
        .map(|free| (free.start.max(range.start), free.end.min(range.end)))
        .filter(|(start, end)| start < end)
        .map(|(start, _)| start)
        .min()
}

/// How many nodes with usable memory are not among `numbers`.
fn count_beyond<I>(map: &E820Map, nodes: I, numbers: &[u32]) -> usize
where
    I: Iterator<Item = (u32, Range<u64>)> + Clone,
{
    let others = || {
        nodes
            .clone()
            .filter(|(node, range)| !numbers.contains(node) && lowest(map, range).is_some())
            .map(|(node, _)| node)
    };
    // Each node counts at its first range.
    others()
        .enumerate()
        .filter(|(nth, node)| !others().take(*nth).any(|earlier| earlier == *node))
        .count()
}

/// Numbers of the nodes that have usable memory, the lowest memory first, as many as may give a piece.
fn nodes_with_ram<I>(map: &E820Map, nodes: I) -> ArrayVec<u32, POOL_PIECES>
where
    I: Iterator<Item = (u32, Range<u64>)> + Clone,
{
    let mut numbers = ArrayVec::<u32, POOL_PIECES>::new_const();
    if nodes.clone().next().is_none() {
        numbers.push(0);
        return numbers;
    }
    while let Some((_, node)) = nodes
        .clone()
        .filter(|(node, _)| !numbers.contains(node))
        .filter_map(|(node, range)| Some((lowest(map, &range)?, node)))
        .min()
    {
        if numbers.try_push(node).is_err() {
            break;
        }
    }
    numbers
}

/// A node's ranges, neighbours joined.
fn memory_of<I>(nodes: I, number: u32) -> Result<E820Map, E820Error>
where
    I: Iterator<Item = (u32, Range<u64>)> + Clone,
{
    let mut memory = E820Map::new();
    if nodes.clone().next().is_none() {
        memory.set(0..u64::MAX, MemoryType::Usable)?;
    }
    for (_, range) in nodes.filter(|(node, range)| *node == number && !range.is_empty()) {
        memory.set(range, MemoryType::Usable)?;
    }
    Ok(memory)
}
