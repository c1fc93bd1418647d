//! Whether what lies in a memory block can be moved, page by page, before Linux is asked to offline it.
//!
//! In a movable zone, Linux takes every page for movable but reserved ones (`has_unmovable_pages()` in
//! `mm/page_isolation.c`): memory that the kernel took at boot, from the end of RAM down. A block with such a page never
//! goes. Of the others one may fail all the same: a huge page of 1 GiB that finds no other place, a page that is pinned.
//! Linux moves pages out of movable zones as it pins them for long (`FOLL_LONGTERM`), so pins are told, and no more.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use partitioner::{Inventory, MemRange, Request, plan};

use crate::sysroot::SysRoot;

/// A word for each page (Linux, Documentation/admin-guide/mm/pagemap.rst).
const FLAGS: &str = "proc/kpageflags";
/// On the free list.
const BUDDY: u64 = 1 << 10;
/// A huge page.
const HUGE: u64 = 1 << 17;
/// Taken at boot (include/linux/kernel-page-flags.h).
const RESERVED: u64 = 1 << 32;
const PAGE: u64 = 4096;
/// Pages that are looked at at once.
const CHUNK: usize = 8192;

/// What lies in a block, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pages {
    free: u64,
    huge: u64,
    reserved: u64,
}

/// Looks into the blocks that a plan would take, until it takes none that cannot go: those are marked, and what is free
/// in the others is noted. Returns what to beware of.
pub fn settle(sys: &SysRoot, inventory: &mut Inventory, request: &Request) -> Vec<String> {
    let mut notes = Vec::new();
    let mut seen: Vec<MemRange> = Vec::new();
    let file = File::open(sys.path(FLAGS));
    // Without a plan there is nothing to look at: why not is told later.
    while let Ok(made) = plan(inventory, request) {
        let wanted = made.blocks.iter().filter(|block| block.is_online());
        let new: Vec<MemRange> = wanted
            .map(|block| block.range)
            .filter(|range| !seen.contains(range))
            .collect();
        if new.is_empty() {
            notes.extend(huge(sys, inventory, &seen, file.as_ref().ok()));
            break;
        }
        for range in new {
            seen.push(range);
            let pages = file
                .as_ref()
                .map_err(|error| error.kind().into())
                .and_then(|file| look(file, range));
            let block = inventory.blocks.iter_mut().find(|block| block.range == range);
            match (pages, block) {
                (Ok(pages), Some(block)) => {
                    block.free = pages.free * PAGE;
                    block.kept = (pages.reserved > 0).then(|| {
                        format!(
                            "memory that the kernel took at boot ({} KiB)",
                            pages.reserved * (PAGE >> 10)
                        )
                    });
                }
                (Err(error), _) => {
                    let whence = format!("could not look into the memory blocks (/{FLAGS}: {error})");
                    notes.push(format!(
                        "{whence}: if one holds what cannot be moved, the refresh is given up, and undone"
                    ));
                    return notes;
                }
                (Ok(_), None) => {}
            }
        }
    }
    notes
}

fn look(file: &File, block: MemRange) -> io::Result<Pages> {
    let mut pages = Pages::default();
    let mut words = vec![0; CHUNK * 8];
    let (mut at, end) = (block.start() / PAGE * 8, block.end() / PAGE * 8);
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(words.len());
        let words = words.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(words, at)?;
        for word in words.as_chunks().0 {
            let flags = u64::from_ne_bytes(*word);
            pages.free += u64::from(flags & BUDDY != 0);
            pages.huge += u64::from(flags & HUGE != 0);
            pages.reserved += u64::from(flags & RESERVED != 0);
        }
        at += wanted as u64;
    }
    Ok(pages)
}

/// Blocks with huge pages, where some of these are of 1 GiB.
fn huge(sys: &SysRoot, inventory: &Inventory, chosen: &[MemRange], file: Option<&File>) -> Option<String> {
    let there = sys
        .read_number("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
        .unwrap_or(0);
    if there == 0 {
        return None;
    }
    let goes = |range: &&MemRange| {
        let block = inventory.blocks.iter().find(|block| block.range == **range);
        block.is_some_and(|block| block.kept.is_none())
    };
    let has = |range: &&MemRange| look(file?, **range).ok().filter(|pages| pages.huge > 0);
    let mut held = chosen.iter().filter(goes).filter(|range| has(range).is_some());
    held.next().map(|range| {
        format!(
            "memory block {range} holds huge pages, and this host has {there} of 1 GiB: one that is in use may find no other \
             place, and then the refresh is given up, and undone; name other blocks in `memory`, or free huge pages"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::{inventory, request};
    use crate::testing::tree::{BLOCK, Tree};
    use partitioner::MemoryRequest;

    /// What a plan would take of this machine, and what is to be told.
    fn settled(tree: &Tree) -> (Vec<u64>, Vec<String>, Inventory) {
        let (mut inventory, request) = (inventory(tree), request(&[]));
        let notes = settle(&tree.sys(), &mut inventory, &request);
        let blocks = plan(&inventory, &request).unwrap().blocks;
        (
            blocks.iter().map(|block| block.range.start() / BLOCK).collect(),
            notes,
            inventory,
        )
    }

    #[test]
    fn a_block_with_memory_of_the_kernel_is_left_out() {
        let tree = Tree::lab();
        tree.page(9 * BLOCK, BUDDY);
        tree.page(10 * BLOCK + PAGE, BUDDY);
        let (blocks, notes, _) = settled(&tree);
        assert_eq!((blocks, notes), (vec![9, 10, 11, 12], vec![]));
        // Its last page, as what the kernel takes at boot.
        tree.page(13 * BLOCK - PAGE, RESERVED);
        let (blocks, notes, inventory) = settled(&tree);
        assert_eq!((blocks, notes), (vec![8, 9, 10, 11], vec![]));
        let free: Vec<u64> = inventory.blocks[8..12].iter().map(|block| block.free).collect();
        assert_eq!(free, [0, PAGE, PAGE, 0]);
        let range = MemRange::with_len(12 * BLOCK, BLOCK).unwrap();
        let named = Request {
            memory: MemoryRequest::Blocks(vec![range]),
            ..request(&[])
        };
        let error = plan(&inventory, &named).unwrap_err().to_string();
        assert!(
            error.contains("0x60000000-0x68000000") && error.contains("took at boot (4 KiB)"),
            "{error}"
        );
        // None is left that could go: the plan says how much there is.
        for number in 8..12 {
            tree.page(number * BLOCK, RESERVED);
        }
        let (mut inventory, request) = (self::inventory(&tree), request(&[]));
        assert_eq!(settle(&tree.sys(), &mut inventory, &request), Vec::<String>::new());
        let error = plan(&inventory, &request).unwrap_err().to_string();
        assert!(error.contains("can be offlined"), "{error}");
    }

    #[test]
    fn what_may_stay_is_told() {
        let tree = Tree::lab();
        tree.page(11 * BLOCK, HUGE);
        assert_eq!(settled(&tree).1, Vec::<String>::new(), "pages of 2 MiB find a place");
        tree.put("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "1\n");
        let (blocks, notes, _) = settled(&tree);
        assert_eq!(blocks, [9, 10, 11, 12]);
        assert!(
            notes.len() == 1 && notes[0].contains("0x58000000-0x60000000 holds huge pages"),
            "{notes:?}"
        );
        std::fs::remove_file(tree.path().join("proc/kpageflags")).unwrap();
        let (blocks, notes, _) = settled(&tree);
        assert_eq!(blocks, [9, 10, 11, 12]);
        assert!(notes.len() == 1 && notes[0].contains("could not look"), "{notes:?}");
    }
}
