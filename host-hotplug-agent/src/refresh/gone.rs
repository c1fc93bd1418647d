//! A guest that has run in the other host and has ended there, by itself, before anybody heard of it: what is left of it where it
//! came from is of before that, and must not go on. On the machine in memory, which notes one that does.

use locum_abi::Slot;

use super::kills::{ABORTED, GOOD};
use super::stage::{Stage, kept};
use crate::report::Report;
use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

impl Stage {
    /// Guest one runs nowhere, and an operator is told what to do about it; guest two runs here.
    fn is_over(&self, report: &Report, what: &str) {
        assert_eq!(report.outcome, "aborted", "{what}: {report:#?}");
        self.intact();
        assert_eq!(self.world.runs_in("one"), [] as [Slot; 0], "{what}");
        assert_eq!(self.world.runs_in("two"), [INCUMBENT], "{what}");
        let told = report.losses.iter().find(|loss| loss.contains("guest one"));
        assert!(
            told.is_some_and(|loss| loss.contains("start it anew")),
            "{what}: {:?}",
            report.losses
        );
    }

    fn may_have_run(&self, what: &str) {
        let report = self.wait();
        self.is_over(&report, what);
        let loss = report.losses.iter().find(|loss| loss.contains("guest one"));
        assert!(
            loss.unwrap().contains("may have run in the successor"),
            "{what}: {loss:?}"
        );
        assert!(
            self.world.has_qemu(INCUMBENT, "one"),
            "{what}: an operator may know better"
        );
    }
}

#[test]
fn a_guest_that_has_ended_with_the_daemon_that_had_received_it_does_not_go_on_where_it_was() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.kill_daemon_before(SUCCESSOR, "running", 0);
    stage.begin();
    stage.sees(|stage| stage.world.killed(SUCCESSOR).is_some());
    stage.world.kill_qemu(SUCCESSOR, "one");
    let _daemon = stage.restart_successor();
    stage.may_have_run("the successor's daemon");
}

#[test]
fn nor_one_that_has_ended_while_the_sender_was_away() {
    let mut stage = Stage::new(Behaviour::Boots);
    stage.world.kill_daemon_before(INCUMBENT, "sent", 0);
    stage.world.kill_daemon_before(SUCCESSOR, "running", 0);
    stage.begin();
    assert_eq!(stage.killed().as_deref(), Some("sent"));
    stage.sees(|stage| stage.world.killed(SUCCESSOR).is_some());
    stage.world.kill_qemu(SUCCESSOR, "one");
    stage.restart();
    let _daemon = stage.restart_successor();
    stage.may_have_run("both daemons");
}

#[test]
fn nor_one_that_has_ended_before_its_daemon_could_say_that_it_had_come() {
    let mut stage = Stage::new(Behaviour::Boots);
    stage.world.kill_daemon_before(INCUMBENT, "sent", 0);
    stage.begin();
    assert_eq!(stage.killed().as_deref(), Some("sent"));
    stage.sees(|stage| stage.world.runs_in("one") == [SUCCESSOR]);
    stage.world.kill_qemu(SUCCESSOR, "one");
    stage.restart();
    stage.sees(|stage| stage.retired() || stage.shared.lock().running.is_none());
    // That daemon may just have begun to say so: then the guest has crossed, and ended.
    if stage.retired() {
        assert_eq!(kept(&stage.reigns()).outcome, "done");
        assert_eq!(stage.world.runs_in("one"), [] as [Slot; 0]);
        assert_eq!(stage.world.leaks(), [] as [String; 0]);
    } else {
        stage.may_have_run("the incumbent's daemon");
    }
}

#[test]
fn nor_one_that_has_ended_with_the_whole_successor() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.kill_daemon_before(SUCCESSOR, "running", 0);
    stage.begin();
    stage.sees(|stage| stage.world.killed(SUCCESSOR).is_some());
    stage.world.kill_successor();
    stage.may_have_run("the successor");
}

#[test]
fn a_guest_that_ends_as_it_comes_back_does_not_go_on_in_the_successor() {
    let mut stage = Stage::new(Behaviour::Boots);
    (ABORTED.faults)(&stage);
    stage.world.kill_daemon_before(INCUMBENT, "running", 0);
    stage.begin();
    assert_eq!(stage.killed().as_deref(), Some("running"), "{}", ABORTED.name);
    assert_eq!(stage.world.runs_in("one"), [INCUMBENT]);
    stage.world.kill_qemu(INCUMBENT, "one");
    stage.restart();
    let report = stage.wait();
    stage.is_over(&report, ABORTED.name);
}

#[test]
fn a_libvirt_that_does_not_say_what_became_of_a_guest_is_waited_for() {
    // The guest was given up here, or resumed.
    for step in ["confirmed", "sent"] {
        let mut stage = Stage::new(Behaviour::Boots);
        stage.world.managed_by_libvirt();
        stage.world.kill_daemon_before(INCUMBENT, step, 0);
        stage.begin();
        assert_eq!(stage.killed().as_deref(), Some(step));
        stage.world.hang_libvirt(INCUMBENT, "one");
        stage.restart();
        stage.sees(|stage| {
            let awaits = stage.shared.lock().awaits.clone();
            awaits.is_some_and(|what| what.contains("does not say what became of guest one"))
        });
        stage.world.wake_qemus();
        stage.ended(step);
        // One that runs here again may be moved once more, or not.
        assert!(stage.retired() || step == "sent", "{step}: the refresh went back");
    }
}

#[test]
fn a_guest_whose_daemons_died_before_it_could_run_goes_on() {
    for step in ["receive", "received"] {
        let stage = Stage::new(Behaviour::Boots);
        stage.world.kill_daemon_before(SUCCESSOR, step, 0);
        stage.begin();
        stage.sees(|stage| stage.world.killed(SUCCESSOR).is_some());
        let _daemon = stage.restart_successor();
        stage.ended(GOOD.name);
    }
}
