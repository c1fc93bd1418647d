//! What an operator says beside a configuration, and of a guest's QEMU, on the machine in memory.

use super::stage::{Stage, kept};
use crate::daemon::ipc::{Question, Target};
use crate::error::Refusal;
use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

fn refresh_with(trust_storage: &[&str], leave: &[&str]) -> Question {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Question::RefreshWith {
        to: Target::Named("next".to_owned()),
        trust_storage: names(trust_storage),
        leave: names(leave),
    }
}

#[test]
fn storage_is_trusted_by_name_only() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.has_local_disks("/a.qcow2 is a file of this host");
    let trusting = |guests: &[&str]| refresh_with(guests, &[]);
    for (question, guest) in [
        (Question::Refresh("next".to_owned()), "one"),
        (trusting(&["two"]), "one"),
        (trusting(&["one"]), "two"),
    ] {
        let error = stage.worker.answer(&question).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Refusal::Storage { .. })), "{error}");
        assert!(
            error.to_string().starts_with(&format!("guest {guest}: /a.qcow2")),
            "{error}"
        );
    }
    stage.intact();
    stage.worker.answer(&trusting(&["one", "two"])).unwrap();
    assert_eq!(stage.wait().outcome, "retired");
    stage.ended("trusted");
}

#[test]
fn a_guest_that_would_end_with_this_host_is_told_and_shut_down_if_wanted() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.has_plain_guest("plain");
    let leaving = |guests: &[&str]| refresh_with(&[], guests);
    let refused = |question: &Question| format!("{:#}", stage.worker.answer(question).unwrap_err());
    let untold = refused(&Question::Refresh("next".to_owned()));
    assert!(
        untold.contains("plain (its RAM is not in the pool)") && untold.contains("--leave 'plain'"),
        "{untold}"
    );
    let unknown = refused(&leaving(&["plain", "none"]));
    assert!(unknown.contains("`none`"), "{unknown}");
    stage.world.fail(INCUMBENT, "shut_down", 1);
    let stays = refused(&leaving(&["plain"]));
    assert!(stays.contains("guest plain does not shut down"), "{stays}");
    assert_eq!(stage.shared.status().running, None);
    stage.intact();
    assert_eq!(stage.world.plain_guests(), ["plain"]);
    // One of the configuration's stays behind likewise.
    stage.worker.answer(&leaving(&["plain", "two"])).unwrap();
    assert_eq!(stage.wait().outcome, "retired");
    assert_eq!(kept(&stage.reigns()).outcome, "done");
    assert_eq!(stage.world.runs_in("one"), [SUCCESSOR]);
    assert_eq!(stage.world.runs_in("two"), []);
    assert_eq!(stage.world.plain_guests(), [] as [&str; 0]);
}

#[test]
fn a_qemu_is_not_replaced_beside_a_refresh_nor_where_it_cannot_be() {
    let stage = Stage::new(Behaviour::Boots);
    let renew = |name: &str| {
        format!(
            "{:#}",
            stage.worker.answer(&Question::Renew(name.to_owned())).unwrap_err()
        )
    };
    let unknown = renew("three");
    assert!(unknown.contains("`three`") && unknown.contains("one, two"), "{unknown}");
    let cannot = renew("one");
    assert!(
        cannot.contains("guest one") && cannot.contains("cannot get another QEMU"),
        "{cannot}"
    );
    stage.intact();
    stage.begin();
    let beside = renew("one");
    assert!(beside.contains("a refresh to `next` is running"), "{beside}");
    assert_eq!(stage.wait().outcome, "retired");
    stage.ended("a refresh during which another QEMU was wanted");
}

#[test]
fn a_guest_that_is_started_meanwhile_is_waited_for_and_does_not_end_unasked() {
    let stage = Stage::new(Behaviour::Boots);
    stage.configure("shutdown = 1");
    stage.world.has_late_guest(Some("late"));
    stage.begin();
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    let error = report.error.unwrap();
    assert!(error.contains("late: started since the refresh began"), "{error}");
    stage.intact();

    let stage = Stage::new(Behaviour::Boots);
    stage.world.has_late_guest(Some("late"));
    stage.begin();
    stage.sees(|stage| {
        let awaits = stage.shared.lock().awaits.clone();
        awaits.is_some_and(|what| what.contains("late, started since the refresh began, to shut down"))
    });
    stage.world.has_late_guest(None);
    stage.ended("a guest that was started meanwhile, and has ended");
    assert_eq!(kept(&stage.reigns()).outcome, "done");
}
