//! The archive's package lists, as far as the lab asks (deb822: `man 5 deb-control`).

use std::{cmp::Ordering, collections::BTreeMap};

use super::pocket::Pocket;

/// A package at one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its version.
    pub version: String,
    /// Where it is; the same version may be in several places, and then this is the first of [`Pocket::ALL`].
    pub pocket: Pocket,
    /// Its `Depends`.
    depends: String,
    /// Whether a Debian tree must have it.
    essential: bool,
}

/// Packages by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    packages: BTreeMap<String, Vec<Package>>,
}

impl Index {
    /// Adds what a `Packages` file lists.
    pub(crate) fn add(&mut self, pocket: Pocket, text: &str) {
        for stanza in text.split("\n\n") {
            let field = |name: &str| {
                stanza.lines().find_map(|line| {
                    let value = line.strip_prefix(name)?.strip_prefix(": ")?;
                    Some(value.trim())
                })
            };
            let (Some(name), Some(version)) = (field("Package"), field("Version")) else {
                continue;
            };
            let versions = self.packages.entry(name.to_owned()).or_default();
            if versions.iter().all(|package| package.version != version) {
                versions.push(Package {
                    version: version.to_owned(),
                    pocket,
                    depends: field("Depends").unwrap_or_default().to_owned(),
                    essential: field("Essential") == Some("yes"),
                });
            }
        }
    }

    /// Names of all packages.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.packages.keys().map(String::as_str)
    }

    /// The newest version of a package in the given parts of the archive.
    #[must_use]
    pub(crate) fn newest(&self, name: &str, pockets: &[Pocket]) -> Option<&Package> {
        self.packages
            .get(name)?
            .iter()
            .filter(|package| pockets.contains(&package.pocket))
            .max_by(|a, b| compare(&a.version, &b.version))
    }

    /// Names of the packages that every tree has.
    pub(crate) fn essential(&self) -> impl Iterator<Item = &str> {
        self.packages
            .iter()
            .filter(|(_, versions)| versions.iter().any(|package| package.essential))
            .map(|(name, _)| name.as_str())
    }

    /// Whether a package is there, and all packages of the kernel's that it needs.
    #[must_use]
    pub(crate) fn installable(&self, name: &str) -> bool {
        let Some(package) = self.newest(name, &Pocket::ALL) else {
            return false;
        };
        let names = |alternatives: &str| -> Vec<String> {
            alternatives
                .split('|')
                .filter_map(|one| one.split_whitespace().next())
                .map(str::to_owned)
                .collect()
        };
        package.depends.split(',').map(names).all(|alternatives| {
            // Others are not the kernel's, or virtual: apt's business.
            alternatives.is_empty()
                || alternatives.iter().any(|name| !name.starts_with("linux-"))
                || alternatives.iter().any(|name| self.packages.contains_key(name))
        })
    }
}

/// Names of the packages that modules for a kernel of this release are built with: its headers and what these need of
/// the kernel's own, but not the image.
#[must_use]
pub(crate) fn headers(index: &Index, release: &str) -> Vec<String> {
    let mut names = vec![format!("linux-headers-{release}")];
    let depends = index
        .newest(&names[0], &Pocket::ALL)
        .map(|package| package.depends.clone())
        .unwrap_or_default();
    names.extend(
        depends
            .split(',')
            .filter_map(|one| one.split_whitespace().next())
            .filter(|name| {
                ["linux-headers-", "linux-kbuild-"]
                    .iter()
                    .any(|start| name.starts_with(start))
            })
            .map(str::to_owned),
    );
    names
}

/// Compares versions as dpkg does.
#[must_use]
pub(crate) fn compare(a: &str, b: &str) -> Ordering {
    deb_version::compare_versions(a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Package: a\nVersion: 1.9-1\nEssential: yes\nDepends: libc6 (>= 2), linux-k | linux-l\n\n\
                        Package: a\nVersion: 1.10-1\n\nPackage: linux-l\nVersion: 1\n\n";

    #[test]
    fn newest_is_by_dpkgs_order_and_by_pocket() {
        let mut index = Index::default();
        index.add(Pocket::Stable, LIST);
        index.add(Pocket::Backports, "Package: a\nVersion: 2~bpo-1\n");
        let newest = |pockets| index.newest("a", pockets).map(|p| p.version.as_str());
        assert_eq!(newest(&Pocket::OWN), Some("1.10-1"));
        assert_eq!(newest(&Pocket::ALL), Some("2~bpo-1"));
        assert_eq!(index.newest("b", &Pocket::ALL), None);
        assert_eq!(index.essential().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn headers_come_without_the_image() {
        let mut index = Index::default();
        index.add(
            Pocket::Stable,
            "Package: linux-headers-6-amd64\nVersion: 1\nDepends: linux-image-6-amd64 (= 1) | x, linux-headers-6-common (= 1), \
             linux-kbuild-6, gcc-14\n",
        );
        let wanted = ["linux-headers-6-amd64", "linux-headers-6-common", "linux-kbuild-6"];
        assert_eq!(headers(&index, "6-amd64"), wanted);
    }

    #[test]
    fn what_a_kernel_needs_must_be_there() {
        let mut index = Index::default();
        index.add(
            Pocket::Stable,
            "Package: x\nVersion: 1\nDepends: gcc, linux-k (= 1) | linux-l (= 1)\n\nPackage: y\nVersion: 1\nDepends: linux-k (= 1)\n\n\
             Package: linux-l\nVersion: 1\n",
        );
        assert!(index.installable("x"));
        assert!(!index.installable("y") && !index.installable("z"));
    }
}
