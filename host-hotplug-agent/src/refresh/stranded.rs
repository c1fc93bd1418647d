//! A machine that a dead daemon left split: with a journal that cannot be used, or with none, on the machine in memory.

use std::fs;
use std::os::unix::net::UnixStream;

use locum_abi::CpuMode;

use super::stage::{HANG, Stage};
use crate::daemon;
use crate::daemon::ipc::{self, Question};
use crate::error::Refusal;
use crate::l0::memory;
use crate::machine::TextKind;
use crate::testing::tree::BLOCK;
use crate::testing::world::{Behaviour, INCUMBENT, SUCCESSOR};

impl Stage {
    /// Begins a refresh whose daemon dies before the `count`th step of that name.
    fn dies_before(&mut self, step: &'static str, count: usize) {
        self.world.kill_daemon_before(INCUMBENT, step, count);
        self.begin();
        let killed = self.killed();
        assert_eq!(killed.as_deref(), Some(step));
    }

    fn journal(&self) -> std::path::PathBuf {
        self.machine.tree().path().join("run/locum/journal")
    }

    fn refused(&self, question: &Question) -> String {
        format!("{:#}", self.worker.answer(question).expect_err("refused"))
    }
}

/// Where a daemon dies, and how the successor is then.
const STRANDED: &[(&str, usize, Behaviour)] = &[
    ("remove_memory", 1, Behaviour::Boots),
    ("offline_cpu", 1, Behaviour::Boots),
    ("write", 0, Behaviour::Boots),
    ("enter", 1, Behaviour::Boots),
    ("grant", 0, Behaviour::Boots),
    ("grant", 7, Behaviour::Boots),
    ("start", 0, Behaviour::Boots),
    ("channel", 0, Behaviour::Boots),
    ("publish", 22, Behaviour::TripleFaults),
];

#[test]
fn without_a_journal_abort_gives_everything_back() {
    for &(step, count, behaviour) in STRANDED {
        let what = format!("no journal, {step} {count}, {behaviour:?}");
        let mut stage = Stage::new(behaviour);
        stage.dies_before(step, count);
        fs::remove_file(stage.journal()).unwrap();
        stage.restart();
        let status = stage.worker.answer(&Question::Status).unwrap();
        assert!(
            status
                .last_error
                .as_deref()
                .unwrap_or_default()
                .contains("`locum abort` gives everything back"),
            "{what}: {status:?}"
        );
        let status = stage.worker.answer(&Question::Abort).unwrap();
        assert_eq!(status.last_error, None, "{what}");
        stage.ended(&what);
        assert!(
            matches!(
                stage.worker.answer(&Question::Abort).unwrap_err().downcast_ref(),
                Some(Refusal::NothingToAbort)
            ),
            "{what}"
        );
        if behaviour == Behaviour::Boots {
            stage.refreshes(&what);
        }
    }
}

#[test]
fn a_machine_that_is_split_is_not_split_again() {
    let mut stage = Stage::new(Behaviour::Boots);
    stage.dies_before("channel", 0);
    fs::remove_file(stage.journal()).unwrap();
    stage.restart();
    let error = stage.worker.begin("next").unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(Refusal::Split)), "{error}");
    assert!(stage.shared.lock().running.is_none());
}

#[test]
fn without_a_journal_guests_that_run_in_the_successor_are_not_lost_by_an_abort() {
    let mut stage = Stage::new(Behaviour::Boots);
    // One guest has gone over.
    stage.dies_before("attach", 1);
    fs::remove_file(stage.journal()).unwrap();
    stage.restart();
    let error = stage.refused(&Question::Abort);
    assert!(error.contains("(one)") && error.contains("--force"), "{error}");
    assert_eq!(stage.world.runs_in("one"), [SUCCESSOR]);
    assert_eq!(stage.world.runs_in("two"), [INCUMBENT]);
    // Who knows what is lost may say so.
    stage.worker.answer(&Question::AbortByForce).unwrap();
    stage.intact();
    assert_eq!(stage.world.runs_in("one"), []);
    assert_eq!(stage.world.runs_in("two"), [INCUMBENT]);
}

#[test]
fn without_a_journal_a_successor_that_says_nothing_is_stopped_by_force_only() {
    let mut stage = Stage::with_timeouts(Behaviour::Hangs, HANG.as_secs(), HANG.as_secs());
    stage.dies_before("channel", 0);
    fs::remove_file(stage.journal()).unwrap();
    stage.restart();
    let error = stage.refused(&Question::Abort);
    assert!(error.contains("is not known") && error.contains("--force"), "{error}");
    stage.worker.answer(&Question::AbortByForce).unwrap();
    stage.ended("by force");
}

#[test]
fn a_journal_that_cannot_be_used_is_told_and_kept_and_abort_works() {
    type Change = fn(String) -> String;
    let changes: [(&str, Change); 3] = [
        ("torn", |text| text[..text.len() / 2].to_owned()),
        ("format 9", |text| {
            text.replacen("locum-journal 1", "locum-journal 9", 1)
        }),
        ("not of this host", |text| text),
    ];
    for (word, change) in changes {
        let mut stage = Stage::new(Behaviour::Boots);
        stage.dies_before("channel", 0);
        let text = change(fs::read_to_string(stage.journal()).unwrap());
        fs::write(stage.journal(), &text).unwrap();
        if word.starts_with("not") {
            stage
                .machine
                .tree()
                .put("proc/sys/kernel/random/boot_id", "another boot\n");
        }
        stage.restart();
        let told = stage.world.shown(TextKind::LastError);
        assert!(told.contains(word) && told.contains("locum abort"), "{told}");
        assert_eq!(fs::read_to_string(stage.journal().with_extension("bad")).unwrap(), text);
        stage.worker.answer(&Question::Abort).unwrap();
        stage.ended(word);
        stage.refreshes(word);
    }
}

#[test]
fn a_refresh_that_was_taken_up_can_be_aborted_and_says_so() {
    let mut stage = Stage::with_timeouts(Behaviour::Hangs, HANG.as_secs(), HANG.as_secs());
    stage.dies_before("channel", 0);
    stage.restart();
    let status = stage.worker.answer(&Question::Status).unwrap();
    assert_eq!(status.running.as_deref(), Some("next"));
    assert_eq!(status.report.unwrap().taken_up, ["wait for the successor's agent"]);
    stage.worker.answer(&Question::Abort).unwrap();
    let report = stage.wait();
    assert_eq!(report.error.as_deref(), Some("stopped by the operator"));
    assert_eq!(report.error_name.as_deref(), Some("refresh-stopped"));
    assert!(
        report
            .to_string()
            .contains("taken up by a daemon that was started anew"),
        "{report}"
    );
    stage.ended("stopped by the operator");
}

#[test]
fn what_somebody_changed_meanwhile_ends_the_refresh() {
    let mut stage = Stage::new(Behaviour::Boots);
    stage.dies_before("enter", 0);
    let cpu = "sys/devices/system/cpu/cpu3/online";
    stage.machine.tree().put(cpu, "1\n");
    stage.restart();
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    let error = report.error.unwrap();
    assert!(
        error.contains("offline the CPU with APIC 3") && error.contains("not so any more"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_written_down_is_not_begun() {
    let stage = Stage::new(Behaviour::Boots);
    // A directory in the journal's place: nothing can be renamed to it.
    fs::create_dir_all(stage.journal().join("in the way")).unwrap();
    stage.begin();
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    let error = report.error.unwrap();
    assert!(error.contains("make room"), "{error}");
    assert_eq!(stage.world.steps(INCUMBENT, "remove_memory"), 0);
    stage.intact();
}

#[test]
fn a_refresh_goes_on_when_who_asked_for_it_is_gone() {
    let stage = Stage::new(Behaviour::Boots);
    let (mut client, server) = UnixStream::pair().unwrap();
    ipc::send(&mut client, &Question::Refresh("next".to_owned())).unwrap();
    drop(client);
    daemon::serve(&stage.worker, server);
    assert_eq!(stage.wait().outcome, "retired");
    stage.ended("nobody waits for it");
}

#[test]
fn a_successor_that_lost_its_journal_as_it_reclaims_is_told_of_and_gets_its_cpus_by_abort() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.kill_daemon_before(SUCCESSOR, "online_cpu", 0);
    stage.begin();
    stage.sees(|stage| stage.world.killed(SUCCESSOR).is_some());
    let machine = stage.world.successor_machine().unwrap();
    fs::remove_file(machine.tree().path().join("run/locum/journal")).unwrap();
    let size = format!("{BLOCK:x}\n");
    machine.tree().put("sys/devices/system/memory/block_size_bytes", size);
    stage.world.revive_daemon(SUCCESSOR);
    let (worker, _) = machine.start_daemon();
    let status = worker.answer(&Question::Status).unwrap();
    let told = status.last_error.unwrap_or_default();
    assert!(told.contains("0 CPUs are nested, 2 parked"), "{told}");
    worker.answer(&Question::Abort).unwrap();
    let status = memory::status(&stage.world.region, &stage.world.region.header()).unwrap();
    for cpu in &status.cpus[..4] {
        assert_eq!(cpu.mode, CpuMode::Native as u32, "APIC {}", cpu.apic_id);
    }
}
