//! L0's own page tables: everything at its physical address, plus a window for each slot's switch stub.
//!
//! One PML4 per slot, since the stubs of two hosts may lie at the same address. The lower half, an identity map, is the
//! same for both. Pages are writable and executable and write-back: the MTRRs decide on memory types. L0's own first
//! MiBs have 4 KiB pages, so that single ones (the guards below its stacks) can be left out.
#![expect(unsafe_code, reason = "the CPU reads these tables")]

use core::cell::UnsafeCell;

use locum_abi::{PerSlot, Slot};

/// Entries of a table at any level.
const ENTRIES: usize = 512;
/// Bytes of a large page.
pub const LARGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// Page tables always map this much, RAM or not, with 2 MiB pages.
pub const LOW_GIB: usize = 4;
/// GiB that one page directory pointer table maps.
const PDPT_GIB: usize = ENTRIES;
/// Page directory pointer tables: 2 TiB of RAM, where the CPU has 1 GiB pages.
const PDPTS: usize = 4;
/// Page directories: 64 GiB of RAM, where it has not.
const PDS: usize = 64;

/// Page tables with 4 KiB pages, from address 0: all of L0's private memory.
const PTS: usize = 4;
/// First byte that 4 KiB pages do not map.
pub const SMALL_END: u64 = PTS as u64 * LARGE;

/// Entry flags: present, writable, accessed, dirty.
pub const PRESENT_WRITABLE: u64 = 0x63;
/// Entry flag of a large page.
pub const LARGE_PAGE: u64 = 0x80;

/// One table.
pub type Table = [u64; ENTRIES];

/// The PML4 of a slot, 8 KiB aligned: bit 12 of CR3 clear tells Linux' entry code, which may run on it for a moment
/// when an NMI hits, that this is no user-space CR3 of page-table isolation.
#[repr(C, align(8192))]
struct Pml4(Table);

#[repr(C, align(4096))]
struct Tables {
    pml4: PerSlot<Pml4>,
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
    stub_pdpt: PerSlot::new([0; ENTRIES], [0; ENTRIES]),
    pdpt: [[0; ENTRIES]; PDPTS],
    pd: [[0; ENTRIES]; PDS],
    pt: [[0; ENTRIES]; PTS],
}));

/// CR3 for native calls and exits of the host in `slot`.
pub fn l0_cr3(slot: Slot) -> u64 {
    let tables = TABLES.0.get();
    // SAFETY: only addresses are computed.
    let pml4 = unsafe { (&raw mut (*tables).pml4).cast::<Pml4>().add(slot.index()) };
    pml4 as u64
}

/// The identity map of one GiB with 2 MiB pages.
pub fn fill_directory(pd: &mut Table, gib: usize) {
    for (i, entry) in pd.iter_mut().enumerate() {
        *entry = (gib as u64 * GIB + i as u64 * LARGE) | PRESENT_WRITABLE | LARGE_PAGE;
    }
}

/// RAM that the tables could not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// First GiB that is not mapped.
    pub first_gib: u64,
}

/// Fills the tables. `ram` are the ranges of RAM, `guards` the addresses of pages of L0's that must not be mapped,
/// `stub_pd` the physical addresses of the page directories for the top GiB of each slot.
///
/// # Errors
/// [`Unmapped`] if there is RAM beyond what the tables can map; all below it is mapped.
///
/// # Safety
/// Called once, by the boot CPU, before the tables are in use.
pub unsafe fn init(
    ram: impl Iterator<Item = core::ops::Range<u64>>,
    guards: impl Iterator<Item = u64>,
    stub_pd: PerSlot<u64>,
    has_1gib_pages: bool,
) -> Result<(), Unmapped> {
    // SAFETY: the caller says that nobody else uses the tables.
    let tables = unsafe { &mut *TABLES.0.get() };
    tables.fill_small(guards);
    tables.fill(ram, stub_pd, has_1gib_pages)
}

impl Tables {
    fn fill(
        &mut self,
        ram: impl Iterator<Item = core::ops::Range<u64>>,
        stub_pd: PerSlot<u64>,
        has_1gib_pages: bool,
    ) -> Result<(), Unmapped> {
        let mut result = Ok(());
        let mut free_pd = 0;
        for gib in 0..LOW_GIB {
            self.map_gib(gib, false, &mut free_pd);
        }
        for range in ram.filter(|range| range.end > LOW_GIB as u64 * GIB && range.start < range.end) {
            let first = (range.start / GIB).max(LOW_GIB as u64);
            for gib in first..=(range.end - 1) / GIB {
                if !self.map_gib(gib as usize, has_1gib_pages, &mut free_pd) {
                    result = Err(Unmapped { first_gib: gib });
                    break;
                }
            }
        }
        for slot in Slot::ALL {
            let (pml4, stub_pdpt) = (&mut self.pml4[slot], &mut self.stub_pdpt[slot]);
            for (entry, pdpt) in pml4.0.iter_mut().zip(&self.pdpt) {
                *entry = (&raw const *pdpt).addr() as u64 | PRESENT_WRITABLE;
            }
            pml4.0[ENTRIES - 1] = (&raw const *stub_pdpt).addr() as u64 | PRESENT_WRITABLE;
            stub_pdpt[ENTRIES - 1] = stub_pd[slot] | PRESENT_WRITABLE;
        }
        result
    }

    /// Fills the page tables of the first MiBs, without `guards`; addresses beyond them are ignored.
    fn fill_small(&mut self, guards: impl Iterator<Item = u64>) {
        for (number, entry) in self.pt.as_flattened_mut().iter_mut().enumerate() {
            *entry = (number as u64 * 4096) | PRESENT_WRITABLE;
        }
        for guard in guards {
            if let Some(entry) = self.pt.as_flattened_mut().get_mut((guard / 4096) as usize) {
                *entry = 0;
            }
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
            *entry = (gib as u64 * GIB) | PRESENT_WRITABLE | LARGE_PAGE;
            return true;
        }
        let Some(pd) = self.pd.get_mut(*free_pd) else {
            return false;
        };
        *free_pd += 1;
        fill_directory(pd, gib);
        if gib == 0 {
            for (entry, pt) in pd.iter_mut().zip(&self.pt) {
                *entry = (&raw const *pt).addr() as u64 | PRESENT_WRITABLE;
            }
        }
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
        assert_eq!(t.pdpt[0][5], (5 * GIB) | 0xe3);
        assert_eq!(t.pdpt[1][600 - 512], (600 * GIB) | 0xe3);
        assert_eq!(t.pd[3][511], (4 * GIB - LARGE) | 0xe3);
        assert_eq!(t.stub_pdpt[Slot::Odd][511], 0x83_a000 | 0x63);
        assert_eq!(t.pml4[Slot::Even].0[0], t.pml4[Slot::Odd].0[0]);
        assert_ne!(t.pml4[Slot::Even].0[511], t.pml4[Slot::Odd].0[511]);
    }

    #[test]
    fn ram_beyond_the_tables_is_reported() {
        let mut t = tables();
        let huge = core::iter::once(4 * GIB..100 * GIB);
        assert_eq!(t.fill(huge, PerSlot::default(), false), Err(Unmapped { first_gib: 64 }));
        let mut t = tables();
        let huge = core::iter::once(4 * GIB..3 << 40);
        assert_eq!(
            t.fill(huge, PerSlot::default(), true),
            Err(Unmapped { first_gib: 2048 })
        );
    }

    #[test]
    fn guards_are_left_out_and_all_else_is_mapped() {
        let mut t = tables();
        t.fill_small([0x20_0000, 0x7f_f000, SMALL_END].into_iter());
        assert_eq!(t.fill(core::iter::empty(), PerSlot::default(), true), Ok(()));
        let small = t.pt.as_flattened();
        assert_eq!((small[0x200], small[0x7ff]), (0, 0));
        assert_eq!(small.iter().filter(|&&e| e == 0).count(), 2);
        assert_eq!(small[0x201], 0x20_1063);
        assert_eq!(t.pd[0][0] & !0xfff, t.pt.as_ptr() as u64);
        assert_eq!(t.pd[0][PTS], SMALL_END | 0xe3);
    }

    #[test]
    fn pml4s_keep_bit_12_clear() {
        for slot in Slot::ALL {
            assert_eq!(l0_cr3(slot) & 0x1fff, 0);
        }
    }
}
