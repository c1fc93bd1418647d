//! What was not played, and is neither passed nor failed.

use std::fmt;

/// Why a scenario cannot be played here, and what to do for it: an error that says no more than that something of the
/// developer's is not installed.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}
