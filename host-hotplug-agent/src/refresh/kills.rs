//! A daemon killed at every step of a refresh and started anew, on the machine in memory: before each effect, between an
//! effect and the journal's word of it, and within the actions that have several effects.

use std::panic::{RefUnwindSafe, catch_unwind};
use std::sync::Mutex;

use locum_abi::{CpuMode, HostState, Slot};

use super::stage::{Stage, kept};
use crate::l0::{memory, view};
use crate::sysroot::SysRoot;
use crate::testing::tree::SETTINGS;
use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

/// A course of events that a daemon's death may come into.
pub(super) struct Course {
    pub(super) name: &'static str,
    /// What goes wrong beside.
    pub(super) faults: fn(&Stage),
}

pub(super) const GOOD: Course = Course {
    name: "a good refresh",
    faults: |_| {},
};

/// With a guest that has to come back.
pub(super) const ABORTED: Course = Course {
    name: "a refresh whose second guest is refused",
    faults: |stage| stage.world.fail_after(SUCCESSOR, "receive", 1, 1),
};

/// As [`GOOD`], with domains of libvirt's.
pub(super) const GOOD_OF_LIBVIRTS: Course = Course {
    name: "a good refresh of libvirt's guests",
    faults: |stage| stage.world.managed_by_libvirt(),
};

/// As [`ABORTED`], with domains of libvirt's.
pub(super) const ABORTED_OF_LIBVIRTS: Course = Course {
    name: "a refresh of libvirt's guests whose second one is refused",
    faults: |stage| {
        stage.world.managed_by_libvirt();
        (ABORTED.faults)(stage);
    },
};

impl Stage {
    pub(super) fn state_of(&self, slot: Slot) -> u32 {
        let host = memory::host(&self.world.region, &self.world.region.header(), slot);
        host.unwrap().state
    }

    /// The successor has the machine: the incumbent has powered off, or was taken by force.
    pub(super) fn retired(&self) -> bool {
        [HostState::Retired, HostState::Absent]
            .map(|state| state as u32)
            .contains(&self.state_of(INCUMBENT))
    }

    /// Another daemon begins in the incumbent.
    pub(super) fn restart(&mut self) {
        self.world.revive_daemon(INCUMBENT);
        (self.worker, self.shared) = self.machine.start_daemon();
    }

    /// Whether the incumbent's daemon was killed before the refresh ended; at which step.
    pub(super) fn killed(&self) -> Option<String> {
        self.sees(|stage| stage.world.killed(INCUMBENT).is_some() || stage.shared.lock().running.is_none());
        self.world.killed(INCUMBENT)
    }

    /// Every guest runs in one host, every resource has one owner and is in use, and the refresh has ended, this way or that.
    pub(super) fn ended(&self, what: &str) {
        self.sees(|stage| stage.retired() || stage.shared.lock().running.is_none());
        let owner = if self.retired() { SUCCESSOR } else { INCUMBENT };
        let as_before = |sys: SysRoot| {
            for (file, value) in SETTINGS {
                assert_eq!(sys.read(file).unwrap(), value, "{what}: {file}");
            }
        };
        if owner == SUCCESSOR {
            let successor = self.reigns();
            as_before(successor.sys().clone());
            assert_eq!(kept(&successor).outcome, "done", "{what}");
            let blocks = successor.sys().list("sys/devices/system/memory").unwrap();
            assert_eq!(blocks.len(), 8, "{what}: {blocks:?}");
            assert!(successor.sys().exists("sys/bus/pci/devices/0000:00:02.0"), "{what}");
        } else {
            self.intact();
            as_before(self.machine.tree().sys());
            let left = self.machine.tree().path().join("run/locum/journal");
            assert!(!left.exists(), "{what}: the journal of what has ended");
        }
        let status = memory::status(&self.world.region, &self.world.region.header()).unwrap();
        for cpu in &status.cpus[..4] {
            let is = (view::owner(cpu), cpu.mode);
            assert_eq!(
                is,
                (Some(owner), CpuMode::Native as u32),
                "{what}: APIC {}",
                cpu.apic_id
            );
        }
        assert_eq!(self.world.leaks(), [] as [String; 0], "{what}");
        assert_eq!(self.world.unwritten(), [] as [String; 0], "{what}");
        assert_eq!(self.world.extents_in(), [owner; 2], "{what}: the pool's table");
        let error = self.shared.status().last_error;
        assert_eq!(self.world.without_ram(), [], "{what}");
        for guest in ["one", "two"] {
            assert_eq!(self.world.runs_in(guest), [owner], "{what}: guest {guest}; {error:?}");
        }
    }

    /// If the incumbent reigns still, a refresh goes through.
    pub(super) fn refreshes(&self, what: &str) {
        if self.retired() {
            return;
        }
        self.world.mend();
        self.begin();
        let report = self.wait();
        assert_eq!(report.outcome, "retired", "{what}, a refresh afterwards: {report:#?}");
        self.ended(what);
    }
}

impl Stage {
    /// Whether the successor's daemon has written down how the refresh ended.
    pub(super) fn successor_reigns(&self) -> bool {
        let successor = self.world.successor();
        successor.is_some_and(|tree| tree.path().join("run/locum/kept.json").exists())
    }

    /// Another daemon in the successor, whose own was killed. The incumbent may stop that host, for want of an answer, at any
    /// time: then there is none.
    pub(super) fn restart_successor(&self) -> Option<impl Sized> {
        self.world.revive_daemon(SUCCESSOR);
        let machine = self.world.successor_machine().unwrap();
        let daemon = machine.try_start_daemon();
        assert!(
            daemon.is_ok() || !machine.alive(),
            "the successor's daemon does not start: {:#}",
            daemon.err().unwrap()
        );
        daemon.ok()
    }
}

/// The incumbent's daemon dies after `after` steps, and `again` steps after its restart. False: there were not so many.
fn killed_after(course: &Course, after: usize, again: Option<usize>) -> bool {
    let mut stage = Stage::new(Behaviour::Boots);
    (course.faults)(&stage);
    stage.world.kill_daemon(INCUMBENT, after);
    stage.begin();
    let Some(step) = stage.killed() else {
        stage.ended(course.name);
        return false;
    };
    let mut what = format!("{}, killed before step {after} (`{step}`)", course.name);
    if !stage.retired() {
        stage.restart();
        if let Some(again) = again {
            stage.world.kill_daemon(INCUMBENT, again);
            if let Some(step) = stage.killed()
                && !stage.retired()
            {
                what += &format!(", and {again} steps later (`{step}`)");
                stage.restart();
            }
            stage.world.revive_daemon(INCUMBENT);
        }
    }
    stage.ended(&what);
    stage.refreshes(&what);
    true
}

/// Steps at which something may go wrong before no more are tried.
const ENOUGH: usize = 16;

/// Every step there is, of which there should be more than `least`.
pub(super) fn each(killed_after: impl Fn(usize) -> bool + Sync + RefUnwindSafe, what: &str, least: usize) {
    // More than CPUs: they wait most of the time.
    each_by(8, killed_after, what, least);
}

/// As [`each`], with so many threads.
pub(super) fn each_by(
    threads: usize,
    killed_after: impl Fn(usize) -> bool + Sync + RefUnwindSafe,
    what: &str,
    least: usize,
) {
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for first in 0..threads {
            let (killed_after, failures) = (&killed_after, &failures);
            scope.spawn(move || {
                let mut after = first;
                loop {
                    match catch_unwind(|| killed_after(after)) {
                        Ok(true) => {}
                        Ok(false) => break,
                        // What went wrong was told where it did. It may go wrong without a death, too: then there is no last step.
                        Err(_) => {
                            let mut failures = failures.lock().unwrap();
                            failures.push(after);
                            if failures.len() >= ENOUGH {
                                return;
                            }
                        }
                    }
                    after += threads;
                }
                assert!(after > least, "only {after} steps: was it killed at all?");
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{what}: it did not go well after {failures:?} steps"
    );
}

fn at_every_step(course: &Course) {
    each(|after| killed_after(course, after, None), course.name, 40);
}

#[test]
fn the_incumbents_daemon_may_die_at_every_step() {
    at_every_step(&GOOD);
}

#[test]
fn the_incumbents_daemon_may_die_at_every_step_of_an_abort() {
    at_every_step(&ABORTED);
}

#[test]
fn the_incumbents_daemon_may_die_at_every_step_with_guests_of_libvirts() {
    at_every_step(&GOOD_OF_LIBVIRTS);
}

#[test]
fn the_incumbents_daemon_may_die_at_every_step_of_an_abort_with_guests_of_libvirts() {
    at_every_step(&ABORTED_OF_LIBVIRTS);
}

fn again_at_every_step(course: &Course) {
    // Every third step, to spare time.
    let killed = |number: usize| killed_after(course, 3 * number, Some(number % 5));
    each(killed, course.name, 40 / 3);
}

#[test]
fn the_incumbents_daemon_may_die_again_while_it_takes_up() {
    again_at_every_step(&ABORTED);
}

#[test]
fn the_incumbents_daemon_may_die_again_while_it_takes_up_guests_of_libvirts() {
    again_at_every_step(&ABORTED_OF_LIBVIRTS);
}

/// The successor's daemon dies after `after` steps, and is started anew. False: there were not so many.
fn successors_killed_after(course: &Course, after: usize) -> bool {
    let stage = Stage::new(Behaviour::Boots);
    (course.faults)(&stage);
    stage.world.kill_daemon(SUCCESSOR, after);
    stage.begin();
    stage.sees(|stage| {
        let ended = stage.shared.lock().running.is_none();
        stage.world.killed(SUCCESSOR).is_some() || stage.successor_reigns() || (ended && !stage.retired())
    });
    let Some(step) = stage.world.killed(SUCCESSOR) else {
        stage.ended(course.name);
        return false;
    };
    let what = format!(
        "{}, the successor's daemon killed before step {after} (`{step}`)",
        course.name
    );
    let _daemon = stage.restart_successor();
    stage.ended(&what);
    stage.refreshes(&what);
    true
}

#[test]
fn a_successor_whose_daemon_stays_dead_is_given_up_and_the_next_one_comes_up() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.kill_daemon(SUCCESSOR, 3);
    stage.begin();
    assert_eq!(stage.wait().outcome, "aborted");
    let what = "the successor's daemon killed for good";
    stage.ended(what);
    stage.refreshes(what);
}

#[test]
fn the_successors_daemon_may_die_at_every_step() {
    each(|after| successors_killed_after(&GOOD, after), GOOD.name, 20);
}

#[test]
fn the_successors_daemon_may_die_at_every_step_with_guests_of_libvirts() {
    for (course, least) in [(&GOOD_OF_LIBVIRTS, 20), (&ABORTED_OF_LIBVIRTS, 15)] {
        each(|after| successors_killed_after(course, after), course.name, least);
    }
}

/// The incumbent's daemon dies when libvirt has just given a guest up, and the successor's after `after` steps from there: the
/// guest stands still, whole, and must go on whichever of them hears of it. False: there were not so many.
fn both_killed_after(after: usize) -> bool {
    let mut stage = Stage::new(Behaviour::Boots);
    stage.world.managed_by_libvirt();
    stage.world.kill_daemon_before(INCUMBENT, "confirmed", 0);
    stage.begin();
    assert_eq!(stage.killed().as_deref(), Some("confirmed"));
    stage.world.kill_daemon(SUCCESSOR, after);
    stage.restart();
    stage.sees(|stage| stage.world.killed(SUCCESSOR).is_some() || stage.successor_reigns());
    let killed = stage.world.killed(SUCCESSOR);
    let what = format!("a guest is given up, and the successor's daemon killed {after} steps later (`{killed:?}`)");
    let _daemon = killed.is_some().then(|| stage.restart_successor());
    stage.ended(&what);
    stage.refreshes(&what);
    killed.is_some()
}

#[test]
fn both_daemons_may_die_when_libvirt_has_given_a_guest_up() {
    each(both_killed_after, "both daemons", 10);
}
