//! Debian trees that the lab takes programs and kernels from, made by mmdebstrap and cached.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{paths, say, tools};

/// Release that every tree is made from.
const SUITE: &str = "trixie";
/// Raised when the contents of a tree change, so that old caches are left alone.
const REVISION: u32 = 1;

/// Where trees come from.
const MIRROR: &str = "http://deb.debian.org/debian";
/// What the lab's Bochs needs changed, and how it is built.
const BOCHS_PATCH: &str = include_str!("../emulator/bochs.patch");
const BOCHS_BUILD: &str = include_str!("../emulator/build.sh");

/// A Debian tree.
#[derive(Debug, Clone)]
pub struct Root {
    dir: PathBuf,
}

impl Root {
    /// The emulator, `usr/bin/bochs`: built from Debian's source with the lab's fixes, which takes some minutes the first time.
    ///
    /// # Errors
    /// mmdebstrap fails (no network, no such package), or Bochs does not build.
    pub fn bochs() -> Result<Self> {
        let mut key = DefaultHasher::new();
        (BOCHS_PATCH, BOCHS_BUILD).hash(&mut key);
        let source = "cd \"$1/usr/src\" && APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\" \
                      apt-get source --download-only --tar-only bochs";
        Self::make(
            &format!("bochs-{:016x}", key.finish()),
            &["g++", "make", "patch", "xz-utils", "bochsbios", "vgabios"],
            &[
                format!("--customize-hook={source}"),
                format!("deb {MIRROR} {SUITE} main"),
                format!("deb-src {MIRROR} {SUITE} main"),
            ],
            |root| {
                say("building Bochs, once");
                fs::write(root.path("usr/src/bochs.patch"), BOCHS_PATCH)?;
                fs::write(root.path("usr/src/build.sh"), BOCHS_BUILD)?;
                tools::run(root.chroot().args(["sh", "/usr/src/build.sh"]))
            },
        )
    }

    /// User space of a host: busybox, QEMU, and what workloads need.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub fn host() -> Result<Self> {
        Self::get(
            "host",
            &[
                "busybox-static",
                "qemu-system-x86",
                "seabios",
                "kmod",
                "socat",
                "setserial",
                "redis-server",
            ],
        )
    }

    /// A kernel of the given release (`uname -r`), its headers, and a compiler to build modules for it.
    ///
    /// # Errors
    /// As [`Root::bochs`]; the archive may no longer hold that version.
    pub fn kernel(release: &str) -> Result<Self> {
        Self::get(
            &format!("kernel-{release}"),
            &[
                &format!("linux-image-{release}"),
                &format!("linux-headers-{release}"),
                "make",
            ],
        )
        .with_context(|| {
            format!(
                "getting kernel {release}; `apt-cache search linux-image-6.12` on Debian {SUITE} lists what the \
                 archive holds"
            )
        })
    }

    fn get(name: &str, packages: &[&str]) -> Result<Self> {
        Self::make(name, packages, &[], |_| Ok(()))
    }

    /// Makes a tree of `packages`, unless it is cached. `more` are further arguments of mmdebstrap: options, then sources; `finish`
    /// completes the tree.
    fn make(
        name: &str,
        packages: &[&str],
        more: &[String],
        finish: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let base = paths::cache()?;
        let dir = base.join(format!("{SUITE}-{name}-{REVISION}"));
        let _lock = paths::lock(&base, &format!("{SUITE}-{name}"))?;
        if dir.exists() {
            return Ok(Self { dir });
        }
        tools::ensure()?;
        say(&format!("fetching Debian {SUITE}: {}", packages.join(", ")));
        let part = dir.with_extension("part");
        if part.exists() {
            fs::remove_dir_all(&part)
                .with_context(|| format!("removing {}, left by an earlier try", part.display()))?;
        }
        let (options, sources): (Vec<_>, Vec<_>) =
            more.iter().partition(|argument| argument.starts_with("--"));
        tools::run(
            Command::new("mmdebstrap")
                .args([
                    "--variant=minbase",
                    "--aptopt=Apt::Install-Recommends \"false\"",
                ])
                .arg(format!("--include={}", packages.join(",")))
                .args(options)
                .arg(SUITE)
                .arg(&part)
                .args(sources)
                .env("INITRD", "No"),
        )?;
        finish(&Self { dir: part.clone() })?;
        fs::rename(&part, &dir)?;
        Ok(Self { dir })
    }

    /// Where the tree is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
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

    /// A command that runs inside the tree (chroot). Without root, in a user namespace.
    #[must_use]
    pub fn chroot(&self) -> Command {
        let mut command = if tools::is_root() {
            Command::new("chroot")
        } else {
            let mut command = Command::new("unshare");
            command.args(["--map-auto", "--map-root-user", "chroot"]);
            command
        };
        command.arg(&self.dir);
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
