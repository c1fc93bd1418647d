//! How a guest that is busy all along got on: its beats, as hosts saw them now and then.

use std::str::FromStr;

use anyhow::{Context, Error, Result};

/// TSC and beats, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beats(Vec<(u64, u64)>);

impl FromStr for Beats {
    type Err = Error;

    /// Of lines that `lab-guest watch --line` printed, in one host or in several.
    fn from_str(text: &str) -> Result<Self> {
        let mut seen = Vec::new();
        for line in text.lines() {
            let words = line.split_once(' ');
            let numbers = words.and_then(|(tsc, beats)| Some((tsc.parse().ok()?, beats.parse().ok()?)));
            seen.push(numbers.with_context(|| format!("not a TSC and beats: {line:?}"))?);
        }
        seen.sort_unstable();
        Ok(Self(seen))
    }
}

impl Beats {
    /// So many from one TSC to another; `None` if nobody looked before and after.
    pub(crate) fn between(&self, from: u64, to: u64) -> Option<u64> {
        self.at(to)?.checked_sub(self.at(from)?)
    }

    /// So many until then, as if they were alike from one look to the next.
    fn at(&self, tsc: u64) -> Option<u64> {
        let next = self.0.partition_point(|(seen, _)| *seen < tsc);
        let (after, more) = *self.0.get(next)?;
        if after == tsc {
            return Some(more);
        }
        let (before, less) = *self.0.get(next.checked_sub(1)?)?;
        let part = u128::from(more.checked_sub(less)?) * u128::from(tsc - before) / u128::from(after - before);
        Some(less + u64::try_from(part).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_told_between_looks_of_both_hosts() {
        let beats: Beats = "100 10\n200 30\n150 20\n300 30\n".parse().unwrap();
        assert_eq!(beats.between(100, 200), Some(20));
        assert_eq!(beats.between(125, 175), Some(10));
        assert_eq!(beats.between(200, 300), Some(0), "it stood still");
        assert_eq!(beats.between(99, 200), None);
        assert_eq!(beats.between(200, 301), None);
        assert_eq!(Beats::default().between(0, 1), None);
        assert!("error: no such guest\n".parse::<Beats>().is_err());
    }
}
