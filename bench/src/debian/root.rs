//! A Debian tree in the cache, as the lab uses it: files and programs are taken from it, and commands run in it.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use super::trees;
use crate::{progress::say, tools};

/// A Debian tree.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    dir: PathBuf,
}

impl Root {
    /// The tree at `dir`.
    #[must_use]
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where the tree is.
    #[must_use]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name in the cache, by which it can be asked for again ([`trees::asked_for`]).
    #[must_use]
    pub(crate) fn name(&self) -> String {
        let name = self.dir.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// A file that is made of this tree and of `ingredients` alone, beside it in the cache: made once, by `make` at the
    /// path that it is given. Other ingredients make another file.
    ///
    /// # Errors
    /// Those of `make`; or the cache cannot be written.
    pub(crate) fn derived(
        &self,
        file: &str,
        ingredients: impl Hash,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let hash = hash_of(&ingredients);
        let target = self
            .dir
            .with_file_name(format!("{}-{}-{file}", self.name(), short(&hash)));
        // Labs of several work trees share the cache.
        let _lock = trees::lock(&target)?;
        if !target.exists() {
            say(&format!("making {}", target.display()));
            let part = trees::part(&target);
            make(&part)?;
            fs::rename(&part, &target).with_context(|| format!("renaming {}", part.display()))?;
        }
        Ok(target)
    }

    /// A copy of the tree, in place of what is at `to`.
    ///
    /// # Errors
    /// There is no room, or what is there cannot be removed.
    pub(crate) fn copy(&self, to: &Path) -> Result<Self> {
        if to.exists() {
            tools::remove_tree(to)?;
        }
        tools::shell(r#"cp -a --reflink=auto "$1" "$2""#, &[&self.dir, to])?;
        Ok(Self::at(to.to_owned()))
    }

    /// The releases of the kernels in its `boot/`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn kernels(&self) -> Result<Vec<String>> {
        let mut releases = Vec::new();
        for entry in fs::read_dir(self.path("boot"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            releases.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
        }
        ensure!(!releases.is_empty(), "{} has no kernel", self.dir.display());
        Ok(releases)
    }

    /// A path inside the tree, `inner` given without the leading slash.
    #[must_use]
    pub(crate) fn path(&self, inner: &str) -> PathBuf {
        self.dir.join(inner)
    }

    /// A command that runs a dynamic program of this tree on the machine's own kernel, without chroot: through the
    /// tree's dynamic linker and libraries.
    #[must_use]
    pub(crate) fn program(&self, inner: &str) -> Command {
        let mut command = Command::new(self.linker());
        command
            .arg("--library-path")
            .arg(self.path("usr/lib/x86_64-linux-gnu"))
            .arg(self.path(inner));
        command
    }

    /// As [`Root::program`], with another `argv[0]`.
    #[must_use]
    pub(crate) fn program_as(&self, inner: &str, argv0: &str) -> Command {
        let mut command = Command::new(self.linker());
        command
            .args(["--argv0", argv0, "--library-path"])
            .arg(self.path("usr/lib/x86_64-linux-gnu"))
            .arg(self.path(inner));
        command
    }

    /// Runs a shell script inside the tree to its end, and returns what it prints. Nothing in it is asked of anybody.
    ///
    /// # Errors
    /// It fails; with all that it printed.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        let words = ["env", "DEBIAN_FRONTEND=noninteractive", "sh", "-c", script];
        let (status, text) = tools::status(self.chroot().args(words))?;
        ensure!(status == Some(0), "`{script}` ended with {status:?}:\n{text}");
        Ok(text)
    }

    /// A command that runs inside the tree (chroot), with `/proc`: objtool, for one, wants it. Without root, in a user
    /// namespace.
    #[must_use]
    pub(crate) fn chroot(&self) -> Command {
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

    /// Has the kernel's headers of these packages (`DIR/*.deb`) in the tree while `work` goes on, and nobody else work in
    /// it.
    ///
    /// # Errors
    /// They cannot be unpacked or removed, or those of `work`.
    pub(crate) fn with_headers<T>(&self, debs: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
        // Past the tree's links from / to /usr.
        const UNPACK: &str = r#"for deb in "$1"/*.deb; do
            dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$2" || exit 1
        done"#;
        const REMOVE: &str = r#"rm -rf "$1"/usr/src/linux-* "$1"/usr/lib/linux-kbuild-* "$1"/usr/lib/modules"#;
        let _lock = trees::lock(&self.dir)?;
        let done = tools::shell(UNPACK, &[debs, &self.dir]).and_then(|()| work());
        tools::shell(REMOVE, &[&self.dir])?;
        done
    }

    /// Shared libraries that a program of this tree needs, as paths in the tree (`usr/lib/...`), the linker included.
    ///
    /// # Errors
    /// The program is missing or one of its libraries is.
    pub(crate) fn libraries(&self, inner: &str) -> Result<Vec<String>> {
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

/// A hash, as text.
#[must_use]
pub(super) fn hash_of(value: &impl Hash) -> String {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// As much of a hash as names hold.
#[must_use]
pub(super) fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_of_a_tree_is_made_once_for_each_list() {
        let cache = tempfile::tempdir().unwrap();
        let root = Root::at(cache.path().join("trixie-host-1-0123"));
        let mut made = 0;
        let mut derive = |list: &[&str]| {
            root.derived("base.sqfs", list, |part| {
                made += 1;
                Ok(fs::write(part, list.join(" "))?)
            })
            .unwrap()
        };
        let one = derive(&["a", "b"]);
        assert_eq!(derive(&["a", "b"]), one);
        assert_ne!(derive(&["a"]), one);
        assert_eq!(fs::read_to_string(&one).unwrap(), "a b");
        let name = one.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            name.starts_with("trixie-host-1-0123-") && name.ends_with("-base.sqfs"),
            "{name}"
        );
        assert_eq!(made, 2);
        let refused = root.derived("x", "", |_| anyhow::bail!("no"));
        assert!(refused.is_err() && !root.dir().with_file_name("x").exists());
    }
}
