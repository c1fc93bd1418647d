//! EPT: a host's rights on physical memory as the CPU checks them (SDM vol. 3C, 30.3).
//!
//! An identity map with holes. It is derived from the [`Map`](super::memory::Map) and the MTRRs and can be made
//! again from them at any time; it never holds anything of its own.

use core::sync::atomic::{AtomicU64, Ordering};

use bitflags::bitflags;

use super::memory::Access;
use crate::arch::paging;
use crate::machine::mtrr::MemoryType;

bitflags! {
    /// Flags of an entry (SDM vol. 3C, tables 30-1 to 30-6). The rest is the address, and in one that maps a page the
    /// memory type.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Flags: u64 {
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        const EXECUTE = 1 << 2;
        /// The entry maps a page, above level 1.
        const LARGE = 1 << 7;
        const _ = !0;

        /// All rights.
        const ALL = Self::READ.bits() | Self::WRITE.bits() | Self::EXECUTE.bits();
    }
}

/// Lowest bit of the memory type in an entry that maps a page.
const MEMORY_TYPE: u32 = 3;
/// EPT pointer (table 26-9): the tables are write-back, a walk takes four of them.
const POINTER: u64 = MemoryType::WriteBack as u64 | (LEVELS as u64 - 1) << 3;
/// Level of the root.
const LEVELS: u32 = 4;

/// Bytes that an entry maps at level 1 (page table) to 4.
const fn span(level: u32) -> u64 {
    1 << paging::shift(level)
}

/// One 4 KiB table.
#[repr(C, align(4096))]
#[derive(Debug)]
pub(crate) struct Table([AtomicU64; paging::ENTRIES]);

impl Table {
    /// An empty table.
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; paging::ENTRIES])
    }

    fn address(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}

/// What a stretch of memory is to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Rights.
    pub(crate) access: Access,
    /// Memory type, from the MTRRs.
    pub(crate) memory_type: MemoryType,
    /// Where it is in host-physical memory, less where the host sees it: 0 but for page 0 and blank pages of a successor.
    pub(crate) offset: u64,
    /// Each page of it is the one that `offset` leads the first of them to. An EPT has one such page, for good.
    pub(crate) repeated: bool,
    /// First address that may differ.
    pub(crate) end: u64,
}

impl Stretch {
    fn leaf(&self, address: u64, large: bool) -> u64 {
        let rights = match self.access {
            Access::None => return 0,
            Access::Read => Flags::READ | Flags::EXECUTE,
            Access::Full => Flags::ALL,
        };
        let size = if large { Flags::LARGE } else { Flags::empty() };
        address.wrapping_add(self.offset) & paging::ADDRESS
            | (self.memory_type as u64) << MEMORY_TYPE
            | (rights | size).bits()
    }
}

/// No table is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

/// The EPT of one host: a root and the tables it has used so far, from a fixed store.
#[derive(Debug)]
pub(crate) struct Ept<'a> {
    /// None before there is a host. (An EPT without a store is all zeroes, and takes no place in the image.)
    store: Option<&'a [Table]>,
    /// Tables in use below the root.
    below: usize,
    /// The one that maps the repeated page, again and again: it serves each large page that is nothing else.
    repeating: Option<&'a Table>,
    large_1g: bool,
}

impl<'a> Ept<'a> {
    /// An EPT without a store: it maps nothing, and can't.
    pub(crate) const NONE: Self = Self {
        store: None,
        below: 0,
        repeating: None,
        large_1g: false,
    };

    /// An empty EPT over a store of tables, the first of which is the root.
    pub(crate) const fn new(tables: &'a [Table], large_1g: bool) -> Self {
        Self {
            store: Some(tables),
            below: 0,
            repeating: None,
            large_1g,
        }
    }

    fn tables(&self) -> &'a [Table] {
        self.store.unwrap_or(&[])
    }

    /// The EPT pointer.
    pub(crate) fn pointer(&self) -> u64 {
        self.tables().first().map_or(0, Table::address) | POINTER
    }

    /// Whether it has no store yet.
    pub(crate) const fn is_empty(&self) -> bool {
        self.store.is_none()
    }

    /// Tables in use below the root.
    pub(crate) const fn tables_below(&self) -> usize {
        self.below
    }

    /// Whether anything is mapped at `address`.
    pub(crate) fn maps(&self, address: u64) -> bool {
        self.lookup(address).0 != 0
    }

    /// Forgets everything that the store holds, from whatever use of it before.
    pub(crate) fn clear(&mut self) {
        for entry in self.tables().iter().flat_map(|table| &table.0) {
            entry.store(0, Ordering::Relaxed);
        }
        self.below = 0;
        self.repeating = None;
    }

    /// Takes a table of the store.
    fn take(&mut self) -> Result<&'a Table, Exhausted> {
        let table = self.tables().get(self.below + 1).ok_or(Exhausted)?;
        self.below += 1;
        Ok(table)
    }

    /// The table that has this entry everywhere.
    fn repeating(&mut self, entry: u64) -> Result<&'a Table, Exhausted> {
        if let Some(table) = self.repeating {
            return Ok(table);
        }
        let table = self.take()?;
        for place in &table.0 {
            place.store(entry, Ordering::Relaxed);
        }
        self.repeating = Some(table);
        Ok(table)
    }

    /// Whether this entry names a table that is not for one large page alone.
    fn is_repeating(&self, entry: u64) -> bool {
        self.repeating
            .is_some_and(|table| table.address() == entry & paging::ADDRESS)
    }

    fn table_at(&self, entry: u64) -> Option<&'a Table> {
        self.tables()
            .iter()
            .take(self.below + 1)
            .find(|t| t.address() == entry & paging::ADDRESS)
    }

    /// Makes the entries for `start..end` say what `stretch` tells of each address.
    ///
    /// # Errors
    /// [`Exhausted`]: a part may be mapped, none of it with more rights than it should have.
    pub(crate) fn update(&mut self, start: u64, end: u64, stretch: &impl Fn(u64) -> Stretch) -> Result<(), Exhausted> {
        let Some(root) = self.tables().first() else {
            return Err(Exhausted);
        };
        self.fill(root, LEVELS, 0, start, end, stretch)
    }

    fn fill(
        &mut self,
        table: &'a Table,
        level: u32,
        base: u64,
        start: u64,
        end: u64,
        stretch: &impl Fn(u64) -> Stretch,
    ) -> Result<(), Exhausted> {
        let size = span(level);
        for (index, place) in table.0.iter().enumerate() {
            let first = base + index as u64 * size;
            let last = first + size;
            if last <= start || first >= end {
                continue;
            }
            let entry = place.load(Ordering::Relaxed);
            let flags = Flags::from_bits_retain(entry);
            let has_table = level > 1
                && flags.intersects(Flags::ALL)
                && !flags.contains(Flags::LARGE)
                && !(level == 2 && self.is_repeating(entry));
            let here = stretch(first);
            let uniform = here.end >= last && !here.repeated;
            if level == 2 && !has_table && here.repeated && here.end >= last {
                let table = self.repeating(here.leaf(first, false))?;
                place.store(table.address() | Flags::ALL.bits(), Ordering::Release);
                continue;
            }
            let leaf_allowed = level == 1 || level == 2 || (level == 3 && self.large_1g);
            if !has_table && uniform && (leaf_allowed || here.access == Access::None) {
                place.store(here.leaf(first, level > 1), Ordering::Release);
                continue;
            }
            if level == 1 {
                place.store(here.leaf(first, false), Ordering::Release);
                continue;
            }
            let (below, from, to) = if has_table {
                (self.table_at(entry).ok_or(Exhausted)?, start, end)
            } else {
                // What was a large page (or nothing) is made anew, whole.
                (
                    self.take()?,
                    if entry == 0 { start } else { first },
                    if entry == 0 { end } else { last },
                )
            };
            // A fresh table is linked when it is complete, so that no CPU finds less than it had. If tables run out
            // half way, less is what it gets.
            if let Err(exhausted) = self.fill(below, level - 1, first, from, to, stretch) {
                place.store(0, Ordering::Release);
                return Err(exhausted);
            }
            place.store(below.address() | Flags::ALL.bits(), Ordering::Release);
        }
        Ok(())
    }

    /// The leaf entry that maps `address` (0: nothing does) and the bytes it spans.
    pub(crate) fn lookup(&self, address: u64) -> (u64, u64) {
        let mut table = self.tables().first();
        for level in (1..=LEVELS).rev() {
            let size = span(level);
            let index = (address / size % paging::ENTRIES as u64) as usize;
            let entry = table.map_or(0, |table| table.0[index].load(Ordering::Relaxed));
            if level == 1 || entry == 0 || Flags::from_bits_retain(entry).contains(Flags::LARGE) {
                return (entry, size);
            }
            table = self.table_at(entry);
        }
        (0, 0)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use locum_abi::PAGE_SIZE;

    use super::*;

    /// An entry for all of a page of RAM.
    fn page(address: u64) -> u64 {
        address | 6 << 3 | 7
    }

    fn large(address: u64) -> u64 {
        page(address) | Flags::LARGE.bits()
    }

    fn store(n: usize) -> Vec<Table> {
        (0..n).map(|_| Table::new()).collect()
    }

    fn hole(hole: core::ops::Range<u64>) -> impl Fn(u64) -> Stretch {
        move |address| {
            let (access, end) = if address < hole.start {
                (Access::Full, hole.start)
            } else if address < hole.end {
                (Access::None, hole.end)
            } else {
                (Access::Full, 1 << 52)
            };
            Stretch {
                access,
                memory_type: MemoryType::WriteBack,
                offset: 0,
                repeated: false,
                end,
            }
        }
    }

    #[test]
    fn identity_with_a_hole() {
        let tables = store(8);
        let mut ept = Ept::new(&tables, false);
        let map = hole(0x10_0000..0x80_0000);
        ept.update(0, 1 << 30, &map).unwrap();
        assert_eq!(ept.lookup(0xf_f000), (page(0xf_f000), PAGE_SIZE));
        assert_eq!(ept.lookup(0x10_0000).0, 0);
        assert_eq!(ept.lookup(0x7f_f000).0, 0);
        assert_eq!(ept.lookup(0x80_0000), (large(0x80_0000), paging::LARGE_PAGE));
        assert_eq!(ept.lookup(1 << 30).0, 0, "beyond what was asked");
    }

    #[test]
    fn a_large_page_splits_and_keeps_its_rest() {
        let tables = store(8);
        let mut ept = Ept::new(&tables, true);
        ept.update(0, 1 << 30, &hole(0..0)).unwrap();
        assert_eq!(ept.lookup(0x1234_5000).1, 1 << 30);
        let map = hole(0x1000_1000..0x1000_2000);
        ept.update(0x1000_1000, 0x1000_2000, &map).unwrap();
        assert_eq!(ept.lookup(0x1000_1000).0, 0);
        assert_eq!(ept.lookup(0x1000_0000), (page(0x1000_0000), PAGE_SIZE));
        assert_eq!(ept.lookup(0x1020_0000), (large(0x1020_0000), paging::LARGE_PAGE));
        ept.update(0x1000_1000, 0x1000_2000, &hole(0..0)).unwrap();
        assert_eq!(ept.lookup(0x1000_1000).0, page(0x1000_1000));
    }

    #[test]
    fn a_repeated_page_takes_one_table_however_often_it_is_there() {
        const PAGE: u64 = 0x7000;
        // From a page after 4 MiB on to 40 MiB.
        let begin = 2 * paging::LARGE_PAGE + PAGE_SIZE;
        let end = 20 * paging::LARGE_PAGE;
        let repeated = |address: u64| match address {
            address if address < begin => Stretch {
                end: begin,
                ..hole(0..0)(address)
            },
            address if address < end => Stretch {
                access: Access::Read,
                memory_type: MemoryType::WriteBack,
                offset: PAGE.wrapping_sub(address),
                repeated: true,
                end,
            },
            address => hole(0..0)(address),
        };
        let tables = store(6);
        let mut ept = Ept::new(&tables, true);
        ept.update(0, 1 << 30, &repeated).unwrap();
        assert_eq!(
            ept.tables_below(),
            4,
            "two down to large pages, one for a part of one, and one for all others"
        );
        for address in [
            begin,
            3 * paging::LARGE_PAGE,
            9 * paging::LARGE_PAGE + 0x5000,
            end - PAGE_SIZE,
        ] {
            assert_eq!(ept.lookup(address), (PAGE | 6 << 3 | 5, PAGE_SIZE), "{address:#x}");
        }
        assert_eq!(ept.lookup(begin - PAGE_SIZE).0, page(begin - PAGE_SIZE));
        assert_eq!(ept.lookup(end), (large(end), paging::LARGE_PAGE));
        // A part of one becomes something else, and the others stay.
        let part = 5 * paging::LARGE_PAGE;
        let partly = |address: u64| match address {
            address if (part..part + PAGE_SIZE).contains(&address) => Stretch {
                end: part + PAGE_SIZE,
                ..hole(0..0)(address)
            },
            address if address < part => Stretch {
                end: repeated(address).end.min(part),
                ..repeated(address)
            },
            address => repeated(address),
        };
        ept.update(part, part + PAGE_SIZE, &partly).unwrap();
        assert_eq!(ept.lookup(part), (page(part), PAGE_SIZE));
        assert_eq!(ept.lookup(part + PAGE_SIZE).0, PAGE | 6 << 3 | 5);
        assert_eq!(
            ept.lookup(part + paging::LARGE_PAGE).0,
            PAGE | 6 << 3 | 5,
            "another's is as it was"
        );
        // And with all of it.
        ept.update(0, 1 << 30, &hole(0..end)).unwrap();
        assert_eq!(ept.lookup(6 * paging::LARGE_PAGE).0, 0);
    }

    #[test]
    fn exhaustion_is_an_error() {
        let tables = store(2);
        let mut ept = Ept::new(&tables, false);
        assert_eq!(ept.update(0, 1 << 30, &hole(0..0)), Err(Exhausted));
    }
}
