//! An incumbent that dies at every step there is, on the machine in memory: who reigns, and what becomes of the guests.

use std::collections::BTreeSet;
use std::sync::Mutex;

use locum_abi::{CpuMode, HostState, Slot, Will};

use super::kills::{ABORTED, ABORTED_OF_LIBVIRTS, Course, GOOD, GOOD_OF_LIBVIRTS, each};
use super::stage::{HANG, Stage, kept};
use crate::daemon::ipc::Question;
use crate::l0::{memory, view};
use crate::machine::Machine;
use crate::testing::world::{Behaviour, Death, INCUMBENT, SUCCESSOR};

impl Stage {
    /// Waits for the incumbent's death, or for an end of the refresh without one.
    fn death(&self) -> Option<Death> {
        self.sees(|stage| stage.world.death().is_some() || stage.retired() || stage.shared.lock().running.is_none());
        self.world.death()
    }

    /// The successor has the whole machine, native, and the guests that had crossed run there; what was lost is told.
    fn taken_over(&self, death: &Death, what: &str) {
        let successor = self.reigns();
        let report = kept(&successor);
        assert_eq!(report.outcome, "done", "{what}: {report:#?}");
        let status = memory::status(&self.world.region, &self.world.region.header()).unwrap();
        assert_eq!(status.generation, 1, "{what}");
        for cpu in &status.cpus[..4] {
            let is = (view::owner(cpu), cpu.mode);
            assert_eq!(
                is,
                (Some(SUCCESSOR), CpuMode::Native as u32),
                "{what}: APIC {}",
                cpu.apic_id
            );
        }
        let blocks = successor.sys().list("sys/devices/system/memory").unwrap();
        assert_eq!(blocks.len(), 8, "{what}: {blocks:?}");
        assert!(successor.sys().exists("sys/bus/pci/devices/0000:00:02.0"), "{what}");
        let left = successor.path().join("run/locum/journal");
        self.sees(|_| !left.exists());
        assert_eq!(self.world.leaks(), [] as [String; 0], "{what}");
        for guest in ["one", "two"] {
            let runs = self.world.runs_in(guest);
            let crossed = death.crossed.iter().any(|name| name == guest);
            assert!(
                !crossed || runs == [SUCCESSOR],
                "{what}: guest {guest}, which had crossed, runs in {runs:?}"
            );
            let told = report
                .losses
                .iter()
                .any(|loss| loss.contains(&format!("guest {guest} ")));
            assert_eq!(
                told,
                runs.is_empty(),
                "{what}: guest {guest} runs in {runs:?}: {:?}",
                report.losses
            );
        }
    }
}

/// What deaths came to.
type Seen = Mutex<BTreeSet<(&'static str, usize)>>;

/// The incumbent dies after `after` steps of its daemon. False: there were not so many.
fn dies_after(course: &Course, after: usize, seen: &Seen) -> bool {
    let stage = Stage::new(Behaviour::Boots);
    (course.faults)(&stage);
    stage.world.kill_incumbent(after);
    stage.begin();
    let Some(death) = stage.death() else {
        stage.ended(course.name);
        // One that has retired cannot die.
        return stage.world.killed(INCUMBENT).is_some();
    };
    let what = format!(
        "{}, the incumbent dies before step {after} (`{}`)",
        course.name, death.step
    );
    let came_to = if !death.reset {
        stage.taken_over(&death, &what);
        "taken over"
    } else {
        assert_eq!(
            death.crossed,
            [] as [&str; 0],
            "{what}: a reset ends no guest that had crossed"
        );
        if death.beside {
            "reset beside a successor"
        } else {
            "reset"
        }
    };
    seen.lock().unwrap().insert((came_to, death.crossed.len()));
    true
}

fn dies_at_every_step(course: &Course) {
    let seen = Seen::default();
    each(|after| dies_after(course, after, &seen), course.name, 40);
    let seen = seen.into_inner().unwrap();
    for phase in [
        ("reset", 0),
        ("reset beside a successor", 0),
        ("taken over", 0),
        ("taken over", 1),
        ("taken over", 2),
    ] {
        assert!(seen.contains(&phase), "no death came to {phase:?}: {seen:?}");
    }
}

#[test]
fn the_incumbent_may_die_at_every_step() {
    dies_at_every_step(&GOOD);
}

#[test]
fn the_incumbent_may_die_at_every_step_with_guests_of_libvirts() {
    dies_at_every_step(&GOOD_OF_LIBVIRTS);
}

fn dies_at_every_step_of_an_abort(course: &Course) {
    let seen = Seen::default();
    each(|after| dies_after(course, after, &seen), course.name, 40);
    assert!(seen.into_inner().unwrap().contains(&("taken over", 1)));
}

#[test]
fn the_incumbent_may_die_at_every_step_of_an_abort() {
    dies_at_every_step_of_an_abort(&ABORTED);
}

#[test]
fn the_incumbent_may_die_at_every_step_of_an_abort_with_guests_of_libvirts() {
    dies_at_every_step_of_an_abort(&ABORTED_OF_LIBVIRTS);
}

/// The incumbent dies when the first guest has crossed, and the successor's daemon is killed after `after` steps of its own,
/// and started anew. False: there were not so many.
fn successors_killed_after(course: &Course, after: usize) -> bool {
    let stage = Stage::new(Behaviour::Boots);
    (course.faults)(&stage);
    stage.world.kill_incumbent_before("attach", 1);
    stage.world.kill_daemon(SUCCESSOR, after);
    stage.begin();
    stage.sees(|stage| {
        let ended = stage.shared.lock().running.is_none();
        stage.world.killed(SUCCESSOR).is_some() || stage.successor_reigns() || (ended && stage.world.death().is_none())
    });
    let killed = stage.world.killed(SUCCESSOR);
    let what = format!("the successor's daemon killed before step {after} ({killed:?})");
    let _daemon = killed.is_some().then(|| stage.restart_successor());
    match stage.death() {
        Some(death) => {
            assert_eq!(death.crossed, ["one"], "{what}");
            stage.taken_over(&death, &what);
        }
        // It did not come up in time for a guest to cross.
        None => stage.ended(&what),
    }
    killed.is_some()
}

#[test]
fn the_successors_daemon_may_die_as_well_while_it_takes_over() {
    each(|after| successors_killed_after(&GOOD, after), GOOD.name, 20);
}

#[test]
fn the_successors_daemon_may_die_as_well_while_it_takes_guests_of_libvirts_over() {
    let course = &GOOD_OF_LIBVIRTS;
    each(|after| successors_killed_after(course, after), course.name, 20);
}

#[test]
fn an_incumbent_that_hangs_in_its_power_off_is_taken_after_the_time_out() {
    let stage = Stage::with_timeouts(Behaviour::Boots, HANG.as_secs(), 1);
    stage.world.hang_in_power_off();
    stage.begin();
    let report = kept(&stage.reigns());
    assert_eq!(report.outcome, "done");
    let error = report.error.unwrap();
    assert!(error.contains("does not power off"), "{error}");
    for guest in ["one", "two"] {
        assert_eq!(stage.world.runs_in(guest), [SUCCESSOR]);
    }
}

#[test]
fn an_incumbent_yields_only_when_its_last_guest_has_gone() {
    let stage = Stage::with_timeouts(Behaviour::Boots, HANG.as_secs(), 1);
    // It is refused there, and the way back needs a hand: nothing of that gives the incumbent away.
    stage.world.fail_after(SUCCESSOR, "receive", 1, 1);
    stage.world.fail(INCUMBENT, "abort", 1);
    stage.begin();
    stage.stuck();
    assert_eq!(stage.world.will(), Will::Pass);
    assert_eq!(stage.world.runs_in("two"), [INCUMBENT]);
}

#[test]
fn above_an_older_l0_a_living_incumbent_is_waited_for_as_ever() {
    let stage = Stage::with_timeouts(Behaviour::Boots, HANG.as_secs(), 1);
    stage.world.forget_wills();
    stage.world.hang_in_power_off();
    stage.begin();
    assert_eq!(stage.wait().outcome, "retired");
    stage.sees(|stage| stage.world.steps(SUCCESSOR, "abort") > 2);
    let state = memory::host(&stage.world.region, &stage.world.region.header(), INCUMBENT)
        .unwrap()
        .state;
    assert_eq!(state, HostState::Running as u32);
    assert_eq!(stage.world.runs_in("one"), [SUCCESSOR] as [Slot; 1]);
}

#[test]
fn an_incumbent_that_writes_a_dump_is_waited_for() {
    let stage = Stage::new(Behaviour::Boots);
    stage.world.load_crash_kernel();
    stage.world.kill_incumbent_before("attach", 1);
    stage.begin();
    let death = stage.death().unwrap();
    stage.sees(|stage| {
        let machine = stage.world.successor_machine().unwrap();
        machine.daemon().status().summary.contains("writes a dump")
    });
    assert_eq!(stage.world.steps(SUCCESSOR, "abort"), 0, "nothing is taken meanwhile");
    assert_eq!(stage.world.runs_in("one"), [SUCCESSOR], "which goes on all the time");
    // Its crash kernel resets the machine.
    stage
        .world
        .region
        .update(|status| status.hosts[INCUMBENT].state = HostState::Dead as u32);
    stage.taken_over(&death, "a dump");
    let losses = kept(&stage.reigns()).losses;
    assert!(!losses.iter().any(|loss| loss.contains("dump")), "{losses:?}");
}

#[test]
fn a_dump_that_takes_too_long_is_cut_off_and_told() {
    let stage = Stage::new(Behaviour::Boots);
    stage.configure("dump = 1");
    stage.world.load_crash_kernel();
    stage.world.kill_incumbent_before("attach", 1);
    stage.begin();
    let death = stage.death().unwrap();
    stage.taken_over(&death, "a long dump");
    let losses = kept(&stage.reigns()).losses;
    assert!(losses.iter().any(|loss| loss.contains("was cut off")), "{losses:?}");
}

#[test]
fn a_successor_that_writes_a_dump_is_waited_for_and_the_guests_that_stayed_go_on() {
    let stage = Stage::with_timeouts(Behaviour::Hangs, HANG.as_secs(), HANG.as_secs());
    stage.begin();
    stage.sees(|stage| stage.shared.status().summary.contains("wait for the successor"));
    let state = |state: HostState| {
        let region = &stage.world.region;
        region.update(|status| status.hosts[SUCCESSOR].state = state as u32);
    };
    state(HostState::Dumping);
    stage.sees(|stage| stage.shared.status().summary.contains("writes a dump"));
    assert_eq!(stage.world.steps(INCUMBENT, "abort"), 0);
    state(HostState::Dead);
    let report = stage.wait();
    assert_eq!(report.outcome, "aborted");
    assert!(report.error.unwrap().contains("writes a dump"));
    stage.intact();
}

/// A setting of Linux is `nested` while CPUs are, and what it was `before` afterwards.
fn is_set_while_nested(file: &str, nested: &str, before: &str) {
    let stage = Stage::with_timeouts(Behaviour::Hangs, HANG.as_secs(), HANG.as_secs());
    stage.machine.tree().put(file, format!("{before}\n"));
    let now = || stage.machine.sys().read(file).unwrap();
    stage.begin();
    stage.sees(|stage| stage.shared.status().summary.contains("wait for the successor"));
    assert_eq!(now(), nested);
    stage.worker.answer(&Question::Abort).unwrap();
    stage.wait();
    assert_eq!(now(), before, "as it was");
}

#[test]
fn each_cpu_judges_machine_checks_by_itself_while_cpus_are_nested() {
    const MEETING: &str = "sys/devices/system/machinecheck/machinecheck0/monarch_timeout";
    for before in ["1000000", "0"] {
        is_set_while_nested(MEETING, "0", before);
    }
}

#[test]
fn panic_notifiers_come_before_a_crash_kernel_while_cpus_are_nested() {
    const NOTIFIERS_FIRST: &str = "sys/module/kernel/parameters/crash_kexec_post_notifiers";
    for before in ["N", "Y"] {
        is_set_while_nested(NOTIFIERS_FIRST, "Y", before);
    }
}
