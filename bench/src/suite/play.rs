//! Plays scenarios, several machines at a time, and keeps what they came to.

use std::{
    fs,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    args::TestArgs,
    results::{self, Played},
    skipped::Skipped,
};
use crate::{
    paths,
    progress::{Progress, say},
    report::Report,
    scenarios::{Play, Scenario},
    steps::{Run, prepare::MachineArgs},
};

/// Plays scenarios in their order, so many at a time as was asked for; the results, the longest first.
pub(super) fn all(chosen: &[&Scenario], args: &TestArgs, commit: &str) -> Vec<Played> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..args.jobs.clamp(1, chosen.len().max(1)) {
            scope.spawn(|| {
                while let Some(scenario) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let played = one(scenario, args, commit);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(played);
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|played| std::cmp::Reverse(played.seconds));
    results
}

/// Plays one scenario, prints its line and keeps its result.
fn one(scenario: &Scenario, args: &TestArgs, commit: &str) -> Played {
    let begin = Instant::now();
    let mut report = Report::default();
    let outcome = play(scenario, args, &mut report);
    let seconds = begin.elapsed().as_secs();
    let skipped = outcome.as_ref().is_err_and(|error| error.is::<Skipped>());
    match outcome {
        Err(ref error) if skipped => println!("scenario {} ... SKIPPED: {error:#}", scenario.name),
        Ok(()) => println!("scenario {} ... ok ({seconds} s)", scenario.name),
        Err(ref error) => println!("scenario {} ... FAILED ({seconds} s)\n{error:#}\n", scenario.name),
    }
    let played = Played {
        scenario: scenario.name.to_owned(),
        ok: outcome.is_ok(),
        skipped,
        seconds,
        error: outcome.err().map(|error| shortened(&format!("{error:#}"))),
        kernels: [report.incumbent, report.successor]
            .into_iter()
            .filter(|release| !release.is_empty())
            .collect(),
        commit: commit.to_owned(),
        date: results::date(),
    };
    if !skipped && let Err(error) = results::keep(&played) {
        say(&format!("the result cannot be kept: {error:#}"));
    }
    played
}

/// The first lines of an error that may carry a whole log.
fn shortened(text: &str) -> String {
    const LINES: usize = 30;
    let mut lines: Vec<_> = text.lines().take(LINES).collect();
    let left = text.lines().count() - lines.len();
    let rest = format!("... {left} lines more, above");
    if left > 0 {
        lines.push(&rest);
    }
    lines.join("\n")
}

fn play(scenario: &Scenario, args: &TestArgs, report: &mut Report) -> Result<()> {
    let place = paths::out().join("test");
    // Another run in this work tree may be playing it.
    let _lock = paths::lock(&place, scenario.name)?;
    let dir = place.join(scenario.name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    let (machine, play) = match scenario.play {
        Play::On(machine, play) => (machine, play),
        Play::Program(program) => return program(&dir),
    };
    let mut args = MachineArgs {
        strict: true,
        timeout: args.timeout,
        platform: args.platform,
        dir: Some(dir.clone()),
        ..MachineArgs::default()
    };
    machine(&mut args);
    let outcome = Run::boot(&args, Progress::new(scenario.name)).and_then(|mut run| {
        let outcome = play(&mut run);
        run.report.ok = outcome.is_ok();
        run.report.error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        run.report.write(&dir.join("report.json"))?;
        *report = run.report;
        outcome
    });
    let iso = dir.join("boot.iso");
    if iso.exists() {
        fs::remove_file(iso)?;
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_long_error_is_shortened_and_says_so() {
        assert_eq!(shortened("one\ntwo"), "one\ntwo");
        let long = "line\n".repeat(32);
        assert!(shortened(&long).ends_with("line\n... 2 lines more, above"));
    }
}
