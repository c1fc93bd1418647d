//! Trampoline slices on maps of real machines. Figures from their published boot logs.

use firmware_shim::e820::{
    E820Error, E820Map, MemoryType, SLICE_SMALLEST, SLICES_END, SLICES_START, bios_start, keep_low_slice, low_slices,
    low_slices_below,
};
use proptest::prelude::*;
use std::ops::Range;

/// A map of usable ranges; all else below 1 MiB is reserved.
fn low(usable: &[(u64, u64)]) -> E820Map {
    let mut map = E820Map::new();
    map.set(0..0x10_0000, MemoryType::Reserved).unwrap();
    for &(start, end) in usable {
        map.set(start..end, MemoryType::Usable).unwrap();
    }
    map
}

const TWO_IN_ONE_PIECE: [Range<u64>; 2] = [0x1_0000..0x3_0000, 0x3_0000..0x5_0000];

#[test]
fn a_bios_map_without_holes() {
    assert_eq!(low_slices(&low(&[(0, 0x9_fc00)])).unwrap(), TWO_IN_ONE_PIECE);
}

/// Supermicro X11DAi-N, UEFI (boot log on a mailing list).
#[test]
fn a_hole_at_248_kib() {
    let map = low(&[(0, 0x3_e000), (0x4_0000, 0xa_0000), (0x10_0000, 0x69eb_6000)]);
    assert_eq!(low_slices(&map).unwrap(), [0x1_0000..0x3_0000, 0x4_0000..0x6_0000]);
}

/// nvmevirt, issue 60.
#[test]
fn a_hole_at_372_kib() {
    let map = low(&[(0, 0x5_d000), (0x5_f000, 0xa_0000), (0x10_0000, 0x6879_3000)]);
    assert_eq!(low_slices(&map).unwrap(), TWO_IN_ONE_PIECE);
}

/// Bumblebee, issue 654.
#[test]
fn a_hole_at_352_kib() {
    let map = low(&[(0, 0x5_8000), (0x5_9000, 0x9_e000), (0x10_0000, 0xad85_3000)]);
    assert_eq!(low_slices(&map).unwrap(), TWO_IN_ONE_PIECE);
}

/// OVMF built with SMM reserves SMBASE of its first CPU.
#[test]
fn a_hole_for_system_management_mode() {
    let map = low(&[(0, 0x3_0000), (0x5_0000, 0xa_0000)]);
    assert_eq!(low_slices(&map).unwrap(), [0x1_0000..0x3_0000, 0x5_0000..0x7_0000]);
}

#[test]
fn smaller_slices_where_there_is_no_room_for_large_ones() {
    let map = low(&[(0, 0x3_0000), (0x5_0800, 0x6_8000)]);
    assert_eq!(
        low_slices(&map).unwrap(),
        [0x1_0000..0x2_7000, 0x5_1000..0x6_8000],
        "both as large as the smaller piece, in whole pages"
    );
    let map = low(&[(0, 0x3_0000)]);
    assert_eq!(
        low_slices(&map).unwrap(),
        [0x1_0000..0x2_0000, 0x2_0000..0x3_0000],
        "two in one piece"
    );
    let map = low(&[(0, 0x2_4000)]);
    assert_eq!(
        low_slices(&map).unwrap(),
        [0x1_0000..0x1_a000, 0x1_a000..0x2_4000],
        "the smallest"
    );
}

#[test]
fn what_linux_never_takes_is_no_slice() {
    assert_eq!(low_slices(&low(&[(0, 0x2_3000)])), Err(E820Error::NoSlices));
    let map = low(&[(0, 0x1_0000), (0x2_0000, 0x3_0000), (0x9_6000, 0xa_0000)]);
    assert_eq!(low_slices(&map), Err(E820Error::NoSlices), "above 0x9f000 is the BIOS'");
    let text = E820Error::NoSlices.to_string();
    assert!(text.contains("40 KiB") && text.contains("legacy"), "{text}");
}

/// GRUB's `cutmem` puts the end of the first piece there, and Linux takes all above it for the BIOS'.
#[test]
fn what_linux_takes_for_the_bios_is_no_slice() {
    assert_eq!(bios_start(0, 639), SLICES_END, "a BIOS with its EBDA at 639 KiB");
    assert_eq!(
        (bios_start(0, 0), bios_start(0xffff, 0xffff)),
        (SLICES_END, SLICES_END),
        "UEFI leaves anything there"
    );
    assert_eq!((bios_start(0, 0xa0), bios_start(0, 0x7f)), (0x2_8000, SLICES_END));
    assert_eq!((bios_start(0x9d80, 636), bios_start(0x1000, 160)), (0x9_d800, 0x2_8000));
    let map = low(&[(0, 0x2_8000), (0x2_a000, 0x9_f000)]);
    assert_eq!(
        low_slices_below(&map, bios_start(0x9fc0, 160)).unwrap(),
        [0x1_0000..0x1_c000, 0x1_c000..0x2_8000]
    );
}

#[test]
fn only_usable_memory_is_a_slice() {
    for kind in [
        MemoryType::Reserved,
        MemoryType::AcpiReclaim,
        MemoryType::AcpiNvs,
        MemoryType::Unusable,
        MemoryType::Persistent,
        MemoryType::SoftReserved,
    ] {
        let mut map = low(&[(0, 0xa_0000)]);
        map.set(0x2_2000..0xa_0000, kind).unwrap();
        assert_eq!(low_slices(&map), Err(E820Error::NoSlices), "{kind:?}");
    }
    assert_eq!(low_slices(&E820Map::new()), Err(E820Error::NoSlices));
    let high = low(&[(0x10_0000, u64::MAX)]);
    assert_eq!(low_slices(&high), Err(E820Error::NoSlices));
}

#[test]
fn a_first_host_keeps_its_slice_only() {
    let mut map = low(&[(0, 0x3_0000), (0x5_0000, 0xa_0000), (0x10_0000, 0x20_0000)]);
    map.set(0x8_0000..0x8_1000, MemoryType::AcpiNvs).unwrap();
    let [even, _] = low_slices(&map).unwrap();
    keep_low_slice(&mut map, &even).unwrap();
    let mut kept = low(&[(0, 0x3_0000), (0x10_0000, 0x20_0000)]);
    kept.set(0x8_0000..0x8_1000, MemoryType::AcpiNvs).unwrap();
    assert_eq!(map, kept);

    let mut map = low(&[(0, 0x2_0000), (0x4_0000, 0x9_0000)]);
    keep_low_slice(&mut map, &(0x4_0000..0x6_0000)).unwrap();
    assert_eq!(map, low(&[(0, 0x1_0000), (0x4_0000, 0x6_0000)]), "below it, too");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn slices_are_usable_and_disjoint(holes in prop::collection::vec((0u64..0xa_0000, 1u64..0x4000), 0..6)) {
        let mut map = low(&[(0, 0xa_0000)]);
        for (start, len) in holes {
            map.set(start..start + len, MemoryType::Reserved).unwrap();
        }
        if let Ok([even, odd]) = low_slices(&map) {
            prop_assert!(SLICES_START <= even.start && even.end <= odd.start && odd.end <= SLICES_END);
            prop_assert_eq!(even.end - even.start, odd.end - odd.start);
            for slice in [even, odd] {
                prop_assert!(slice.end - slice.start >= SLICE_SMALLEST);
                prop_assert_eq!((slice.start % 0x1000, slice.end % 0x1000), (0, 0));
                prop_assert!(map.covers(&slice, |kind| kind == MemoryType::Usable));
            }
        }
    }
}
