//! What was found out about one thing.

use std::fmt;

use serde::Serialize;

/// What it means for Locum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// It is as it must be.
    Fine,
    /// Locum works, but something is lost or not known.
    Hurts,
    /// Locum does not work so.
    Refuses,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// What it means.
    pub level: Level,
    /// What is so.
    pub found: String,
    /// What to do; none if it is fine.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it must be.
    pub fn fine(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Fine,
            found: found.into(),
            remedy: None,
        }
    }

    /// Something is lost.
    pub fn hurts(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Hurts,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// It does not work.
    pub fn refuses(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Refuses,
            ..Self::hurts(name, found, remedy)
        }
    }

    /// Without the level's word.
    pub fn in_words(&self) -> String {
        match &self.remedy {
            Some(remedy) => format!("{}: {} -> {remedy}", self.name, self.found),
            None => format!("{}: {}", self.name, self.found),
        }
    }
}

/// One line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.level {
            Level::Fine => "fine",
            Level::Hurts => "hurts",
            Level::Refuses => "refuses",
        };
        write!(f, "{word:<8} {}", self.in_words())
    }
}
