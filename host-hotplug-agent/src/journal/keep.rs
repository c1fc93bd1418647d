//! What outlives the daemon, but not the host: the last report, and memory that is nobody's.

use anyhow::Result;
use partitioner::Unreclaimed;
use serde::{Deserialize, Serialize};

use crate::file;
use crate::report::Report;
use crate::sysroot::SysRoot;

const FILE: &str = "run/locum/kept.json";

/// The file's content.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    /// Generation that wrote it.
    pub generation: u64,
    /// Memory that is nobody's.
    pub unreclaimed: Vec<Unreclaimed>,
    /// The last refresh.
    pub report: Option<Report>,
}

/// What an earlier daemon of this generation kept; nothing if there was none.
pub fn load(sys: &SysRoot, generation: u32) -> Kept {
    read(sys, generation).unwrap_or_default()
}

/// Whether a daemon of this generation has ended a refresh: that by which this host came, if it is not the first.
pub fn has_ended_one(sys: &SysRoot, generation: u32) -> bool {
    read(sys, generation).is_some()
}

fn read(sys: &SysRoot, generation: u32) -> Option<Kept> {
    let kept: Kept = serde_json::from_str(&sys.read_optional(FILE)?).ok()?;
    (kept.generation == u64::from(generation)).then_some(kept)
}

/// Keeps it.
///
/// # Errors
/// If the file cannot be written.
pub fn save(sys: &SysRoot, kept: &Kept) -> Result<()> {
    file::put_json(&sys.path(FILE), kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_generations_file_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let sys = SysRoot::at(dir.path());
        assert!(load(&sys, 0).report.is_none());
        save(
            &sys,
            &Kept {
                generation: 2,
                unreclaimed: vec![],
                report: Some(Report::default()),
            },
        )
        .unwrap();
        assert!(load(&sys, 2).report.is_some());
        assert!(load(&sys, 3).report.is_none());
    }
}
