//! The pool as a plain file, on a host of files.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::table::words;
use super::*;
use crate::guest::libvirt::hook::{self, Domain};
use crate::testing::tree::Tree;

const MIB: u64 = 1 << 20;
const UUID: &str = "0123abcd-0000-4000-8000-00000000cafe";

struct Stage {
    tree: Tree,
    file: PathBuf,
    extents: Extents,
}

impl Stage {
    /// A pool of 32 MiB, full of bytes of guests that were.
    fn new() -> Self {
        let tree = Tree::lab();
        let file = tree.put("pool", vec![0xa5; 32 << 20]);
        tree.put("proc/sys/kernel/random/uuid", "00000000-1111-4000-8000-000000000001\n");
        let words: Arc<dyn Words> = Arc::new(words(8));
        let extents = Table::new(words, size_of::<locum_abi::PoolExtent>(), 8);
        Self { tree, file, extents }
    }

    fn with<T>(&self, slot: Slot, beside: bool, work: impl FnOnce(&Keeper<'_>) -> T) -> T {
        let sys = self.tree.sys();
        let mut keeper = Keeper::new(&sys, &Pool::File(self.file.clone()), &self.extents, slot, beside).unwrap();
        // Found below the root, as a device is.
        for part in &mut keeper.parts {
            part.file = PathBuf::from("/pool");
        }
        work(&keeper)
    }

    fn alloc(&self, name: &str, mib: u64) -> Result<View> {
        self.with(Slot::Even, false, |keeper| keeper.alloc(&wanted(name, mib)))
    }

    fn free(&self, name: &str) -> Result<Vec<View>> {
        self.with(Slot::Even, false, |keeper| keeper.free(name))
    }

    /// Bytes of the pool that are not zero.
    fn dirt(&self, start: u64, len: u64) -> usize {
        let mut bytes = vec![0; usize::try_from(len).unwrap()];
        fs::File::open(&self.file)
            .unwrap()
            .read_exact_at(&mut bytes, start)
            .unwrap();
        bytes.iter().filter(|byte| **byte != 0).count()
    }

    /// A guest writes into its RAM.
    fn scribble(&self, start: u64) {
        let file = OpenOptions::new().write(true).open(&self.file).unwrap();
        file.write_all_at(b"a secret", start).unwrap();
    }

    fn maps(&self, pid: u32, start: u64, len: u64, command: &str) {
        let map = format!(
            "7f0000000000-{:x} rw-s {start:x} 08:01 9 /pool\n",
            0x7f00_0000_0000 + len
        );
        self.tree.put(format!("proc/{pid}/maps"), map);
        self.tree.put(format!("proc/{pid}/cmdline"), command);
    }
}

fn wanted(name: &str, mib: u64) -> Wanted {
    Wanted {
        name: name.to_owned(),
        size: mib * MIB,
        node: None,
        uuid: None,
    }
}

fn error(outcome: Result<impl Sized>) -> String {
    match outcome {
        Err(error) => format!("{error:#}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn a_guest_finds_zeroes_where_another_was() {
    let stage = Stage::new();
    let one = stage.alloc("one", 3).unwrap();
    assert_eq!(
        (one.start, one.end, one.offset),
        (0, 4 * MIB, Some(0)),
        "whole pages of 2 MiB"
    );
    assert_eq!(one.uuid.to_string(), "00000000-1111-4000-8000-000000000001");
    assert_eq!(
        one.backend().unwrap(),
        "-object memory-backend-file,id=ram,mem-path=/pool,share=on,align=2M,size=4194304,offset=0"
    );
    assert_eq!(stage.dirt(0, 4 * MIB), 0);
    assert_eq!(stage.dirt(4 * MIB, MIB) as u64, MIB, "what it did not get is as it was");
    stage.scribble(MIB);
    // Its QEMU ends, and comes again, as after a crossing: nothing is cleared.
    assert!(error(stage.alloc("one", 3)).contains("locum pool free one"));
    assert_eq!(stage.dirt(0, 4 * MIB), 8);
    // Nor when it is given up.
    let freed = stage.free("one").unwrap();
    assert_eq!((freed.len(), stage.dirt(0, 4 * MIB)), (1, 8));
    // But before the next one has it.
    let two = stage.alloc("two", 2).unwrap();
    assert_eq!((two.start, stage.dirt(0, 2 * MIB)), (0, 0));
}

#[test]
fn what_cannot_be_cleared_is_not_given() {
    let stage = Stage::new();
    let outcome = stage.with(Slot::Even, false, |keeper| {
        // As if the device were shorter than it says.
        OpenOptions::new()
            .write(true)
            .open(&stage.file)
            .unwrap()
            .set_len(MIB)
            .unwrap();
        keeper.alloc(&wanted("one", 4))
    });
    assert!(error(outcome).contains("so the guest gets none of it"));
    assert_eq!(stage.extents.entries().unwrap(), []);
}

#[test]
fn a_pool_that_is_full_or_in_pieces_says_so() {
    let stage = Stage::new();
    for (name, mib) in [("a", 8), ("b", 8), ("c", 8), ("d", 8)] {
        stage.tree.put(
            "proc/sys/kernel/random/uuid",
            format!("00000000-1111-4000-8000-00000000000{name}\n"),
        );
        stage.alloc(name, mib).unwrap();
    }
    stage
        .tree
        .put("proc/sys/kernel/random/uuid", "00000000-1111-4000-8000-0000000000ff\n");
    assert!(error(stage.alloc("e", 2)).contains("the pool is full"));
    stage.free("a").unwrap();
    stage.free("c").unwrap();
    let told = error(stage.alloc("e", 10));
    assert!(
        told.contains("fragmented: 10 MiB are wanted in one piece, 16 MiB are free in 2 pieces, the largest has 8 MiB"),
        "{told}"
    );
    assert!(error(stage.alloc("e", 20)).contains("too full"));
    let elsewhere = Wanted {
        node: Some(3),
        ..wanted("e", 2)
    };
    let told = error(stage.with(Slot::Even, false, |keeper| keeper.alloc(&elsewhere)));
    assert!(told.contains("on node 3"), "{told}");
    assert!(error(stage.free("nobody")).contains("these have: b, d"));
}

#[test]
fn a_guest_that_was_started_by_hand_is_entered_and_its_ram_is_not_given_away() {
    let stage = Stage::new();
    let qemu = format!("qemu-system-x86_64\0-name\0hand\0-uuid\0{UUID}\0");
    stage.maps(77, 2 * MIB, 3 * MIB, &qemu);
    let one = stage.alloc("one", 26).unwrap();
    assert_eq!(one.start, 6 * MIB, "behind it");
    let list = stage.with(Slot::Even, false, |keeper| keeper.list()).unwrap();
    let hand = &list[0];
    assert_eq!((hand.guest.as_str(), hand.start, hand.end), ("hand", 2 * MIB, 6 * MIB));
    assert_eq!((hand.uuid.to_string().as_str(), hand.state), (UUID, "used"));
    assert_eq!(
        stage.dirt(2 * MIB, 4 * MIB) as u64,
        4 * MIB,
        "it runs: nothing is cleared"
    );
    let told = error(stage.free(UUID));
    assert!(
        told.contains("process 77 (hand)") && told.contains("stop the guest first"),
        "{told}"
    );
    // Half in another's: in doubt nothing is given.
    stage.maps(78, 4 * MIB, 4 * MIB, "qemu-system-x86_64\0-name\0rogue\0");
    let told = error(stage.alloc("two", 2));
    assert!(
        told.contains("not certain") && told.contains("process 78 (rogue)"),
        "{told}"
    );
    fs::remove_dir_all(stage.tree.path().join("proc/78")).unwrap();
    fs::remove_dir_all(stage.tree.path().join("proc/77")).unwrap();
    assert_eq!(stage.free(UUID).unwrap()[0].guest, "hand");
}

#[test]
fn one_that_was_only_seen_makes_room_for_another_that_is() {
    let stage = Stage::new();
    let list = || -> Vec<(String, u64)> {
        let list = stage.with(Slot::Even, false, |keeper| {
            assert_eq!(keeper.enter_seen().unwrap(), [] as [String; 0]);
            keeper.list()
        });
        list.unwrap()
            .into_iter()
            .map(|view| (view.guest, view.start / MIB))
            .collect()
    };
    stage.maps(77, 2 * MIB, 4 * MIB, "qemu-system-x86_64\0-name\0hand\0");
    assert_eq!(list(), [("hand".to_owned(), 2)]);
    fs::remove_dir_all(stage.tree.path().join("proc/77")).unwrap();
    assert_eq!(list(), [("hand".to_owned(), 2)], "it may come again");
    stage.maps(78, 4 * MIB, 6 * MIB, "qemu-system-x86_64\0-name\0other\0");
    assert_eq!(list(), [("other".to_owned(), 4)]);
    // What was asked for stays.
    stage.alloc("mine", 2).unwrap();
    let mine = stage.extents.entries().unwrap().remove(0).extent.range.start();
    stage.maps(79, mine, 4 * MIB, "qemu-system-x86_64\0-name\0rogue\0");
    let problems = stage.with(Slot::Even, false, |keeper| keeper.enter_seen()).unwrap();
    assert!(
        problems[0].contains("process 79 (rogue)") && problems[0].contains("mine"),
        "{problems:?}"
    );
}

#[test]
fn what_is_the_other_hosts_or_on_its_way_is_not_freed() {
    let stage = Stage::new();
    stage.alloc("one", 2).unwrap();
    let entry = stage.extents.entries().unwrap().remove(0);
    let crossing = stage.extents.settle(&entry, PoolState::Crossing, Slot::Even).unwrap();
    let beside = |slot, name: &str| error(stage.with(slot, true, |keeper| keeper.free(name)));
    assert!(beside(Slot::Even, "one").contains("crossing"));
    stage.extents.settle(&crossing, PoolState::Used, Slot::Odd).unwrap();
    assert!(beside(Slot::Even, "one").contains("in the other host"));
    // That one is gone, with what it had.
    stage.free("one").unwrap();
}

#[test]
fn one_program_of_a_host_changes_the_table_at_a_time() {
    let stage = Stage::new();
    stage.with(Slot::Even, false, |first| {
        let claimed = first.extents.claim(
            &Extent {
                range: MemRange::new(0, 2 * MIB).unwrap(),
                uuid: Uuid::default(),
                node: None,
                name: "one".to_owned(),
                seen: false,
            },
            Slot::Even,
        );
        assert!(error(stage.alloc("two", 2)).contains("another `locum` of this host"));
        assert_eq!(stage.extents.entries().unwrap(), [claimed.unwrap()], "that lives");
    });
    // It has died.
    assert_eq!(stage.alloc("two", 2).unwrap().start, 0);
    assert_eq!(stage.extents.entries().unwrap().len(), 1);
}

#[test]
fn a_guest_that_starts_has_its_own_piece_and_one_that_comes_has_it_already() {
    let stage = Stage::new();
    let uuid = Uuid::parse(UUID).unwrap();
    let start = |slot, beside, mib| {
        let wanted = Wanted {
            uuid: Some(uuid),
            ..wanted("one", mib)
        };
        stage.with(slot, beside, |keeper| keeper.for_start(&wanted))
    };
    let (first, crossing) = start(Slot::Even, false, 4).unwrap();
    assert!(!crossing && stage.dirt(first.start, 4 * MIB) == 0);
    // It ended, and nobody heard of it.
    stage.scribble(MIB);
    let (again, crossing) = start(Slot::Even, false, 6).unwrap();
    assert!(!crossing && again.end - again.start == 6 * MIB && stage.dirt(again.start, 6 * MIB) == 0);
    // It runs.
    stage.maps(77, again.start, 6 * MIB, "qemu-system-x86_64\0-name\0one\0");
    assert!(error(start(Slot::Even, false, 6)).contains("process 77"));
    assert!(error(start(Slot::Odd, true, 6)).contains("used by the other host"));
    // It goes.
    stage.scribble(MIB);
    let entry = stage.extents.entries().unwrap().remove(0);
    stage.extents.settle(&entry, PoolState::Crossing, Slot::Even).unwrap();
    assert!(error(start(Slot::Even, true, 6)).contains("crossing by this host"));
    let (come, crossing) = start(Slot::Odd, true, 6).unwrap();
    assert!(crossing && come.start == again.start);
    assert_eq!(stage.dirt(come.start, 6 * MIB), 8, "its RAM is as it was");
    assert!(error(start(Slot::Odd, true, 8)).contains("less than"));
}

#[test]
fn a_domain_whose_qemu_is_replaced_keeps_its_piece_and_what_is_in_it() {
    let stage = Stage::new();
    let domain = Domain {
        name: "one".to_owned(),
        uuid: Uuid::parse(UUID).unwrap(),
        memory: 4 * MIB,
        wrapped: true,
        variables: None,
    };
    let sys = stage.tree.sys();
    let start = |domain: &Domain| stage.with(Slot::Even, false, |keeper| hook::start(&sys, keeper, domain));
    let end = || stage.with(Slot::Even, false, |keeper| hook::end(&sys, keeper, &domain));
    let first = start(&domain).unwrap();
    assert!(!first.crossing);
    stage.scribble(MIB);
    let saved = stage.tree.put(format!("run/locum/libvirt/{UUID}.saved"), "state");
    end().unwrap();
    let again = start(&domain).unwrap();
    assert!(again.crossing && again.offset == first.offset, "{again:?}");
    let at = stage.extents.entries().unwrap().remove(0).extent.range.start();
    assert_eq!(stage.dirt(at, 4 * MIB), 8, "its RAM is as it was");
    let larger = Domain {
        memory: 6 * MIB,
        ..domain.clone()
    };
    assert!(error(start(&larger)).contains("has not the RAM"));
    // What was saved is gone: the guest ends as any other.
    std::fs::remove_file(saved).unwrap();
    end().unwrap();
    assert!(stage.extents.entries().unwrap().is_empty());
    assert!(!start(&domain).unwrap().crossing);
    assert_eq!(stage.dirt(at, 4 * MIB), 0);
}
