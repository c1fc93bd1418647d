//! Which of the firmware's memory is blank for a host that does not reign: where its error sources say whether there is
//! a report (`firmware_shim::acpi::Hest`, BERT).
//!
//! Only Reserved memory will do. ACPI NVS is both hosts' in any case, since AML keeps there what it likes: in such a page
//! zeroes would be wrong for what lies beside a register. What is no RAM is a device's.

use core::ops::Range;

use firmware_shim::e820::{E820Map, MemoryType as RangeType};
use locum_abi::PAGE_SIZE;

use crate::arch::paging::{LARGE_PAGE, page_of};
use crate::machine::mtrr::MemoryType;
use crate::machine::{Blank, Span};

const LOW_END: u64 = 1 << 20;

/// The pages of `wanted`, neighbours joined. What cannot be blank is left out with a warning: no successor hears of it.
pub(crate) fn choose(
    machine: &E820Map,
    wanted: impl Iterator<Item = Range<u64>>,
    memory_type: impl Fn(u64) -> MemoryType,
) -> Blank {
    let mut blank = Blank::new();
    let mut left_out = 0;
    for range in wanted {
        let whole = range.end.checked_next_multiple_of(PAGE_SIZE);
        let pages = page_of(range.start)..whole.unwrap_or(range.end);
        let reserved = machine.covers(&pages, |kind| kind == RangeType::Reserved);
        let ram = memory_type(pages.start) == MemoryType::WriteBack;
        // Both hosts read all of low memory, in search of tables.
        let low = pages.start < LOW_END;
        if whole.is_none() || low || !reserved || !ram || !add(&mut blank, pages) {
            left_out += 1;
        }
    }
    if left_out > 0 {
        log::warn!(
            "{left_out} of the firmware's error sources do not lie in Reserved memory that L0 can keep for one host; \
             successors go without them"
        );
    }
    blank
}

/// Adds pages, ranges kept in ascending order; false if there is no room, or a range becomes longer than one EPT table
/// maps.
fn add(blank: &mut Blank, pages: Range<u64>) -> bool {
    let mut joined = Span {
        start: pages.start,
        end: pages.end,
    };
    for other in blank
        .iter()
        .filter(|other| other.start <= pages.end && pages.start <= other.end)
    {
        joined.start = joined.start.min(other.start);
        joined.end = joined.end.max(other.end);
    }
    if joined.end - joined.start > LARGE_PAGE {
        return false;
    }
    let inside = |other: &Span| joined.start <= other.start && other.end <= joined.end;
    if blank.is_full() && !blank.iter().any(inside) {
        return false;
    }
    blank.retain(|other| !inside(other));
    let at = blank.partition_point(|other| other.start < joined.start);
    blank.try_insert(at, joined).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const RESERVED: u64 = 0x7000_0000;
    const NVS: u64 = 0x7100_0000;
    const DEVICE: u64 = 0x7200_0000;

    fn chosen(wanted: &[Range<u64>]) -> Vec<(u64, u64)> {
        let mut map = E820Map::new();
        map.set(0xe_0000..LOW_END, RangeType::Reserved).unwrap();
        map.set(LOW_END..RESERVED, RangeType::Usable).unwrap();
        map.set(RESERVED..NVS, RangeType::Reserved).unwrap();
        map.set(NVS..DEVICE, RangeType::AcpiNvs).unwrap();
        map.set(DEVICE..DEVICE + 0x10_0000, RangeType::Reserved).unwrap();
        let kind = |at| {
            if at < DEVICE {
                MemoryType::WriteBack
            } else {
                MemoryType::Uncacheable
            }
        };
        let blank = choose(&map, wanted.iter().cloned(), kind);
        blank.iter().map(|span| (span.start, span.end)).collect()
    }

    #[test]
    fn registers_become_pages_and_neighbours_one_range() {
        let at = |offset: u64, len: u64| RESERVED + offset..RESERVED + offset + len;
        let wanted = [
            at(0x5008, 8),
            at(0x1010, 8),
            at(0x1018, 8),
            at(0x2ffc, 8), // across pages
            at(0x4000, 0x1000),
            at(0x1_0100, 0x8000),
        ];
        let page = |first: u64, last: u64| (RESERVED + first * 0x1000, RESERVED + (last + 1) * 0x1000);
        assert_eq!(chosen(&wanted), [page(1, 5), page(0x10, 0x18)]);
    }

    #[test]
    fn what_two_hosts_use_or_is_no_ram_is_left_out() {
        let good = (RESERVED, RESERVED + 0x1000);
        for bad in [
            NVS..NVS + 8,
            NVS - 4..NVS + 4,
            RESERVED - 8..RESERVED,
            DEVICE..DEVICE + 8,
            0xe_1000..0xe_1008,
            u64::MAX - 8..u64::MAX,
            RESERVED..RESERVED + 0x20_1000,
        ] {
            assert_eq!(chosen(&[bad.clone(), RESERVED + 8..RESERVED + 16]), [good], "{bad:x?}");
        }
    }

    #[test]
    fn as_many_ranges_as_there_is_room_for() {
        let nth = |nth: u64| RESERVED + nth * 0x2000..RESERVED + nth * 0x2000 + 8;
        let mut wanted: Vec<_> = (0..9).map(nth).collect();
        assert_eq!(chosen(&wanted).len(), 8);
        // One between two of them makes one of three.
        wanted.push(RESERVED + 0x1000..RESERVED + 0x1008);
        wanted.push(nth(8));
        let all = chosen(&wanted);
        assert_eq!(
            (all.len(), all[0], all[7].0),
            (8, (RESERVED, RESERVED + 0x3000), RESERVED + 0x1_0000)
        );
    }
}
