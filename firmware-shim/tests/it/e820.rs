//! Memory maps.

use firmware_shim::e820::{
    CAPACITY, E820Error, E820Map, FirstHostMemory, MemoryType, SuccessorMemory, for_first_host, for_successor,
};
use proptest::prelude::*;
use std::ops::Range;

use MemoryType::{AcpiNvs, AcpiReclaim, Reserved, SoftReserved, Unusable, Usable};

fn map(ranges: &[(u64, u64, MemoryType)]) -> E820Map {
    let mut map = E820Map::new();
    for &(start, end, kind) in ranges {
        map.set(start..end, kind).unwrap();
    }
    map
}

fn list(map: &E820Map) -> Vec<(u64, u64, MemoryType)> {
    map.entries()
        .iter()
        .map(|entry| (entry.start, entry.end, entry.kind))
        .collect()
}

#[test]
fn overlays_split_and_join() {
    let mut m = map(&[(0, 0x1000, Usable)]);
    m.set(0x400..0x800, Reserved).unwrap();
    assert_eq!(
        list(&m),
        [(0, 0x400, Usable), (0x400, 0x800, Reserved), (0x800, 0x1000, Usable)]
    );
    m.set(0x400..0x600, Usable).unwrap();
    assert_eq!(
        list(&m),
        [(0, 0x600, Usable), (0x600, 0x800, Reserved), (0x800, 0x1000, Usable)]
    );
    m.set(0x600..0x800, Usable).unwrap();
    assert_eq!(list(&m), [(0, 0x1000, Usable)], "neighbours join");
    m.set(0x2000..0x3000, Usable).unwrap();
    assert_eq!(m.entries().len(), 2, "a hole stays a hole");
    m.set(0x800..0x2800, AcpiNvs).unwrap();
    assert_eq!(
        list(&m),
        [(0, 0x800, Usable), (0x800, 0x2800, AcpiNvs), (0x2800, 0x3000, Usable)]
    );
}

#[test]
fn firmware_maps_are_sorted_and_the_worse_type_wins() {
    let firmware = [
        (0x10_0000, 0x7f0_0000, 1),
        (0xf_0000, 0x1_0000, 2),
        (0, 0x9_fc00, 1),
        (0x400_0000, 0x1000, 2), // inside RAM
        (0x9_fc00, 0x400, 2),
        (0x20_0000, 0, 2),                   // empty
        (0xffff_ffff_ffff_f000, 0x2000, 99), // unknown type, beyond the end
    ];
    let m = E820Map::from_firmware(firmware.into_iter()).unwrap();
    assert_eq!(
        list(&m),
        [
            (0, 0x9_fc00, Usable),
            (0x9_fc00, 0xa_0000, Reserved),
            (0xf_0000, 0x10_0000, Reserved),
            (0x10_0000, 0x400_0000, Usable),
            (0x400_0000, 0x400_1000, Reserved),
            (0x400_1000, 0x800_0000, Usable),
            (0xffff_ffff_ffff_f000, u64::MAX, Reserved),
        ]
    );
}

#[test]
fn types_have_linux_numbers() {
    for (kind, raw) in [
        (Usable, 1),
        (Reserved, 2),
        (AcpiReclaim, 3),
        (AcpiNvs, 4),
        (Unusable, 5),
        (MemoryType::Persistent, 7),
        (SoftReserved, 0xefff_ffff),
    ] {
        assert_eq!((kind.raw(), MemoryType::from_raw(raw)), (raw, kind));
    }
    assert_eq!(MemoryType::from_raw(0), Reserved);
}

#[test]
#[expect(clippy::reversed_empty_ranges, reason = "they are to be refused")]
fn empty_ranges_are_refused() {
    let mut m = E820Map::new();
    assert_eq!(m.set(5..5, Usable), Err(E820Error::BadRange(5..5)));
    assert_eq!(m.set(5..4, Usable), Err(E820Error::BadRange(5..4)));
    assert!(!m.covers(&(5..5), |_| true));
}

#[test]
fn a_full_map_stays_as_it_was() {
    let mut m = E820Map::new();
    for i in 0..CAPACITY as u64 {
        m.set(i * 0x2000..i * 0x2000 + 0x1000, Usable).unwrap();
    }
    let before = m.clone();
    assert_eq!(m.set(0x400..0x500, Reserved), Err(E820Error::Full));
    assert_eq!(m.replace(0x400..0x500, Usable, Reserved), Err(E820Error::Full));
    assert_eq!(m, before);
    m.set(0x1000..0x2000, Usable).unwrap();
    assert_eq!(m.entries().len(), CAPACITY - 1, "filling a hole makes room");
}

/// Bochs with 2 GiB.
fn machine() -> E820Map {
    map(&[
        (0, 0x9_fc00, Usable),
        (0x9_fc00, 0xa_0000, Reserved),
        (0xe_8000, 0x10_0000, Reserved),
        (0x10_0000, 0x7fff_0000, Usable),
        (0x7fff_0000, 0x8000_0000, AcpiReclaim),
        (0xfffc_0000, 0x1_0000_0000, Reserved),
    ])
}

const POOL: Range<u64> = 0x6800_0000..0x7fe0_0000;
const L0: Range<u64> = 0x10_0000..0xa0_0000;
const FIRMWARE: Range<u64> = 0x80_0000..0xa0_0000;
const EVEN: Range<u64> = 0x1_0000..0x5_0000;
const ODD: Range<u64> = 0x5_0000..0x9_0000;

fn first(pools: &[Range<u64>]) -> FirstHostMemory<'_> {
    FirstHostMemory {
        l0: L0,
        firmware: FIRMWARE,
        pools,
        other_slice: ODD,
    }
}

#[test]
fn the_first_hosts_map() {
    let m = for_first_host(&machine(), &first(&[POOL])).unwrap();
    assert_eq!(
        list(&m),
        [
            (0, 0x5_0000, Usable),
            (0x5_0000, 0x9_0000, Reserved),
            (0x9_0000, 0x9_fc00, Usable),
            (0x9_fc00, 0xa_0000, Reserved),
            (0xe_8000, 0x80_0000, Reserved),
            (0x80_0000, 0xa0_0000, AcpiNvs),
            (0xa0_0000, 0x6800_0000, Usable),
            (0x6800_0000, 0x7fe0_0000, SoftReserved),
            (0x7fe0_0000, 0x7fff_0000, Usable),
            (0x7fff_0000, 0x8000_0000, AcpiReclaim),
            (0xfffc_0000, 0x1_0000_0000, Reserved),
        ]
    );
}

#[test]
fn the_first_host_gets_no_map_of_ranges_that_are_not_ram() {
    let refused = |memory: FirstHostMemory<'_>| for_first_host(&machine(), &memory).unwrap_err().to_string();
    let pool = 0x7000_0000..0x8000_0000;
    let error = refused(first(std::slice::from_ref(&pool)));
    assert!(error.contains("pool") && error.contains("0x80000000"), "{error}");
    let pool = 0x1_0000_0000..0x1_1000_0000;
    assert!(refused(first(std::slice::from_ref(&pool))).contains("pool"));
    let pool = 0x90_0000..0x100_0000;
    assert!(refused(first(std::slice::from_ref(&pool))).contains("overlaps L0"));
    let outside = FirstHostMemory {
        firmware: 0x90_0000..0xb0_0000,
        ..first(&[])
    };
    assert!(refused(outside).contains("firmware region"));
    let slice = FirstHostMemory {
        other_slice: 0x5_0000..0xa_0000,
        ..first(&[])
    };
    assert!(refused(slice).contains("slice"));
}

const BLOCKS: [Range<u64>; 2] = [0x4800_0000..0x5000_0000, 0x5000_0000..0x6800_0000];
const LOW_BLOCKS: [Range<u64>; 2] = [0x800_0000..0x4000_0000, 0x4000_0000..0x4800_0000];

#[test]
fn a_successors_map() {
    let memory = SuccessorMemory {
        blocks: &BLOCKS,
        slices: &[ODD],
        pools: &[POOL],
        firmware: FIRMWARE,
    };
    let wanted = [
        (0, 0x5_0000, Reserved),
        (0x5_0000, 0x9_0000, Usable),
        (0x9_0000, 0xa_0000, Reserved),
        (0xe_8000, 0x80_0000, Reserved),
        (0x80_0000, 0xa0_0000, AcpiNvs),
        (0xa0_0000, 0x4800_0000, Reserved),
        (0x4800_0000, 0x6800_0000, Usable),
        (0x6800_0000, 0x7fe0_0000, SoftReserved),
        (0x7fe0_0000, 0x7fff_0000, Reserved),
        (0x7fff_0000, 0x8000_0000, AcpiReclaim),
        (0xfffc_0000, 0x1_0000_0000, Reserved),
    ];
    assert_eq!(list(&for_successor(&machine(), &memory).unwrap()), wanted);

    // The same from the incumbent's own map.
    let incumbent = for_first_host(&machine(), &first(&[POOL])).unwrap();
    assert_eq!(list(&for_successor(&incumbent, &memory).unwrap()), wanted);
}

#[test]
fn a_pool_that_is_not_the_successors_is_reserved() {
    let memory = SuccessorMemory {
        blocks: &BLOCKS,
        slices: &[ODD],
        pools: &[],
        firmware: FIRMWARE,
    };
    let incumbent = for_first_host(&machine(), &first(&[POOL])).unwrap();
    let m = for_successor(&incumbent, &memory).unwrap();
    assert!(m.covers(&POOL, |kind| kind == Reserved));
}

#[test]
fn three_generations_make_the_same_map() {
    let odd = SuccessorMemory {
        blocks: &BLOCKS,
        slices: &[ODD],
        pools: &[POOL],
        firmware: FIRMWARE,
    };
    let even = SuccessorMemory {
        blocks: &LOW_BLOCKS,
        slices: &[EVEN],
        ..odd.clone()
    };
    let a = for_first_host(&machine(), &first(&[POOL])).unwrap();
    let b = for_successor(&a, &odd).unwrap();
    let c = for_successor(&b, &even).unwrap();
    let d = for_successor(&c, &odd).unwrap();
    assert_eq!(b, d);
    assert_eq!(c.total(Usable), 0x4000_0000 + 0x4_0000);
    assert_eq!(c.total(SoftReserved), POOL.end - POOL.start);
}

#[test]
fn a_successor_gets_no_map_of_what_is_not_ram_or_given_twice() {
    let given = |blocks: &[Range<u64>], slices: &[Range<u64>]| {
        let memory = SuccessorMemory {
            blocks,
            slices,
            pools: &[POOL],
            firmware: FIRMWARE,
        };
        for_successor(&machine(), &memory).unwrap_err()
    };
    let one = |range| given(&[range], &[ODD]);
    let not_ram = |error| {
        matches!(
            error,
            E820Error::NotAvailable {
                what: "memory block",
                ..
            }
        )
    };
    assert!(not_ram(one(0x7800_0000..0x8000_0000)), "ACPI tables inside");
    assert!(not_ram(one(0x8000_0000..0x8800_0000)), "a hole");
    assert!(not_ram(one(0x4800_0000..0x4800_0000)), "empty");
    let twice = given(&[0x4800_0000..0x5000_0000, 0x4f00_0000..0x5800_0000], &[ODD]);
    assert!(matches!(twice, E820Error::Overlap { .. }), "{twice}");
    let pool = one(0x6000_0000..0x7000_0000);
    assert!(matches!(pool, E820Error::Overlap { what: "pool", .. }), "{pool}");
}

/// A byte-by-byte model of a map over a small address space.
fn model(ranges: &[(u8, u8, u8)]) -> Vec<Option<MemoryType>> {
    let mut bytes = vec![None; 300];
    for &(start, len, kind) in ranges {
        let start = usize::from(start);
        bytes[start..start + usize::from(len)].fill(Some(KINDS[usize::from(kind)]));
    }
    bytes
}

const KINDS: [MemoryType; 4] = [Usable, Reserved, SoftReserved, AcpiNvs];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_map_is_what_was_set_last(ranges in prop::collection::vec((0u8..200, 1u8..100, 0u8..4), 0..40)) {
        let mut m = E820Map::new();
        for &(start, len, kind) in &ranges {
            m.set(u64::from(start)..u64::from(start) + u64::from(len), KINDS[usize::from(kind)]).unwrap();
        }
        let mut bytes = vec![None; 300];
        for entry in m.entries() {
            prop_assert!(entry.start < entry.end);
            bytes[entry.start as usize..entry.end as usize].fill(Some(entry.kind));
        }
        prop_assert_eq!(&bytes, &model(&ranges));
        for pair in m.entries().windows(2) {
            prop_assert!(pair[0].end <= pair[1].start, "sorted");
            prop_assert!(pair[0].end < pair[1].start || pair[0].kind != pair[1].kind, "joined");
        }
    }

    #[test]
    fn replace_touches_one_type_in_one_range(
        ranges in prop::collection::vec((0u8..200, 1u8..100, 0u8..4), 0..40),
        start in 0u64..300,
        len in 0u64..100,
    ) {
        let mut m = E820Map::new();
        for &(start, len, kind) in &ranges {
            m.set(u64::from(start)..u64::from(start) + u64::from(len), KINDS[usize::from(kind)]).unwrap();
        }
        m.replace(start..start + len, Usable, Unusable).unwrap();
        let before = model(&ranges);
        for (at, was) in before.iter().enumerate() {
            let inside = (start..start + len).contains(&(at as u64));
            let wanted = if inside && *was == Some(Usable) { Some(Unusable) } else { *was };
            let byte = at as u64..at as u64 + 1;
            prop_assert_eq!(wanted.is_some(), m.covers(&byte, |kind| Some(kind) == wanted));
        }
    }

    #[test]
    fn firmware_maps_never_panic(ranges in prop::collection::vec((any::<u64>(), any::<u64>(), 0u32..9), 0..200)) {
        if let Ok(m) = E820Map::from_firmware(ranges.into_iter()) {
            prop_assert!(m.entries().len() <= CAPACITY);
        }
    }
}
