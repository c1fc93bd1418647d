//! `lab test`: every test of the workspace, then the scenarios.

mod results;

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

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    debian::kernels::{NEWEST, NEXT, OLDEST},
    image::kernel::{self, announce},
    machine::bochs::Platform,
    paths,
    progress::{Progress, say},
    report::Report,
    scenarios::{self, Play, Scenario},
    steps::{Run, prepare::MachineArgs},
    suite::results::Played,
};

/// Minutes that a part of `--all` may take.
const SHARD: u32 = 60;

/// Run every test; the last line is "N passed, N failed".
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    /// Only this scenario (repeatable), and not the workspace's tests
    #[arg(long)]
    pub only: Vec<String>,
    /// The long scenarios, too, and those that are played by name
    #[arg(long, conflicts_with = "only")]
    pub all: bool,
    /// With --all: cut the scenarios into M parts of alike length and play part N (the workspace's tests are in the
    /// first)
    #[arg(long, value_name = "N/M", requires = "all", value_parser = Shard::parse)]
    pub shard: Option<Shard>,
    /// Print the scenarios' names, what they show, and how and when each was last played here
    #[arg(long)]
    pub list: bool,
    /// Machines at a time; one keeps a CPU of yours busy
    #[arg(long, default_value_t = 2)]
    pub jobs: usize,
    /// Kill a machine after this many emulated seconds: 100 million ticks each, some 1.4 s here
    #[arg(long, value_name = "SECONDS", default_value_t = 2400)]
    pub timeout: u64,
    /// What runs the machines; kvm is untested
    #[arg(long, value_enum, default_value_t)]
    pub platform: Platform,
}

/// One of several parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    of: usize,
}

impl Shard {
    fn parse(text: &str) -> Result<Self, String> {
        let parts = text
            .split_once('/')
            .and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match parts {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Self { number, of }),
            _ => Err("write N/M, such as 1/3 for the first of three parts".into()),
        }
    }
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
        print!("{}", list()?);
        return Ok(true);
    }
    let begin = Instant::now();
    let commit = results::commit();
    let chosen = choose(args)?;
    let names = [OLDEST, NEWEST, NEXT];
    announce(&names)?;
    let host_too = args.only.is_empty() && args.shard.is_none_or(|shard| shard.number == 1);
    // What the scenarios need is fetched and built while the workspace's tests run.
    let (mut count, fetched) = thread::scope(|scope| {
        // A few by name fetch what they need themselves.
        let wanted: &[&str] = if args.only.is_empty() { &names } else { &[] };
        let fetched = scope.spawn(move || kernel::prefetch(wanted));
        let count = if host_too { host_tests() } else { Ok(Count::default()) };
        (count, fetched.join())
    });
    let count = count.as_mut().map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    match fetched {
        Ok(Ok(_)) => thread::scope(|scope| {
            for _ in 0..args.jobs.clamp(1, chosen.len().max(1)) {
                scope.spawn(|| {
                    while let Some(scenario) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let played = run(scenario, args, &commit);
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(played);
                    }
                });
            }
        }),
        Ok(Err(error)) => {
            println!("no scenario can be played: {error:#}");
            count.failed += chosen.len();
        }
        Err(_) => bail!("the thread that fetches has panicked"),
    }
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|played: &Played| std::cmp::Reverse(played.seconds));
    for played in &results {
        let word = if played.ok { "ok" } else { "FAILED" };
        println!("{:>6} s  {:<22} {word}", played.seconds, played.scenario);
        if played.ok {
            count.passed += 1;
        } else {
            count.failed += 1;
        }
    }
    println!("{:>6} s  in all", begin.elapsed().as_secs());
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(count.failed == 0)
}

/// What to play, the longest first: then two machines end at about the same time.
fn choose(args: &TestArgs) -> Result<Vec<&'static Scenario>> {
    let mut chosen = Vec::new();
    for name in &args.only {
        let found = scenarios::every().find(|scenario| scenario.name == name);
        chosen
            .push(found.with_context(|| format!("no scenario is called {name}; `cargo lab test --list` shows them"))?);
    }
    if args.only.is_empty() {
        chosen.extend(scenarios::CI);
    }
    if args.all {
        chosen.extend(scenarios::BY_NAME);
    }
    chosen.sort_by_key(|scenario| std::cmp::Reverse(scenario.minutes));
    let Some(shard) = args.shard else {
        return Ok(chosen);
    };
    let mut parts = vec![(0, Vec::new()); shard.of];
    for scenario in chosen {
        // Always to the shortest so far.
        if let Some((minutes, part)) = parts.iter_mut().min_by_key(|(minutes, _)| *minutes) {
            *minutes += scenario.minutes;
            part.push(scenario);
        }
    }
    let (minutes, part) = parts.swap_remove(shard.number - 1);
    let jobs = u32::try_from(args.jobs.max(1))?;
    ensure!(
        minutes.div_ceil(jobs) <= SHARD,
        "part {} of {} would take {} minutes, more than {SHARD}; cut it into more parts",
        shard.number,
        shard.of,
        minutes.div_ceil(jobs)
    );
    Ok(part)
}

/// The scenarios for people, with the last result of each.
fn list() -> Result<String> {
    let last = results::last()?;
    let lines = |scenarios: &[Scenario]| -> String {
        scenarios
            .iter()
            .map(|scenario| {
                let result = last
                    .get(scenario.name)
                    .map_or_else(|| "never played here".to_owned(), ToString::to_string);
                format!(
                    "  {:<22} {}\n  {:<22} about {} min; {result}\n",
                    scenario.name, scenario.about, "", scenario.minutes
                )
            })
            .collect()
    };
    Ok(format!(
        "played by `cargo lab test`:\n{}and besides by `cargo lab test --all`, or --only NAME:\n{}",
        lines(scenarios::CI),
        lines(scenarios::BY_NAME)
    ))
}

/// Plays one scenario, prints its line and keeps its result.
fn run(scenario: &Scenario, args: &TestArgs, commit: &str) -> Played {
    let begin = Instant::now();
    let mut report = Report::default();
    let outcome = play(scenario, args, &mut report);
    let seconds = begin.elapsed().as_secs();
    match outcome {
        Ok(()) => println!("scenario {} ... ok ({seconds} s)", scenario.name),
        Err(ref error) => println!("scenario {} ... FAILED ({seconds} s)\n{error:#}\n", scenario.name),
    }
    let played = Played {
        scenario: scenario.name.to_owned(),
        ok: outcome.is_ok(),
        seconds,
        error: outcome.err().map(|error| {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().to_owned()
        }),
        kernels: [report.incumbent, report.successor]
            .into_iter()
            .filter(|release| !release.is_empty())
            .collect(),
        commit: commit.to_owned(),
        date: results::date(),
    };
    if let Err(error) = results::keep(&played) {
        say(&format!("the result cannot be kept: {error:#}"));
    }
    played
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

/// The workspace's own tests.
fn host_tests() -> Result<Count> {
    say("cargo test --workspace");
    let begin = Instant::now();
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
        "workspace: {} passed, {} failed ({} s)",
        count.passed,
        count.failed,
        begin.elapsed().as_secs()
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
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: TestArgs,
    }

    fn names(args: &[&str]) -> Result<Vec<&'static str>> {
        let cli = Cli::try_parse_from([&["test"], args].concat())?;
        let chosen = choose(&cli.args)?;
        Ok(chosen.iter().map(|scenario| scenario.name).collect())
    }

    #[test]
    fn results_are_added_up() {
        let text = "\nrunning 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(count_tests(text), Count { passed: 4, failed: 2 });
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_told() {
        let mut all: Vec<_> = scenarios::every().map(|scenario| scenario.name).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(names(&["--only", "nothing"]).is_err());
        assert_eq!(names(&["--only", "refresh"]).unwrap(), ["refresh"]);
    }

    #[test]
    fn shards_are_all_scenarios_once() {
        let mut all = names(&["--all"]).unwrap();
        assert_eq!(all.len(), scenarios::every().count());
        let shards = ["1/3", "2/3", "3/3"].map(|shard| names(&["--all", "--shard", shard]).unwrap());
        let mut dealt = shards.concat();
        all.sort_unstable();
        dealt.sort_unstable();
        assert_eq!(dealt, all);
        for wrong in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(names(&["--all", "--shard", wrong]).is_err(), "{wrong}");
        }
        assert!(names(&["--shard", "1/3"]).is_err());
        assert!(names(&["--all", "--shard", "1/1", "--jobs", "1"]).is_err());
    }
}
