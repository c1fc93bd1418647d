//! A guest that has run in the other host and has ended there, by itself, before anybody heard of it: what is left of it where it
//! came from is of before that, and must not go on. On the machine in memory, which notes one that does.

use locum_abi::Slot;

use super::kills::{ABORTED, GOOD};
use super::stage::Stage;
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
    stage.begin();
    assert_eq!(stage.killed().as_deref(), Some("sent"));
    stage.sees(|stage| stage.world.runs_in("one") == [SUCCESSOR]);
    stage.world.kill_qemu(SUCCESSOR, "one");
    stage.restart();
    stage.may_have_run("the incumbent's daemon");
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
