//! The rows: what befalls, before the steps of whom, and what an operator does about it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Fault, blow};
use crate::daemon::ipc::Question;
use crate::refresh::kills::{ABORTED, Course, GOOD};
use crate::testing::tree::Tree;
use crate::testing::world::{Blow, INCUMBENT, SUCCESSOR};

const INCUMBENTS: Fault = Fault {
    name: "",
    steps_of: INCUMBENT,
    course: &GOOD,
    blow: |_| Arc::new(|| {}),
    mend: |_| {},
    victims: &[],
    lossy: false,
    least: 40,
};

const SUCCESSORS: Fault = Fault {
    steps_of: SUCCESSOR,
    least: 20,
    ..INCUMBENTS
};

/// In a course of events with a guest that comes back, the successor has less to do.
const BACK: Fault = Fault {
    course: &ABORTED,
    least: 15,
    ..SUCCESSORS
};

const ONE: &[&str] = &["one"];

pub(super) const TABLE: &[Fault] = &[
    Fault {
        name: "the guest's QEMU is killed in the incumbent",
        blow: |stage| blow(stage, |world| world.kill_qemu(INCUMBENT, "one")),
        victims: ONE,
        ..INCUMBENTS
    },
    Fault {
        name: "the guest's QEMU is killed in the incumbent, and the guests are to come back",
        course: &ABORTED,
        blow: |stage| blow(stage, |world| world.kill_qemu(INCUMBENT, "one")),
        victims: ONE,
        ..INCUMBENTS
    },
    Fault {
        name: "the guest's QEMU is killed in the successor",
        blow: |stage| blow(stage, |world| world.kill_qemu(SUCCESSOR, "one")),
        victims: ONE,
        ..SUCCESSORS
    },
    Fault {
        name: "the guest's QEMU is killed in the successor, and the guests are to come back",
        blow: |stage| blow(stage, |world| world.kill_qemu(SUCCESSOR, "one")),
        victims: ONE,
        ..BACK
    },
    Fault {
        name: "the guest's QEMU hangs in the incumbent",
        blow: |stage| blow(stage, |world| world.hang_qemu(INCUMBENT, "one")),
        mend: |stage| stage.world.wake_qemus(),
        victims: ONE,
        ..INCUMBENTS
    },
    Fault {
        name: "the guest's QEMU hangs in the incumbent, and the guests are to come back",
        course: &ABORTED,
        blow: |stage| blow(stage, |world| world.hang_qemu(INCUMBENT, "one")),
        mend: |stage| stage.world.wake_qemus(),
        victims: ONE,
        ..INCUMBENTS
    },
    Fault {
        name: "the guest's QEMU hangs in the successor",
        blow: |stage| blow(stage, |world| world.hang_qemu(SUCCESSOR, "one")),
        mend: |stage| stage.world.wake_qemus(),
        victims: ONE,
        ..SUCCESSORS
    },
    Fault {
        name: "the guest's QEMU hangs in the successor, and the guests are to come back",
        blow: |stage| blow(stage, |world| world.hang_qemu(SUCCESSOR, "one")),
        mend: |stage| stage.world.wake_qemus(),
        victims: ONE,
        ..BACK
    },
    Fault {
        name: "the guest's disk server is gone",
        blow: |stage| blow(stage, |world| world.take_disk("one")),
        mend: |stage| stage.world.bring_disks(),
        victims: ONE,
        ..INCUMBENTS
    },
    Fault {
        name: "the guest's disk server is gone, and the guests are to come back",
        course: &ABORTED,
        blow: |stage| blow(stage, |world| world.take_disk("one")),
        mend: |stage| stage.world.bring_disks(),
        victims: ONE,
        ..INCUMBENTS
    },
    Fault {
        name: "all channels break off",
        blow: |stage| blow(stage, |world| world.cut_channels()),
        ..INCUMBENTS
    },
    Fault {
        name: "all channels break off, by the successor's steps, and the guests are to come back",
        blow: |stage| blow(stage, |world| world.cut_channels()),
        ..BACK
    },
    Fault {
        name: "/run is full in the incumbent",
        blow: |stage| fills(stage.machine.tree(), &["journal.new", "kept.new"]),
        mend: |stage| frees(stage.machine.tree()),
        ..INCUMBENTS
    },
    Fault {
        name: "/run is full in the successor",
        // That it has written down how it ended is how these tests see it.
        blow: |stage| blow(stage, |world| fills(&world.successor().unwrap(), &["journal.new"])()),
        ..SUCCESSORS
    },
    Fault {
        name: "the incumbent's kernel has no memory for the next thing",
        blow: |stage| blow(stage, |world| world.run_short(INCUMBENT)),
        lossy: true,
        ..INCUMBENTS
    },
    Fault {
        name: "the incumbent's kernel has no memory for the next thing, and the guests are to come back",
        course: &ABORTED,
        blow: |stage| blow(stage, |world| world.run_short(INCUMBENT)),
        lossy: true,
        ..INCUMBENTS
    },
    Fault {
        name: "the successor's kernel has no memory for the next thing",
        blow: |stage| blow(stage, |world| world.run_short(SUCCESSOR)),
        lossy: true,
        ..SUCCESSORS
    },
    Fault {
        name: "the operator wants an abort, and somebody else another refresh",
        blow: |stage| {
            let worker = stage.worker.clone();
            Arc::new(move || {
                let again = worker.begin("next").expect_err("one at a time");
                assert!(again.to_string().contains("is running"), "{again}");
                // Too late, once it is.
                let _ = worker.answer(&Question::Abort);
            })
        },
        ..INCUMBENTS
    },
    Fault {
        name: "the successor dies",
        blow: |stage| blow(stage, |world| world.kill_successor()),
        victims: &["one", "two"],
        ..SUCCESSORS
    },
];

/// Files in `/run/locum` that can be written no more.
fn fills(tree: &Tree, names: &'static [&'static str]) -> Blow {
    let dir: PathBuf = tree.path().join("run/locum");
    Arc::new(move || {
        for name in names {
            fs::create_dir_all(dir.join(name).join("in the way")).unwrap();
        }
    })
}

fn frees(tree: &Tree) {
    for name in ["journal.new", "kept.new"] {
        let _ = fs::remove_dir_all(tree.path().join("run/locum").join(name));
    }
}

/// Courses of events in which a host's daemon may hang.
pub(super) const HANGS: &[(&Course, locum_abi::Slot, usize)] = &[
    (&GOOD, INCUMBENT, 40),
    (&ABORTED, INCUMBENT, 40),
    (&GOOD, SUCCESSOR, 20),
    (&ABORTED, SUCCESSOR, 15),
];
