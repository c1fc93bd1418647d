//! Linux's own tests of KVM come to the same natively and nested. They are of the incumbent's line of kernels
//! ([`Root::selftests`](crate::debian::root::Root::selftests)), and many have nested guests of their own.
//!
//! A test that fails both ways at the same place tells nothing against L0: the emulator lacks something. One that is out
//! of time both ways was not run. Both are told.

mod table;
mod verdict;

use std::{fmt::Write as _, fs, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{machine::deadline::Span, report::Selftest, steps::Run};
use table::Way;
use verdict::Verdict;

/// Tests that have to be run at the least; there are some seventy in Linux 6.12.
const LEAST: usize = 60;

/// One test, run one way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    verdict: Verdict,
    seconds: u64,
}

/// A test and how it went, natively and nested.
type Pair<'a> = (&'a str, [Outcome; 2]);

/// Every test natively, then nested, in one boot.
pub(super) fn all(run: &mut Run) -> Result<()> {
    run.start_native(&[])?;
    run.sh("mkdir /selftests && mount -t squashfs -o ro,loop /images/selftests.sqfs /selftests")?;
    let names = run.sh("ls /selftests")?;
    let mut chosen = Vec::new();
    for name in names.lines() {
        match table::way(name) {
            Ok(way) => chosen.push((name, way)),
            Err(why) => run.check(&format!("{name} is left out: {why}")),
        }
    }
    ensure!(
        chosen.len() >= LEAST,
        "only {} tests of KVM were built:\n{names}",
        chosen.len()
    );
    let native = each(run, &chosen, "native")?;
    run.check_dormant()?;
    run.sh("locum enter")?;
    let nested = each(run, &chosen, "nested")?;
    let cpus = run.status()?.cpus;
    ensure!(
        cpus.iter().all(|cpu| cpu.mode == "nested"),
        "a test took a CPU out of nested mode: {cpus:?}"
    );
    run.sh("locum leave")?;
    run.check_dormant()?;
    let pairs: Vec<Pair> = chosen
        .iter()
        .zip(native.into_iter().zip(nested))
        .map(|((name, _), (native, nested))| (*name, [native, nested]))
        .collect();
    run.report.selftests = pairs.iter().map(row).collect();
    let dir = run.machine.dir().display().to_string();
    let differ = differences(&pairs, &dir);
    ensure!(
        differ.is_empty(),
        "tests of KVM come to something else nested than natively:\n{differ}"
    );
    for word in summary(&pairs) {
        run.check(&word);
    }
    run.power_off()
}

/// Runs the tests one after the other; the log of each is `NAME.MODE.log` beside the machine's own.
fn each(run: &mut Run, chosen: &[(&str, Way)], mode: &str) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (number, (name, way)) in chosen.iter().enumerate() {
        run.progress
            .step(&format!("{mode}: {name}, {} of {}", number + 1, chosen.len()));
        let begin = seconds(run)?;
        let Way { arguments, bound } = way;
        let output = run.host().run(
            &format!("cd /tmp; timeout -s KILL {bound} /selftests/{name} {arguments}"),
            // For a host that does not even kill it.
            Span::seconds(2 * u64::from(*bound) + 300),
        )?;
        let verdict = Verdict::of(output.status, &output.text);
        let log = run.machine.dir().join(format!("{name}.{mode}.log"));
        fs::write(
            &log,
            format!("{}\n{verdict}, exit status {}\n", output.text, output.status),
        )
        .with_context(|| format!("writing {}", log.display()))?;
        let seconds = seconds(run)?.saturating_sub(begin);
        outcomes.push(Outcome { verdict, seconds });
    }
    Ok(outcomes)
}

/// Seconds by the host's clock since it booted.
fn seconds(run: &mut Run) -> Result<u64> {
    let text = run.sh("cat /proc/uptime")?;
    let seconds: f64 = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .with_context(|| format!("/proc/uptime has {text:?}"))?;
    Ok(Duration::from_secs_f64(seconds).as_secs())
}

fn row((name, [native, nested]): &Pair) -> Selftest {
    Selftest {
        name: (*name).to_owned(),
        native: native.verdict.to_string(),
        nested: nested.verdict.to_string(),
        seconds: [native.seconds, nested.seconds],
    }
}

/// The tests whose verdicts differ, a line each, with their logs.
fn differences(pairs: &[Pair], dir: &str) -> String {
    let mut text = String::new();
    for (name, [native, nested]) in pairs {
        if native.verdict != nested.verdict {
            let _ = writeln!(
                text,
                "{name}: natively {}, nested {} ({dir}/{name}.native.log, {name}.nested.log)",
                native.verdict, nested.verdict
            );
        }
    }
    text
}

/// How many tests came to what, both ways, and which of them did not pass.
fn summary(pairs: &[Pair]) -> Vec<String> {
    let which = |wanted: fn(&Verdict) -> bool| {
        let of = pairs.iter().filter(|(_, [native, _])| wanted(&native.verdict));
        of.map(|(name, [native, _])| match &native.verdict {
            verdict @ Verdict::Fail { .. } => format!("{name} ({verdict})"),
            _ => (*name).to_owned(),
        })
        .collect::<Vec<_>>()
    };
    let passed = which(|verdict| matches!(verdict, Verdict::Pass(_)));
    let skipped = which(|verdict| *verdict == Verdict::Skip);
    let failed = which(|verdict| matches!(verdict, Verdict::Fail { .. }));
    let late = which(|verdict| *verdict == Verdict::OutOfTime);
    let run = pairs.len() - late.len();
    let mut words = vec![format!(
        "{run} of Linux's tests of KVM come to the same natively and nested: {} pass, {} skip, {} fail",
        passed.len(),
        skipped.len(),
        failed.len()
    )];
    for (what, names) in [
        ("skip both ways", skipped),
        ("fail both ways, at the same place", failed),
        ("not run, for they are out of time both ways", late),
    ] {
        if !names.is_empty() {
            words.push(format!("{what}: {}", names.join(", ")));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(name: &str, statuses: [i32; 2]) -> Pair<'_> {
        (
            name,
            statuses.map(|status| Outcome {
                verdict: Verdict::of(status, ""),
                seconds: 1,
            }),
        )
    }

    #[test]
    fn a_difference_is_told_with_both_logs() {
        let pairs = [pair("a", [0, 0]), pair("b", [0, 254]), pair("c", [254, 254])];
        assert_eq!(
            differences(&pairs, "/dir"),
            "b: natively pass, nested fail, status 254 (/dir/b.native.log, b.nested.log)\n"
        );
        // Neither skipped nor late is the same as passed.
        assert_eq!(
            differences(&[pair("d", [0, 4]), pair("e", [0, 137])], "")
                .lines()
                .count(),
            2
        );
    }

    #[test]
    fn what_did_not_pass_is_named() {
        let pairs = [
            pair("a", [0, 0]),
            pair("b", [4, 4]),
            pair("c", [254, 254]),
            pair("d", [137, 137]),
        ];
        assert_eq!(
            summary(&pairs),
            [
                "3 of Linux's tests of KVM come to the same natively and nested: 1 pass, 1 skip, 1 fail",
                "skip both ways: b",
                "fail both ways, at the same place: c (fail, status 254)",
                "not run, for they are out of time both ways: d"
            ]
        );
        assert_eq!(summary(&pairs[..1]).len(), 1);
    }
}
