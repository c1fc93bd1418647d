//! Programs of the developer's machine that the lab calls.

use std::{
    env,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{paths, progress::say};

/// A program (found in `PATH`) or a file, and the Debian package it comes from.
const NEEDS: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("xorriso", "xorriso"),
    ("grub-mkrescue", "grub-common"),
    ("/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin"),
    ("mformat", "mtools"),
    ("mksquashfs", "squashfs-tools"),
    ("unshare", "util-linux"),
    ("xz", "xz-utils"),
    ("iasl", "acpica-tools"),
    ("gcc", "gcc"),
    ("strip", "binutils"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ("setpriv", "util-linux"),
    (
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// Makes sure that every program the lab calls is there; installs what is missing when run as root.
///
/// # Errors
/// Something is missing and cannot be installed; the message holds the one command to run.
pub(crate) fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install --yes {}", missing.join(" "));
    if !is_root() {
        bail!("the lab needs some Debian packages; run: sudo {line}");
    }
    say(&format!("installing {}", missing.join(" ")));
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(Command::new("apt-get")
        .args(["install", "--yes", "-q", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))
    .with_context(|| format!("installing what the lab needs; try by hand: {line}"))
}

fn missing() -> Vec<&'static str> {
    let mut packages: Vec<_> = NEEDS
        .iter()
        .filter(|(need, _)| !present(need))
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn present(need: &str) -> bool {
    if need.starts_with('/') {
        return Path::new(need).exists();
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(need).exists())
}

/// Whether this process may chroot and install packages.
#[must_use]
pub(crate) fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}

/// The cargo that runs the lab, in the workspace, without standard input.
#[must_use]
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(paths::workspace()).stdin(Stdio::null());
    command
}

/// Runs a command quietly; its output becomes part of the error if it fails.
///
/// # Errors
/// The program cannot be started or fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// As [`run`], and returns standard output.
///
/// # Errors
/// The program cannot be started or fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = ended(command)?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    bail!(
        "{command:?} failed ({}):\n{}",
        output.status,
        last_lines(&format!("{stdout}{stderr}"), 30)
    )
}

/// Runs shell text quietly, as [`run`]; the paths are its `$1` and so on.
///
/// # Errors
/// It fails.
pub(crate) fn shell(text: &str, paths: &[&Path]) -> Result<()> {
    run(Command::new("sh").args(["-c", text, "sh"]).args(paths))
}

/// Runs a command quietly; returns its exit status (`None`: a signal ended it), and all that it wrote.
///
/// # Errors
/// The program cannot be started.
pub(crate) fn status(command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = ended(command)?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code(), text))
}

/// The same for one that may run for long: what it writes is in `log` as it comes.
///
/// # Errors
/// The program cannot be started, or the log cannot be written or read.
pub(crate) fn logged(command: &mut Command, log: &Path) -> Result<(Option<i32>, String)> {
    let told = || format!("the log {}", log.display());
    let file = std::fs::File::create(log).with_context(told)?;
    let both = file.try_clone().with_context(told)?;
    let status = ended(command.stdout(file).stderr(both))?.status;
    let bytes = std::fs::read(log).with_context(told)?;
    Ok((status.code(), String::from_utf8_lossy(&bytes).into_owned()))
}

fn ended(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {name}"))
}

/// Removes a directory that may hold a Debian tree; without root, its files belong to other ids of this user's name
/// space.
///
/// # Errors
/// Something in it cannot be removed.
pub(crate) fn remove_tree(dir: &Path) -> Result<()> {
    if dir.is_file() {
        return std::fs::remove_file(dir).with_context(|| format!("removing {}", dir.display()));
    }
    let removed = std::fs::remove_dir_all(dir);
    if removed.is_ok() || is_root() {
        return removed.with_context(|| format!("removing {}", dir.display()));
    }
    run(Command::new("unshare")
        .args(["--map-auto", "--map-root-user", "rm", "-rf"])
        .arg(dir))
}

/// Bytes that the files of a directory take on the disk; what cannot be read does not count.
#[must_use]
pub(crate) fn disk_usage(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::HashSet::new();
    walkdir::WalkDir::new(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(|meta| meta.nlink() < 2 || seen.insert((meta.dev(), meta.ino())))
        .map(|meta| meta.blocks() * 512)
        .sum()
}

/// The last `count` lines of `text`.
#[must_use]
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    lines.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_of_short_and_long_text() {
        assert_eq!(last_lines("a\nb", 5), "a\nb");
        assert_eq!(last_lines("a\nb\nc", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn shell_text_has_its_paths() {
        let dir = tempfile::tempdir().unwrap();
        shell(r#"echo "$2" > "$1"/out"#, &[dir.path(), Path::new("a b")]).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "a b\n");
        assert!(shell("exit 1", &[]).is_err());
    }

    #[test]
    fn a_log_can_be_read_while_the_program_runs() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = "echo out; echo err >&2; seen=$(cat \"$1\"); echo \"seen: $seen\"; exit 3";
        let (status, text) = logged(Command::new("sh").args(["-c", script, "sh"]).arg(&log), &log).unwrap();
        assert_eq!((status, text.as_str()), (Some(3), "out\nerr\nseen: out\nerr\n"));
        assert_eq!(std::fs::read_to_string(log).unwrap(), text);
    }

    #[test]
    fn failure_carries_the_output() {
        let error = run(Command::new("sh").args(["-c", "echo out; echo err >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("out\nerr"), "{error}");
    }
}
