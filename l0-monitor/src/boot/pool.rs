//! Where guests' RAM is: by address, or by size out of each NUMA node.
//!
//! A pool that cannot be is left out, whole or in part, with a warning: the host starts, and guests run in ordinary RAM.

use core::ops::Range;

use arrayvec::ArrayVec;
use firmware_shim::e820::{self, E820Map, MemoryType, PoolSize, pool_by_size};
use locum_abi::POOL_PIECES;

use crate::machine::{Pool, Span};

/// What the host keeps below 4 GiB in any case, for its kernel and ramdisk.
const LOW_KEPT: u64 = 256 << 20;
/// Below this they are loaded, and not below that.
const LOW: Range<u64> = 16 << 20..4 << 30;

const _: () = assert!(e820::POOL_PIECES == POOL_PIECES);

/// What the administrator wants.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one, at boot, and no heap")]
pub(crate) enum Wanted {
    /// These ranges of addresses, multiples of 2 MiB, none empty.
    Ranges(ArrayVec<Span, POOL_PIECES>),
    /// As much, in equal parts from each node.
    Size(PoolSize),
}

/// Chooses the pool. `machine` is the firmware's map, `l0` L0's memory in it; `nodes` are domains and their memory.
pub(crate) fn choose<I>(machine: &E820Map, l0: Range<u64>, nodes: I, wanted: &Wanted) -> Pool
where
    I: Iterator<Item = (u32, Range<u64>)> + Clone,
{
    let mut free = machine.clone();
    if let Err(error) = free.set(l0, MemoryType::Reserved) {
        log::warn!("{error}; there is no pool");
        return Pool::new();
    }
    match wanted {
        Wanted::Ranges(ranges) => by_address(&mut free, ranges),
        Wanted::Size(size) => by_size(&free, nodes, *size),
    }
}

fn by_address(free: &mut E820Map, ranges: &[Span]) -> Pool {
    let mut pool = Pool::new();
    for &span in ranges {
        let range = span.start..span.end;
        if !free.covers(&range, |kind| kind == MemoryType::Usable) {
            log::warn!(
                "pool={:x}-{:x} is left out: it is not wholly usable RAM outside L0; see BIOS-e820 in the log of a kernel \
                 without L0, or give a size, as in pool=25%",
                span.start,
                span.end
            );
            continue;
        }
        let mut without = free.clone();
        let kept = without
            .set(range, MemoryType::SoftReserved)
            .map(|()| usable_low(&without));
        if kept.is_ok_and(|bytes| bytes >= LOW_KEPT) && pool.try_push(span).is_ok() {
            *free = without;
        } else {
            log::warn!(
                "pool={:x}-{:x} is left out: it leaves the host less than {} MiB below 4 GiB; make it smaller",
                span.start,
                span.end,
                LOW_KEPT >> 20
            );
        }
    }
    pool.sort_unstable_by_key(|span| span.start);
    pool
}

fn by_size<I>(free: &E820Map, nodes: I, size: PoolSize) -> Pool
where
    I: Iterator<Item = (u32, Range<u64>)> + Clone,
{
    let chosen = match pool_by_size(free, nodes, size) {
        Ok(chosen) => chosen,
        Err(error) => {
            log::warn!("the SRAT: {error}; there is no pool. Give addresses, as in pool=START-END");
            return Pool::new();
        }
    };
    if chosen.size() < chosen.wanted {
        log::warn!(
            "the pool has {} MiB instead of {}: {} of {} NUMA nodes have memory for it in one piece, and hosts keep some",
            chosen.size() >> 20,
            chosen.wanted >> 20,
            chosen.pieces.len(),
            chosen.nodes
        );
    }
    if chosen.beyond > 0 {
        log::warn!(
            "{} NUMA nodes more have RAM, but {POOL_PIECES} at most give a piece of the pool: guests whose CPUs are there \
             have remote memory",
            chosen.beyond
        );
    }
    let mut pool = Pool::new();
    for piece in &chosen.pieces {
        let Range { start, end } = piece.range;
        log::info!("pool: {start:#x}-{end:#x} of NUMA domain {}", piece.node);
        // As many pieces as there may be, asserted above.
        let _ = pool.try_push(Span { start, end });
    }
    pool
}

/// Usable bytes where kernel and ramdisk may be.
fn usable_low(map: &E820Map) -> u64 {
    map.entries()
        .iter()
        .filter(|entry| entry.kind == MemoryType::Usable)
        .map(|entry| entry.end.min(LOW.end).saturating_sub(entry.start.max(LOW.start)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
    const L0: Range<u64> = 2 * MIB..20 * MIB;

    fn machine() -> E820Map {
        let mut map = E820Map::new();
        map.set(0..0xa_0000, MemoryType::Usable).unwrap();
        map.set(MIB..2 * GIB, MemoryType::Usable).unwrap();
        map.set(4 * GIB..8 * GIB, MemoryType::Usable).unwrap();
        map
    }

    fn nodes() -> impl Iterator<Item = (u32, Range<u64>)> + Clone {
        [(0, 0..6 * GIB), (7, 6 * GIB..8 * GIB)].into_iter()
    }

    fn chosen(wanted: &Wanted) -> std::vec::Vec<(u64, u64)> {
        let pool = choose(&machine(), L0, nodes(), wanted);
        pool.iter().map(|span| (span.start, span.end)).collect()
    }

    fn ranges(ranges: &[(u64, u64)]) -> Wanted {
        Wanted::Ranges(ranges.iter().map(|&(start, end)| Span { start, end }).collect())
    }

    #[test]
    fn addresses_are_taken_as_they_are() {
        let wanted = ranges(&[(6 * GIB, 7 * GIB), (GIB, 2 * GIB), (4 * GIB, 6 * GIB)]);
        assert_eq!(
            chosen(&wanted),
            [(GIB, 2 * GIB), (4 * GIB, 6 * GIB), (6 * GIB, 7 * GIB)],
            "in ascending order"
        );
    }

    #[test]
    fn what_cannot_be_pool_is_left_out() {
        let good = (4 * GIB, 5 * GIB);
        for bad in [
            (7 * GIB, 9 * GIB),              // no RAM
            (2 * GIB, 4 * GIB),              // a hole
            (18 * MIB, 22 * MIB),            // L0
            (4 * GIB + 512 * MIB, 6 * GIB),  // twice
            (20 * MIB, 2 * GIB - 255 * MIB), // nothing left for the host
        ] {
            assert_eq!(chosen(&ranges(&[good, bad])), [good], "{bad:x?}");
        }
        let most = (20 * MIB, 2 * GIB - 256 * MIB);
        assert_eq!(chosen(&ranges(&[most])), [most]);
    }

    #[test]
    fn a_size_is_taken_from_each_node() {
        let wanted = Wanted::Size(PoolSize::Percent(25));
        // 1.5 GiB of 6, in blocks of 128 MiB, with a block above each.
        assert_eq!(
            chosen(&wanted),
            [
                (5 * GIB + 128 * MIB, 6 * GIB - 128 * MIB),
                (7 * GIB + 128 * MIB, 8 * GIB - 128 * MIB)
            ]
        );
    }

    #[test]
    fn a_size_that_is_too_large_is_taken_as_far_as_it_goes() {
        let got = chosen(&Wanted::Size(PoolSize::Bytes(100 * GIB)));
        let size: u64 = got.iter().map(|(start, end)| end - start).sum();
        assert!(size > 2 * GIB && size <= 3 * GIB, "{got:x?}");
    }

    #[test]
    fn l0s_memory_is_nobodys() {
        let l0 = 5 * GIB..7 * GIB;
        let pool = choose(&machine(), l0.clone(), nodes(), &Wanted::Size(PoolSize::Percent(50)));
        assert_eq!(pool.len(), 2);
        assert!(pool.iter().all(|span| span.end <= l0.start || l0.end <= span.start));
    }
}
