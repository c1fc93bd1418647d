//! Debian's archive as it is today, and what of it is cached.
//!
//! [`apt`] keeps an apt of the lab's own, apart from the machine's; [`index`] reads the package lists that it fetches;
//! [`kernels`] says which kernels there are and which one a name means; [`trees`] are the Debian trees in the cache;
//! [`fetch`] makes new ones. [`Archive`] puts the first three together, once per run. What is taken from all this is a
//! [`root`], made by one of the [`recipes`]; [`recipe`] says whether today's can be had or an earlier one has to do.

pub(crate) mod apt;
pub(crate) mod fetch;
pub(crate) mod index;
pub(crate) mod kernels;
mod recipe;
mod recipes;
pub(crate) mod root;
pub(crate) mod trees;

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;

use crate::{paths, progress::say};
use apt::Apt;
use index::Index;
use kernels::Kernels;

/// Release that every tree is made from.
pub(crate) const SUITE: &str = "trixie";

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A part of the archive that packages come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pocket {
    /// The release itself.
    Stable,
    /// What will be in its next point release.
    Updates,
    /// Its security suite.
    Security,
    /// Its backports: newer lines of kernels, among others.
    Backports,
}

impl Pocket {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Stable, Self::Updates, Self::Security, Self::Backports];
    /// Those that a release gets its own line of packages from.
    pub(crate) const OWN: [Self; 3] = [Self::Stable, Self::Updates, Self::Security];

    /// The suite's name in the archive.
    #[must_use]
    pub(crate) fn suite(self) -> String {
        match self {
            Self::Stable => SUITE.to_owned(),
            Self::Updates => format!("{SUITE}-updates"),
            Self::Security => format!("{SUITE}-security"),
            Self::Backports => format!("{SUITE}-backports"),
        }
    }

    /// Where it is.
    fn mirror(self) -> &'static str {
        match self {
            Self::Security => "http://deb.debian.org/debian-security",
            _ => "http://deb.debian.org/debian",
        }
    }

    /// Its line in `sources.list`; `kind` is `deb` or `deb-src`.
    #[must_use]
    pub(crate) fn source(self, kind: &str) -> String {
        format!("{kind} [signed-by={KEYRING}] {} {} main", self.mirror(), self.suite())
    }
}

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
