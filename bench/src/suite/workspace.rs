//! The workspace's own tests, by cargo.

use std::{process::Stdio, time::Instant};

use anyhow::{Context, Result, bail};

use crate::{progress::say, tools};

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// That passed.
    pub passed: usize,
    /// That failed.
    pub failed: usize,
}

/// With it in the environment, the agent's tests play faults at every step of a refresh, else at some.
const EVERY_STEP: &str = "LOCUM_EVERY_STEP";

/// The workspace's own tests; all of what they may play, or some of what would take minutes.
pub(super) fn test(all: bool) -> Result<Count> {
    let more = if all { format!("{EVERY_STEP}=1 ") } else { String::new() };
    say(&format!("{more}cargo test --workspace"));
    let begin = Instant::now();
    let output = tools::cargo()
        .envs(all.then_some((EVERY_STEP, "1")))
        .args(["test", "--workspace", "--no-fail-fast", "--quiet"])
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
    use super::*;

    #[test]
    fn results_are_added_up() {
        let text = "\nrunning 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(count_tests(text), Count { passed: 4, failed: 2 });
    }
}
