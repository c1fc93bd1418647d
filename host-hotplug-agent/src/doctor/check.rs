//! A line of the diagnosis.

use std::fmt;

use serde::Serialize;

use crate::preflight::{Finding, Level};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it must be.
    Ok,
    /// A refresh works, something is lost or slower.
    Advice,
    /// A refresh is not possible.
    Missing,
}

/// One line of the diagnosis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; none if all is well.
    pub remedy: Option<String>,
    /// What was found, one by one; shown with `-v`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Check {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            remedy: None,
            details: Vec::new(),
        }
    }

    pub fn bad(name: &'static str, verdict: Verdict, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            verdict,
            found: found.into(),
            remedy: Some(remedy.into()),
            details: Vec::new(),
        }
    }

    /// `ok` with `found`, or missing with the remedy.
    pub fn need(name: &'static str, fit: bool, found: impl Into<String>, remedy: &str) -> Self {
        if fit {
            Self::ok(name, found)
        } else {
            Self::bad(name, Verdict::Missing, found, remedy)
        }
    }
}

impl From<Finding> for Check {
    fn from(finding: Finding) -> Self {
        Self {
            name: finding.name,
            verdict: match finding.level {
                Level::Fine => Verdict::Ok,
                Level::Hurts => Verdict::Advice,
                Level::Refuses => Verdict::Missing,
            },
            found: finding.found,
            remedy: finding.remedy,
            details: Vec::new(),
        }
    }
}

/// `{:#}` shows the details, too.
impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Advice => "advice",
            Verdict::Missing => "missing",
        };
        write!(f, "{word:<8} {}: {}", self.name, self.found)?;
        let details = if f.alternate() { self.details.as_slice() } else { &[] };
        for detail in details {
            write!(f, "\n             {detail}")?;
        }
        match &self.remedy {
            Some(remedy) => write!(f, "\n           -> {remedy}"),
            None => Ok(()),
        }
    }
}
