//! Names of errors, for programs and for those who look one up: they stay when the texts are improved.
//!
//! A name is that of the variant in kebab-case, with a prefix for enums other than [`Refusal`]. One that was released is
//! never given up, and never given to another error: a variant that is renamed keeps it by `#[strum(serialize = "...")]`.

use std::error::Error;
use std::fmt;

use partitioner::{PlanError, PlanRefused, Refused};
use serde::{Deserialize, Serialize};
use strum::VariantNames;

use super::{Failure, Refusal};
use crate::pool::table::ClaimError;

/// The variant that has no name of its own, as what is in it has one.
const TRANSPARENT: &str = "plan";

impl Refusal {
    /// Its stable name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Plan(error) => error.into(),
            own => own.into(),
        }
    }
}

/// All names that there are.
pub fn names() -> impl Iterator<Item = &'static str> {
    let own = Refusal::VARIANTS.iter().filter(|name| **name != TRANSPARENT);
    let others = [
        PlanError::VARIANTS,
        Refused::VARIANTS,
        ClaimError::VARIANTS,
        Failure::VARIANTS,
    ];
    own.chain(others.into_iter().flatten()).copied()
}

/// The name of an error or of what caused it, if that has one.
pub fn name_of(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| match cause.downcast_ref::<Told>() {
        Some(told) => told.name.clone(),
        None => known(cause).map(str::to_owned),
    })
}

fn known(cause: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(refusal) = cause.downcast_ref::<Refusal>() {
        return Some(refusal.name());
    }
    if let Some(refused) = cause.downcast_ref::<PlanRefused>() {
        return Some(match refused {
            PlanRefused::Plan(error) => error.into(),
            PlanRefused::Refused(refused) => refused.into(),
        });
    }
    let plan = || cause.downcast_ref::<PlanError>().map(Into::into);
    let refused = || cause.downcast_ref::<Refused>().map(Into::into);
    let claim = || cause.downcast_ref::<ClaimError>().map(Into::into);
    plan().or_else(refused).or_else(claim)
}

/// An error as it is told to an operator, another program or another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire")]
pub struct Told {
    /// Its stable name; none if an older daemon told it.
    pub name: Option<String>,
    /// Cause and remedy.
    pub text: String,
}

/// As it may come: an older daemon sends the text alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Wire {
    Text(String),
    Told {
        #[serde(default)]
        name: Option<String>,
        text: String,
    },
}

impl From<Wire> for Told {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire::Text(text) => Self { name: None, text },
            Wire::Told { name, text } => Self { name, text },
        }
    }
}

impl Told {
    /// An error with all its causes.
    pub fn of(error: &anyhow::Error) -> Self {
        Self::of_failure(Failure::Failed, error)
    }

    /// The same, of a failure that is meant if nothing in it has a name of its own.
    pub fn of_failure(failure: Failure, error: &anyhow::Error) -> Self {
        Self {
            name: Some(name_of(error).unwrap_or_else(|| failure.name().to_owned())),
            text: format!("{error:#}"),
        }
    }

    /// Those words, of that failure.
    pub fn new(failure: Failure, text: impl Into<String>) -> Self {
        Self {
            name: Some(failure.name().to_owned()),
            text: text.into(),
        }
    }

    /// Its name, if it tells more than that something failed.
    fn own_name(&self) -> Option<&str> {
        self.name.as_deref().filter(|name| *name != Failure::Failed.name())
    }

    /// For an operator: the text, and its name in brackets.
    pub fn in_line(&self) -> String {
        match self.own_name() {
            Some(name) => format!("{self} [{name}]"),
            None => self.to_string(),
        }
    }

    /// In a line: `{"error":{"name":...,"text":...}}`.
    pub fn json(&self) -> String {
        serde_json::json!({ "error": self }).to_string()
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Told {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Names that releases have had, of the last one all: a release adds those that are new in it.
    const RELEASED: &str = include_str!("released.txt");

    #[test]
    fn names_are_unique_and_none_that_was_released_is_gone() {
        let all: Vec<_> = names().collect();
        let known: BTreeSet<_> = all.iter().copied().collect();
        assert_eq!(known.len(), all.len(), "one name for two errors: {all:?}");
        for name in &known {
            let fits = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '-';
            assert!(name.chars().all(fits), "{name}");
        }
        let released: BTreeSet<_> = RELEASED.lines().collect();
        let gone: Vec<_> = released.difference(&known).collect();
        assert!(gone.is_empty(), "programs of operators go by {gone:?}");
    }

    #[test]
    fn an_error_is_known_by_its_cause() {
        let name = |error: anyhow::Error| name_of(&error);
        assert_eq!(name(Refusal::NoL0.into()).as_deref(), Some("no-l0"));
        let plan = Refusal::Plan(PlanError::NoCpu);
        assert_eq!(
            name(anyhow::Error::from(plan).context("planning")).as_deref(),
            Some("plan-no-cpu")
        );
        let refused = PlanRefused::Refused(Refused::NotStuck);
        assert_eq!(name(refused.into()).as_deref(), Some("refresh-not-stuck"));
        assert_eq!(name(ClaimError::Full.into()).as_deref(), Some("pool-full"));
        assert_eq!(name(anyhow::anyhow!("something else")), None);
    }

    #[test]
    fn json_has_name_and_text() {
        let json = Told::of(&Refusal::Split.into()).json();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["error"]["name"], "split");
        assert!(value["error"]["text"].as_str().unwrap().contains("locum abort"));
        let nobodys = Told::of(&anyhow::anyhow!("x"));
        assert!(nobodys.json().contains("\"name\":\"failed\""), "{nobodys:?}");
        assert_eq!(nobodys.in_line(), "x");
        assert!(Told::of(&Refusal::NoL0.into()).in_line().ends_with(" [no-l0]"));
    }
}
