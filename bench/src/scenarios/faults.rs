//! Whatever dies, no guest dies with it: a table of what dies at which step, and the same questions after each.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::abort::Facts;
use crate::{
    machine::deadline::Span,
    steps::{
        DAEMON, Run,
        refresh::Outcome,
        successor::{Kernel, Successor},
    },
};

/// Kills the daemon as the kernel does that is out of memory, with [`DAEMON`] at hand.
const KILL: &str = "pid=$(daemon); [ -n \"$pid\" ] && kill -9 $pid";
/// Starts it again when it is gone, as systemd does: in the midst of an ioctl it does not die at once.
const START: &str = "while [ -n \"$(daemon)\" ]; do sleep 0.1; done; \
                     setsid locum daemon </dev/null >>/var/log/locum.log 2>&1 &";
/// `signal NAME WORDS`: to each process with these words in its command line.
const SIGNAL: &str = "signal() { for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" in \
                      *\"$2\"*) [ ${p#/proc/} = $$ ] || kill -$1 ${p#/proc/};; esac; done; }";
/// Where the script is that does a deed. The hosts of the lab run what is in this folder when they boot.
const SCRIPT: &str = "/etc/init.d/fault";
/// As `locum status` words it.
const AWAIT: &str = "wait for the successor's agent";

/// A daemon that dies while a successor does not come up, and how everything comes back.
struct Stranded {
    what: &'static str,
    /// Done after its death, before it is started again.
    meanwhile: &'static str,
    /// Commands that are refused, with a word that the refusal has.
    refused: &'static [(&'static str, &'static str)],
    /// The command that gives everything back.
    back: &'static str,
}

const STRANDED: &[Stranded] = &[
    Stranded {
        what: "killed while it waits for the successor's agent",
        meanwhile: "true",
        refused: &[],
        back: "locum abort",
    },
    Stranded {
        what: "killed there, its journal lost",
        meanwhile: "rm /run/locum/journal",
        refused: &[("locum refresh NAME", "split already"), ("locum abort", "--force")],
        back: "locum abort --force",
    },
    Stranded {
        what: "killed there, its journal torn",
        meanwhile: "head -c 1000 /run/locum/journal >/run/torn; cp /run/torn /run/locum/journal",
        refused: &[("locum abort", "--force")],
        back: "locum abort --force",
    },
];

/// Something that goes wrong while a refresh is under way.
pub(super) struct Fault {
    what: &'static str,
    /// The host in which it is done.
    side: Side,
    /// Shell text that is true when the time has come. It is looked at every 10 ms.
    when: &'static str,
    deed: Deed,
    /// What becomes of the refresh.
    end: End,
}

/// A host of a refresh.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Incumbent,
    Successor,
}

enum Deed {
    /// The daemon is killed, and started again a second later.
    KillDaemon,
    /// Shell text with [`SIGNAL`] at hand; and what puts right afterwards what it left.
    Do(&'static str, &'static str),
}

/// What becomes of a refresh.
enum End {
    /// It goes through; the new host's report says that a daemon took it up at an action with these words.
    TakenUp(&'static str),
    /// It goes through.
    Done,
    /// It is given up with an error that has this word, and the incumbent has everything back.
    GivenUp(&'static str),
}

/// True when a host's daemon is at this step. It begins no program: a step may last no longer than that.
macro_rules! at {
    ($step:literal) => {
        concat!(
            "now=; { read -r now </sys/kernel/locum/progress; } 2>/dev/null; case $now in *\"",
            $step,
            "\"*) true;; *) false;; esac"
        )
    };
}

const fn daemon(what: &'static str, side: Side, when: &'static str, taken_up: &'static str) -> Fault {
    Fault {
        what,
        side,
        when,
        deed: Deed::KillDaemon,
        end: End::TakenUp(taken_up),
    }
}

/// The one that `cargo lab test` has in one of its refreshes. It takes no time there.
pub(super) const IN_CI: Fault = daemon(
    "the incumbent's daemon is killed while it waits for the successor's agent",
    Side::Incumbent,
    at!("wait for the successor's agent"),
    AWAIT,
);

/// Refreshes that go through all the same. The steps are those that last: a script can't meet others, and the machine in memory
/// has them all.
const DAEMONS: &[Fault] = &[
    daemon(
        "the incumbent's daemon is killed while memory is removed",
        Side::Incumbent,
        at!("remove memory"),
        "remove memory",
    ),
    daemon(
        "the incumbent's daemon is killed while it loads the successor's image",
        Side::Incumbent,
        at!("load the successor"),
        "load the successor",
    ),
    IN_CI,
    daemon(
        "the incumbent's daemon is killed while a guest goes over",
        Side::Incumbent,
        at!("hand guest"),
        "hand guest",
    ),
    Fault {
        what: "the successor's daemon is killed when it has started a QEMU",
        side: Side::Successor,
        when: "pidof qemu-system-x86_64 >/dev/null",
        deed: Deed::KillDaemon,
        end: End::Done,
    },
    daemon(
        "the successor's daemon is killed while it adds memory",
        Side::Successor,
        at!("add memory"),
        "add memory",
    ),
];

/// QEMUs that die or hang.
const OTHERS: &[Fault] = &[
    Fault {
        what: "the QEMU that waits for the guest is killed",
        side: Side::Successor,
        // To look through all processes would take longer than it waits.
        when: "pid=$(pidof qemu-system-x86_64)",
        deed: Deed::Do("sleep 0.2; kill -9 $pid", "true"),
        end: End::GivenUp("g1"),
    },
    Fault {
        what: "the guest's QEMU hangs",
        side: Side::Incumbent,
        when: at!("wait for the successor's agent"),
        deed: Deed::Do("signal STOP /run/g1.qmp", "signal CONT /run/g1.qmp"),
        end: End::GivenUp("g1"),
    },
];

/// The incumbent's daemon dies while a successor hangs: all comes back.
pub(super) fn daemon_stranded(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into()])?;
    let good = run.successor()?;
    let facts = Facts::of(run)?;
    for stranded in STRANDED {
        strand(run, &good, stranded).with_context(|| stranded.what.to_owned())?;
        facts.still(run)?;
        run.check_dormant()?;
    }
    // What was given back is as good as new.
    run.replace_host(&good)
}

/// Daemons that die at steps of refreshes that go through all the same.
pub(super) fn daemons(run: &mut Run) -> Result<()> {
    each(run, DAEMONS)
}

/// What else dies or hangs; and an operator who does not wait, and looks again later.
pub(super) fn others(run: &mut Run) -> Result<()> {
    each(run, OTHERS)
}

fn each(run: &mut Run, faults: &[Fault]) -> Result<()> {
    run.start_native(&["g1".into()])?;
    let mut unreclaimed = BTreeMap::new();
    for fault in faults {
        let successor = run.successor()?;
        meet(run, fault, &successor)?;
        let now = run.status()?.unreclaimed_bytes;
        // Hosts have their homes by turns; the machine's first had all of it, and is none of these.
        let before = [run.generation, run.generation.wrapping_sub(2)].map(|generation| unreclaimed.get(&generation));
        let least = before.into_iter().flatten().min().copied().unwrap_or(u64::MAX);
        ensure!(
            now <= least,
            "{}: unreclaimed memory grew from {least} to {now} bytes",
            fault.what
        );
        unreclaimed.insert(run.generation, now);
    }
    // What is left is as good as new. If `timeout` had to interrupt the command, its own status is 124, or busybox's the command's.
    let good = run.successor()?;
    let command = format!(
        "timeout -s INT 20 locum refresh {}; status=$?; case $status in 124 | 130) locum refresh --follow ;; \
         *) echo \"not interrupted: status $status\"; exit 1 ;; esac",
        good.name
    );
    run.replace_host_by(&good, &command)?;
    run.check("`locum refresh` is interrupted: the refresh went on, and `--follow` showed it");
    run.power_off()
}

/// One refresh with one fault in it, and the questions after it.
pub(super) fn meet(run: &mut Run, fault: &Fault, successor: &Successor) -> Result<()> {
    suffer(run, fault, successor.clone()).with_context(|| fault.what.to_owned())
}

fn suffer(run: &mut Run, fault: &Fault, mut successor: Successor) -> Result<()> {
    let facts = Facts::of(run)?;
    arm(run, fault)?;
    if fault.side == Side::Successor {
        successor.carry.push("/etc/init.d".to_owned());
    }
    match fault.end {
        End::GivenUp(word) => {
            let words = match run.refresh(&successor)? {
                Outcome::Failed(words) => words,
                Outcome::Done => bail!("the refresh went through"),
            };
            let error = words.lines().last().unwrap_or_default();
            ensure!(error.contains(word), "the error does not tell of {word}: {words}");
            if let Deed::Do(_, after) = fault.deed {
                run.sh(&format!("{SIGNAL}; {after}"))?;
            }
            run.wait_status("the end of it", |status| (status.state == "idle").then_some(()))?;
            run.check_guests()?;
            facts.still(run)?;
            run.check_dormant()?;
            run.check(&format!("{}: given up: {error}", fault.what));
        }
        End::Done | End::TakenUp(_) => {
            run.replace_host(&successor)?;
            let report = run.status()?.last_report.context("there is no report")?;
            if let End::TakenUp(step) = fault.end {
                ensure!(
                    report.taken_up.iter().any(|action| action.contains(step)),
                    "no daemon took it up at `{step}`, but at {:?}",
                    report.taken_up
                );
            }
            ensure!(report.losses.is_empty(), "it cost {:?}", report.losses);
            run.check(&format!("{}: the refresh went on", fault.what));
        }
    }
    Ok(())
}

/// Puts the script where it runs in its host.
fn arm(run: &mut Run, fault: &Fault) -> Result<()> {
    // Else it would go on from host to host.
    run.sh(&format!("rm -f {SCRIPT} && mkdir -p /etc/init.d"))?;
    run.host().push(SCRIPT, fault.script().as_bytes(), Span::seconds(300))?;
    let start = match fault.side {
        Side::Incumbent => format!("sh {SCRIPT} start; chmod -x {SCRIPT}"),
        Side::Successor => format!("chmod +x {SCRIPT}"),
    };
    run.sh(&start).map(drop)
}

impl Fault {
    /// Waits for the time and does the deed, once, in the host; for the lab's line is too slow to meet a step.
    fn script(&self) -> String {
        let (ready, deed) = match self.deed {
            // To find it takes longer than some steps.
            Deed::KillDaemon => (
                format!("{DAEMON}\nuntil pid=$(daemon) && [ -n \"$pid\" ]; do sleep 0.1; done"),
                format!("kill -9 $pid\nsleep 1\n{START}"),
            ),
            Deed::Do(deed, _) => (SIGNAL.to_owned(), deed.to_owned()),
        };
        format!(
            "#!/bin/sh\n(\n{ready}\nuntil {}; do sleep 0.01; done\n{deed}\n) </dev/null >/run/fault.log 2>&1 &\n",
            self.when
        )
    }
}

/// Has the incumbent panic when the first of two guests has crossed.
pub(super) fn arm_panic(run: &mut Run) -> Result<()> {
    let panics = Fault {
        what: "the incumbent panics",
        side: Side::Incumbent,
        when: at!("hand guest g2"),
        deed: Deed::Do("echo c >/proc/sysrq-trigger", "true"),
        end: End::Done,
    };
    arm(run, &panics)?;
    run.machine.expect_panic("console0.log");
    Ok(())
}

/// The incumbent panics when the first of two guests has crossed: the successor takes the machine over, with that guest.
pub(super) fn incumbent_panics(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into(), "g2".into()])?;
    let successor = run.successor()?;
    successor.install(&mut run.host())?;
    arm_panic(run)?;
    run.sh(&format!("locum refresh {} --detach", successor.name))?;
    let report = run.succeeded_by(&successor)?;
    let console = run.machine.log("console0.log");
    ensure!(console.contains("Kernel panic"), "the incumbent did not panic");
    let error = report.error.unwrap_or_default();
    ensure!(
        error.contains("the incumbent died"),
        "no word of the incumbent's death: {error:?}"
    );
    run.lose_guest("g2");
    ensure!(
        report
            .losses
            .iter()
            .any(|loss| loss.contains("guest g2 died with the incumbent"))
            && !report.losses.iter().any(|loss| loss.contains("g1")),
        "what was lost is not told: {:?}",
        report.losses
    );
    run.check("the incumbent panicked: the successor took the machine over, and told the guest that was lost");
    run.check_whole(&successor)?;
    // And the machine is as good as new.
    let release = run.report.incumbent.clone();
    let next = run.successor_of(&release)?;
    run.replace_host(&next)?;
    run.power_off()
}

/// The incumbent hangs with interrupts off while it powers off, all guests gone: the successor takes it by INIT.
pub(super) fn incumbent_hangs(run: &mut Run) -> Result<()> {
    run.start_native(&["g1".into()])?;
    let successor = Successor {
        poweroff: &["labd", "hang"],
        retire_timeout: 20,
        ..run.successor()?
    };
    successor.install(&mut run.host())?;
    run.sh(&format!("locum refresh {} --detach", successor.name))?;
    let report = run.succeeded_by(&successor)?;
    let error = report.error.unwrap_or_default();
    ensure!(
        error.contains("does not power off"),
        "no word of the incumbent's end: {error:?}"
    );
    let trace = run.sh("locum trace")?;
    for word in ["may be taken by", "taken from"] {
        ensure!(trace.contains(word), "no `{word}` in L0's trace:\n{trace}");
    }
    run.check("the incumbent hung with interrupts off: the successor took its CPUs after the time-out");
    run.check_whole(&successor)?;
    run.power_off()
}

fn strand(run: &mut Run, good: &Successor, stranded: &Stranded) -> Result<()> {
    let successor = Successor {
        kernel: Kernel::HANG,
        boot_timeout: 3600,
        ..good.clone()
    };
    let name = &successor.name;
    successor.install(&mut run.host())?;
    run.sh(&format!("locum refresh {name} --detach"))?;
    let waits = |summary: &str| summary.contains(AWAIT);
    run.wait_status("the wait for the successor", |status| {
        status.daemon.as_ref().filter(|daemon| waits(&daemon.summary)).map(drop)
    })?;
    run.sh(&format!("{DAEMON}; {KILL}"))?;
    let state = run.status()?.state;
    ensure!(state == "no daemon", "the daemon is not dead: {state}");
    run.check_guests()?;
    run.sh(stranded.meanwhile)?;
    run.sh(&format!("{DAEMON}; {START}"))?;
    let said = run.wait_status("the daemon's first word", |status| {
        let daemon = status.daemon.as_ref()?;
        Some((daemon.summary.clone(), daemon.last_error.clone()))
    })?;
    match &said {
        (summary, _) if stranded.meanwhile == "true" => {
            ensure!(waits(summary), "it was not taken up: {said:?}");
            let report = run.status()?.last_report.context("there is no report")?;
            ensure!(
                report.taken_up.len() == 1,
                "the report does not tell: {:?}",
                report.taken_up
            );
        }
        (_, error) => {
            let error = error.as_deref().unwrap_or_default();
            ensure!(
                error.contains("locum abort"),
                "no error names cause and remedy: {said:?}"
            );
        }
    }
    for (command, word) in stranded.refused {
        let command = command.replace("NAME", name);
        let words = run.sh(&format!("if {command} 2>&1; then echo it was not refused; exit 1; fi"))?;
        ensure!(words.contains(word), "`{command}`: no `{word}` in: {words}");
    }
    run.sh(stranded.back)?;
    run.wait_status("the end of it", |status| (status.state == "idle").then_some(()))?;
    run.check_guests()?;
    run.check(&format!("the daemon {}: everything came back", stranded.what));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_script_is_a_shell_script() {
        for fault in DAEMONS.iter().chain(OTHERS) {
            let status = Command::new("sh").args(["-n", "-c", &fault.script()]).status().unwrap();
            assert!(status.success(), "{}", fault.what);
        }
    }

    #[test]
    fn a_signal_goes_to_those_with_the_words_only() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().display().to_string();
        let start = |word: &str| {
            Command::new("sh")
                .args(["-c", "sleep 60; true", &format!("{name}/{word}")])
                .spawn()
                .unwrap()
        };
        let (mut hit, mut spared) = (start("hit"), start("spared"));
        let script = format!("{SIGNAL}; signal 9 $(printf %s {name}/h; printf it)");
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
        assert!(!hit.wait().unwrap().success());
        assert_eq!(spared.try_wait().unwrap(), None);
        spared.kill().unwrap();
        spared.wait().unwrap();
    }
}
