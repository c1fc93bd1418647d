//! Other tools that run L0's code: Miri, which finds undefined behaviour, and the fuzzer. Both want a nightly compiler;
//! where something is missing they are skipped, and say what to install.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{paths, progress::say, suite::Skipped, tools};

/// What has code of its own that any host can run, the targets with its tests, and what Miri is told for them besides. L0 has no
/// heap: what its tests leak, with the model of a CPU, stands for static memory. Tests of tables have the crate acpi as their
/// judge, which reads behind the structures that it has references to.
const PURE: [(&str, &[&str], &str); 4] = [
    ("locum-abi", &["--lib"], ""),
    ("firmware-shim", &["--test", "it"], "-Zmiri-tree-borrows"),
    ("partitioner", &["--lib", "--test", "it"], ""),
    ("l0-monitor", &["--lib"], "-Zmiri-ignore-leaks"),
];

/// L0's fuzz targets, and the seconds of each: ten minutes in all.
const TARGETS: [(&str, u32); 4] = [("decode", 60), ("life", 180), ("wild", 180), ("partition", 180)];

/// Bytes that an input has at most.
const INPUT: usize = 1024;

/// The tests of all pure cores under Miri.
pub(super) fn miri(dir: &Path) -> Result<()> {
    ask(
        &["miri", "--version"],
        "Miri is not installed: rustup toolchain install nightly --component miri,rust-src",
    )?;
    for (package, targets, flags) in PURE {
        let mut cargo = nightly();
        cargo
            .args(["miri", "test", "-p", package])
            .args(targets)
            // Tests read files of the workspace.
            .env("MIRIFLAGS", format!("-Zmiri-disable-isolation {flags}"));
        let passed = passed(&kept(cargo, dir, &format!("miri-{package}"))?);
        ensure!(passed > 0, "Miri ran no test of {package}");
        say(&format!("{package}: {passed} tests passed"));
    }
    Ok(())
}

/// Tests that passed, by what Cargo said of each package.
fn passed(text: &str) -> u32 {
    let lines = text.lines().filter(|line| line.starts_with("test result: ok. "));
    let passed = lines.filter_map(|line| line.split(' ').nth(3)?.parse::<u32>().ok());
    passed.sum()
}

/// The fuzz targets with new inputs. What they find is kept in this work tree's `target/lab/fuzz`, and goes on from there
/// the next time; the corpus of the repository is read only.
pub(super) fn fuzz(dir: &Path) -> Result<()> {
    ask(
        &["fuzz", "--version"],
        "cargo-fuzz or its nightly compiler is not installed: rustup toolchain install nightly; \
         cargo install --locked cargo-fuzz",
    )?;
    let crate_dir = paths::workspace().join("l0-monitor");
    for (target, seconds) in TARGETS {
        let found = paths::out().join("fuzz").join(target);
        fs::create_dir_all(&found)?;
        let mut cargo = nightly();
        cargo
            .current_dir(&crate_dir)
            .args(["fuzz", "run", "-O", "--debug-assertions", "--sanitizer", "none", target])
            .arg(found)
            .arg(crate_dir.join("fuzz/corpus").join(target))
            .args([
                "--",
                &format!("-max_len={INPUT}"),
                &format!("-max_total_time={seconds}"),
            ]);
        let text = kept(cargo, dir, target)
            .with_context(|| format!("target {target}; the input is in l0-monitor/fuzz/artifacts/{target}"))?;
        let done = text.lines().rev().find(|line| line.starts_with("Done "));
        let done = done.with_context(|| format!("target {target} did not say that it was done"))?;
        say(&format!("fuzz {target}: {done}"));
    }
    Ok(())
}

/// Cargo of the nightly toolchain, by rustup: whatever toolchain the lab itself was started with.
fn nightly() -> Command {
    let mut rustup = Command::new("rustup");
    rustup
        .current_dir(paths::workspace())
        .args(["run", "nightly", "cargo"])
        // Cargo's own, of the toolchain that runs the lab.
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN");
    rustup
}

/// Whether a tool answers; if not, this scenario is skipped.
fn ask(words: &[&str], missing: &str) -> Result<()> {
    match tools::status(nightly().args(words)) {
        Ok((Some(0), _)) => Ok(()),
        _ => Err(Skipped(missing.to_owned()).into()),
    }
}

/// Runs a command; all that it says is in the scenario's directory while it runs, and after.
fn kept(mut command: Command, dir: &Path, name: &str) -> Result<String> {
    fs::create_dir_all(dir)?;
    let log = dir.join(format!("{name}.log"));
    say(&format!("{name}: its log is {}", log.display()));
    let (status, text) = tools::logged(&mut command, &log)?;
    ensure!(
        status == Some(0),
        "{command:?} failed (log: {}):\n{}",
        log.display(),
        tools::last_lines(&text, 30)
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passed_is_counted_over_packages() {
        let text = "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
                    test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
                    test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.20s\n";
        assert_eq!(passed(text), 42);
        assert_eq!(passed("running 0 tests\n"), 0);
    }
}
