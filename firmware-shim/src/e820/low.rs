//! Trampoline slices: the memory below 1 MiB that each of two hosts needs to start its CPUs.

use super::map::{E820Error, E820Map, MemoryType};
use core::ops::Range;

/// Bytes of a slice where there is room.
pub const SLICE_SIZE: u64 = 0x2_0000;
/// Bytes of the smallest slice that will do: Linux's real-mode blob (`arch/x86/realmode`) takes about 28 KiB, and a
/// kernel that changes to five-level paging puts two more pages below it
/// (`arch/x86/boot/compressed/pgtable_64.c`).
pub const SLICE_SMALLEST: u64 = 0xa000;
/// Where slices begin at the lowest: Linux reserves the first 64 KiB whatever the map says (`early_reserve_memory()` in
/// `arch/x86/kernel/setup.c`).
pub const SLICES_START: u64 = 0x1_0000;
/// Where slices end at the highest: Linux takes what follows for the BIOS' in any case (`BIOS_START_MAX` in
/// `arch/x86/kernel/ebda.c`).
pub const SLICES_END: u64 = 0x9_f000;

const PAGE: u64 = 0x1000;

/// Segment of the EBDA in the BIOS data area.
pub(crate) const EBDA_SEGMENT: u64 = 0x40e;
/// KiB of memory below the BIOS' own, in the BIOS data area.
const BASE_MEMORY_KIB: u64 = 0x413;
/// What is lower than this Linux does not believe (`BIOS_START_MIN` in `arch/x86/kernel/ebda.c`).
const BIOS_START_MIN: u64 = 0x2_0000;

/// [`bios_start`] of a machine whose words in low memory `word` reads, by physical address.
///
/// # Errors
/// What `word` fails with.
pub fn bios_area<E>(word: impl Fn(u64) -> Result<u16, E>) -> Result<u64, E> {
    Ok(bios_start(word(EBDA_SEGMENT)?, word(BASE_MEMORY_KIB)?))
}

/// Where the BIOS' memory below 1 MiB begins for Linux, whatever the memory map says (`reserve_bios_regions()` in
/// `arch/x86/kernel/ebda.c`), from these words of the BIOS data area.
#[must_use]
pub fn bios_start(ebda_segment: u16, base_memory_kib: u16) -> u64 {
    let told = u64::from(base_memory_kib) << 10;
    let start = if (BIOS_START_MIN..=SLICES_END).contains(&told) {
        told
    } else {
        SLICES_END
    };
    let ebda = u64::from(ebda_segment) << 4;
    if (BIOS_START_MIN..start).contains(&ebda) {
        ebda
    } else {
        start
    }
}

/// The slices of even and of odd generations, chosen from what is usable between [`SLICES_START`] and [`SLICES_END`]:
/// each whole pages in one piece, as low as can be, both of one size: [`SLICE_SIZE`], or what there is room for, but
/// not less than [`SLICE_SMALLEST`]. The same map always gives the same slices.
///
/// # Errors
/// [`E820Error::NoSlices`].
pub fn low_slices(map: &E820Map) -> Result<[Range<u64>; 2], E820Error> {
    low_slices_below(map, SLICES_END)
}

/// [`low_slices`] that end at `end` at the highest: see [`bios_start`].
///
/// # Errors
/// [`E820Error::NoSlices`].
pub fn low_slices_below(map: &E820Map, end: u64) -> Result<[Range<u64>; 2], E820Error> {
    let mut size = SLICE_SIZE;
    while size >= SLICE_SMALLEST {
        let mut slices = map
            .entries()
            .iter()
            .filter(|entry| entry.kind == MemoryType::Usable)
            .flat_map(|entry| pieces(entry.start, entry.end.min(end), size));
        if let (Some(even), Some(odd)) = (slices.next(), slices.next()) {
            return Ok([even, odd]);
        }
        size -= PAGE;
    }
    Err(E820Error::NoSlices)
}

/// Leaves a first host no usable memory below 1 MiB but the first 64 KiB, which no kernel uses, and its slice `own`: or
/// it puts its trampoline where the other host's will be, or where nobody expects one.
///
/// # Errors
/// [`E820Error::Full`].
pub fn keep_low_slice(map: &mut E820Map, own: &Range<u64>) -> Result<(), E820Error> {
    const LOW_END: u64 = 0x10_0000;
    for range in [SLICES_START..own.start, own.end..LOW_END] {
        map.replace(range, MemoryType::Usable, MemoryType::Reserved)?;
    }
    Ok(())
}

/// The pieces of `size` bytes that fit into `start..end` where slices may be.
fn pieces(start: u64, end: u64, size: u64) -> impl Iterator<Item = Range<u64>> {
    // What is clamped is far below the end of the address space, so no sum overflows.
    let start = start.clamp(SLICES_START, SLICES_END).next_multiple_of(PAGE);
    let end = end.min(SLICES_END);
    let count = end.saturating_sub(start) / size;
    (0..count).map(move |nth| start + nth * size..start + (nth + 1) * size)
}
