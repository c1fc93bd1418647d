//! A Debian kernel: its image, and the few modules that a host or a guest in the lab needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread::{self, ScopedJoinHandle},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    debian::{Archive, Pocket, root::Root},
    machine::platform::Platform,
    paths,
    progress::say,
    tools,
};

/// Modules that hosts load, by the names that `modprobe` takes; what they depend on comes along.
const MODULES: &[&str] = &[
    "loop",
    "squashfs",
    "kvm-intel",
    "dax_hmem",
    "device_dax",
    "kmem",
    "tun",
    "vhost_net",
    "bridge",
    "msr",
    "cpuid",
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "efivarfs",
];

/// The driver of the server's network cards. Debian's cloud kernels, which are for virtual machines, lack it: their
/// hosts move a card without using it.
pub(crate) const CARD_DRIVER: &str = "e1000";

/// What their releases have in them.
pub(crate) const CLOUD: &str = "-cloud-";

/// Files that `modprobe` and `depmod` want beside the modules.
const INDEX: &[&str] = &["modules.order", "modules.builtin", "modules.builtin.modinfo"];

/// A kernel release from Debian's archive.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    release: String,
    root: Root,
}

impl Kernel {
    /// Gets the kernel that a name means ([`Kernels::find`](crate::debian::kernels::Kernels::find)).
    ///
    /// # Errors
    /// There is none of that name, or it cannot be fetched.
    pub(crate) fn get(name: &str) -> Result<Self> {
        let archive = Archive::today()?;
        let entry = archive.kernels.find(name)?;
        Ok(Self {
            release: entry.release.clone(),
            root: Root::kernel(&entry.release, entry.pocket)?,
        })
    }

    /// The kernel of a release whose headers are in a tree, to build modules for.
    #[must_use]
    pub(crate) fn headers_in(root: &Root, release: &str) -> Self {
        Self {
            release: release.to_owned(),
            root: root.clone(),
        }
    }

    /// The release that a name means, without getting it.
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn release_of(name: &str) -> Result<String> {
        Ok(Archive::today()?.kernels.find(name)?.release.clone())
    }

    /// What `uname -r` prints under this kernel.
    #[must_use]
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The Debian tree with this kernel, its headers and a compiler.
    #[must_use]
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The tree of Linux's own tests of KVM, of this kernel's line.
    ///
    /// # Errors
    /// It cannot be fetched or built.
    pub(crate) fn selftests(&self) -> Result<Root> {
        let pocket = Archive::today()?.kernels.find(&self.release)?.pocket;
        Root::selftests(&line(&self.release), pocket)
    }

    /// The bzImage.
    #[must_use]
    pub(crate) fn image(&self) -> PathBuf {
        self.root.path(&format!("boot/vmlinuz-{}", self.release))
    }

    /// The one file of a module, in a directory made by [`Kernel::modules`].
    ///
    /// # Errors
    /// There is none of that name.
    pub(crate) fn find_module(&self, dir: &Path, name: &str) -> Result<PathBuf> {
        let index = fs::read_to_string(dir.join("modules.dep"))?;
        let file = closure(&index, &[name])?
            .into_iter()
            .find(|file| module_name(file) == name)
            .with_context(|| format!("no module {name} in {}", dir.display()))?;
        Ok(dir.join(file))
    }

    /// The files of the modules that a host or a guest loads, from the text of `modules.dep`.
    fn wanted(&self, dependencies: &str) -> Result<BTreeSet<String>> {
        let mut files = closure(dependencies, MODULES)?;
        match closure(dependencies, &[CARD_DRIVER]) {
            Err(error) if !self.release.contains(CLOUD) => return Err(error),
            found => files.extend(found.unwrap_or_default()),
        }
        Ok(files)
    }

    /// A directory with the lab's modules, uncompressed (the emulator would need seconds for xz), and their index:
    /// what belongs into `/lib/modules/RELEASE`. `extra` modules (`locum.ko`) go along.
    ///
    /// # Errors
    /// A module is missing from the package, or xz or depmod fails.
    pub(crate) fn modules(&self, extra: Option<&Path>) -> Result<PathBuf> {
        let source = self.root.path(&format!("lib/modules/{}", self.release));
        let base = paths::out().join("modules").join(&self.release);
        let target = base.join("lib/modules").join(&self.release);
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        fs::create_dir_all(&target)?;
        for file in INDEX {
            fs::copy(source.join(file), target.join(file))
                .with_context(|| format!("copying {file} of kernel {}", self.release))?;
        }
        for module in self.wanted(&fs::read_to_string(source.join("modules.dep"))?)? {
            unpack(&source, &module, &target).with_context(|| format!("module {module} of kernel {}", self.release))?;
        }
        if let Some(extra) = extra {
            let updates = target.join("updates");
            fs::create_dir_all(&updates)?;
            fs::copy(extra, updates.join(extra.file_name().context("module without a name")?))?;
        }
        tools::run(
            self.root
                .program_as("usr/bin/kmod", "depmod")
                .arg("-b")
                .arg(&base)
                .arg(&self.release),
        )?;
        Ok(target)
    }
}

/// The line that a release is of: its first two numbers.
fn line(release: &str) -> String {
    release.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Tells which kernels a run takes, and why these.
///
/// # Errors
/// There is none of one of the names.
pub(crate) fn announce(names: &[&str]) -> Result<()> {
    let archive = Archive::today()?;
    let mut words = Vec::new();
    for name in names {
        let entry = archive.kernels.find(name)?;
        let place = match (entry.archive, entry.pocket) {
            (false, _) => "cached".to_owned(),
            (true, Pocket::Stable) => "Debian".to_owned(),
            (true, pocket) => pocket.suite(),
        };
        words.push(if *name == entry.release {
            format!("{name} ({place})")
        } else {
            format!("{} ({name}, {place})", entry.release)
        });
    }
    words.dedup();
    say(&format!("kernels: {}", words.join(", ")));
    let same = |a, b| -> Result<bool> { Ok(archive.kernels.find(a)?.release == archive.kernels.find(b)?.release) };
    if let [from, to, ..] = names
        && same(from, to)?
    {
        say("that is one kernel: it replaces itself");
    }
    Ok(())
}

/// Puts a module, which may be compressed, into `target` at the same place.
fn unpack(source: &Path, module: &str, target: &Path) -> Result<()> {
    let plain = target.join(module.strip_suffix(".xz").unwrap_or(module));
    if let Some(parent) = plain.parent() {
        fs::create_dir_all(parent)?;
    }
    if !module.ends_with(".xz") {
        fs::copy(source.join(module), plain)?;
        return Ok(());
    }
    let status = Command::new("xz")
        .arg("-dc")
        .arg(source.join(module))
        .stdout(fs::File::create(plain)?)
        .status()?;
    ensure!(status.success(), "xz cannot unpack it");
    Ok(())
}

/// Gets everything that machines with these kernels need of Debian on these platforms, all at the same time.
///
/// # Errors
/// Something cannot be had: all of it that cannot.
pub(crate) fn prefetch(names: &[&str], platforms: &[Platform]) -> Result<Vec<Kernel>> {
    // Asked once, and said before anything else.
    Archive::today()?;
    thread::scope(|scope| {
        let trees: Vec<_> = platforms
            .iter()
            .flat_map(|platform| platform.trees())
            .map(|get| scope.spawn(|| get().map(drop)))
            .collect();
        let kernels: Vec<_> = names
            .iter()
            .map(|name| scope.spawn(move || Kernel::get(name)))
            .collect();
        let mut got = Vec::new();
        let mut errors = Vec::new();
        for tree in trees {
            errors.extend(joined(tree).err());
        }
        for kernel in kernels {
            match joined(kernel) {
                Ok(kernel) => got.push(kernel),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            return Ok(got);
        }
        let mut words: Vec<_> = errors.iter().map(|error| format!("{error:#}")).collect();
        words.dedup();
        bail!("{}", words.join("\n"))
    })
}

fn joined<T>(thread: ScopedJoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| bail!("a thread that fetches has panicked"))
}

/// The files of `modules` and of everything they depend on, from the text of `modules.dep`.
fn closure(dependencies: &str, modules: &[&str]) -> Result<BTreeSet<String>> {
    let mut by_name = BTreeMap::new();
    for line in dependencies.lines() {
        if let Some((file, needs)) = line.split_once(':') {
            by_name.insert(module_name(file), (file, needs));
        }
    }
    let mut files = BTreeSet::new();
    for module in modules {
        let (file, needs) = by_name
            .get(&module.replace('-', "_"))
            .with_context(|| format!("the kernel has no module {module}"))?;
        files.insert((*file).to_owned());
        files.extend(needs.split_whitespace().map(str::to_owned));
    }
    Ok(files)
}

fn module_name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_of_a_line() {
        assert_eq!(line("6.12.107+deb13-amd64"), "6.12");
    }

    #[test]
    fn closure_takes_dependencies() {
        let text = "k/kvm-intel.ko.xz: k/kvm.ko.xz k/irqbypass.ko.xz\nk/kvm.ko.xz: k/irqbypass.ko.xz\nk/irqbypass.ko.xz:\nk/x.ko:\n";
        let files: Vec<_> = closure(text, &["kvm_intel"]).unwrap().into_iter().collect();
        assert_eq!(files, ["k/irqbypass.ko.xz", "k/kvm-intel.ko.xz", "k/kvm.ko.xz"]);
        assert!(closure(text, &["nothere"]).is_err());
    }
}
