//! Parts of Debian's archive.

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
