//! `lab test`: every test of the workspace, then the scenarios.

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{
    bochs::Platform,
    boot::MachineArgs,
    paths,
    progress::Progress,
    run::Run,
    say,
    scenarios::{self, Scenario},
};

/// Run every test; the last line is "N passed, N failed".
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    /// Only this scenario (repeatable), and not the workspace's tests
    #[arg(long)]
    pub only: Vec<String>,
    /// Print the scenarios' names and what they show
    #[arg(long)]
    pub list: bool,
    /// Machines at a time; one keeps a CPU of yours busy
    #[arg(long, default_value_t = 2)]
    pub jobs: usize,
    /// Kill a machine after this many seconds of wall time
    #[arg(long, default_value_t = 2400)]
    pub timeout: u64,
    /// What runs the machines; kvm is untested
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
}

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: usize,
    failed: usize,
}

/// Runs the tests; returns whether all passed.
///
/// # Errors
/// An unknown name, or cargo cannot be started.
pub fn test(args: &TestArgs) -> Result<bool> {
    if args.list {
        for scenario in scenarios::ALL.iter().chain(scenarios::BY_NAME) {
            println!("{:<20} {}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    let chosen = choose(&args.only)?;
    let mut count = Count::default();
    if args.only.is_empty() {
        count = host_tests()?;
    }
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Count::default()));
    thread::scope(|scope| {
        for _ in 0..args.jobs.clamp(1, chosen.len().max(1)) {
            scope.spawn(|| {
                while let Some(scenario) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = run(scenario, args);
                    let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                    if passed {
                        results.passed += 1;
                    } else {
                        results.failed += 1;
                    }
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    count.passed += results.passed;
    count.failed += results.failed;
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}

fn choose(only: &[String]) -> Result<Vec<&'static Scenario>> {
    if only.is_empty() {
        return Ok(scenarios::ALL.iter().collect());
    }
    only.iter()
        .map(|name| {
            scenarios::ALL
                .iter()
                .chain(scenarios::BY_NAME)
                .find(|scenario| scenario.name == name)
                .with_context(|| {
                    format!("no scenario is called {name}; `cargo lab test --list` shows them")
                })
        })
        .collect()
}

/// Runs one scenario and prints its line.
fn run(scenario: &Scenario, args: &TestArgs) -> bool {
    let begin = Instant::now();
    let dir = paths::out().join("test").join(scenario.name);
    let _ = fs::remove_dir_all(&dir);
    let mut machine = MachineArgs {
        strict: true,
        timeout: args.timeout,
        platform: args.platform,
        dir: Some(dir.clone()),
        ..MachineArgs::default()
    };
    (scenario.machine)(&mut machine);
    let outcome = Run::boot(&machine, Progress::new(scenario.name)).and_then(|mut run| {
        let outcome = (scenario.play)(&mut run);
        run.report.ok = outcome.is_ok();
        run.report.error = outcome.as_ref().err().map(|error| format!("{error:#}"));
        run.report.write(&dir.join("report.json"))?;
        outcome
    });
    let _ = fs::remove_file(dir.join("boot.iso"));
    let seconds = begin.elapsed().as_secs();
    match outcome {
        Ok(()) => println!("scenario {} ... ok ({seconds} s)", scenario.name),
        Err(ref error) => println!(
            "scenario {} ... FAILED ({seconds} s)\n{error:#}\n",
            scenario.name
        ),
    }
    outcome.is_ok()
}

/// The workspace's own tests.
fn host_tests() -> Result<Count> {
    say("cargo test --workspace");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(paths::workspace())
        .args(["test", "--workspace", "--no-fail-fast", "--quiet"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut count = count_tests(&text);
    if !output.status.success() {
        print!("{text}");
        // It did not compile, or a test binary died without a word.
        count.failed = count.failed.max(1);
    } else if count.passed == 0 {
        bail!("cargo test ran no test");
    }
    println!(
        "workspace: {} passed, {} failed",
        count.passed, count.failed
    );
    Ok(count)
}

/// Adds up lines such as `test result: ok. 3 passed; 0 failed; ...`.
fn count_tests(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().filter(|line| line.starts_with("test result:")) {
        let words: Vec<_> = line.split_whitespace().collect();
        for pair in words.windows(2) {
            if let [number, what] = pair
                && let Ok(number) = number.parse::<usize>()
            {
                match *what {
                    "passed;" => count.passed += number,
                    "failed;" => count.failed += number,
                    _ => {}
                }
            }
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let text = "\nrunning 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(
            count_tests(text),
            Count {
                passed: 4,
                failed: 2
            }
        );
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_told() {
        let mut names: Vec<_> = scenarios::ALL
            .iter()
            .map(|scenario| scenario.name)
            .collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), scenarios::ALL.len());
        assert!(choose(&["nothing".into()]).is_err());
        assert_eq!(
            choose(&["refresh".into()]).map(|chosen| chosen.len()).ok(),
            Some(1)
        );
    }
}
