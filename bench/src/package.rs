//! The Debian package, made in a tree of Debian's own tools: by `host-hotplug-agent/debian`, of an L0 and a `locum` that
//! were built here.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{debian::root::Root, image::build, paths, progress::say, tools};

/// Of the package, as of every crate of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The parts of the workspace that the package is made of, and where they are in its source.
const PARTS: [(&str, &str); 2] = [
    ("host-hotplug-agent/debian", "debian"),
    ("host-hotplug-agent/kmod", "kmod"),
];

/// `cargo lab package`.
///
/// # Errors
/// Those of [`make`], and if `strict`, what lintian finds.
pub(crate) fn command(strict: bool) -> Result<bool> {
    tools::ensure()?;
    let package = make()?;
    let found = lint(&package)?;
    print!("{found}");
    println!("{}", package.display());
    Ok(!strict || found.is_empty())
}

/// The package, `target/lab/locum_VERSION_amd64.deb`.
///
/// # Errors
/// Something of it does not build, or Debian's tools cannot be had.
pub(crate) fn make() -> Result<PathBuf> {
    let root = Root::packager()?;
    let (l0, locum, emulator) = (build::l0()?, build::agent()?, build::emulator()?);
    let name = format!("locum_{VERSION}_amd64.deb");
    let _lock = paths::lock(&paths::out(), "package")?;
    in_tree(&root, |outer, inner| {
        let source = outer.join("source");
        for (from, to) in PARTS {
            build::copy_tree(&paths::workspace().join(from), &source.join(to))?;
        }
        // Its tests need the workspace.
        fs::remove_dir_all(source.join("kmod/tests"))?;
        let built = source.join("built");
        fs::create_dir_all(&built)?;
        for (file, name, mode) in [
            (l0, "locum-l0", 0o644),
            (locum, "locum", 0o755),
            (emulator, "locum-qemu", 0o755),
        ] {
            let to = built.join(name);
            fs::copy(&file, &to).with_context(|| format!("copying {}", file.display()))?;
            fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
        }
        build::pages(&built.join("pages"))?;
        say(&format!("making {name}"));
        let script = format!(
            "cd {inner}/source && LOCUM_VERSION={VERSION} dpkg-buildpackage --build=binary --no-sign --no-check-builddeps"
        );
        tools::run(root.chroot().args(["sh", "-c", &script]))?;
        let target = paths::out().join(&name);
        fs::copy(outer.join(&name), &target)
            .with_context(|| format!("{name} was not made: is debian/changelog of another version?"))?;
        Ok(target)
    })
}

/// What lintian says of a package; empty if there is nothing.
///
/// # Errors
/// It cannot be run.
pub(crate) fn lint(package: &Path) -> Result<String> {
    let root = Root::packager()?;
    in_tree(&root, |outer, inner| {
        let name = package.file_name().context("a package has a name")?;
        fs::copy(package, outer.join(name))?;
        let file = format!("{inner}/{}", name.to_string_lossy());
        let lintian = ["lintian", "--allow-root", "--fail-on=none", &file];
        let (status, text) = tools::status(root.chroot().args(lintian))?;
        ensure!(status == Some(0), "lintian cannot read {}:\n{text}", package.display());
        Ok(text)
    })
}

/// Has `work` use a directory of the tree: as the machine sees it, and as the tree does.
fn in_tree<T>(root: &Root, work: impl FnOnce(&Path, &str) -> Result<T>) -> Result<T> {
    let inner = format!("/build/{}", std::process::id());
    let outer = root.path(inner.trim_start_matches('/'));
    build::sweep(&root.path("build"))?;
    fs::create_dir_all(&outer)?;
    let done = work(&outer, &inner);
    tools::remove_tree(&outer)?;
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_of_the_workspaces_version() {
        let changelog = fs::read_to_string(paths::workspace().join("host-hotplug-agent/debian/changelog")).unwrap();
        assert!(changelog.starts_with(&format!("locum ({VERSION}) ")), "{changelog}");
    }
}
