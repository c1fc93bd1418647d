//! How a tree is made, and where the cache has it.
//!
//! A tree's name holds the version of what it is for, and a hash of all that it was made of. So a run takes what the
//! archive has today, and what an earlier run took stays, for it to be repeated (`cargo lab clean --all` removes it).
//! Without a network the newest tree of the same recipe has to do.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail};

use super::{
    archive::Archive,
    fetch::{self, Order},
    pocket::{Pocket, SUITE},
    root::{Root, hash_of, short},
    trees::{self, Manifest, Tree},
};
use crate::{paths, progress::say, tools};

/// How a tree is made.
#[derive(Default)]
pub(super) struct Recipe<'a> {
    /// What it is for: `host`, `bochs`, `kernel-RELEASE`.
    pub name: String,
    /// For people.
    pub what: String,
    /// What is installed in it.
    pub packages: Vec<String>,
    /// The package whose version the tree is known by; none for kernels, whose release says it.
    pub lead: Option<&'a str>,
    /// Whether it takes packages from backports.
    pub backports: bool,
    /// A Debian source package that is put into it.
    pub source: Option<&'a str>,
    /// A shell command of mmdebstrap's that completes the tree, `$1`.
    pub hook: Option<&'a str>,
    /// Further text that decides what becomes of it.
    pub ingredients: &'a [&'a str],
}

/// Where a tree belongs that is made of what the archive has today.
struct Place {
    dir: PathBuf,
    /// Version that it is known by.
    version: String,
    /// Versions of its packages.
    packages: BTreeMap<String, String>,
}

/// Things that do not go together, and why: so it stays until one of them changes, so that it is not tried each time.
#[derive(Debug)]
pub(super) struct Incompatible(pub String);

impl std::fmt::Display for Incompatible {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Incompatible {}

impl Recipe<'_> {
    /// One of packages alone.
    #[must_use]
    pub(super) fn new(name: &str, what: &str, packages: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            what: what.to_owned(),
            packages: packages.iter().map(|&name| name.to_owned()).collect(),
            ..Self::default()
        }
    }

    /// The tree: today's, or without a network the newest of the cache. `finish` completes it, given the version that it
    /// is known by.
    ///
    /// # Errors
    /// It cannot be made, and was never made before.
    pub(super) fn tree(&self, finish: impl FnOnce(&Root, &str) -> Result<()>) -> Result<Root> {
        let cache = paths::cache()?;
        if let Some(tree) = trees::asked_for(&cache, &self.name)? {
            return Ok(stand_in(tree, "as LAB_TREES says"));
        }
        let archive = Archive::today()?;
        let Some(place) = self.place(&cache, &archive)? else {
            let tree = self.earlier(&cache)?.with_context(|| self.absent(&archive))?;
            return Ok(stand_in(tree, "without a network"));
        };
        let _lock = trees::lock(&place.dir)?;
        if place.dir.exists() {
            return Ok(Root::at(place.dir));
        }
        match self.make(&cache, &archive, &place, finish) {
            Ok(()) => Ok(Root::at(place.dir)),
            Err(error) => match self.earlier(&cache)? {
                Some(tree) => Ok(stand_in(tree, &format!("{error:#}"))),
                None => Err(error),
            },
        }
    }

    /// A hash of all that does not come from the archive.
    fn hash(&self) -> String {
        hash_of(&(
            SUITE,
            &self.name,
            &self.packages,
            self.source,
            self.hook,
            self.ingredients,
        ))
    }

    /// Versions of its packages in the archive today.
    fn versions(&self, archive: &Archive) -> BTreeMap<String, String> {
        let Ok(index) = &archive.index else {
            return BTreeMap::new();
        };
        let pockets: &[Pocket] = if self.backports { &Pocket::ALL } else { &Pocket::OWN };
        self.packages
            .iter()
            .map(String::as_str)
            .chain(self.lead)
            .filter_map(|name| Some((name.to_owned(), index.newest(name, pockets)?.version.clone())))
            .collect()
    }

    /// Where the tree of today's packages belongs; `None` if the archive cannot be reached, which decides that.
    fn place(&self, cache: &Path, archive: &Archive) -> Result<Option<Place>> {
        let packages = self.versions(archive);
        let Some(lead) = self.lead else {
            // A kernel's release says all; compilers and the like may differ.
            return Ok(Some(Place {
                dir: cache.join(format!("{SUITE}-{}-{}", self.name, short(&self.hash()))),
                version: String::new(),
                packages,
            }));
        };
        let Some(version) = packages.get(lead).cloned() else {
            if archive.index.is_ok() {
                bail!("Debian's archive has no package {lead} in {SUITE}, which the lab needs");
            }
            return Ok(None);
        };
        let key = hash_of(&(&self.hash(), &packages));
        let known_by = version.replace(':', "%");
        Ok(Some(Place {
            dir: cache.join(format!("{SUITE}-{}-{known_by}-{}", self.name, short(&key))),
            version,
            packages,
        }))
    }

    /// The newest cached tree of this recipe; of a kernel any, for an earlier lab may have made it with other tools.
    fn earlier(&self, cache: &Path) -> Result<Option<Tree>> {
        let hash = self.hash();
        let recipe = self.lead.is_some().then_some(hash.as_str());
        trees::newest(cache, &self.name, recipe, self.lead.unwrap_or_default())
    }

    /// Makes the tree, unless its parts are known not to go together.
    fn make(
        &self,
        cache: &Path,
        archive: &Archive,
        place: &Place,
        finish: impl FnOnce(&Root, &str) -> Result<()>,
    ) -> Result<()> {
        let failed = cache.join("failed");
        let note = failed.join(place.dir.file_name().unwrap_or_default());
        if let Ok(error) = fs::read_to_string(&note) {
            bail!(error);
        }
        let made = self.fetch(archive, place, finish);
        if let Err(error) = &made
            && error.is::<Incompatible>()
        {
            fs::create_dir_all(failed)?;
            fs::write(note, error.to_string())?;
        }
        made
    }

    fn fetch(&self, archive: &Archive, place: &Place, finish: impl FnOnce(&Root, &str) -> Result<()>) -> Result<()> {
        if archive.index.is_err() {
            bail!(self.absent(archive));
        }
        tools::ensure()?;
        let part = trees::part(&place.dir);
        let order = Order {
            what: &self.what,
            packages: &self.packages,
            backports: self.backports,
            source: self.source,
            hook: self.hook,
        };
        let made = fetch::tree(&order, &part)
            .with_context(|| format!("fetching {}", self.what))
            .and_then(|()| finish(&Root::at(part.clone()), &place.version));
        if made.is_err()
            && part.exists()
            && let Err(error) = tools::remove_tree(&part)
        {
            say(&format!("{error:#}"));
        }
        made?;
        let manifest = Manifest {
            name: self.name.clone(),
            recipe: self.hash(),
            packages: place.packages.clone(),
            backports: self.backports,
        };
        trees::complete(&place.dir, &manifest)
    }

    /// What to say where neither the cache nor the archive has it.
    fn absent(&self, archive: &Archive) -> String {
        let why = archive.index.as_ref().err().map(String::as_str).unwrap_or_default();
        format!(
            "{} is not cached, and Debian's archive can't be reached ({}); connect this machine to the network once",
            self.what,
            why.lines().next().unwrap_or_default()
        )
    }
}

/// A cached tree where today's cannot be had, and why; said once.
fn stand_in(tree: Tree, why: &str) -> Root {
    static SAID: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.contains(&tree.dir) {
        say(why.trim_end());
        say(&format!("taking the cached {}", tree.dir.display()));
        said.push(tree.dir.clone());
    }
    Root::at(tree.dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::debian::{index::Index, kernels::Kernels};

    fn compiler<'a>() -> Recipe<'a> {
        let packages = ["gcc", "binutils", "make", "pahole", "libelf1t64", "libssl3t64"];
        Recipe {
            lead: Some("gcc"),
            ..Recipe::new("compiler", "for people", &packages)
        }
    }

    /// A change of the hash has everybody fetch every tree anew: no change of this code may bring it about by the way.
    #[test]
    fn a_recipes_hash_is_what_it_was_in_earlier_labs() {
        assert_eq!(compiler().hash(), "9fb71f446afcb278");
        let more = Recipe {
            ingredients: &["patch"],
            ..compiler()
        };
        assert_ne!(more.hash(), compiler().hash());
    }

    #[test]
    fn a_tree_is_placed_by_the_archives_versions() {
        let mut index = Index::default();
        index.add(Pocket::Stable, "Package: gcc\nVersion: 4:14.2\n");
        let archive = |index| Archive {
            index,
            kernels: Kernels::default(),
        };
        let cache = Path::new("/cache");
        let place = |recipe: Recipe, index| {
            recipe
                .place(cache, &archive(index))
                .map(|place| place.map(|place| place.dir))
        };
        let named = |place: &Path| place.display().to_string();
        let dir = place(compiler(), Ok(index.clone())).unwrap().unwrap();
        assert!(
            named(&dir).starts_with("/cache/trixie-compiler-4%14.2-"),
            "{}",
            dir.display()
        );
        index.add(Pocket::Stable, "Package: make\nVersion: 4.4\n");
        assert_ne!(place(compiler(), Ok(index.clone())).unwrap().unwrap(), dir);
        assert_eq!(place(compiler(), Err("no network".into())).unwrap(), None);
        assert!(place(compiler(), Ok(Index::default())).is_err(), "a package is gone");
        let kernel = Recipe::new("kernel-6.12", "a kernel", &["linux-image-6.12"]);
        let dir = place(kernel, Err("no network".into())).unwrap().unwrap();
        assert!(named(&dir).starts_with("/cache/trixie-kernel-6.12-"));
    }
}
