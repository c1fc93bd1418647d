//! A host's memory map as its kernel gets it: the table of the zero page, and setup data with the rest
//! (`e820__memory_setup_extended()` in Linux `arch/x86/kernel/e820.c`).
//!
//! The rest is what the table has no room for, and RAM that the kernel is to learn of only once its image has its place.
//! With KASLR on, the decompressor puts the image anywhere in the RAM of the table, or of the EFI memory map if there is
//! one (`find_random_phys_addr()` in `arch/x86/boot/compressed/kaslr.c`). It does not look at setup data of type
//! `SETUP_E820_EXT`: RAM that is told there is the kernel's all the same, before it uses any, but never its image's.

use super::setup_header as at;
use crate::bytes::put as put_bytes;
use crate::e820::{self, E820Map, Entry, MemoryType};

/// Length in bytes of the room for the rest.
pub const E820_REST_LEN: usize = at::SETUP_NODE_LEN + e820::CAPACITY * at::E820_ENTRY_LEN;

/// Fills in the table in the zero page `out`, and `rest`, of which all is overwritten; whether there is any rest. RAM from
/// `image_end` on is part of it.
pub(super) fn put(out: &mut [u8], rest: &mut [u8; E820_REST_LEN], map: &E820Map, image_end: u64) -> bool {
    let early = || early(map, image_end);
    let first = put_entries(out, at::E820_TABLE, early().take(at::E820_ENTRIES_MAX));
    // At most 128, which fits a byte.
    put_bytes(out, at::E820_ENTRIES, &[first as u8]);
    rest.fill(0);
    // A map has at most as many entries as there is room for; the one that is cut in two begins in the table.
    let more = early().skip(at::E820_ENTRIES_MAX).chain(late(map, image_end));
    let more = put_entries(rest, at::SETUP_NODE_LEN, more.take(e820::CAPACITY));
    if more == 0 {
        return false;
    }
    put_bytes(rest, at::SETUP_NODE_TYPE, &at::SETUP_E820_EXT.to_le_bytes());
    let bytes = (more * at::E820_ENTRY_LEN) as u32;
    put_bytes(rest, at::SETUP_NODE_DATA_LEN, &bytes.to_le_bytes());
    true
}

/// RAM from `image_end` on.
fn late(map: &E820Map, image_end: u64) -> impl Iterator<Item = Entry> {
    let ram = map.entries().iter().filter(|entry| entry.kind == MemoryType::Usable);
    ram.filter_map(move |&entry| {
        let start = entry.start.max(image_end);
        (start < entry.end).then_some(Entry { start, ..entry })
    })
}

/// All else.
fn early(map: &E820Map, image_end: u64) -> impl Iterator<Item = Entry> {
    map.entries().iter().filter_map(move |&entry| {
        let end = if entry.kind == MemoryType::Usable {
            entry.end.min(image_end)
        } else {
            entry.end
        };
        (entry.start < end).then_some(Entry { end, ..entry })
    })
}

/// Writes entries one behind the other from `start` on (`struct boot_e820_entry`). Returns their number.
fn put_entries(out: &mut [u8], start: usize, entries: impl Iterator<Item = Entry>) -> usize {
    let mut count = 0;
    for entry in entries {
        let offset = start + count * at::E820_ENTRY_LEN;
        put_bytes(out, offset, &entry.start.to_le_bytes());
        put_bytes(out, offset + 8, &(entry.end - entry.start).to_le_bytes());
        put_bytes(out, offset + 16, &entry.kind.raw().to_le_bytes());
        count += 1;
    }
    count
}
