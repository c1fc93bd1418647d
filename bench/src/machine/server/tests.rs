//! A machine whose emulator is `sleep`, and whose clock and logs the tests write.

use std::{fs, process::Command};

use super::*;
use crate::machine::bochs::{HASWELL, IPS};

struct Fake {
    machine: Machine,
    dir: tempfile::TempDir,
}

impl Fake {
    /// May run for 100 s.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let clock = Clock::bochs(&dir.path().join(bochs::TICKS), HASWELL);
        let limit = Span::seconds(100);
        let machine = Machine {
            dir: dir.path().to_owned(),
            child,
            channels: [Channel::listen().unwrap(), Channel::listen().unwrap()],
            clock,
            end: Moment::after_start(limit),
            signs: signs(dir.path()),
            expected: Vec::new(),
            monitor: None,
            segment: None,
            _turn: Turn::default(),
        };
        Self { machine, dir }
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(file), bytes).unwrap();
    }

    /// It is so many seconds after power on.
    fn at(&self, seconds: u64) {
        let ticks = [seconds * IPS, 0].map(u64::to_le_bytes);
        self.write(bochs::TICKS, ticks.as_flattened());
    }
}

fn first_line<T: std::fmt::Debug>(outcome: Result<T>) -> String {
    let text = format!("{:#}", outcome.unwrap_err());
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_wait_ends_with_its_limit_or_the_machines() {
    let mut fake = Fake::new();
    fake.at(10);
    let deadline = fake.machine.deadline(Span::seconds(20)).unwrap();
    fake.at(30);
    fake.machine.check(deadline).unwrap();
    fake.at(31);
    let error = first_line(fake.machine.check(deadline));
    assert_eq!(
        error,
        "time is up: it is 31.0 s of the machine's time after power on, \
         the limit was 30.0 s of the machine's time after power on"
    );
    let deadline = fake.machine.deadline(Span::seconds(900)).unwrap();
    fake.at(100);
    fake.machine.check(deadline).unwrap();
    fake.at(101);
    assert!(first_line(fake.machine.check(deadline)).contains("the limit was 100.0 s"));
    assert!(first_line(fake.machine.wait_off(Span::seconds(900))).contains("did not power off"));
}

#[test]
fn a_panic_ends_waits_unless_it_is_expected() {
    let mut fake = Fake::new();
    let end = fake.machine.end;
    fake.write("console1.log", b"booting\nKernel pan");
    fake.machine.check(end).unwrap();
    fake.machine.expect_panic("console1.log");
    fake.write("console1.log", b"booting\nKernel panic - not syncing: no init\n");
    fake.machine.check(end).unwrap();

    fake.write("console0.log", b"Kernel panic - not syncing: ");
    let dir = fake.dir.path().to_owned();
    let goes_on = std::thread::spawn(move || {
        // What explains the panic is waited for, in the machine's time.
        sleep(Duration::from_millis(500));
        fs::write(dir.join("console0.log"), b"Kernel panic - not syncing: why\n").unwrap();
        let ticks = [50 * IPS, 0].map(u64::to_le_bytes);
        fs::write(dir.join(bochs::TICKS), ticks.as_flattened()).unwrap();
    });
    let error = fake.machine.check(end).unwrap_err().to_string();
    goes_on.join().unwrap();
    assert!(error.starts_with("\"Kernel panic - not syncing\" in console0.log"));
    assert!(error.contains("not syncing: why"), "{error}");
}

#[test]
fn a_machine_that_is_off_is_told() {
    let mut fake = Fake::new();
    let end = fake.machine.end;
    fake.machine.kill();
    assert!(first_line(fake.machine.check(end)).starts_with("the machine is off"));
    assert!(!fake.machine.wait_off(Span::seconds(1)).unwrap().success());
}

#[test]
fn a_log_is_waited_for() {
    let mut fake = Fake::new();
    fake.write("l0.log", b"dormant\ndormant\n");
    let limit = Span::seconds(5);
    fake.machine.wait_log("l0.log", "dormant", 2, limit).unwrap();
    fake.machine.kill();
    let error = first_line(fake.machine.wait_log("l0.log", "dormant", 3, limit));
    assert!(error.contains("waiting for \"dormant\" in l0.log"), "{error}");
}
