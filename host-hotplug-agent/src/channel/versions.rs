//! Which versions of the protocol the two agents speak: they may be years apart.

use serde::{Deserialize, Serialize};

/// Version of the protocol's first release, which every agent speaks.
pub const FIRST: u16 = 1;
/// Version of this release. 2 since [`super::Message::NotUnderstood`], 3 since [`super::Message::Heir`], 4 since
/// [`super::Message::Late`].
pub const VERSION: u16 = 4;

/// The versions that an agent speaks: all from `min` to `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl Versions {
    /// This agent's.
    pub const OURS: Self = Self {
        min: FIRST,
        max: VERSION,
    };

    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min && newest >= other.min).then_some(newest)
    }

    /// Whether an agent speaks a version.
    pub fn contains(self, version: u16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

/// An agent of the first release says nothing of versions.
impl Default for Versions {
    fn default() -> Self {
        Self { min: FIRST, max: FIRST }
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_speak_is_taken() {
        let versions = |min, max| Versions { min, max };
        assert_eq!(Versions::OURS.common(Versions::default()), Some(1));
        assert_eq!(Versions::OURS.common(versions(1, 9)), Some(VERSION));
        assert_eq!(versions(1, 5).common(versions(3, 4)), Some(4));
        assert_eq!(versions(1, 2).common(versions(3, 4)), None);
        assert_eq!(versions(3, 4).common(versions(1, 2)), None);
        assert!(Versions::OURS.contains(VERSION) && !Versions::OURS.contains(VERSION + 1));
    }
}
