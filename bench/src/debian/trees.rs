//! The Debian trees in the cache. Each says in a manifest what it was made of, so that one that a past run needed can
//! be told from one that today's archive would give.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::index::compare;
use crate::{paths, progress::say, tools};

/// Where manifests are, beside the trees: without root, a tree's files are of another owner.
const MANIFESTS: &str = "manifests";
/// How the name of a tree that is being made ends.
const PART: &str = ".part";

/// What a tree was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// What it is for: `host`, `bochs`, `guest`, `compiler`, `kernel-RELEASE`.
    pub name: String,
    /// A hash of everything that the lab itself put in: names of packages, patches, steps.
    pub recipe: String,
    /// The packages that were asked for, with their versions as the archive had them.
    pub packages: BTreeMap<String, String>,
    /// Whether it took packages from backports.
    #[serde(default)]
    pub backports: bool,
}

/// A tree in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    /// Where it is.
    pub dir: PathBuf,
    /// What it was made of.
    pub manifest: Manifest,
}

/// All complete trees.
///
/// # Errors
/// The cache cannot be read.
pub(crate) fn all(cache: &Path) -> Result<Vec<Tree>> {
    let mut trees = Vec::new();
    for file in entries(&cache.join(MANIFESTS))? {
        let dir = cache.join(file.file_name().unwrap_or_default());
        if !dir.exists() {
            continue;
        }
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        // A manifest of a later lab may be of another form; its tree is not ours.
        if let Ok(manifest) = serde_json::from_str(&text) {
            trees.push(Tree { dir, manifest });
        }
    }
    Ok(trees)
}

/// The newest tree for `name`, made by that recipe if one is given: the one with the highest version of the package
/// `lead`.
///
/// # Errors
/// As [`all`].
pub(crate) fn newest(cache: &Path, name: &str, recipe: Option<&str>, lead: &str) -> Result<Option<Tree>> {
    let version = |tree: &Tree| tree.manifest.packages.get(lead).cloned().unwrap_or_default();
    Ok(all(cache)?
        .into_iter()
        .filter(|tree| tree.manifest.name == name && recipe.is_none_or(|recipe| tree.manifest.recipe == recipe))
        .max_by(|a, b| compare(&version(a), &version(b))))
}

/// The tree that `LAB_TREES` wants for `name`, if it names one: names of trees in the cache, separated by colons. So a
/// run can be repeated with what an earlier one had; its report says what that was.
///
/// # Errors
/// One of the names is not in the cache.
pub(crate) fn asked_for(cache: &Path, name: &str) -> Result<Option<Tree>> {
    let names = std::env::var("LAB_TREES").unwrap_or_default();
    pick(all(cache)?, &names, name)
}

fn pick(trees: Vec<Tree>, names: &str, name: &str) -> Result<Option<Tree>> {
    let mut found = None;
    for wanted in names.split(':').filter(|wanted| !wanted.is_empty()) {
        let tree = trees
            .iter()
            .find(|tree| tree.dir.file_name().is_some_and(|name| name == wanted))
            .with_context(|| {
                format!("LAB_TREES names {wanted}, which is not in the cache; `cargo lab root --list` shows what is")
            })?;
        if tree.manifest.name == name {
            found = Some(tree.clone());
        }
    }
    Ok(found)
}

/// Makes a tree that is complete one of the cache's: its [`part`] gets its name.
///
/// # Errors
/// The cache cannot be written.
pub(crate) fn complete(dir: &Path, manifest: &Manifest) -> Result<()> {
    let manifests = dir.parent().context("a tree without a cache")?.join(MANIFESTS);
    fs::create_dir_all(&manifests)?;
    let path = manifests.join(dir.file_name().context("a tree without a name")?);
    fs::write(&path, serde_json::to_string_pretty(manifest)?).with_context(|| format!("writing {}", path.display()))?;
    let part = part(dir);
    fs::rename(&part, dir).with_context(|| format!("renaming {}", part.display()))
}

/// Where a tree grows before it is complete.
#[must_use]
pub(crate) fn part(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(PART);
    name.into()
}

/// Takes the lock under which the tree at `dir` is made.
///
/// # Errors
/// As [`paths::lock`].
pub(crate) fn lock(dir: &Path) -> Result<fs::File> {
    let (locks, name) = lock_place(dir)?;
    paths::lock(&locks, &name)
}

/// Takes every lock of the cache, so that nobody is making anything in it.
///
/// # Errors
/// Somebody is.
pub(crate) fn lock_all(cache: &Path) -> Result<Vec<fs::File>> {
    let locks = cache.join("locks");
    let mut held = Vec::new();
    for file in entries(&locks)? {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        held.push(paths::try_lock(&locks, &name)?.with_context(|| {
            format!("another run of the lab is making {name} in the cache; try again when it has ended")
        })?);
    }
    Ok(held)
}

fn lock_place(dir: &Path) -> Result<(PathBuf, String)> {
    let name = dir.file_name().context("a tree without a name")?;
    let cache = dir.parent().context("a tree without a cache")?;
    Ok((cache.join("locks"), name.to_string_lossy().into_owned()))
}

/// Removes half-made trees that an interrupted run left; those that another run is making stay.
///
/// # Errors
/// One cannot be removed.
pub(crate) fn sweep(cache: &Path) -> Result<()> {
    for part in entries(cache)?.into_iter().filter(|dir| is_part(dir)) {
        let dir = part.with_extension("");
        let (locks, name) = lock_place(&dir)?;
        if let Some(_lock) = paths::try_lock(&locks, &name)?
            && part.exists()
        {
            say(&format!(
                "removing {}, left by a run that was interrupted",
                part.display()
            ));
            tools::remove_tree(&part)?;
        }
    }
    Ok(())
}

fn is_part(path: &Path) -> bool {
    path.to_string_lossy().ends_with(PART)
}

fn entries(cache: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = Vec::new();
    if cache.exists() {
        for entry in fs::read_dir(cache).with_context(|| format!("reading {}", cache.display()))? {
            entries.push(entry?.path());
        }
    }
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &Path, dir: &str, recipe: &str, version: &str) {
        let dir = cache.join(dir);
        fs::create_dir_all(part(&dir)).unwrap();
        let manifest = Manifest {
            name: "host".into(),
            recipe: recipe.into(),
            packages: [("qemu".to_owned(), version.to_owned())].into(),
            backports: false,
        };
        complete(&dir, &manifest).unwrap();
    }

    #[test]
    fn newest_is_by_version_and_of_the_same_recipe() {
        let cache = tempfile::tempdir().unwrap();
        let newest = || newest(cache.path(), "host", Some("a"), "qemu").unwrap();
        assert!(newest().is_none());
        put(cache.path(), "one", "a", "1:10.0.9");
        put(cache.path(), "two", "a", "1:10.0.13");
        put(cache.path(), "three", "b", "1:11.0.0");
        put(cache.path(), "four", "a", "1:12.0.0");
        fs::remove_dir(cache.path().join("four")).unwrap();
        assert_eq!(newest().unwrap().dir, cache.path().join("two"));
    }

    #[test]
    fn a_tree_can_be_asked_for() {
        let cache = tempfile::tempdir().unwrap();
        put(cache.path(), "one", "a", "1:10.0.9");
        let pick = |names, name| pick(all(cache.path()).unwrap(), names, name);
        assert!(pick("", "host").unwrap().is_none());
        assert!(pick("one", "bochs").unwrap().is_none());
        assert_eq!(pick("one", "host").unwrap().unwrap().dir, cache.path().join("one"));
        let error = pick("one:two", "host").unwrap_err().to_string();
        assert!(error.contains("LAB_TREES names two"), "{error}");
    }

    #[test]
    fn what_an_interrupted_run_left_goes_and_what_another_run_makes_stays() {
        let cache = tempfile::tempdir().unwrap();
        let dir = |name: &str| cache.path().join(name);
        for name in ["left-6.12.1", "busy-6.12.1"] {
            fs::create_dir_all(part(&dir(name)).join("usr")).unwrap();
        }
        fs::create_dir_all(dir("whole")).unwrap();
        let busy = lock(&dir("busy-6.12.1")).unwrap();
        sweep(cache.path()).unwrap();
        assert!(!part(&dir("left-6.12.1")).exists());
        assert!(part(&dir("busy-6.12.1")).exists() && dir("whole").exists());
        assert!(lock_all(cache.path()).is_err());
        drop(busy);
        lock_all(cache.path()).unwrap();
        sweep(cache.path()).unwrap();
        assert!(!part(&dir("busy-6.12.1")).exists());
    }
}
