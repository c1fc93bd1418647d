//! Every interleaving of two CPUs over one CPU's stage, tried by a model checker (loom).
//!
//! One thread is the CPU in question; what it does between steps is reduced to what matters: whether it is in use for its
//! host (runs it, or holds data of its VMCSs), and whether an INIT is pending. The other thread is a CPU of the other host
//! that stops this one's. The partition is a lock around what the steps ask of it, as in L0.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use l0_monitor::stage::{Stage, StageWord, Step, Word};
use loom::sync::atomic::AtomicU8;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

struct Byte(AtomicU8);

impl Word for Byte {
    fn load(&self) -> u8 {
        self.0.load(SeqCst)
    }

    fn swap_if(&self, from: u8, to: u8) -> Result<(), u8> {
        self.0.compare_exchange(from, to, SeqCst, SeqCst).map(drop)
    }
}

/// What the partition's lock guards.
struct Rules {
    /// The host runs.
    running: bool,
    /// Nothing was granted to another host.
    may_leave: bool,
}

struct World {
    stage: StageWord<Byte>,
    rules: Mutex<Rules>,
    /// The CPU executes for the host, or holds data of its VMCSs. This and the next are the world's, not L0's, so the
    /// checker need not try them in other orders: only one thread runs at a time.
    in_use: AtomicBool,
    /// INIT was sent and has not arrived.
    init_pending: AtomicBool,
    /// Something has changed for which another thread may wait. L0 looks again and again instead; a model checker would
    /// follow it for ever.
    changed: (Mutex<()>, Condvar),
}

impl World {
    fn new(stage: Stage) -> Arc<Self> {
        Arc::new(Self {
            stage: StageWord::over(Byte(AtomicU8::new(stage as u8))),
            rules: Mutex::new(Rules {
                running: true,
                may_leave: true,
            }),
            in_use: AtomicBool::new(stage == Stage::Nested),
            init_pending: AtomicBool::new(false),
            changed: (Mutex::new(()), Condvar::new()),
        })
    }

    fn take(&self, step: Step) -> bool {
        self.stage.take(step).is_ok()
    }

    /// Has whoever waits look again.
    fn tell(&self) {
        drop(self.changed.0.lock().unwrap());
        self.changed.1.notify_all();
    }

    fn wait_until(&self, mut done: impl FnMut() -> bool) {
        let mut guard = self.changed.0.lock().unwrap();
        while !done() {
            guard = self.changed.1.wait(guard).unwrap();
        }
    }

    /// The CPU is nested, and its host gives it up; or the INIT that was sent to it arrives.
    fn run_nested(&self) {
        self.in_use.store(true, SeqCst);
        if self.take(Step::Park) {
            // VMXOFF with an INIT pending would reset the CPU.
            assert!(!self.init_pending.load(SeqCst));
            self.in_use.store(false, SeqCst);
        } else {
            // Back into non-root, where the INIT arrives.
            self.wait_until(|| self.init_pending.swap(false, SeqCst));
            self.in_use.store(false, SeqCst);
            assert!(self.take(Step::Init));
        }
        self.settle();
    }

    fn settle(&self) {
        assert!(!self.init_pending.load(SeqCst), "an INIT that nobody took");
        assert!(self.take(Step::Settle));
        self.tell();
    }

    /// The CPU, in [`Stage::Starting`], asks whether it may, and runs.
    fn start(&self) {
        let may = self.rules.lock().unwrap().running;
        if may {
            assert!(self.take(Step::RunNested));
            self.tell();
            self.run_nested();
        } else {
            assert!(self.take(Step::Refuse));
            self.settle();
        }
    }

    /// The other CPU: declares the host dead, then takes its CPU, and uses its memory once that is parked.
    fn stop(&self) {
        self.rules.lock().unwrap().running = false;
        self.wait_until(|| {
            if self.stage.take(Step::SendInit).is_ok() {
                self.init_pending.store(true, SeqCst);
                self.changed.1.notify_all();
            }
            self.stage.get() == Stage::Parked
        });
        assert!(!self.in_use.load(SeqCst), "a CPU was taken for parked that was not");
    }
}

/// `cpu` against a CPU that stops its host.
fn against_stop(stage: Stage, cpu: fn(&World)) {
    loom::model(move || {
        let world = World::new(stage);
        let other = world.clone();
        let stopper = thread::spawn(move || other.stop());
        cpu(&world);
        stopper.join().unwrap();
        assert_eq!(world.stage.get(), Stage::Parked);
        assert!(!world.in_use.load(SeqCst) && !world.init_pending.load(SeqCst));
    });
}

#[test]
fn a_stop_against_a_host_that_parks_its_cpu() {
    against_stop(Stage::Nested, World::run_nested);
}

#[test]
fn a_stop_against_a_start_by_the_mailbox() {
    against_stop(Stage::Parked, |world| {
        if world.take(Step::Wake) {
            world.start();
        }
    });
}

#[test]
fn a_stop_against_a_start_by_command() {
    against_stop(Stage::Claimed, |world| {
        assert!(world.take(Step::Command), "nobody moves a claimed CPU");
        world.start();
    });
}

/// The parked CPU finds its mailbox written while another CPU gives it a command: exactly one of them starts it.
#[test]
fn a_command_against_the_mailbox() {
    loom::model(|| {
        let world = World::new(Stage::Parked);
        let other = world.clone();
        let commander = thread::spawn(move || {
            let claimed = other.take(Step::Claim);
            if claimed {
                assert!(other.take(Step::Command), "nobody moves a claimed CPU");
            }
            claimed
        });
        let woken = world.take(Step::Wake);
        let claimed = commander.join().unwrap();
        assert!(woken != claimed, "woken {woken}, claimed {claimed}");
        assert_eq!(world.stage.get(), Stage::Starting);
    });
}

/// A CPU that leaves while another one grants: a host that has given something away is never native.
#[test]
fn leave_against_grant() {
    loom::model(|| {
        let world = World::new(Stage::Nested);
        let other = world.clone();
        let granter = thread::spawn(move || {
            let mut rules = other.rules.lock().unwrap();
            let wholly_nested = !matches!(other.stage.get(), Stage::Native | Stage::Starting);
            rules.may_leave &= !wholly_nested;
            wholly_nested
        });
        let left = {
            let rules = world.rules.lock().unwrap();
            rules.may_leave && world.take(Step::Leave)
        };
        let granted = granter.join().unwrap();
        assert!(left != granted, "left {left}, granted {granted}");
    });
}
