//! Where L0 is: where the boot loader put it, if that is RAM by the firmware's map.
//!
//! GRUB chooses from the memory that it manages itself, and an administrator may have taken some of that out of the map
//! later (`cutmem`, `badram`). Then L0 chooses, and moves, before it has begun anything.
#![cfg_attr(
    target_os = "none",
    expect(unsafe_code, reason = "copies the image that runs, and goes on in the copy")
)]

use core::ops::Range;

use super::memory::MAPPED;
use crate::arch::paging::LARGE_PAGE;

/// L0 is put at this address or above: below are other things' places (BIOS, trampolines).
pub(crate) const LOWEST: u64 = 0x10_0000;

/// The lowest place for `size` bytes within one of `usable` and what the entry's page tables map, clear of all `taken`; a multiple of 2 MiB.
pub(crate) fn choose<U, T>(usable: U, taken: T, size: u64) -> Option<u64>
where
    U: Iterator<Item = Range<u64>>,
    T: Iterator<Item = Range<u64>> + Clone,
{
    usable
        .filter_map(|range| {
            let mut start = range.start.max(LOWEST).checked_next_multiple_of(LARGE_PAGE)?;
            loop {
                let end = start.checked_add(size).filter(|&end| end <= range.end.min(MAPPED))?;
                // Each step goes beyond one of the few ranges in the way, so this ends.
                let Some(hit) = taken.clone().find(|t| t.start < end && start < t.end) else {
                    return Some(start);
                };
                start = hit.end.checked_next_multiple_of(LARGE_PAGE)?;
            }
        })
        .min()
}

/// Offsets of the words of an image that hold addresses of its own, from its packed table (System V gABI, "Relocation",
/// SHT_RELR): an even entry is the offset of a word; an odd one has a bit for each of the 63 words that follow.
pub(crate) fn relocated_words(table: &[u64]) -> impl Iterator<Item = u64> + '_ {
    let mut next = 0u64;
    table.iter().flat_map(move |&entry| {
        let (first, bits) = if entry & 1 == 0 {
            next = entry.wrapping_add(8);
            (entry, 1)
        } else {
            let first = next;
            next = next.wrapping_add(63 * 8);
            (first, entry >> 1)
        };
        (0..63u64)
            .filter(move |bit| bits >> bit & 1 != 0)
            .map(move |bit| first.wrapping_add(bit * 8))
    })
}

#[cfg(target_os = "none")]
pub(crate) use bare_metal::settle;

#[cfg(target_os = "none")]
mod bare_metal {
    use core::arch::asm;

    use firmware_shim::e820::{E820Map, MemoryType};

    use super::super::memory::{bytes, clear, move_bytes};
    use super::super::multiboot::{BOOTLOADER_MAGIC, Information};
    use super::{choose, relocated_words};
    use crate::arch::paging::{self, LOW_GIB, PRESENT_WRITABLE, Table};
    use crate::shared;

    unsafe extern "C" {
        safe static l0_image: u8;
        safe static l0_image_end: u8;
        safe static l0_relr: u8;
        safe static l0_relr_end: u8;
        safe static l0_boot_pml4: u8;
        safe static l0_boot_pdpt: u8;
        safe static l0_boot_pd: u8;
        safe static l0_moved: u8;
    }

    /// Returns if L0 can stay, or has nowhere to go; what is wrong is told later, when there is a log. Else L0 begins anew
    /// elsewhere.
    ///
    /// # Safety
    /// The first that [`super::super::main`] does, on the boot CPU and the entry's tables, with its arguments.
    pub(crate) unsafe fn settle(magic: u32, address: u32) {
        if magic != BOOTLOADER_MAGIC || address == 0 {
            return;
        }
        let address = u64::from(address);
        // SAFETY: below 4 GiB, so mapped; nobody writes there.
        let told = unsafe {
            let size = u64::from((address as *const u32).read_unaligned());
            bytes(&(address..address + size.max(4)))
        };
        let Some(information) = Information::new(told) else {
            return;
        };
        let Ok(map) = E820Map::from_firmware(information.memory_map()) else {
            return;
        };
        let here = shared::place().all();
        if map.covers(&here, |kind| kind == MemoryType::Usable) {
            return;
        }
        let usable = map.entries().iter().filter(|entry| entry.kind == MemoryType::Usable);
        let modules = information.modules().map(|module| module.start..module.end);
        let told = address..address + told.len() as u64;
        let taken = modules.chain([told, here.clone()]);
        let size = here.end - here.start;
        if let Some(start) = choose(usable.map(|entry| entry.start..entry.end), taken, size) {
            // SAFETY: the place is RAM that holds nothing, and nothing has happened yet.
            unsafe { go_on_at(start, here.start, size, magic, address as u32) }
        }
    }

    /// # Safety
    /// `size` bytes at `start` are free RAM below 4 GiB; the image at `here` is as the entry left it.
    unsafe fn go_on_at(start: u64, here: u64, size: u64, magic: u32, information: u32) -> ! {
        let offset = |symbol: *const u8| symbol.addr() as u64 - here;
        let len = offset(&raw const l0_image_end);
        let relr = &raw const l0_relr;
        let words = ((&raw const l0_relr_end).addr() - relr.addr()) / size_of::<u64>();
        // SAFETY: the caller's word. The table is the linker's; the words that it names are the image's.
        unsafe {
            debug_assert!((&raw const l0_image).addr() as u64 == here);
            move_bytes(start, here, len);
            clear(start + len, size - len);
            for at in relocated_words(core::slice::from_raw_parts(relr.cast::<u64>(), words)) {
                let word = (start + at) as *mut u64;
                word.write(word.read().wrapping_add(start.wrapping_sub(here)));
            }
            let table = |symbol: *const u8| (start + offset(symbol)) as *mut Table;
            let (pml4, pdpt, pd) = (
                table(&raw const l0_boot_pml4),
                table(&raw const l0_boot_pdpt),
                table(&raw const l0_boot_pd),
            );
            pml4.cast::<u64>().write(pdpt as u64 | PRESENT_WRITABLE);
            for gib in 0..LOW_GIB {
                paging::fill_directory(&mut *pd.add(gib), gib);
                pdpt.cast::<u64>().add(gib).write(pd.add(gib) as u64 | PRESENT_WRITABLE);
            }
            asm!(
                "jmp {moved}",
                moved = in(reg) start + offset(&raw const l0_moved),
                in("rdx") pml4,
                in("edi") magic,
                in("esi") information,
                options(noreturn),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const MIB: u64 = 1 << 20;

    fn chosen(usable: &[(u64, u64)], taken: &[(u64, u64)]) -> Option<u64> {
        let range = |&(start, end): &(u64, u64)| start..end;
        choose(usable.iter().map(range), taken.iter().map(range), 18 * MIB)
    }

    #[test]
    fn the_lowest_place_that_holds_nothing() {
        let usable = [
            (0, 640 << 10),
            (MIB, 8 * MIB),
            (9 * MIB, 64 * MIB),
            (100 * MIB, 200 * MIB),
        ];
        assert_eq!(chosen(&usable, &[]), Some(10 * MIB));
        assert_eq!(chosen(&usable, &[(11 * MIB, 12 * MIB)]), Some(12 * MIB));
        let taken = [(30 * MIB, 41 * MIB), (10 * MIB, 20 * MIB), (50 * MIB, 51 * MIB)];
        assert_eq!(chosen(&usable, &taken), Some(100 * MIB));
        assert_eq!(chosen(&usable, &[(0, 181 * MIB)]), Some(182 * MIB));
        assert_eq!(chosen(&usable, &[(0, 183 * MIB)]), None);
        assert_eq!(chosen(&[(4094 * MIB, 5000 * MIB)], &[]), None, "the entry maps 4 GiB");
        assert_eq!(chosen(&[(0, u64::MAX)], &[(0, u64::MAX - 5)]), None);
    }

    #[test]
    fn packed_relocations() {
        let table = [0x1000, 1 | 1 << 1 | 1 << 3 | 1 << 63, 1 << 2 | 1, 0x4000];
        let words: Vec<u64> = relocated_words(&table).collect();
        let second = 0x1008 + 63 * 8;
        assert_eq!(words, [0x1000, 0x1008, 0x1018, 0x1008 + 62 * 8, second + 8, 0x4000]);
    }
}
