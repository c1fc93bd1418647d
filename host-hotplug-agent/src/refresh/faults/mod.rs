//! The table of faults on the machine in memory: what befalls, played before every step of a refresh, with the same questions
//! after each. The daemons' deaths, which need another daemon, are in [`super::kills`].

use std::fs;
use std::sync::Arc;

use locum_abi::Slot;

use super::kills::{ABORTED, Course, GOOD, each};
use super::tests::Stage;
use crate::daemon::ipc::Question;
use crate::testing::vm::FakeHypervisor;
use crate::testing::world::{Behaviour, Blow, INCUMBENT, SUCCESSOR};

/// One line of the table.
struct Fault {
    /// What befalls.
    name: &'static str,
    /// Before the steps of which host's daemon.
    steps_of: Slot,
    /// In which course of events.
    course: &'static Course,
    /// What befalls, for a stage.
    blow: fn(&Stage) -> Blow,
    /// What an operator does about it, once the refresh has ended or is stuck.
    mend: fn(&Stage),
    /// Whether guest one may be lost, or stand still and be told.
    victim: bool,
    /// Steps there are at least.
    least: usize,
}

fn blow(stage: &Stage, what: impl Fn(&crate::testing::world::World) + Send + Sync + 'static) -> Blow {
    let world = Arc::downgrade(&stage.world);
    Arc::new(move || what(&world.upgrade().expect("the world of this step")))
}

fn journal_in(tree: &crate::testing::tree::Tree, slot: &str) -> std::path::PathBuf {
    tree.path().join(format!("run/locum/journal{slot}"))
}

const NOTHING: fn(&Stage) = |_| {};

const TABLE: &[Fault] = &[
    Fault {
        name: "the guest's QEMU is killed in the incumbent",
        steps_of: INCUMBENT,
        course: &GOOD,
        blow: |stage| blow(stage, |world| world.kill_qemu(INCUMBENT, "one")),
        mend: NOTHING,
        victim: true,
        least: 40,
    },
    Fault {
        name: "the guest's QEMU is killed in the successor",
        steps_of: SUCCESSOR,
        course: &GOOD,
        blow: |stage| blow(stage, |world| world.kill_qemu(SUCCESSOR, "one")),
        mend: NOTHING,
        victim: true,
        least: 20,
    },
    Fault {
        name: "the guest's QEMU is killed in the successor, and the guests are to come back",
        steps_of: SUCCESSOR,
        course: &ABORTED,
        blow: |stage| blow(stage, |world| world.kill_qemu(SUCCESSOR, "one")),
        mend: NOTHING,
        victim: true,
        least: 15,
    },
    Fault {
        name: "the guest's QEMU hangs in the incumbent",
        steps_of: INCUMBENT,
        course: &GOOD,
        blow: |stage| blow(stage, |world| world.hang_qemu(INCUMBENT, "one")),
        mend: |stage| stage.world.wake_qemus(),
        victim: true,
        least: 40,
    },
    Fault {
        name: "the guest's QEMU hangs in the successor",
        steps_of: SUCCESSOR,
        course: &GOOD,
        blow: |stage| blow(stage, |world| world.hang_qemu(SUCCESSOR, "one")),
        mend: |stage| stage.world.wake_qemus(),
        victim: true,
        least: 20,
    },
    Fault {
        name: "all channels break off",
        steps_of: INCUMBENT,
        course: &GOOD,
        blow: |stage| blow(stage, |world| world.cut_channels()),
        mend: NOTHING,
        victim: false,
        least: 40,
    },
];

/// Rows that do not go well at every step yet, or take a time-out.
const OPEN: &[Fault] = &[
    Fault {
        name: "all channels break off, by the successor's steps, and the guests are to come back",
        steps_of: SUCCESSOR,
        course: &ABORTED,
        blow: |stage| blow(stage, |world| world.cut_channels()),
        mend: NOTHING,
        victim: false,
        least: 15,
    },
    Fault {
        name: "/run is full in the incumbent",
        steps_of: INCUMBENT,
        course: &GOOD,
        blow: |stage| {
            let new = journal_in(stage.machine.tree(), ".new");
            Arc::new(move || fs::create_dir_all(new.join("in the way")).unwrap())
        },
        mend: |stage| drop(fs::remove_dir_all(journal_in(stage.machine.tree(), ".new"))),
        victim: false,
        least: 40,
    },
    Fault {
        name: "/run is full in the successor",
        steps_of: SUCCESSOR,
        course: &GOOD,
        blow: |stage| {
            blow(stage, |world| {
                let new = journal_in(&world.successor().unwrap(), ".new");
                fs::create_dir_all(new.join("in the way")).unwrap();
            })
        },
        mend: NOTHING,
        victim: false,
        least: 20,
    },
    Fault {
        name: "the operator wants an abort, and somebody else another refresh",
        steps_of: INCUMBENT,
        course: &GOOD,
        blow: |stage| {
            let worker = stage.worker.clone();
            Arc::new(move || {
                let again = worker.begin("next").expect_err("one at a time");
                assert!(again.to_string().contains("is running"), "{again}");
                // Too late, once it is.
                let _ = worker.answer(&Question::Abort);
            })
        },
        mend: NOTHING,
        victim: false,
        least: 40,
    },
    Fault {
        name: "the successor dies",
        steps_of: SUCCESSOR,
        course: &GOOD,
        blow: |stage| {
            blow(stage, |world| {
                // Later it is the machine's only host.
                if world.status().generation == 0 {
                    world.kill_successor();
                }
            })
        },
        mend: NOTHING,
        victim: true,
        least: 20,
    },
];

impl Stage {
    /// Waits for the end of the refresh; an operator who finds it stuck does his part.
    fn ends_with(&self, fault: &Fault) {
        self.sees(|stage| {
            if stage.shared.status().course == "stuck" && !stage.retired() {
                (fault.mend)(stage);
                stage.worker.answer(&Question::Retry).unwrap();
            }
            stage.retired() || stage.shared.lock().running.is_none()
        });
    }

    /// The victim runs in one host at most, and if it has a QEMU and stands still, somebody is told. Brings it back.
    fn settles_victim(&self, what: &str) {
        let owner = if self.retired() { SUCCESSOR } else { INCUMBENT };
        let running = self.world.runs_in("one");
        let unsaved = self.world.without_ram().iter().any(|(_, guest)| guest == "one");
        if unsaved || (running.is_empty() && self.world.has_qemu(owner, "one")) {
            let losses = if self.retired() {
                super::tests::kept(&self.reigns()).losses
            } else {
                self.shared.lock().report.clone().unwrap_or_default().losses
            };
            assert!(
                losses
                    .iter()
                    .any(|loss| loss.contains("guest one") && loss.contains("cont")),
                "{what}: guest one stands still, or would lose its RAM, and nobody is told: {losses:?}"
            );
        }
        if unsaved || running != [owner] {
            for slot in [INCUMBENT, SUCCESSOR] {
                self.world.kill_qemu(slot, "one");
            }
            FakeHypervisor::new(&self.world, owner).boot("one");
        }
    }
}

/// False: there were not so many steps.
fn befalls(fault: &Fault, after: usize) -> bool {
    let stage = Stage::new(Behaviour::Boots);
    (fault.course.faults)(&stage);
    let what = (fault.blow)(&stage);
    stage.world.strike(fault.steps_of, after, what);
    stage.begin();
    stage.ends_with(fault);
    if stage.retired() {
        stage.reigns();
    }
    let Some(step) = stage.world.struck(fault.steps_of) else {
        return false;
    };
    let what = format!("{}, before step {after} (`{step}`)", fault.name);
    (fault.mend)(&stage);
    if fault.victim {
        stage.settles_victim(&what);
    }
    stage.ended(&what);
    let report = stage.shared.lock().report.clone().unwrap_or_default();
    assert_eq!(
        report.outcome == "aborted",
        report.error.is_some(),
        "{what}: {report:?}"
    );
    assert_eq!(stage.world.without_ram(), [], "{what}: to save it would lose its RAM");
    // One of a few is enough: the questions above have found nothing that is not as it was.
    if after.is_multiple_of(4) {
        stage.refreshes(&what);
    }
    true
}

#[test]
fn whatever_befalls_at_whatever_step_everything_has_one_owner() {
    for fault in TABLE {
        each(|after| befalls(fault, after), fault.name, fault.least);
    }
}

#[test]
#[ignore = "not all of these go well yet"]
fn what_else_may_befall() {
    for fault in OPEN {
        each(|after| befalls(fault, after), fault.name, fault.least);
    }
}
