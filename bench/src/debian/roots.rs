//! Debian trees that the lab takes programs and kernels from, made once and cached.
//!
//! A tree's name holds the version of what it is for, and a hash of all that it was made of. So a run takes what the
//! archive has today, and what an earlier run took stays, for it to be repeated (`cargo lab clean --all` removes it).
//! Without a network the newest tree of the same recipe has to do.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Archive, Pocket, SUITE,
    fetch::{self, Order},
    trees::{self, Manifest, Tree},
};
use crate::{paths, progress::say, tools};

/// What the lab's Bochs needs changed, and how it is built.
const BOCHS_PATCH: &str = include_str!("../../emulator/bochs.patch");
const BOCHS_BUILD: &str = include_str!("../../emulator/build.sh");
/// What `build.sh` ends with if the patch does not apply.
const DOES_NOT_APPLY: i32 = 3;
/// What an operator sets in the stock guest.
const GUEST_SETUP: &str = include_str!("../../guest/stock/setup.sh");

/// A Debian tree.
#[derive(Debug, Clone)]
pub struct Root {
    dir: PathBuf,
}

/// How a tree is made.
struct Recipe<'a> {
    /// What it is for: `host`, `bochs`, `kernel-RELEASE`.
    name: String,
    /// For people.
    what: String,
    packages: Vec<String>,
    /// The package whose version the tree is known by; none for kernels, whose release says it.
    lead: Option<&'a str>,
    backports: bool,
    source: Option<&'a str>,
    /// A shell command of mmdebstrap's that completes the tree, `$1`.
    hook: Option<&'a str>,
    /// Further text that decides what becomes of it.
    ingredients: &'a [&'a str],
}

impl Recipe<'_> {
    /// A hash of all that does not come from the archive.
    fn hash(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (
            SUITE,
            &self.name,
            &self.packages,
            self.source,
            self.hook,
            self.ingredients,
        )
            .hash(&mut hasher);
        format!("{:016x}", hasher.finish())
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
}

impl Root {
    /// The emulator, `usr/bin/bochs`: built from Debian's source with the lab's fixes, which takes some minutes the
    /// first time.
    ///
    /// # Errors
    /// The tree cannot be fetched, or Bochs does not build and was never built.
    pub fn bochs() -> Result<Self> {
        let recipe = Recipe {
            name: "bochs".into(),
            what: "the emulator's source and a compiler".into(),
            packages: ["g++", "make", "patch", "xz-utils", "bochsbios", "vgabios"]
                .map(str::to_owned)
                .into(),
            // Of the same source package, and of the same version.
            lead: Some("bochsbios"),
            backports: false,
            source: Some("bochs"),
            hook: None,
            ingredients: &[BOCHS_PATCH, BOCHS_BUILD],
        };
        Self::make(&recipe, |root, version| {
            say("building Bochs, once");
            fs::write(root.path("usr/src/bochs.patch"), BOCHS_PATCH)?;
            fs::write(root.path("usr/src/build.sh"), BOCHS_BUILD)?;
            let (status, text) = tools::status(root.chroot().args(["sh", "/usr/src/build.sh"]))?;
            if status == Some(DOES_NOT_APPLY) {
                bail!(DoesNotApply(format!(
                    "bench/emulator/bochs.patch is for {} and does not apply to Debian's Bochs {version}; mend the patch:\n{}",
                    patch_version(),
                    tools::last_lines(&text, 10)
                )));
            }
            ensure!(
                status == Some(0),
                "Bochs {version} does not build (bench/emulator/build.sh):\n{}",
                tools::last_lines(&text, 30)
            );
            Ok(())
        })
    }

    /// User space of a host: busybox, QEMU, and what workloads need.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub fn host() -> Result<Self> {
        let recipe = Recipe {
            name: "host".into(),
            what: "user space of the hosts (QEMU, Redis)".into(),
            packages: [
                "qemu-system-x86",
                "busybox-static",
                "seabios",
                "kmod",
                "socat",
                "setserial",
                "redis-server",
            ]
            .map(str::to_owned)
            .into(),
            lead: Some("qemu-system-x86"),
            backports: false,
            source: None,
            hook: None,
            ingredients: &[],
        };
        Self::make(&recipe, |_, _| Ok(()))
    }

    /// A Debian system as an operator has it in a virtual machine: kernel, initramfs, systemd, a web server. `boot/`
    /// has the kernel and its initramfs.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub fn guest() -> Result<Self> {
        let recipe = Recipe {
            name: "guest".into(),
            what: "a stock Debian guest".into(),
            packages: [
                "linux-image-cloud-amd64",
                "initramfs-tools",
                "zstd",
                "systemd-sysv",
                "udev",
                "dbus",
                "e2fsprogs",
                "lighttpd",
            ]
            .map(str::to_owned)
            .into(),
            lead: Some("linux-image-cloud-amd64"),
            backports: false,
            source: None,
            hook: Some(GUEST_SETUP),
            ingredients: &[],
        };
        Self::make(&recipe, |_, _| Ok(()))
    }

    /// A kernel of the given release (`uname -r`), its headers, and what builds modules for it.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub fn kernel(release: &str, pocket: Pocket) -> Result<Self> {
        let recipe = Recipe {
            name: format!("kernel-{release}"),
            what: format!("kernel {release}"),
            packages: vec![
                format!("linux-image-{release}"),
                format!("linux-headers-{release}"),
                // Headers bring a compiler, but no assembler.
                "gcc".into(),
                "binutils".into(),
                "make".into(),
            ],
            lead: None,
            backports: pocket == Pocket::Backports,
            source: None,
            hook: None,
            ingredients: &[],
        };
        Self::make(&recipe, |_, _| Ok(()))
    }

    /// What builds modules, for kernels whose headers are put there.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub fn compiler() -> Result<Self> {
        let recipe = Recipe {
            name: "compiler".into(),
            what: "a compiler for modules".into(),
            // What headers packages would bring; the libraries are for the kernel's own tools.
            packages: ["gcc", "binutils", "make", "pahole", "libelf1t64", "libssl3t64"]
                .map(str::to_owned)
                .into(),
            lead: Some("gcc"),
            backports: false,
            source: None,
            hook: None,
            ingredients: &[],
        };
        Self::make(&recipe, |_, _| Ok(()))
    }

    /// The tree of a recipe: today's, or without a network the newest of the cache. `finish` completes it, given the
    /// version that it is known by.
    fn make(recipe: &Recipe, finish: impl FnOnce(&Self, &str) -> Result<()>) -> Result<Self> {
        let cache = paths::cache()?;
        if let Some(tree) = trees::asked_for(&cache, &recipe.name)? {
            return Ok(Self::stand_in(tree, "as LAB_TREES says"));
        }
        let hash = recipe.hash();
        let archive = Archive::today()?;
        let versions = recipe.versions(&archive);
        let (version, dir) = match recipe.lead {
            // A kernel's release says all; compilers and the like may differ.
            None => {
                let dir = format!("{SUITE}-{}-{}", recipe.name, short(&hash));
                (String::new(), cache.join(dir))
            }
            Some(lead) => match (versions.get(lead), &archive.index) {
                (Some(version), _) => {
                    let mut key = DefaultHasher::new();
                    (&hash, &versions).hash(&mut key);
                    let known_by = version.replace(':', "%");
                    let key = format!("{:016x}", key.finish());
                    let dir = format!("{SUITE}-{}-{known_by}-{}", recipe.name, short(&key));
                    (version.clone(), cache.join(dir))
                }
                (None, Ok(_)) => {
                    bail!("Debian's archive has no package {lead} in {SUITE}, which the lab needs")
                }
                (None, Err(why)) => {
                    let tree = trees::newest(&cache, &recipe.name, Some(&hash), lead)?;
                    let tree = tree.with_context(|| absent(recipe, why))?;
                    return Ok(Self::stand_in(tree, "without a network"));
                }
            },
        };
        let _lock = trees::lock(&dir)?;
        if dir.exists() {
            return Ok(Self { dir });
        }
        // What did not go together once is not tried anew each time.
        let failed = cache.join("failed").join(dir.file_name().unwrap_or_default());
        let result = match fs::read_to_string(&failed) {
            Ok(error) => Err(anyhow::Error::msg(error)),
            Err(_) => Self::fetch(recipe, &archive, &dir, versions, |root| finish(root, &version)),
        };
        let Err(error) = result else {
            return Ok(Self { dir });
        };
        if error.is::<DoesNotApply>() {
            fs::create_dir_all(cache.join("failed"))?;
            fs::write(&failed, error.to_string())?;
        }
        // An earlier one of the same recipe; of a kernel any, for an earlier lab may have made it with other tools.
        let recipe_hash = recipe.lead.is_some().then_some(hash.as_str());
        let lead = recipe.lead.unwrap_or_default();
        match trees::newest(&cache, &recipe.name, recipe_hash, lead)? {
            Some(tree) => Ok(Self::stand_in(tree, &format!("{error:#}"))),
            None => Err(error),
        }
    }

    /// A cached tree where today's cannot be had, and why; said once.
    fn stand_in(tree: Tree, why: &str) -> Self {
        static SAID: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        if !said.contains(&tree.dir) {
            say(why.trim_end());
            say(&format!("taking the cached {}", tree.dir.display()));
            said.push(tree.dir.clone());
        }
        Self { dir: tree.dir }
    }

    fn fetch(
        recipe: &Recipe,
        archive: &Archive,
        dir: &Path,
        packages: BTreeMap<String, String>,
        finish: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        if let Err(why) = &archive.index {
            bail!(absent(recipe, why));
        }
        tools::ensure()?;
        let part = trees::part(dir);
        let order = Order {
            what: &recipe.what,
            packages: &recipe.packages,
            backports: recipe.backports,
            source: recipe.source,
            hook: recipe.hook,
        };
        let root = Self { dir: part.clone() };
        let made = fetch::tree(&order, &part)
            .with_context(|| format!("fetching {}", recipe.what))
            .and_then(|()| finish(&root));
        if made.is_err()
            && part.exists()
            && let Err(error) = tools::remove_tree(&part)
        {
            say(&format!("{error:#}"));
        }
        made?;
        let manifest = Manifest {
            name: recipe.name.clone(),
            recipe: recipe.hash(),
            packages,
            backports: recipe.backports,
        };
        trees::complete(dir, &manifest)
    }

    /// Where the tree is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name in the cache, by which it can be asked for again ([`trees::asked_for`]).
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// A path inside the tree, `inner` given without the leading slash.
    #[must_use]
    pub fn path(&self, inner: &str) -> PathBuf {
        self.dir.join(inner)
    }

    /// A command that runs a dynamic program of this tree on the machine's own kernel, without chroot: through the
    /// tree's dynamic linker and libraries.
    #[must_use]
    pub fn program(&self, inner: &str) -> Command {
        let mut command = Command::new(self.linker());
        command
            .arg("--library-path")
            .arg(self.path("usr/lib/x86_64-linux-gnu"))
            .arg(self.path(inner));
        command
    }

    /// As [`Root::program`], with another `argv[0]`.
    #[must_use]
    pub fn program_as(&self, inner: &str, argv0: &str) -> Command {
        let mut command = Command::new(self.linker());
        command
            .args(["--argv0", argv0, "--library-path"])
            .arg(self.path("usr/lib/x86_64-linux-gnu"))
            .arg(self.path(inner));
        command
    }

    /// A command that runs inside the tree (chroot), with `/proc`: objtool, for one, wants it. Without root, in a user
    /// namespace.
    #[must_use]
    pub fn chroot(&self) -> Command {
        let mut command = Command::new("unshare");
        if !tools::is_root() {
            command.args(["--map-auto", "--map-root-user"]);
        }
        // In a mount namespace of its own, so that nothing is left mounted however this ends.
        command
            .args(["--mount", "--pid", "--fork", "--kill-child"])
            .arg(format!("--mount-proc={}", self.path("proc").display()))
            .arg("chroot")
            .arg(&self.dir);
        command
    }

    /// Shared libraries that a program of this tree needs, as paths in the tree (`usr/lib/...`), the linker included.
    ///
    /// # Errors
    /// The program is missing or one of its libraries is.
    pub fn libraries(&self, inner: &str) -> Result<Vec<String>> {
        let listing = tools::output(
            Command::new(self.linker())
                .args(["--list", "--library-path"])
                .arg(self.path("usr/lib/x86_64-linux-gnu"))
                .arg(self.path(inner)),
        )?;
        let mut libraries = vec!["lib64/ld-linux-x86-64.so.2".to_owned()];
        for line in listing.lines() {
            let Some((_, target)) = line.split_once("=> ") else {
                continue;
            };
            let file = target.split_whitespace().next().unwrap_or_default();
            let inner = Path::new(file)
                .strip_prefix(&self.dir)
                .with_context(|| format!("{file} is outside {}", self.dir.display()))?;
            libraries.push(inner.to_string_lossy().into_owned());
        }
        libraries.sort();
        libraries.dedup();
        Ok(libraries)
    }

    fn linker(&self) -> PathBuf {
        self.path("lib64/ld-linux-x86-64.so.2")
    }
}

fn absent(recipe: &Recipe, why: &str) -> String {
    format!(
        "{} is not cached, and Debian's archive can't be reached ({}); connect this machine to the network once",
        recipe.what,
        why.lines().next().unwrap_or_default()
    )
}

/// A patch and the source that the archive has do not go together: so it stays until one of them changes.
#[derive(Debug)]
struct DoesNotApply(String);

impl std::fmt::Display for DoesNotApply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for DoesNotApply {}

fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

/// What `bochs.patch` says in its first line that it is for.
fn patch_version() -> &'static str {
    BOCHS_PATCH.split(',').next().unwrap_or_default()
}
