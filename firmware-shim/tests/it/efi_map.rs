//! The EFI memory map for the first host.

use crate::machines;
use firmware_shim::e820::{E820Map, MemoryType};
use firmware_shim::efi::{Attributes, Descriptor, EfiMap, EfiMapError, EfiMemoryType, for_first_host, soft_reserved};
use proptest::prelude::*;
use std::ops::Range;

/// Distance between descriptors that all known firmware uses: 8 bytes more than a descriptor has.
pub const STRIDE: usize = 48;

const WB: u64 = 0xf;
const RUNTIME: u64 = 1 << 63;
const SP: u64 = 1 << 18;
const MORE_RELIABLE: u64 = 1 << 16;

/// (type, first byte, first byte after it, attributes).
type Plain = (u32, u64, u64, u64);

/// Bytes as firmware lays them out; what is behind the fields is not zero.
pub fn bytes(plain: &[Plain], stride: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for &(kind, start, end, attributes) in plain {
        let at = out.len();
        out.extend(u64::from(kind).to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend(0x1234_5678_u64.to_le_bytes());
        out.extend(((end.wrapping_sub(start)) >> 12).to_le_bytes());
        out.extend(attributes.to_le_bytes());
        out.resize(at + stride, 0x5a);
    }
    out
}

fn plain(map: &EfiMap<'_>) -> Vec<Plain> {
    map.descriptors()
        .map(|d| (d.kind.0, d.start, d.start + d.pages * 4096, d.attributes.bits()))
        .collect()
}

fn usable(ranges: &[(u64, u64)]) -> E820Map {
    let mut map = E820Map::new();
    for &(start, end) in ranges {
        map.set(start..end, MemoryType::Usable).unwrap();
    }
    map
}

/// The host's copy of `machine`, with its image anywhere.
fn copy(machine: &[Plain], host: &E820Map) -> Vec<Plain> {
    copy_with_image_below(u64::MAX, machine, host)
}

fn copy_with_image_below(image_end: u64, machine: &[Plain], host: &E820Map) -> Vec<Plain> {
    let raw = bytes(machine, STRIDE);
    let map = EfiMap::new(&raw, STRIDE as u32, 1).unwrap();
    let mut out = vec![0xaa; 256 * STRIDE];
    let made = for_first_host(&map, host, image_end, &mut out).unwrap();
    assert_eq!((made.stride, made.version), (STRIDE, 1));
    assert!(
        out[made.len..].iter().all(|&byte| byte == 0xaa),
        "nothing beyond its end"
    );
    let copied = EfiMap::new(&out[..made.len], STRIDE as u32, 1).unwrap();
    assert!(
        out[..made.len].chunks(STRIDE).all(|d| d[40..] == [0x5a; 8]),
        "all of a descriptor is copied"
    );
    plain(&copied)
}

#[test]
fn what_is_not_the_hosts_is_reserved() {
    let machine = [
        (3, 0, 0x1000, WB),
        (7, 0x1000, 0xa_0000, WB),
        (7, 0x10_0000, 0x80_0000, WB),
        (10, 0x80_0000, 0x90_0000, WB),
        (2, 0x90_0000, 0x200_0000, WB),
        (7, 0x200_0000, 0x4000_0000, WB),
        (4, 0x4000_0000, 0x5000_0000, WB),
        (6, 0x5000_0000, 0x5010_0000, WB | RUNTIME),
        (5, 0x5010_0000, 0x5020_0000, WB | RUNTIME),
        (9, 0x5020_0000, 0x5030_0000, WB),
        (0, 0x5030_0000, 0x5040_0000, WB),
        (11, 0xffe0_0000, 0x1_0000_0000, 1 | RUNTIME),
        (7, 0x1_0000_0000, 0x2_0000_0000, WB),
    ];
    // L0 has 16 to 32 MiB and 64 KiB; the pool is above 5 GiB.
    let host = usable(&[
        (0, 0x3_0000),
        (0x10_0000, 0x80_0000),
        (0x90_0000, 0x100_0000),
        (0x200_0000, 0x5000_0000),
        (0x1_0000_0000, 0x1_4000_0000),
    ]);
    assert_eq!(
        copy(&machine, &host),
        [
            (3, 0, 0x1000, WB),
            (7, 0x1000, 0x3_0000, WB),
            (0, 0x3_0000, 0xa_0000, WB),
            (7, 0x10_0000, 0x80_0000, WB),
            (10, 0x80_0000, 0x90_0000, WB),
            (2, 0x90_0000, 0x100_0000, WB),
            (0, 0x100_0000, 0x200_0000, WB),
            (7, 0x200_0000, 0x4000_0000, WB),
            (4, 0x4000_0000, 0x5000_0000, WB),
            (6, 0x5000_0000, 0x5010_0000, WB | RUNTIME),
            (5, 0x5010_0000, 0x5020_0000, WB | RUNTIME),
            (9, 0x5020_0000, 0x5030_0000, WB),
            (0, 0x5030_0000, 0x5040_0000, WB),
            (11, 0xffe0_0000, 0x1_0000_0000, 1 | RUNTIME),
            (7, 0x1_0000_0000, 0x1_4000_0000, WB),
            (0, 0x1_4000_0000, 0x2_0000_0000, WB),
        ]
    );
}

/// A server of 12 TiB.
#[test]
fn a_published_map() {
    let mut host = machines::SUPERDOME2.map();
    assert_eq!(
        copy(&machines::SUPERDOME2_EFI, &host),
        machines::SUPERDOME2_EFI,
        "a host that has all of the machine gets its map"
    );
    let l0 = 0x6000_0000..0x6100_0000;
    let pool = 0x420_0000_0000..0xc20_0000_0000;
    host.set(l0, MemoryType::Reserved).unwrap();
    host.set(pool, MemoryType::SoftReserved).unwrap();
    let mut wanted = machines::SUPERDOME2_EFI.to_vec();
    let split = wanted.iter().position(|d| d.1 == 0xe0_0000_1000).unwrap();
    wanted.splice(
        split..=split,
        [
            (7, 0xe0_0000_1000, 0x420_0000_0000, WB),
            (0, 0x420_0000_0000, 0xc20_0000_0000, WB),
        ],
    );
    let split = wanted.iter().position(|d| d.1 == 0x5cc0_0000).unwrap();
    wanted.splice(
        split..=split,
        [
            (7, 0x5cc0_0000, 0x6000_0000, WB),
            (0, 0x6000_0000, 0x6100_0000, WB),
            (7, 0x6100_0000, 0x6b30_9000, WB),
        ],
    );
    assert_eq!(copy(&machines::SUPERDOME2_EFI, &host), wanted);
}

#[test]
fn where_no_image_goes_nothing_is_free() {
    let host = usable(&[(0, 0x8000_0000)]);
    let machine = [
        (7, 0x10_0000, 0x2000_0000, WB),
        (4, 0x2000_0000, 0x5000_0000, WB),
        (7, 0x5000_0000, 0x9000_0000, WB | MORE_RELIABLE),
    ];
    assert_eq!(
        copy_with_image_below(0x4000_0000, &machine, &host),
        [
            machine[0],
            machine[1],
            (2, 0x5000_0000, 0x8000_0000, WB | MORE_RELIABLE),
            (0, 0x8000_0000, 0x9000_0000, WB),
        ]
    );
    let [_, _, high] = machine;
    assert_eq!(
        copy_with_image_below(0x6000_0000, &[high], &host)[..2],
        [
            (7, 0x5000_0000, 0x6000_0000, WB | MORE_RELIABLE),
            (2, 0x6000_0000, 0x8000_0000, WB | MORE_RELIABLE),
        ]
    );
}

#[test]
fn a_hole_in_the_middle_makes_three() {
    let host = usable(&[(0, 0x10_0000), (0x20_0000, 0x100_0000)]);
    assert_eq!(
        copy(&[(7, 0x1000, 0x80_0000, WB)], &host),
        [
            (7, 0x1000, 0x10_0000, WB),
            (0, 0x10_0000, 0x20_0000, WB),
            (7, 0x20_0000, 0x80_0000, WB),
        ]
    );
    assert_eq!(
        copy(&[(7, 0x10_0000, 0x20_0000, WB)], &host),
        [(0, 0x10_0000, 0x20_0000, WB)]
    );
}

#[test]
fn a_page_that_is_the_hosts_in_part_only_is_reserved() {
    let host = usable(&[(0x800, 0x5c00)]);
    assert_eq!(
        copy(&[(7, 0, 0x8000, WB)], &host),
        [(0, 0, 0x1000, WB), (7, 0x1000, 0x5000, WB), (0, 0x5000, 0x8000, WB)]
    );
}

#[test]
fn only_usable_memory_is_the_hosts() {
    let mut host = usable(&[(0, 0x100_0000)]);
    for kind in [
        MemoryType::SoftReserved,
        MemoryType::AcpiNvs,
        MemoryType::AcpiReclaim,
        MemoryType::Persistent,
        MemoryType::Unusable,
    ] {
        host.set(0x10_0000..0x20_0000, kind).unwrap();
        assert_eq!(
            copy(&[(7, 0x10_0000, 0x20_0000, WB)], &host),
            [(0, 0x10_0000, 0x20_0000, WB)],
            "{kind:?}"
        );
    }
}

#[test]
fn what_is_taken_is_neither_mirrored_nor_set_aside() {
    let host = usable(&[(0, 0x10_0000)]);
    let attributes = WB | MORE_RELIABLE | SP | RUNTIME;
    assert_eq!(
        copy(&[(7, 0, 0x20_0000, attributes)], &host),
        [(7, 0, 0x10_0000, attributes), (0, 0x10_0000, 0x20_0000, WB | RUNTIME)]
    );
}

#[test]
fn memory_set_aside_is_told() {
    let machine = [
        (7, 0, 0x10_0000, WB),
        (7, 0x1_0000_0000, 0x2_0000_0000, WB | SP),
        (14, 0x2_0000_0000, 0x3_0000_0000, WB | SP),
    ];
    let raw = bytes(&machine, STRIDE);
    let map = EfiMap::new(&raw, STRIDE as u32, 1).unwrap();
    let mut told = soft_reserved(&map);
    assert_eq!(told.next(), Some(0x1_0000_0000..0x2_0000_0000));
    assert_eq!(told.next(), None);
}

#[test]
fn impossible_descriptors_are_left_out() {
    let host = usable(&[(0, u64::MAX)]);
    let machine = [
        (7, 0x1000, 0x1000, WB),
        (7, 0xffff_ffff_ffff_f000, 0x1000, WB),
        (6, 0x8000_0000_0000_0000, 0x7fff_ffff_ffff_f000, WB | RUNTIME),
        (7, 0x1000, 0x2000, WB),
    ];
    assert_eq!(copy(&machine, &host), [(7, 0x1000, 0x2000, WB)]);
}

#[test]
fn descriptors_of_any_size_are_copied_whole() {
    let host = usable(&[(0, 0x1000)]);
    for stride in [40, 48, 64] {
        let raw = bytes(&[(7, 0, 0x2000, WB), (6, 0x2000, 0x3000, RUNTIME)], stride);
        let map = EfiMap::new(&raw, stride as u32, 1).unwrap();
        let mut out = vec![0; 10 * stride];
        let made = for_first_host(&map, &host, u64::MAX, &mut out).unwrap();
        assert_eq!((made.len, made.stride), (3 * stride, stride));
        let wanted = bytes(
            &[
                (7, 0, 0x1000, WB),
                (0, 0x1000, 0x2000, WB),
                (6, 0x2000, 0x3000, RUNTIME),
            ],
            stride,
        );
        assert_eq!(out[..made.len], wanted);
    }
}

#[test]
fn a_copy_that_does_not_fit_is_refused_with_its_size() {
    let host = usable(&[(0, 0x1000)]);
    let raw = bytes(&[(7, 0, 0x2000, WB), (6, 0x2000, 0x3000, RUNTIME)], STRIDE);
    let map = EfiMap::new(&raw, STRIDE as u32, 1).unwrap();
    let fits = |room: usize| for_first_host(&map, &host, u64::MAX, &mut vec![0; room]).map(|made| made.len);
    assert_eq!(fits(3 * STRIDE), Ok(3 * STRIDE));
    for room in [0, 3 * STRIDE - 1] {
        let needed = 3 * STRIDE;
        assert_eq!(fits(room), Err(EfiMapError::NoRoom { needed, room }));
    }
}

#[test]
fn maps_that_are_none_are_refused() {
    let raw = bytes(&[(7, 0, 0x2000, WB)], STRIDE);
    for stride in [0, 8, 39, 44, u32::MAX] {
        assert_eq!(
            EfiMap::new(&raw, stride, 1).unwrap_err(),
            EfiMapError::DescriptorSize(stride)
        );
    }
    assert_eq!(EfiMap::new(&raw[..47], 48, 1).unwrap_err(), EfiMapError::Empty);
    let mut tail = raw.clone();
    tail.extend([1; 47]);
    assert_eq!(EfiMap::new(&tail, 48, 1).unwrap().descriptors().count(), 1);
}

/// Pages that Linux' KASLR may choose from (`process_efi_entries()`), whatever it is built with.
fn free(map: &EfiMap<'_>) -> Vec<Range<u64>> {
    map.descriptors()
        .filter(|d| d.kind == EfiMemoryType::CONVENTIONAL)
        .map(|d: Descriptor| d.start..d.start + d.pages * 4096)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn nothing_free_is_another_ones_and_nothing_else_changes(
        machine in prop::collection::vec((0u32..12, 0u64..60, 1u64..20, any::<u64>()), 1..20),
        own in prop::collection::vec((0u64..0x40000, 1u64..0x10000), 0..12),
    ) {
        let machine: Vec<Plain> = machine
            .iter()
            .map(|&(kind, page, pages, attributes)| (kind, page << 12, (page + pages) << 12, attributes))
            .collect();
        let mut host = E820Map::new();
        for (start, len) in own {
            host.set(start..start + len, MemoryType::Usable).unwrap();
        }
        let made = copy(&machine, &host);
        let raw = bytes(&made, STRIDE);
        for range in free(&EfiMap::new(&raw, STRIDE as u32, 1).unwrap()) {
            prop_assert!(host.covers(&range, |kind| kind == MemoryType::Usable), "{range:x?}");
        }
        // Page by page and descriptor by descriptor.
        let pages = |list: &[Plain]| -> Vec<(u32, u64, u64)> {
            list.iter()
                .flat_map(|&(kind, start, end, attributes)| {
                    (start >> 12..end >> 12).map(move |page| (kind, page, attributes))
                })
                .collect()
        };
        let (before, after) = (pages(&machine), pages(&made));
        prop_assert_eq!(before.len(), after.len());
        for (&(was, page, had), &(is, same, has)) in before.iter().zip(&after) {
            prop_assert_eq!(page, same);
            let own = host.covers(&(page << 12..(page + 1) << 12), |kind| kind == MemoryType::Usable);
            if own || !EfiMemoryType(was).is_ram() {
                prop_assert_eq!((was, had), (is, has));
            } else {
                let dropped = Attributes::MORE_RELIABLE | Attributes::SPECIFIC_PURPOSE;
                prop_assert_eq!((is, has), (0, had & !dropped.bits()));
            }
        }
    }

    #[test]
    fn any_bytes_are_a_map_or_refused(
        raw in prop::collection::vec(any::<u8>(), 0..600),
        stride in 0u32..80,
        room in 0usize..2000,
    ) {
        if let Ok(map) = EfiMap::new(&raw, stride, 1) {
            let host = usable(&[(0, 1 << 40)]);
            let _ = for_first_host(&map, &host, u64::MAX, &mut vec![0; room]);
            prop_assert!(soft_reserved(&map).count() <= raw.len() / 40);
        }
    }
}
