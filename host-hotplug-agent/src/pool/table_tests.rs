//! One owner for each byte, whatever two hosts ask for and wherever one of their programs dies.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use proptest::prelude::*;

use super::*;

const STRIDE: usize = KNOWN + 8;
const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const PAGES: u64 = 8;

fn words(count: usize) -> Vec<AtomicU64> {
    // A later release's entries are longer.
    (0..count * STRIDE).map(|_| AtomicU64::new(0)).collect()
}

fn table(count: usize) -> Table<Vec<AtomicU64>> {
    Table::new(words(count), STRIDE * 8, count)
}

/// Pages `first..first + count` of a pool at 4 GiB.
fn pages(first: u64, count: u64) -> MemRange {
    MemRange::with_len(4 * GIB + first * POOL_GRAIN, count * POOL_GRAIN).unwrap()
}

fn extent(name: &str, range: MemRange) -> Extent {
    Extent {
        range,
        uuid: Uuid::parse("0123abcd-0000-4000-8000-00000000cafe").unwrap(),
        node: Some(1),
        name: name.to_owned(),
        seen: false,
    }
}

#[test]
fn what_was_entered_is_read() {
    let table = table(4);
    let first = extent("one", pages(2, 3));
    let claimed = table.claim(&first, Slot::Odd).unwrap();
    assert_eq!(claimed.state, PoolState::Scrubbing);
    let used = table.settle(&claimed, PoolState::Used, Slot::Odd).unwrap();
    assert!(
        table.settle(&claimed, PoolState::Used, Slot::Odd).is_none(),
        "once only"
    );
    let second = Extent {
        uuid: Uuid::default(),
        node: None,
        seen: true,
        ..extent(&"é".repeat(31), pages(0, 2))
    };
    table.claim(&second, Slot::Even).unwrap();
    let entries = table.entries().unwrap();
    let said: Vec<_> = entries.iter().map(|entry| (&entry.extent, entry.word.slot())).collect();
    assert_eq!(said, [(&second, Slot::Even), (&first, Slot::Odd)], "by address");
    assert_eq!(entries[1], used);
    assert_eq!(first.uuid.to_string(), "0123abcd-0000-4000-8000-00000000cafe");
    let gone = table.settle(&used, PoolState::Empty, Slot::Odd).unwrap();
    assert_eq!(table.entries().unwrap().len(), 1);
    assert!(table.settle(&gone, PoolState::Used, Slot::Odd).is_some() && table.entries().unwrap().len() == 2);
}

#[test]
fn a_byte_is_taken_once() {
    let table = table(4);
    let claim = |name: &str, range| table.claim(&extent(name, range), Slot::Even);
    claim("one", pages(2, 2)).unwrap();
    for range in [pages(0, 3), pages(3, 1), pages(3, 4), pages(0, 8)] {
        let error = claim("two", range).unwrap_err();
        assert!(
            matches!(&error, ClaimError::Taken(entry) if entry.extent.name == "one"),
            "{error:?}"
        );
        assert!(error.to_string().contains("0x100400000-0x100800000") && error.to_string().contains("one"));
    }
    assert_eq!(table.entries().unwrap().len(), 1, "nothing is left of those");
    claim("two", pages(0, 2)).unwrap();
    claim("three", pages(4, 4)).unwrap();
    claim("four", pages(8, 1)).unwrap();
    assert_eq!(claim("five", pages(9, 1)), Err(ClaimError::Full));
}

#[test]
fn what_is_no_extent_is_refused() {
    let table = table(2);
    let odd = MemRange::with_len(4 * GIB + 4096, POOL_GRAIN).unwrap();
    for wrong in [
        extent("one", odd),
        extent("", pages(0, 1)),
        extent(&"x".repeat(64), pages(0, 1)),
        extent("a\0b", pages(0, 1)),
    ] {
        assert_eq!(table.claim(&wrong, Slot::Even), Err(ClaimError::Malformed));
    }
    for wrong in [
        "",
        "0123abcd",
        "0123abcd-0000-4000-8000-00000000caf",
        "0123abcd-0000-4000-8000-00000000caf+",
    ] {
        assert_eq!(Uuid::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn a_damaged_entry_is_told_and_nothing_is_given_meanwhile() {
    for damage in [
        &|words: &Vec<AtomicU64>| words[STRIDE].store(99, SeqCst),
        &|words: &Vec<AtomicU64>| words[STRIDE + SIZE].store(0, SeqCst),
        &|words: &Vec<AtomicU64>| words[STRIDE + START].store(!0, SeqCst),
        &|words: &Vec<AtomicU64>| words[STRIDE + NAME].store(0xff, SeqCst),
    ] as [&dyn Fn(&Vec<AtomicU64>); 4]
    {
        let table = table(3);
        table.claim(&extent("one", pages(0, 1)), Slot::Even).unwrap();
        table.claim(&extent("two", pages(1, 1)), Slot::Even).unwrap();
        damage(&table.words);
        assert_eq!(table.entries(), Err(Unreadable::Damaged(1)));
        let error = table.claim(&extent("three", pages(4, 1)), Slot::Even).unwrap_err();
        assert_eq!(error, ClaimError::Damaged(1));
        assert!(!table.clear_damaged(0, Slot::Even) && !table.clear_damaged(7, Slot::Even));
        assert!(table.clear_damaged(1, Slot::Even));
        assert_eq!(table.entries().unwrap().len(), 1);
    }
}

#[test]
fn the_smallest_gap_that_fits_is_taken() {
    let table = table(8);
    let mut taken = vec![];
    for (first, count) in [(2, 2), (5, 1), (10, 2)] {
        taken.push(table.claim(&extent("x", pages(first, count)), Slot::Even).unwrap());
    }
    let gaps = free(&[pages(0, 12)], &table.entries().unwrap());
    assert_eq!(gaps, [pages(0, 2), pages(4, 1), pages(6, 4)]);
    assert_eq!(place(&gaps, POOL_GRAIN), Some(pages(4, 1)));
    assert_eq!(place(&gaps, 2 * POOL_GRAIN), Some(pages(0, 2)));
    assert_eq!(place(&gaps, 3 * POOL_GRAIN), Some(pages(6, 3)));
    assert_eq!(place(&gaps, 5 * POOL_GRAIN), None);
    // A device that does not begin at a whole page.
    let odd = MemRange::new(4 * GIB + MIB, 4 * GIB + 7 * MIB).unwrap();
    assert_eq!(free(&[odd], &[]), [pages(1, 2)]);
}

#[test]
fn what_the_dead_had_begun_is_cleared_away_and_what_the_living_do_is_not() {
    let table = table(8);
    let dead_even = |slot| slot == Slot::Even;
    for (number, slot) in [(0, Slot::Even), (1, Slot::Odd)] {
        table.claim(&extent("half", pages(number, 1)), slot).unwrap();
        let crossing = table.claim(&extent("crossing", pages(2 + number, 1)), slot).unwrap();
        table.settle(&crossing, PoolState::Crossing, slot).unwrap();
        let used = table.claim(&extent("used", pages(4 + number, 1)), slot).unwrap();
        table.settle(&used, PoolState::Used, slot).unwrap();
    }
    let states = || -> Vec<(PoolState, Slot)> {
        let entries = table.entries().unwrap();
        entries.iter().map(|entry| (entry.state, entry.word.slot())).collect()
    };
    let mended = table.mend(Slot::Even, dead_even, |_| false);
    assert_eq!(mended.len(), 1, "{mended:?}");
    assert_eq!(
        (mended[0].name.as_deref(), mended[0].to),
        (Some("half"), PoolState::Empty)
    );
    assert_eq!(
        states(),
        [
            (PoolState::Scrubbing, Slot::Odd),
            (PoolState::Crossing, Slot::Even),
            (PoolState::Crossing, Slot::Odd),
            (PoolState::Used, Slot::Even),
            (PoolState::Used, Slot::Odd)
        ]
    );
    // The other host is gone: every guest that there is is here.
    table.mend(Slot::Even, |_| true, |slot| slot == Slot::Odd);
    assert_eq!(states(), [(PoolState::Used, Slot::Even); 4]);
}

thread_local! {
    /// How many more writes the program makes before it dies.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Words whose writer may die before any write.
#[derive(Debug)]
struct Mortal(Vec<AtomicU64>);

impl Mortal {
    fn write() {
        let left = LEFT.get();
        if left == 0 {
            std::panic::resume_unwind(Box::new("killed"));
        }
        LEFT.set(left.saturating_sub(usize::from(left != usize::MAX)));
    }
}

impl Words for Mortal {
    fn load(&self, index: usize) -> u64 {
        self.0.load(index)
    }

    fn store(&self, index: usize, value: u64) {
        Self::write();
        self.0.store(index, value);
    }

    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool {
        Self::write();
        self.0.swap_if(index, from, to)
    }

    fn fence(&self) {}
}

/// What a program of a host does.
#[derive(Clone, Copy, Debug)]
enum Deed {
    /// Takes pages for a guest of that number, clears them, and uses them.
    Alloc(u64, u64),
    Free(usize),
    /// Sends a guest to the other host, or gets it.
    Cross(usize),
    Arrive(usize),
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        3 => (0..PAGES, 1..=3u64).prop_map(|(first, count)| Deed::Alloc(first, count)),
        1 => any::<usize>().prop_map(Deed::Free),
        1 => any::<usize>().prop_map(Deed::Cross),
        1 => any::<usize>().prop_map(Deed::Arrive),
    ]
}

fn pick(table: &Table<Mortal>, number: usize, state: PoolState) -> Option<Entry> {
    let mut entries = table.entries().unwrap();
    entries.retain(|entry| entry.state == state);
    (!entries.is_empty()).then(|| entries.swap_remove(number % entries.len()))
}

/// Whose each page is, and whether it is clean: what QEMUs would see.
type Pages = BTreeMap<u64, String>;

fn run(table: &Table<Mortal>, dirt: &mut Pages, deed: Deed, slot: Slot, name: &str) {
    match deed {
        Deed::Alloc(first, count) => {
            let Ok(claimed) = table.claim(&extent(name, pages(first, count)), slot) else {
                return;
            };
            (first..first + count).for_each(|page| drop(dirt.remove(&page)));
            let used = table.settle(&claimed, PoolState::Used, slot);
            assert!(used.is_some(), "what was claimed is nobody else's to change");
            // The guest runs.
            for page in first..first + count {
                assert_eq!(dirt.insert(page, name.to_owned()), None, "it found another's bytes");
            }
        }
        Deed::Free(number) => {
            if let Some(entry) = pick(table, number, PoolState::Used) {
                table.settle(&entry, PoolState::Empty, slot);
            }
        }
        Deed::Cross(number) => {
            if let Some(entry) = pick(table, number, PoolState::Used) {
                table.settle(&entry, PoolState::Crossing, slot);
            }
        }
        Deed::Arrive(number) => {
            if let Some(entry) = pick(table, number, PoolState::Crossing) {
                table.settle(&entry, PoolState::Used, slot);
            }
        }
    }
}

/// Each page has one owner, and holds that guest's bytes.
fn check(table: &Table<Mortal>, dirt: &Pages) {
    let mut owned = BTreeMap::new();
    for entry in table.entries().unwrap() {
        if entry.state == PoolState::Claimed {
            continue;
        }
        for page in 0..PAGES + 3 {
            if entry.extent.range.overlaps(pages(page, 1)) {
                let before = owned.insert(page, entry.extent.name.clone());
                assert_eq!(before, None, "page {page} has two owners");
                if matches!(entry.state, PoolState::Used | PoolState::Crossing)
                    && let Some(bytes) = dirt.get(&page)
                {
                    assert_eq!(*bytes, entry.extent.name, "page {page}");
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn one_owner_for_each_byte_wherever_a_program_dies(
        deeds in prop::collection::vec((deed(), any::<bool>(), prop::option::of(0..24usize)), 1..40),
    ) {
        let table = Table::new(Mortal(words(6)), STRIDE * 8, 6);
        let mut dirt = Pages::new();
        for (number, (deed, odd, dies)) in deeds.into_iter().enumerate() {
            let slot = if odd { Slot::Odd } else { Slot::Even };
            let name = format!("guest {number}");
            LEFT.set(dies.unwrap_or(usize::MAX));
            let alive = catch_unwind(AssertUnwindSafe(|| run(&table, &mut dirt, deed, slot, &name)));
            LEFT.set(usize::MAX);
            if let Err(why) = alive {
                if why.downcast_ref() != Some(&"killed") {
                    std::panic::resume_unwind(why);
                }
                check(&table, &dirt);
                let before = table.entries().unwrap();
                table.mend(slot, |dead| dead == slot, |_| false);
                // Nothing is lost that was decided before.
                let after = table.entries().unwrap();
                let kept = |entry: &&Entry| matches!(entry.state, PoolState::Used | PoolState::Crossing);
                prop_assert!(before.iter().filter(kept).eq(after.iter().filter(kept)));
                prop_assert!(after.iter().all(|entry| kept(&entry)), "{after:?}");
            }
            check(&table, &dirt);
        }
    }
}

/// Only the words that decide are the checker's: one thread runs at a time, and the rest of an entry is its writer's alone
/// until they say that it counts.
#[derive(Debug)]
struct Checked {
    states: Vec<loom::sync::atomic::AtomicU64>,
    rest: Vec<AtomicU64>,
}

impl Words for Checked {
    fn load(&self, index: usize) -> u64 {
        match index % STRIDE {
            0 => self.states[index / STRIDE].load(SeqCst),
            _ => self.rest.load(index),
        }
    }

    fn store(&self, index: usize, value: u64) {
        self.rest.store(index, value);
    }

    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool {
        let state = &self.states[index / STRIDE];
        state.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }

    fn fence(&self) {
        loom::sync::atomic::fence(SeqCst);
    }
}

#[test]
fn two_hosts_that_claim_one_byte_do_not_both_get_it() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(|| {
        let words = Checked {
            states: (0..2).map(|_| loom::sync::atomic::AtomicU64::new(0)).collect(),
            rest: words(2),
        };
        let table = loom::sync::Arc::new(Table::new(words, STRIDE * 8, 2));
        let other = table.clone();
        let claim =
            |table: &Table<Checked>, name: &str, first, slot| table.claim(&extent(name, pages(first, 2)), slot).is_ok();
        let odd = loom::thread::spawn(move || claim(&other, "odd", 1, Slot::Odd));
        let even = claim(&table, "even", 0, Slot::Even);
        let odd = odd.join().unwrap();
        assert!(!(odd && even), "page 1 has two owners");
        let entries = table.entries().unwrap();
        assert_eq!(entries.len(), usize::from(odd) + usize::from(even));
    });
}
