//! Whatever dies, no guest dies with it: a table of what dies at which step, and the same questions after each.

use anyhow::{Context, Result, ensure};

use super::abort::Facts;
use crate::{
    machine::deadline::Span,
    steps::{
        Run,
        successor::{Kernel, Successor},
    },
};

/// Kills the daemon as the kernel does that is out of memory.
const KILL: &str = "killed=0; for p in /proc/[0-9]*; do \
                    if [ \"$(tr '\\0' ' ' <$p/cmdline 2>/dev/null)\" = 'locum daemon ' ]; then \
                    kill -9 ${p#/proc/} && killed=1; fi; done; [ $killed = 1 ]";
/// Starts it again, as systemd does.
const START: &str = "setsid locum daemon </dev/null >>/var/log/locum.log 2>&1 &";
/// Where the script is that kills the daemon.
const KILLER: &str = "/run/killer.sh";
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

/// Steps of a good refresh at which the daemon dies and comes again, one per refresh: the refresh goes through.
const STEPS: &[&str] = &["remove memory", "enter nested", "give memory", AWAIT, "hand guest"];

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

/// As [`daemon_stranded`]; then it dies at steps of refreshes that go through all the same.
pub(super) fn daemon_killed(run: &mut Run) -> Result<()> {
    daemon_stranded(run)?;
    for step in STEPS {
        go_on(run, step).with_context(|| format!("killed at `{step}`"))?;
    }
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
    run.sh(KILL)?;
    let state = run.status()?.state;
    ensure!(state == "no daemon", "the daemon is not dead: {state}");
    run.check_guests()?;
    run.sh(stranded.meanwhile)?;
    run.sh(START)?;
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

fn go_on(run: &mut Run, step: &str) -> Result<()> {
    let successor = run.successor()?;
    // In the incumbent, for the lab's line is too slow to meet a step. It dies once.
    let script =
        format!("until grep -q \"{step}\" /sys/kernel/locum/progress; do sleep 0.01; done\n{KILL}\nsleep 1\n{START}\n");
    run.host().push(KILLER, script.as_bytes(), Span::seconds(300))?;
    run.sh(&format!("setsid sh {KILLER} </dev/null >/run/killer.log 2>&1 &"))?;
    run.replace_host(&successor)?;
    let report = run.status()?.last_report.context("there is no report")?;
    let met = report.taken_up.iter().any(|action| action.contains(step));
    ensure!(
        met,
        "the daemon did not die at `{step}`: taken up at {:?}",
        report.taken_up
    );
    run.check(&format!("the daemon killed at `{step}`: the refresh went on"));
    Ok(())
}
