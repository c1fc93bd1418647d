//! Which kernels there are, and which one a name means.

use std::fmt::Write as _;

use anyhow::{Result, bail};

use super::{
    index::{Index, compare},
    pocket::Pocket,
    trees::Tree,
};

/// Name of the oldest kernel of the release's own line: what an incumbent runs unless told otherwise.
pub(crate) const OLDEST: &str = "oldest";
/// Name of the newest kernel of the release's own line: what replaces it unless told otherwise.
pub(crate) const NEWEST: &str = "newest";
/// Name of the newest kernel of its backports.
pub(crate) const NEXT: &str = "next";

/// Variants of Debian's amd64 kernels, by the end of their release; that without a name is the default.
const FLAVOURS: &[&str] = &["-cloud-amd64", "-rt-amd64", "-amd64"];
/// Of these, the one that a bare version means.
const DEFAULT_FLAVOUR: &str = "-amd64";

/// A kernel that can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `uname -r`.
    pub release: String,
    /// Which part of the archive it is of.
    pub pocket: Pocket,
    /// Whether the archive has it today, image and headers.
    pub archive: bool,
    /// Whether it is in the cache.
    pub cached: bool,
}

impl Entry {
    fn flavour(&self) -> &str {
        flavour(&self.release)
    }
}

fn flavour(release: &str) -> &str {
    FLAVOURS
        .iter()
        .find(|flavour| release.ends_with(*flavour))
        .copied()
        .unwrap_or_default()
}

/// Those that the archive has, with their headers.
fn of_archive(index: &Index) -> impl Iterator<Item = Entry> {
    index.names().filter_map(|name| {
        let release = name.strip_prefix("linux-image-")?;
        let is_release = release.starts_with(|c: char| c.is_ascii_digit()) && !flavour(release).is_empty();
        if !is_release || !index.installable(name) || !index.installable(&format!("linux-headers-{release}")) {
            return None;
        }
        Some(Entry {
            release: release.to_owned(),
            pocket: index.newest(name, &Pocket::ALL)?.pocket,
            archive: true,
            cached: false,
        })
    })
}

/// All kernels, oldest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kernels {
    entries: Vec<Entry>,
    // Whether the archive was seen: without it, the cache decides.
    online: bool,
}

impl Kernels {
    /// Those of the archive, as far as it was reached, and those in the cache.
    #[must_use]
    pub(crate) fn new(index: Option<&Index>, trees: &[Tree]) -> Self {
        let mut entries: Vec<_> = index.into_iter().flat_map(of_archive).collect();
        for tree in trees {
            let Some(release) = tree.manifest.name.strip_prefix("kernel-") else {
                continue;
            };
            match entries.iter_mut().find(|entry| entry.release == release) {
                Some(entry) => entry.cached = true,
                None => entries.push(Entry {
                    release: release.to_owned(),
                    pocket: if tree.manifest.backports {
                        Pocket::Backports
                    } else {
                        Pocket::Stable
                    },
                    archive: false,
                    cached: true,
                }),
            }
        }
        entries.sort_by(|a, b| compare(&a.release, &b.release));
        Self {
            entries,
            online: index.is_some(),
        }
    }

    /// All of them, oldest first.
    #[must_use]
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The kernel that a name means: `oldest`, `newest`, `next`, a bare version or a release (`uname -r`).
    ///
    /// # Errors
    /// There is none; with the list.
    pub(crate) fn find(&self, name: &str) -> Result<&Entry> {
        if let Some(entry) = self.named(name) {
            return Ok(entry);
        }
        if self.entries.is_empty() {
            bail!(
                "there is no kernel: Debian's archive can't be reached and nothing is cached; connect this machine to the \
                 network once"
            );
        }
        bail!("there is no kernel {name:?}; there are\n{}", self.list().trim_end());
    }

    fn named(&self, name: &str) -> Option<&Entry> {
        match name {
            OLDEST => self.oldest(),
            NEWEST => self.line(&Pocket::OWN).next_back(),
            // A line that backports do not have yet, or no longer.
            NEXT => self
                .line(&[Pocket::Backports])
                .next_back()
                .or_else(|| self.line(&Pocket::OWN).next_back()),
            _ => self.entries.iter().rfind(|entry| {
                let bare = entry.release.split('+').next();
                entry.release == name || (bare == Some(name) && entry.flavour() == DEFAULT_FLAVOUR)
            }),
        }
    }

    /// The oldest of the release's own line. Without the archive: the newest but one, since a pair that is as new as
    /// can be is most likely what the next run with it takes.
    fn oldest(&self) -> Option<&Entry> {
        let mut line = self.line(&Pocket::OWN);
        if self.online {
            return line.next();
        }
        let line: Vec<_> = line.collect();
        line.get(line.len().saturating_sub(2)).copied()
    }

    /// Those that a default is chosen from, oldest first.
    fn line(&self, pockets: &[Pocket]) -> impl DoubleEndedIterator<Item = &Entry> {
        self.entries.iter().filter(move |entry| {
            pockets.contains(&entry.pocket) && entry.flavour() == DEFAULT_FLAVOUR && (entry.archive || !self.online)
        })
    }

    /// A table for people.
    #[must_use]
    pub(crate) fn list(&self) -> String {
        let mut text = String::new();
        let named: Vec<_> = [OLDEST, NEWEST, NEXT]
            .into_iter()
            .filter_map(|name| Some((name, self.named(name)?.release.clone())))
            .collect();
        for entry in &self.entries {
            let places = match (entry.archive, entry.cached) {
                (true, true) => "archive, cached",
                (true, false) => "archive",
                (false, _) => "cached",
            };
            let names: Vec<_> = named
                .iter()
                .filter(|(_, release)| *release == entry.release)
                .map(|(name, _)| *name)
                .collect();
            let line = format!(
                "  {:<32} {:<18} {:<16} {}",
                entry.release,
                entry.pocket.suite(),
                places,
                names.join(", ")
            );
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::trees::Manifest;

    /// A list with image and headers of each release.
    fn both(releases: &[&str]) -> String {
        releases
            .iter()
            .map(|release| {
                format!(
                    "Package: linux-image-{release}\nVersion: 1\n\nPackage: linux-headers-{release}\nVersion: 1\n\n"
                )
            })
            .collect()
    }

    fn tree(release: &str, backports: bool) -> Tree {
        Tree {
            dir: "/t".into(),
            manifest: Manifest {
                name: format!("kernel-{release}"),
                backports,
                ..Manifest::default()
            },
        }
    }

    fn index() -> Index {
        let mut index = Index::default();
        index.add(Pocket::Stable, &both(&["6.12.107+d-amd64"]));
        let security = [
            "6.12.99+d-amd64",
            "6.12.111+d-amd64",
            "6.12.111+d.1-amd64",
            "6.12.120+d-cloud-amd64",
        ];
        index.add(Pocket::Security, &both(&security));
        // An image that has lost its headers, and what is no release.
        index.add(
            Pocket::Security,
            "Package: linux-image-6.12.90+d-amd64\nVersion: 1\n\nPackage: linux-image-amd64\nVersion: 1\n\n\
             Package: linux-image-6.12.111+d-amd64-dbg\nVersion: 1\n",
        );
        index.add(Pocket::Backports, &both(&["7.3.4+d-amd64"]));
        index
    }

    fn release<'a>(kernels: &'a Kernels, name: &str) -> &'a str {
        &kernels.find(name).unwrap().release
    }

    #[test]
    fn defaults_are_of_the_releases_own_line() {
        let kernels = Kernels::new(Some(&index()), &[tree("6.12.80+d-amd64", false)]);
        assert_eq!(release(&kernels, OLDEST), "6.12.99+d-amd64");
        assert_eq!(release(&kernels, NEWEST), "6.12.111+d.1-amd64");
        assert_eq!(release(&kernels, NEXT), "7.3.4+d-amd64");
    }

    #[test]
    fn anything_that_the_list_shows_can_be_named() {
        let kernels = Kernels::new(Some(&index()), &[tree("6.12.80+d-amd64", false)]);
        let list = kernels.list();
        for entry in kernels.entries() {
            assert!(list.contains(&entry.release));
            assert_eq!(release(&kernels, &entry.release), entry.release);
        }
        assert_eq!(release(&kernels, "6.12.107"), "6.12.107+d-amd64");
        assert_eq!(release(&kernels, "6.12.80"), "6.12.80+d-amd64");
        for gone in ["6.12.90", "6.12.120", "6.12", "amd64", "", "6.12; rm"] {
            let error = kernels.find(gone).unwrap_err().to_string();
            assert!(error.contains("6.12.107+d-amd64"), "{error}");
        }
        assert!(!list.contains("dbg") && !list.contains("6.12.90"));
    }

    #[test]
    fn without_the_archive_the_newest_cached_pair_has_to_do() {
        let trees = [
            tree("7.3.4+d-amd64", true),
            tree("6.12.80+d-amd64", false),
            tree("6.12.99+d-amd64", false),
            tree("6.12.111+d-amd64", false),
        ];
        let kernels = Kernels::new(None, &trees);
        assert_eq!(release(&kernels, OLDEST), "6.12.99+d-amd64");
        assert_eq!(release(&kernels, NEWEST), "6.12.111+d-amd64");
        assert_eq!(release(&kernels, NEXT), "7.3.4+d-amd64");
        let one = Kernels::new(None, &trees[1..2]);
        assert_eq!(release(&one, OLDEST), "6.12.80+d-amd64");
        assert_eq!(release(&one, NEWEST), "6.12.80+d-amd64");
        assert_eq!(release(&one, NEXT), "6.12.80+d-amd64");
        let error = Kernels::new(None, &[]).find(OLDEST).unwrap_err();
        assert!(error.to_string().contains("network"), "{error}");
    }
}
