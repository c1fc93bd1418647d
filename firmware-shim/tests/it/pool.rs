//! The pool by size, on machines of published logs.

use crate::machines::{self, ALL, Published};
use firmware_shim::e820::{
    E820Error, E820Map, MemoryType, POOL_PIECES, Pool, PoolSize, low_slices, memory_block_size, needs_small_pages,
    pool_by_size,
};
use proptest::prelude::*;
use std::ops::Range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn pool(machine: &Published, size: PoolSize) -> Pool {
    pool_by_size(&machine.map(), machine.nodes(), size).unwrap()
}

/// Node, first byte, first byte after it.
type Plain = (u32, u64, u64);

fn ranges(pool: &Pool) -> Vec<Plain> {
    pool.pieces
        .iter()
        .map(|piece| (piece.node, piece.range.start, piece.range.end))
        .collect()
}

#[test]
fn blocks_smaller_than_a_page_of_1_gib_need_small_pages() {
    let ends_at = |end: u64| {
        let mut map = E820Map::new();
        map.set(0..end, MemoryType::Usable).unwrap();
        map.set(80 * GIB..96 * GIB, MemoryType::SoftReserved).unwrap();
        needs_small_pages(&map)
    };
    assert!(
        ends_at(5 * GIB) && ends_at(64 * GIB - MIB),
        "the pool is no RAM of Linux'"
    );
    assert!(!ends_at(64 * GIB) && !ends_at(72 * GIB));
}

#[test]
fn a_quarter_of_each_machine() {
    let cases: [(&Published, &[Plain]); 9] = [
        // 47.9 GiB of 191.7: 24 GiB a node in blocks of 2 GiB, 4 GiB above. Neither node ends on a block.
        (
            &machines::X11DAI,
            &[(0, 0x11_0000_0000, 0x17_0000_0000), (1, 0x29_0000_0000, 0x2f_0000_0000)],
        ),
        (
            &machines::X10DRT,
            &[(0, 0x6_0000_0000, 0x8_0000_0000), (1, 0xe_0000_0000, 0x10_0000_0000)],
        ),
        (
            &machines::QSSC_S4R,
            &[
                (0, 0x6_0000_0000, 0x8_0000_0000),
                (1, 0xe_0000_0000, 0x10_0000_0000),
                (2, 0x16_0000_0000, 0x18_0000_0000),
                (3, 0x1e_0000_0000, 0x20_0000_0000),
            ],
        ),
        // Its second node ends 14 MiB before a block does.
        (
            &machines::DL325,
            &[(0, 0x6_0000_0000, 0x8_0000_0000), (2, 0xd_8000_0000, 0xf_8000_0000)],
        ),
        (
            &machines::S2600WFT,
            &[(0, 0xc_0000_0000, 0x10_0000_0000), (1, 0x5b_0000_0000, 0x5f_0000_0000)],
        ),
        (&machines::S2600WTT, &[(0, 0xc_0000_0000, 0x10_0000_0000)]),
        // Nothing above 4 GiB: below it, in blocks of 128 MiB.
        (&machines::BOCHS, &[(0, 0x5000_0000, 0x7000_0000)]),
        (
            &machines::OVMF_SMM,
            &[(0, 0x1_0800_0000, 0x1_3800_0000), (1, 0x1_c800_0000, 0x1_f800_0000)],
        ),
        // Nothing above 1 GiB.
        (&machines::SMALL_1G, &[]),
    ];
    for (machine, wanted) in cases {
        assert_eq!(
            ranges(&pool(machine, PoolSize::Percent(25))),
            wanted,
            "{}",
            machine.name
        );
    }
}

#[test]
fn of_more_nodes_than_pieces_the_first_give_all() {
    let pool = pool(&machines::R7625, PoolSize::Percent(50));
    assert_eq!((pool.pieces.len(), pool.nodes), (POOL_PIECES, POOL_PIECES));
    let nodes: Vec<_> = pool.pieces.iter().map(|piece| piece.node).collect();
    assert_eq!(
        nodes,
        [0, 1, 8, 9, 4, 5, 12, 13, 6, 7, 14, 15, 2, 3, 10, 11],
        "by address"
    );
    assert_eq!(ranges(&pool)[1], (1, 0x6_8000_0000, 0xc_8000_0000), "the whole node");
}

#[test]
fn sixteen_sockets_without_a_srat() {
    let pool = pool(&machines::SUPERDOME2, PoolSize::Bytes(8 << 40));
    assert_eq!(ranges(&pool), [(0, 0x3c0_0000_0000, 0xbc0_0000_0000)]);
}

#[test]
fn sizes_are_rounded_up_to_blocks() {
    let machine = &machines::X10DRT;
    let pool = pool(machine, PoolSize::Bytes(5 * GIB));
    assert_eq!(pool.size(), 8 * GIB, "2.5 GiB a node in blocks of 2 GiB");
    assert_eq!((pool.wanted, pool.nodes), (5 * GIB, 2));
    let pool = pool_by_size(&machines::BOCHS.map(), [].into_iter(), PoolSize::Bytes(200 * MIB)).unwrap();
    assert_eq!(ranges(&pool), [(0, 0x6000_0000, 0x7000_0000)]);
}

#[test]
fn what_a_node_lacks_is_not_made_up_for() {
    // The first node has 3 GiB above 4 GiB, the second 29.
    let nodes = [(0, 0..7 * GIB), (1, 7 * GIB..36 * GIB)];
    let map = usable(&[(0, 2 * GIB), (4 * GIB, 36 * GIB)]);
    let pool = pool_by_size(&map, nodes.into_iter(), PoolSize::Bytes(20 * GIB)).unwrap();
    assert_eq!(
        ranges(&pool),
        [(0, 4 * GIB, 7 * GIB), (1, 25 * GIB, 35 * GIB)],
        "the first gives all that it has there"
    );
    assert!(pool.size() < pool.wanted);
}

#[test]
fn hosts_keep_4_gib_or_half() {
    let map = usable(&[(0, 2 * GIB), (4 * GIB, 36 * GIB)]);
    let all = |map: &E820Map| pool_by_size(map, [].into_iter(), PoolSize::Bytes(u64::MAX)).unwrap();
    assert_eq!(ranges(&all(&map)), [(0, 6 * GIB, 36 * GIB)]);
    let map = usable(&[(0, 2 * GIB), (4 * GIB, 6 * GIB)]);
    assert_eq!(ranges(&all(&map)), [(0, 4 * GIB, 6 * GIB)]);
    let map = usable(&[(0, 3 * GIB)]);
    assert_eq!(all(&map).size(), 3 * GIB / 2);
    // Half of what is below 4 GiB, though hosts would keep enough above it.
    let nodes = [(0, 0..4 * GIB), (1, 4 * GIB..64 * GIB)];
    let map = usable(&[(0, 2 * GIB), (4 * GIB, 36 * GIB)]);
    let pool = pool_by_size(&map, nodes.into_iter(), PoolSize::Bytes(8 * GIB)).unwrap();
    assert_eq!(ranges(&pool), [(0, GIB, 2 * GIB), (1, 31 * GIB, 35 * GIB)]);
}

#[test]
fn nodes_below_4_gib_share_its_half() {
    let nodes = [(0, 0..2 * GIB), (1, 2 * GIB..4 * GIB), (2, 4 * GIB..20 * GIB)];
    let map = usable(&[(0, 4 * GIB - 512 * MIB), (4 * GIB, 20 * GIB)]);
    let pool = pool_by_size(&map, nodes.into_iter(), PoolSize::Bytes(6 * GIB)).unwrap();
    let half = (4 * GIB - 512 * MIB) / 2;
    assert_eq!(
        ranges(&pool),
        [
            (0, GIB, 2 * GIB),
            (1, 4 * GIB - 512 * MIB - (half - GIB), 4 * GIB - 512 * MIB),
            (2, 17 * GIB + 512 * MIB, 19 * GIB + 512 * MIB),
        ]
    );
}

#[test]
fn pieces_of_2_mib_where_no_block_fits() {
    // Holes in every block of 128 MiB.
    let map = usable(&[(0, GIB + 3 * MIB), (GIB + 65 * MIB, GIB + 190 * MIB)]);
    let pool = pool_by_size(&map, [].into_iter(), PoolSize::Bytes(100 * MIB)).unwrap();
    assert_eq!(
        ranges(&pool),
        [(0, GIB + 90 * MIB, GIB + 190 * MIB)],
        "of the size wanted"
    );
    let pool = pool_by_size(&map, [].into_iter(), PoolSize::Bytes(500 * MIB)).unwrap();
    assert_eq!(ranges(&pool), [(0, GIB + 66 * MIB, GIB + 190 * MIB)], "what there is");
}

#[test]
fn nothing_wanted_or_nothing_there_is_no_pool() {
    let machine = &machines::X10DRT;
    assert_eq!(pool(machine, PoolSize::Bytes(0)).pieces.len(), 0);
    assert_eq!(pool(machine, PoolSize::Percent(0)).pieces.len(), 0);
    let empty = pool_by_size(&E820Map::new(), machine.nodes(), PoolSize::Percent(50)).unwrap();
    assert_eq!((empty.pieces.len(), empty.nodes), (0, 0));
}

#[test]
fn overlapping_nodes_get_disjoint_pieces() {
    let nodes = [(0, 0..20 * GIB), (1, 16 * GIB..20 * GIB), (2, 20 * GIB..36 * GIB)];
    let map = usable(&[(0, 2 * GIB), (4 * GIB, 18 * GIB), (19 * GIB, 36 * GIB)]);
    let pool = pool_by_size(&map, nodes.into_iter(), PoolSize::Bytes(3 * GIB)).unwrap();
    assert_eq!(
        ranges(&pool),
        [
            (1, 16 * GIB, 17 * GIB),
            (0, 17 * GIB, 18 * GIB),
            (2, 34 * GIB + 512 * MIB, 35 * GIB + 512 * MIB),
        ],
        "the first node chooses first"
    );
}

#[test]
fn a_node_of_too_many_ranges_is_an_error() {
    let nodes = (0..300u64).map(|nth| (0, nth * GIB..nth * GIB + MIB));
    let map = usable(&[(0, 300 * GIB)]);
    assert_eq!(pool_by_size(&map, nodes, PoolSize::Percent(10)), Err(E820Error::Full));
}

#[test]
fn blocks_have_linux_sizes() {
    assert_eq!(memory_block_size(64 * GIB - 1), 128 * MIB);
    assert_eq!(memory_block_size(64 * GIB), 2 * GIB);
}

fn usable(ranges: &[(u64, u64)]) -> E820Map {
    let mut map = E820Map::new();
    for &(start, end) in ranges {
        map.set(start..end, MemoryType::Usable).unwrap();
    }
    map
}

/// What must be so on any machine.
fn check(map: &E820Map, nodes: &[(u32, Range<u64>)], pool: &Pool) {
    let usable = map.total(MemoryType::Usable);
    assert!(pool.size() <= usable - (4 * GIB).min(usable / 2), "hosts keep theirs");
    let low: u64 = pool
        .pieces
        .iter()
        .map(|piece| piece.range.end.min(4 * GIB).saturating_sub(piece.range.start))
        .sum();
    let low_usable: u64 = map
        .entries()
        .iter()
        .filter(|entry| entry.kind == MemoryType::Usable)
        .map(|entry| entry.end.min(4 * GIB).saturating_sub(entry.start))
        .sum();
    assert!(low <= low_usable / 2, "half of what is below 4 GiB");
    let mut last = GIB;
    for piece in &pool.pieces {
        assert!(last <= piece.range.start && piece.range.start < piece.range.end);
        last = piece.range.end;
        assert_eq!((piece.range.start % (2 * MIB), piece.range.end % (2 * MIB)), (0, 0));
        assert!(map.covers(&piece.range, |kind| kind == MemoryType::Usable));
        let mut memory = E820Map::new();
        for (_, range) in nodes.iter().filter(|(node, _)| *node == piece.node) {
            memory.set(range.clone(), MemoryType::Usable).unwrap();
        }
        assert!(nodes.is_empty() || memory.covers(&piece.range, |_| true), "of its node");
    }
}

#[test]
fn every_published_machine_has_slices_and_a_sane_pool() {
    for machine in ALL {
        let map = machine.map();
        low_slices(&map).unwrap_or_else(|error| panic!("{}: {error}", machine.name));
        let nodes: Vec<_> = machine.nodes().collect();
        for percent in [1, 10, 25, 50, 75, 99] {
            let pool = pool(machine, PoolSize::Percent(percent));
            check(&map, &nodes, &pool);
            let end = map.entries().iter().map(|entry| entry.end).max().unwrap();
            let block = memory_block_size(end);
            if machine.whole && map.total(MemoryType::Usable) > 60 * GIB {
                for piece in &pool.pieces {
                    assert_eq!(
                        (piece.range.start % block, piece.range.end % block),
                        (0, 0),
                        "{}: whole blocks",
                        machine.name
                    );
                }
            }
        }
        assert!(!machine.source.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_machine_has_a_sane_pool(
        ram in prop::collection::vec((0u64..2000, 1u64..400), 1..8),
        holes in prop::collection::vec((0u64..80_000, 1u64..50), 0..8),
        cuts in prop::collection::vec(1u64..2500, 0..4),
        percent in 0u8..101,
    ) {
        const UNIT: u64 = 40 * MIB;
        let mut map = E820Map::new();
        for (start, len) in ram {
            map.set(start * UNIT..(start + len) * UNIT, MemoryType::Usable).unwrap();
        }
        for (start, len) in holes {
            map.set(start * MIB..(start + len) * MIB, MemoryType::Reserved).unwrap();
        }
        let mut nodes = Vec::new();
        let mut at = 0;
        let mut cuts = cuts;
        cuts.sort_unstable();
        for (number, cut) in cuts.into_iter().enumerate() {
            if at < cut * UNIT {
                nodes.push((number as u32 % 3, at..cut * UNIT));
                at = cut * UNIT;
            }
        }
        let size = PoolSize::Percent(percent);
        let pool = pool_by_size(&map, nodes.iter().cloned(), size).unwrap();
        check(&map, &nodes, &pool);
        prop_assert_eq!(pool_by_size(&map, nodes.iter().cloned(), size).unwrap(), pool, "always the same");
    }
}

#[test]
fn nodes_beyond_the_last_piece_are_counted() {
    let node = |nth: u64| (nth as u32 % 19, nth * GIB..(nth + 1) * GIB);
    // Twice around, so that each node has two ranges, and one without RAM.
    let nodes = (2..40u64).map(node).chain([(99, 500 * GIB..501 * GIB)]);
    let map = usable(&[(0, 40 * GIB)]);
    let pool = pool_by_size(&map, nodes.clone(), PoolSize::Percent(50)).unwrap();
    assert_eq!((pool.nodes, pool.beyond, pool.pieces.len()), (16, 3, 16));
    let fewer = nodes.filter(|(node, _)| *node < 16);
    let pool = pool_by_size(&map, fewer, PoolSize::Percent(50)).unwrap();
    assert_eq!((pool.nodes, pool.beyond), (16, 0));
}
