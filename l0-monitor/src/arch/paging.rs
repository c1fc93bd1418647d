//! L0's own page tables: everything at its physical address, plus a window for each slot's switch stub.
//!
//! One PML4 per slot, since the stubs of two hosts may lie at the same address. The lower half, an identity map, is the
//! same for both. Pages are writable and executable and write-back: the MTRRs decide on memory types. L0's private
//! memory has 4 KiB pages, so that single ones (the guards below its stacks) can be left out.
//!
//! Entries are words with the flags of the crate `x86_64`, not its `PageTableEntry`: that asserts what is put into it,
//! and the module of a host writes entries of these tables, too.
#![expect(unsafe_code, reason = "the CPU reads these tables")]

use core::cell::UnsafeCell;
use core::ops::Range;

use locum_abi::{PAGE_SIZE, PerSlot, Slot};
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr3, Cr3Flags};
use x86_64::structures::paging::{PageTableFlags, PhysFrame};

/// Entries of a table at any level (SDM vol. 3A, 4.2).
pub(crate) const ENTRIES: usize = 512;
/// Bytes of a large page.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// The address in CR3, in an entry of a page table or of EPT, and in IA32_APIC_BASE.
pub(crate) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Page tables always map this much, RAM or not, with 2 MiB pages.
pub(crate) const LOW_GIB: usize = 4;
/// GiB that one page directory pointer table maps.
const PDPT_GIB: usize = ENTRIES;
/// Page directory pointer tables: 8 TiB of RAM, where the CPU has 1 GiB pages.
pub(crate) const PDPTS: usize = 16;
/// Page directories: 64 GiB of RAM, where it has not.
const PDS: usize = 64;

/// Page tables with 4 KiB pages, from where L0 is: all of its private memory.
const PTS: usize = 8;
/// Pages that they map.
pub(crate) const SMALL_PAGES: usize = PTS * ENTRIES;

/// Flags of an entry that is for L0 or a host without limits: accessed and dirty are set from the start.
const FLAGS: PageTableFlags = PageTableFlags::PRESENT
    .union(PageTableFlags::WRITABLE)
    .union(PageTableFlags::ACCESSED)
    .union(PageTableFlags::DIRTY);
/// [`FLAGS`] of an entry that names a table, or maps a page of 4 KiB.
pub(crate) const PRESENT_WRITABLE: u64 = FLAGS.bits();
/// [`FLAGS`] of an entry that maps a large page.
pub(crate) const PRESENT_WRITABLE_LARGE: u64 = FLAGS.union(PageTableFlags::HUGE_PAGE).bits();

/// Lowest bit of an address that chooses the entry in a table at level 1 (page table) to 5; an entry maps `1 <<
/// shift(level)` bytes.
pub(crate) const fn shift(level: u32) -> u32 {
    12 + 9 * (level - 1)
}

/// First byte of the page that `address` is in.
pub(crate) const fn page_of(address: u64) -> u64 {
    address & !(PAGE_SIZE - 1)
}

/// One table.
pub(crate) type Table = [u64; ENTRIES];

/// The PML4 of a slot, 8 KiB aligned: bit 12 of CR3 clear tells Linux' entry code, which may run on it for a moment
/// when an NMI hits, that this is no user-space CR3 of page-table isolation.
#[repr(C, align(8192))]
struct Pml4(Table);

#[repr(C, align(4096))]
struct Tables {
    pml4: PerSlot<Pml4>,
    /// For a CPU with five-level paging: the PML4 serves for both ends of the address space.
    pml5: PerSlot<Pml4>,
    stub_pdpt: PerSlot<Table>,
    pdpt: [Table; PDPTS],
    pd: [Table; PDS],
    pt: [Table; PTS],
}

struct Static(UnsafeCell<Tables>);

// SAFETY: written by the boot CPU in `init` only, before other CPUs run; then read by hardware (which sets no flags:
// accessed and dirty are set from the start).
unsafe impl Sync for Static {}

static TABLES: Static = Static(UnsafeCell::new(Tables {
    pml4: PerSlot::new(Pml4([0; ENTRIES]), Pml4([0; ENTRIES])),
    pml5: PerSlot::new(Pml4([0; ENTRIES]), Pml4([0; ENTRIES])),
    stub_pdpt: PerSlot::new([0; ENTRIES], [0; ENTRIES]),
    pdpt: [[0; ENTRIES]; PDPTS],
    pd: [[0; ENTRIES]; PDS],
    pt: [[0; ENTRIES]; PTS],
}));

/// CR3 for native calls and exits of the host in `slot`.
pub(crate) fn l0_cr3(slot: Slot) -> u64 {
    let tables = TABLES.0.get();
    // SAFETY: only addresses are computed.
    let pml4 = unsafe { (&raw mut (*tables).pml4).cast::<Pml4>().add(slot.index()) };
    pml4 as u64
}

/// [`l0_cr3`] for a CPU with five-level paging, which can't be switched off in 64-bit mode.
pub(crate) fn l0_cr3_five(slot: Slot) -> u64 {
    let tables = TABLES.0.get();
    // SAFETY: only addresses are computed.
    let pml5 = unsafe { (&raw mut (*tables).pml5).cast::<Pml4>().add(slot.index()) };
    pml5 as u64
}

/// Loads CR3 for a host's slot, without a PCID.
///
/// # Safety
/// [`init`] has run, and what the CPU uses is mapped at the same address before and after.
pub(crate) unsafe fn load(slot: Slot) {
    let root = PhysFrame::containing_address(PhysAddr::new_truncate(l0_cr3(slot)));
    // SAFETY: the caller's word.
    unsafe { Cr3::write(root, Cr3Flags::empty()) };
}

/// The identity map of one GiB with 2 MiB pages.
pub(crate) fn fill_directory(pd: &mut Table, gib: usize) {
    for (i, entry) in pd.iter_mut().enumerate() {
        *entry = (gib as u64 * GIB + i as u64 * LARGE_PAGE) | PRESENT_WRITABLE_LARGE;
    }
}

/// Adds to the tables of `pdpt` a page of 1 GiB for each GiB above the low ones that has some of `ram`. Returns the end of
/// what is mapped: 4 GiB, or what follows the last such page.
pub(crate) fn map_high(pdpt: &mut [Table; PDPTS], ram: impl Iterator<Item = Range<u64>>) -> u64 {
    let mut end = LOW_GIB as u64;
    for gib in high_gibs(ram) {
        if let Some(entry) = pdpt.as_flattened_mut().get_mut(gib as usize) {
            *entry = (gib * GIB) | PRESENT_WRITABLE_LARGE;
            end = end.max(gib + 1);
        }
    }
    end * GIB
}

/// The GiBs above the low ones that have some of `ram`, range by range.
fn high_gibs(ram: impl Iterator<Item = Range<u64>>) -> impl Iterator<Item = u64> {
    ram.filter(|range| range.end > LOW_GIB as u64 * GIB && range.start < range.end)
        .flat_map(|range| (range.start / GIB).max(LOW_GIB as u64)..=(range.end - 1) / GIB)
}

/// RAM that the tables could not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unmapped {
    /// First GiB that is not mapped.
    pub(crate) first_gib: u64,
}

/// Fills the tables. `ram` are the ranges of RAM, `l0` where L0's private memory begins (a multiple of 2 MiB below 4
/// GiB), `guards` the addresses of pages of it that must not be mapped, `stub_pd` the physical addresses of the page
/// directories for the top GiB of each slot.
///
/// # Errors
/// [`Unmapped`] if there is RAM beyond what the tables can map; all below it is mapped.
///
/// # Safety
/// Called once, by the boot CPU, before the tables are in use.
pub(crate) unsafe fn init(
    ram: impl Iterator<Item = Range<u64>>,
    l0: u64,
    guards: impl Iterator<Item = u64>,
    stub_pd: PerSlot<u64>,
    has_1gib_pages: bool,
) -> Result<(), Unmapped> {
    // SAFETY: the caller says that nobody else uses the tables.
    let tables = unsafe { &mut *TABLES.0.get() };
    tables.fill(ram, stub_pd, has_1gib_pages)?;
    tables.fill_small(l0, guards);
    Ok(())
}

impl Tables {
    fn fill(
        &mut self,
        ram: impl Iterator<Item = Range<u64>>,
        stub_pd: PerSlot<u64>,
        has_1gib_pages: bool,
    ) -> Result<(), Unmapped> {
        let mut free_pd = 0;
        for gib in 0..LOW_GIB {
            self.map_gib(gib, false, &mut free_pd);
        }
        // The ranges ascend, so all below the first that can't be mapped is.
        let unmapped = high_gibs(ram).find(|&gib| !self.map_gib(gib as usize, has_1gib_pages, &mut free_pd));
        for slot in Slot::ALL {
            let (pml4, stub_pdpt) = (&mut self.pml4[slot], &mut self.stub_pdpt[slot]);
            for (entry, pdpt) in pml4.0.iter_mut().zip(&self.pdpt) {
                *entry = (&raw const *pdpt).addr() as u64 | PRESENT_WRITABLE;
            }
            pml4.0[ENTRIES - 1] = (&raw const *stub_pdpt).addr() as u64 | PRESENT_WRITABLE;
            stub_pdpt[ENTRIES - 1] = stub_pd[slot] | PRESENT_WRITABLE;
            let pml4 = (&raw const *pml4).addr() as u64 | PRESENT_WRITABLE;
            let pml5 = &mut self.pml5[slot].0;
            (pml5[0], pml5[ENTRIES - 1]) = (pml4, pml4);
        }
        unmapped.map_or(Ok(()), |first_gib| Err(Unmapped { first_gib }))
    }

    /// Maps the memory from `l0` on with small pages, without `guards`; addresses beyond it are ignored. The low GiBs
    /// are mapped: their directories are the first.
    fn fill_small(&mut self, l0: u64, guards: impl Iterator<Item = u64>) {
        for (number, entry) in self.pt.as_flattened_mut().iter_mut().enumerate() {
            *entry = (l0 + number as u64 * PAGE_SIZE) | PRESENT_WRITABLE;
        }
        for guard in guards {
            let page = guard.checked_sub(l0).map(|offset| (offset / PAGE_SIZE) as usize);
            if let Some(entry) = page.and_then(|page| self.pt.as_flattened_mut().get_mut(page)) {
                *entry = 0;
            }
        }
        let large_pages = self.pd.as_flattened_mut().iter_mut().skip((l0 / LARGE_PAGE) as usize);
        for (entry, pt) in large_pages.zip(&self.pt) {
            *entry = (&raw const *pt).addr() as u64 | PRESENT_WRITABLE;
        }
    }

    /// Maps one GiB; false if there is no table for it.
    fn map_gib(&mut self, gib: usize, as_one_page: bool, free_pd: &mut usize) -> bool {
        let Some(entry) = self
            .pdpt
            .get_mut(gib / PDPT_GIB)
            .and_then(|pdpt| pdpt.get_mut(gib % PDPT_GIB))
        else {
            return false;
        };
        if *entry != 0 {
            return true;
        }
        if as_one_page {
            *entry = (gib as u64 * GIB) | PRESENT_WRITABLE_LARGE;
            return true;
        }
        let Some(pd) = self.pd.get_mut(*free_pd) else {
            return false;
        };
        *free_pd += 1;
        fill_directory(pd, gib);
        *entry = (&raw const *pd).addr() as u64 | PRESENT_WRITABLE;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    fn tables() -> Box<Tables> {
        Box::new(Tables {
            pml4: PerSlot::new(Pml4([0; ENTRIES]), Pml4([0; ENTRIES])),
            pml5: PerSlot::new(Pml4([0; ENTRIES]), Pml4([0; ENTRIES])),
            stub_pdpt: PerSlot::new([0; ENTRIES], [0; ENTRIES]),
            pdpt: [[0; ENTRIES]; PDPTS],
            pd: [[0; ENTRIES]; PDS],
            pt: [[0; ENTRIES]; PTS],
        })
    }

    #[test]
    fn low_memory_and_ram_are_mapped_and_nothing_else() {
        let mut t = tables();
        let ram = [0..GIB, 4 * GIB..5 * GIB + 1, 600 * GIB..601 * GIB];
        assert_eq!(
            t.fill(ram.into_iter(), PerSlot::new(0x80_a000, 0x83_a000), true),
            Ok(())
        );
        assert!(t.pdpt[0][..6].iter().all(|&e| e != 0));
        assert_eq!(t.pdpt[0][6], 0);
        assert_eq!(t.pdpt[0][5], (5 * GIB) | PRESENT_WRITABLE_LARGE);
        assert_eq!(t.pdpt[1][600 - 512], (600 * GIB) | PRESENT_WRITABLE_LARGE);
        assert_eq!(t.pd[3][511], (4 * GIB - LARGE_PAGE) | PRESENT_WRITABLE_LARGE);
        assert_eq!(t.stub_pdpt[Slot::Odd][511], 0x83_a000 | PRESENT_WRITABLE);
        assert_eq!(t.pml4[Slot::Even].0[0], t.pml4[Slot::Odd].0[0]);
        assert_ne!(t.pml4[Slot::Even].0[511], t.pml4[Slot::Odd].0[511]);
        for slot in Slot::ALL {
            let pml4 = (&raw const t.pml4[slot]).addr() as u64 | PRESENT_WRITABLE;
            assert_eq!((t.pml5[slot].0[0], t.pml5[slot].0[511]), (pml4, pml4));
            assert!(t.pml5[slot].0[1..511].iter().all(|&e| e == 0));
        }
    }

    #[test]
    fn a_host_above_4_gib_finds_all_ram_mapped() {
        let mut pdpt = Box::new([[0; ENTRIES]; PDPTS]);
        pdpt[0][3] = 1;
        let ram = [
            GIB..3 * GIB,
            4 * GIB..5 * GIB + 1,
            600 * GIB..601 * GIB,
            9 << 40..10 << 40,
        ];
        assert_eq!(map_high(&mut pdpt, ram.into_iter()), 601 * GIB);
        let mapped: std::vec::Vec<_> = (0..).zip(pdpt.as_flattened()).filter(|(_, e)| **e != 0).collect();
        let page = |gib: u64| (gib * GIB) | PRESENT_WRITABLE_LARGE;
        assert_eq!(mapped, [(3, &1), (4, &page(4)), (5, &page(5)), (600, &page(600))]);
        assert_eq!(map_high(&mut pdpt, core::iter::once(0..2 * GIB)), 4 * GIB);
    }

    #[test]
    fn ram_beyond_the_tables_is_reported() {
        let mut t = tables();
        let huge = core::iter::once(4 * GIB..100 * GIB);
        assert_eq!(t.fill(huge, PerSlot::default(), false), Err(Unmapped { first_gib: 64 }));
        let mut t = tables();
        let huge = core::iter::once(4 * GIB..9 << 40);
        assert_eq!(
            t.fill(huge, PerSlot::default(), true),
            Err(Unmapped { first_gib: 8192 })
        );
    }

    #[test]
    fn guards_are_left_out_and_all_else_is_mapped() {
        let mut t = tables();
        // Over the border of a GiB, and so of a directory.
        let l0 = GIB - LARGE_PAGE;
        let end = l0 + SMALL_PAGES as u64 * PAGE_SIZE;
        assert_eq!(t.fill(core::iter::empty(), PerSlot::default(), true), Ok(()));
        t.fill_small(l0, [l0, end - PAGE_SIZE, end, 0].into_iter());
        let small = t.pt.as_flattened();
        assert_eq!((small[0], small[SMALL_PAGES - 1]), (0, 0));
        assert_eq!(small.iter().filter(|&&e| e == 0).count(), 2);
        assert_eq!(small[1], (l0 + PAGE_SIZE) | PRESENT_WRITABLE);
        assert_eq!((PRESENT_WRITABLE, PRESENT_WRITABLE_LARGE), (0x63, 0xe3));
        assert_eq!(t.pd[0][510], (l0 - LARGE_PAGE) | PRESENT_WRITABLE_LARGE);
        assert_eq!(t.pd[0][511] & ADDRESS, t.pt.as_ptr() as u64);
        assert_eq!(t.pd[1][0] & ADDRESS, t.pt[1].as_ptr() as u64);
        assert_eq!(t.pd[1][PTS - 1], end | PRESENT_WRITABLE_LARGE);
    }

    #[test]
    fn pml4s_keep_bit_12_clear() {
        for slot in Slot::ALL {
            assert_eq!(l0_cr3(slot) & 0x1fff, 0);
        }
    }
}
