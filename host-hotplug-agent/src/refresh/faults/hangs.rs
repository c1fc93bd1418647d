//! A daemon that hangs (SIGSTOP, a kernel that does not come back to it) at every step there is, for longer than the other one
//! waits for a word: then it goes on, or its watchdog ends it and it is started anew.

use std::sync::Arc;
use std::time::Duration;

use locum_abi::Slot;

use super::some_of;
use super::table::HANGS;
use crate::refresh::Limits;
use crate::refresh::kills::{Course, each_by};
use crate::refresh::stage::Stage;
use crate::testing::world::{Behaviour, INCUMBENT};

/// For a message, and beyond it for a verdict.
const PATIENCE: Duration = Duration::from_millis(500);
/// For a guest to cross, or for its QEMU to start.
const GUEST: Duration = Duration::from_secs(1);

/// Longer than the other agent waits for anything: [`Limits::message`] twice, or a guest's time and either of the limits.
fn hung() -> Duration {
    GUEST + 2 * PATIENCE + PATIENCE
}

impl Stage {
    /// With agents that do not wait long for each other.
    fn hurried() -> Self {
        let stage = Self::with_limits(
            Behaviour::Boots,
            (10, 1),
            Limits {
                message: PATIENCE,
                verdict: PATIENCE,
            },
        );
        let seconds = GUEST.as_secs();
        stage.configure(&format!("guest_start = {seconds}, guest_move = {seconds}"));
        stage
    }
}

/// What becomes of a daemon that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Somebody sends it SIGCONT.
    GoesOn,
    /// Its watchdog ends it.
    Ended,
}

/// False: there were not so many steps.
fn hangs(course: &Course, slot: Slot, then: Then, after: usize) -> bool {
    let mut stage = Stage::hurried();
    (course.faults)(&stage);
    stage.world.strike(slot, after, Arc::new(|| std::thread::sleep(hung())));
    if then == Then::Ended {
        stage.world.kill_daemon(slot, after);
    }
    stage.begin();
    let over = |stage: &Stage| match slot {
        _ if stage.world.killed(slot).is_some() => true,
        INCUMBENT => stage.shared.lock().running.is_none(),
        _ => stage.successor_reigns() || (stage.shared.lock().running.is_none() && !stage.retired()),
    };
    stage.sees(over);
    let Some(step) = stage.world.struck(slot) else {
        stage.ended(course.name);
        return false;
    };
    let what = format!(
        "{}, the daemon in slot {slot:?} hangs before step {after} (`{step}`), {then:?}",
        course.name
    );
    let mut _daemon = None;
    if stage.world.killed(slot).is_some() {
        if slot == INCUMBENT {
            if !stage.retired() {
                stage.restart();
            }
        } else {
            _daemon = stage.restart_successor();
        }
    }
    stage.ends_with(|_| {});
    stage.ended(&what);
    true
}

fn at_every_step(then: Then) {
    for (row, (course, slot, least)) in HANGS.iter().enumerate() {
        let some = some_of(row, 6);
        let played = |number| hangs(course, *slot, then, some(number));
        // They sleep.
        each_by(16, played, course.name, *least / some(1));
    }
}

#[test]
fn a_daemon_may_hang_at_every_step_and_go_on() {
    at_every_step(Then::GoesOn);
}

#[test]
fn a_daemon_may_hang_at_every_step_and_be_started_anew() {
    at_every_step(Then::Ended);
}
