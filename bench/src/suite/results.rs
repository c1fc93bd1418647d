//! What scenarios came to, with date and commit, kept where no clean-up comes: what nobody plays daily must not rot
//! unseen.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{paths, tools};

/// One scenario, played once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Played {
    /// Its name.
    pub scenario: String,
    /// When it ended, in UTC: `2026-11-27T13:00:00Z`.
    pub date: String,
    /// The [`commit`] it was played at.
    pub commit: String,
    /// Whether it passed.
    pub ok: bool,
    /// Whether it could not be played; that is not kept.
    #[serde(skip)]
    pub skipped: bool,
    /// Why not: the first lines.
    pub error: Option<String>,
    /// Seconds of wall time.
    pub seconds: u64,
    /// Releases of its first and its last host's kernel.
    pub kernels: Vec<String>,
}

/// The commit of the work tree, with a `+` if the tree has changes; empty if that cannot be told.
#[must_use]
pub(super) fn commit() -> String {
    let mut commit = ask(Command::new("git").args(["rev-parse", "--short", "HEAD"]));
    if !ask(Command::new("git").args(["status", "--porcelain"])).is_empty() {
        commit.push('+');
    }
    commit
}

/// Now, in UTC, as in [`Played::date`].
#[must_use]
pub(super) fn date() -> String {
    ask(Command::new("date").args(["-u", "+%FT%TZ"]))
}

fn ask(command: &mut Command) -> String {
    tools::output(command.current_dir(paths::workspace()))
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.ok { "passed" } else { "FAILED" };
        write!(f, "{word} {} at {} in {} s", self.date, self.commit, self.seconds)
    }
}

fn file() -> Result<PathBuf> {
    Ok(paths::state()?.join("results.jsonl"))
}

/// Keeps a result.
///
/// # Errors
/// The file cannot be written.
pub(super) fn keep(played: &Played) -> Result<()> {
    let path = file()?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let mut line = serde_json::to_string(played)?;
    line.push('\n');
    // One write, so that two runs do not mix their lines.
    File::options()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

/// The last result of each scenario.
///
/// # Errors
/// The file is there and cannot be read.
pub(super) fn last() -> Result<BTreeMap<String, Played>> {
    let path = file()?;
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    Ok(of(&text))
}

fn of(text: &str) -> BTreeMap<String, Played> {
    text.lines()
        // A line of a lab with other fields is no reason to fail.
        .filter_map(|line| serde_json::from_str::<Played>(line).ok())
        .map(|played| (played.scenario.clone(), played))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_result_counts() {
        let line = |ok, date: &str| {
            let played = Played {
                scenario: "native".into(),
                ok,
                date: date.into(),
                ..Played::default()
            };
            serde_json::to_string(&played).unwrap()
        };
        let text = format!("{}\nrubbish\n{}\n", line(true, "1"), line(false, "2"));
        let last = of(&text);
        assert_eq!(last.len(), 1);
        assert!(last["native"].to_string().starts_with("FAILED 2"));
    }
}
