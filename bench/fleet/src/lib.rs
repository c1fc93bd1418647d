//! A machine that is a file: what a program that stands for `locum` on it remembers.
//!
//! It has no clock. A refresh goes on by one step each time that somebody looks, so a test of it does not depend on how busy
//! the developer's machine is.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The file in a machine's directory.
const FILE: &str = "machine.json";
/// The file beside the machines' directories in which they write down what is done to them.
const EVENTS: &str = "events";

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Generation of the host.
    pub generation: u32,
    /// Its kernel.
    pub kernel: String,
    /// Kernels that are installed.
    pub installed: Vec<String>,
    /// Kernels of which there is a successor's image.
    pub images: Vec<String>,
    /// Guests that run, by name.
    pub guests: Vec<String>,
    /// Guests that were here, and do not run any more.
    pub off: Vec<String>,
    /// What is wrong with it.
    pub ill: Option<Ill>,
    /// What becomes of a refresh.
    pub fate: Fate,
    /// How far a refresh is.
    pub stage: Stage,
    /// How the last one ended, if there was one.
    pub last: Option<Last>,
}

/// What can be wrong with a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ill {
    /// It booted without L0.
    NoL0,
    /// Its daemon does not run.
    NoDaemon,
    /// A CPU is nested, and no refresh runs.
    Nested,
    /// So many bytes belong to nobody.
    Unreclaimed(u64),
    /// A refresh runs already.
    Refreshes,
    /// Nobody can connect to it.
    Unreachable,
}

/// What becomes of a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It goes through.
    Goes,
    /// Its plan is refused.
    RefusedPlan,
    /// The plan passes, and the daemon refuses all the same.
    RefusedAtOnce,
    /// It is given up.
    Aborts,
    /// The machine does not answer any more.
    StaysAway,
    /// A guest is lost, and the report says so.
    LosesGuest,
    /// A guest ends as soon as it has come.
    EndsGuest,
    /// The machine is reset meanwhile, and boots its newest kernel.
    Resets,
    /// An action fails that nothing may go on without.
    GetsStuck,
}

/// How far a refresh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// There is none.
    Rests,
    /// The old host tells of it, once more and so often.
    Runs(u32),
    /// There is no connection, for so many attempts; none: for ever.
    Away(Option<u32>),
    /// The new host is there, and its daemon not yet for so many looks.
    Starts(u32),
    /// It is stuck.
    Stuck,
}

/// How a refresh ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Last {
    /// Kernel before.
    pub from: String,
    /// Kernel that it went to, or was to.
    pub to: String,
    /// `done`, `aborted`, `stuck` or `running`.
    pub outcome: String,
    /// Guests that did not come.
    pub lost: Vec<String>,
}

impl Machine {
    /// A machine in good health.
    #[must_use]
    pub fn new(kernel: &str, installed: &[&str], guests: &[&str]) -> Self {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        Self {
            generation: 0,
            kernel: kernel.to_owned(),
            installed: owned(installed),
            images: Vec::new(),
            guests: owned(guests),
            off: Vec::new(),
            ill: None,
            fate: Fate::Goes,
            stage: Stage::Rests,
            last: None,
        }
    }

    /// Reads the machine of that directory.
    ///
    /// # Errors
    /// There is none.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Writes it down there.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        fs::write(&path, serde_json::to_string_pretty(self)?).with_context(|| path.display().to_string())
    }

    /// Whether somebody who tries to connect now succeeds.
    pub fn connects(&mut self) -> bool {
        if self.ill == Some(Ill::Unreachable) {
            return false;
        }
        match self.stage {
            Stage::Away(None) => false,
            Stage::Away(Some(0)) => {
                self.stage = Stage::Starts(1);
                true
            }
            Stage::Away(Some(attempts)) => {
                self.stage = Stage::Away(Some(attempts - 1));
                false
            }
            _ => true,
        }
    }

    /// A refresh begins.
    pub fn begin(&mut self, kernel: &str) {
        self.stage = Stage::Runs(0);
        self.last = Some(Last {
            from: self.kernel.clone(),
            to: kernel.to_owned(),
            outcome: "running".to_owned(),
            lost: Vec::new(),
        });
    }

    /// Somebody has looked, and what there is then may be another thing. Returns whether a refresh has come to an end.
    pub fn go_on(&mut self) -> bool {
        match self.stage {
            Stage::Runs(0) => self.leave(),
            Stage::Runs(looks) => {
                self.stage = Stage::Runs(looks - 1);
                false
            }
            Stage::Starts(0) => {
                self.stage = Stage::Rests;
                true
            }
            Stage::Starts(looks) => {
                self.stage = Stage::Starts(looks - 1);
                false
            }
            Stage::Rests | Stage::Away(_) | Stage::Stuck => false,
        }
    }

    /// What follows in the old host.
    fn leave(&mut self) -> bool {
        let Some(last) = &mut self.last else { return false };
        match self.fate {
            Fate::Aborts => {
                last.outcome = "aborted".to_owned();
                self.stage = Stage::Rests;
                return true;
            }
            Fate::GetsStuck => {
                last.outcome = "running".to_owned();
                self.stage = Stage::Stuck;
                return true;
            }
            Fate::StaysAway => {
                self.stage = Stage::Away(None);
                return true;
            }
            Fate::Resets => {
                self.generation = 0;
                self.kernel = last.to.clone();
                self.guests.clear();
                self.last = None;
            }
            Fate::LosesGuest => {
                last.lost.extend(self.guests.pop());
                self.arrive();
            }
            Fate::EndsGuest => {
                self.off.extend(self.guests.pop());
                self.arrive();
            }
            Fate::Goes | Fate::RefusedPlan | Fate::RefusedAtOnce => self.arrive(),
        }
        self.stage = Stage::Away(Some(1));
        false
    }

    fn arrive(&mut self) {
        if let Some(last) = &mut self.last {
            last.outcome = "done".to_owned();
            self.kernel = last.to.clone();
            self.generation += 1;
        }
    }
}

/// Writes down what is done to the machine of that directory: a line, `MACHINE WHAT`.
///
/// # Errors
/// It cannot be written.
pub fn tell(dir: &Path, what: &str) -> Result<()> {
    let name = dir.file_name().context("a machine has a name")?.to_string_lossy();
    let path = dir.with_file_name(EVENTS);
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    Ok(writeln!(file, "{name} {what}")?)
}

/// What was done to the machines whose directories are in `dir`, in order.
///
/// # Errors
/// It cannot be read.
pub fn told(dir: &Path) -> Result<Vec<String>> {
    let path = dir.join(EVENTS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(fs::read_to_string(path)?.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_goes_on_by_looks_and_attempts() {
        let mut machine = Machine::new("1", &["1", "2"], &["g"]);
        machine.begin("2");
        assert!(machine.connects());
        assert!(!machine.go_on());
        assert_eq!((machine.generation, machine.kernel.as_str()), (1, "2"));
        assert!(!machine.connects());
        assert!(machine.connects());
        assert!(!machine.go_on());
        assert!(machine.go_on());
        assert_eq!(machine.stage, Stage::Rests);
    }

    #[test]
    fn one_that_is_given_up_leaves_the_old_host() {
        let mut machine = Machine::new("1", &["1", "2"], &["g"]);
        machine.fate = Fate::Aborts;
        machine.begin("2");
        assert!(machine.go_on());
        assert_eq!((machine.generation, machine.kernel.as_str()), (0, "1"));
        assert!(machine.connects());
    }
}
