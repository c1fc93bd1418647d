//! `lab root`, `lab kmod`, `lab clean`: what the lab keeps between runs.

use anyhow::Result;

use crate::{
    debian::{Archive, root::Root, trees},
    image::{
        build,
        kernel::{self, Kernel, announce},
    },
    machine::platform::Platform,
    paths,
    progress::say,
    tools,
};

/// Prints which kernels there are, and which trees are cached.
///
/// # Errors
/// The cache cannot be read.
pub(crate) fn list() -> Result<bool> {
    println!("kernels that --from, --to and --kernel take (by release, bare version or the name on the right):");
    print!("{}", Archive::today()?.kernels.list());
    println!("trees in the cache, {}:", paths::cache()?.display());
    for tree in trees::all(&paths::cache()?)? {
        println!("  {}", tree.dir.file_name().unwrap_or_default().display());
    }
    Ok(true)
}

/// Fetches and makes everything that depends on Debian only, with these kernels.
///
/// # Errors
/// Something cannot be had.
pub(crate) fn fetch(kernels: &[String]) -> Result<bool> {
    tools::ensure()?;
    let names: Vec<_> = kernels.iter().map(String::as_str).collect();
    announce(&names)?;
    let kernels = kernel::prefetch(&names, &[Platform::Bochs, Platform::Tcg])?;
    say(&format!("emulator: {}", Root::bochs()?.dir().display()));
    say(&format!("user space: {}", Root::host()?.dir().display()));
    say(&format!("UEFI: {}", Root::uefi()?.dir().display()));
    for kernel in kernels {
        let dir = kernel.root().dir().display();
        say(&format!("kernel {}: {dir}", kernel.release()));
    }
    Ok(true)
}

/// Builds `locum.ko` for these kernels and prints where it is.
///
/// # Errors
/// A kernel cannot be had, or the module does not build.
pub(crate) fn modules(kernels: &[String]) -> Result<bool> {
    let names: Vec<_> = kernels.iter().map(String::as_str).collect();
    announce(&names)?;
    for name in names {
        let Some(module) = build::module(&Kernel::get(name)?)? else {
            say("host-hotplug-agent/kmod has no Makefile yet");
            return Ok(false);
        };
        println!("{}", module.display());
    }
    Ok(true)
}

/// Removes what the lab made, and with `all` what it fetched; says what that frees.
///
/// # Errors
/// Something cannot be removed, or another run uses the cache.
pub(crate) fn clean(all: bool) -> Result<bool> {
    let cache = all.then(paths::cache).transpose()?;
    let _idle = cache.as_deref().map(trees::lock_all).transpose()?;
    for dir in std::iter::once(paths::out()).chain(cache) {
        if dir.exists() {
            let bytes = tools::disk_usage(&dir);
            say(&format!(
                "removing {}, which frees {} MB",
                dir.display(),
                bytes / 1_000_000
            ));
            tools::remove_tree(&dir)?;
        }
    }
    Ok(true)
}
