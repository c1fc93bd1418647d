//! Debian's archive as it is today, or what is cached of it.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use super::{apt::Apt, index::Index, kernels::Kernels, trees};
use crate::{paths, progress::say};

/// What there is to be had: looked at once, so that a run is of one piece.
#[derive(Debug)]
pub(crate) struct Archive {
    /// The archive's packages, or why it can't be reached.
    pub index: Result<Index, String>,
    /// All kernels, of the archive or cached.
    pub kernels: Kernels,
}

impl Archive {
    /// The archive as it was when this process first asked. Without a network, the cache stands in, and that is said.
    ///
    /// # Errors
    /// There is no cache directory.
    pub(crate) fn today() -> Result<Arc<Self>> {
        static TODAY: Mutex<Option<Arc<Archive>>> = Mutex::new(None);
        let mut today = TODAY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(archive) = today.as_ref() {
            return Ok(Arc::clone(archive));
        }
        let cache = paths::cache()?;
        trees::sweep(&cache)?;
        let index = Apt::new(&cache)?.update().map_err(|error| format!("{error:#}"));
        if let Err(why) = &index {
            say(&format!(
                "Debian's archive can't be reached, so what is cached has to do. apt said: {}",
                why.lines().next().unwrap_or_default()
            ));
        }
        let kernels = Kernels::new(index.as_ref().ok(), &trees::all(&cache)?);
        let archive = Arc::new(Self { index, kernels });
        *today = Some(Arc::clone(&archive));
        Ok(archive)
    }
}
