//! Builds Locum's own parts, with the cargo that runs the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::kernel::Kernel;
use crate::{paths, progress::say, tools};

/// L0, as GRUB loads it.
///
/// # Errors
/// It does not compile; cargo has printed why.
pub(crate) fn l0() -> Result<PathBuf> {
    ensure_target("x86_64-unknown-none")?;
    let built = cargo("l0-monitor", "l0", "x86_64-unknown-none", false)?;
    // As the package has it: the symbols are most of the file, and stay beside it for whoever debugs.
    let stripped = built.with_file_name("l0.stripped");
    let part = built.with_file_name("l0.part");
    // Machines are made at the same time.
    let _lock = paths::lock(&paths::out(), "l0")?;
    tools::run(Command::new("strip").arg("-o").args([&part, &built]))?;
    fs::rename(&part, &stripped)?;
    Ok(stripped)
}

/// Has the agent write its manual pages and completions into `dir`.
///
/// # Errors
/// As [`l0`].
pub(crate) fn pages(dir: &Path) -> Result<()> {
    let words = [
        "run",
        "--quiet",
        "--package",
        "host-hotplug-agent",
        "--example",
        "pages",
    ];
    tools::run(tools::cargo().args(words).arg(dir))
}

/// `labd`, linked statically: hosts have no libraries but QEMU's.
///
/// # Errors
/// As [`l0`].
pub(crate) fn labd() -> Result<PathBuf> {
    cargo("labd", "labd", "x86_64-unknown-linux-gnu", true)
}

/// The host's view of its guests, linked statically.
///
/// # Errors
/// As [`l0`].
pub(crate) fn lab_guest() -> Result<PathBuf> {
    cargo("lab-guest", "lab-guest", "x86_64-unknown-linux-gnu", true)
}

/// The client of the Redis benchmark, linked statically.
///
/// # Errors
/// As [`l0`].
pub(crate) fn lab_ycsb() -> Result<PathBuf> {
    cargo("lab-ycsb", "lab-ycsb", "x86_64-unknown-linux-gnu", true)
}

/// First process of the guests, linked statically.
///
/// # Errors
/// As [`l0`].
pub(crate) fn guest_init() -> Result<PathBuf> {
    cargo("lab-guest", "guest-init", "x86_64-unknown-linux-gnu", true)
}

/// The agent, linked statically.
///
/// # Errors
/// As [`l0`].
pub(crate) fn agent() -> Result<PathBuf> {
    cargo("host-hotplug-agent", "locum", "x86_64-unknown-linux-gnu", true)
}

/// The emulator of libvirt domains that are to cross, built as [`agent`] is.
///
/// # Errors
/// It does not build.
pub(crate) fn emulator() -> Result<PathBuf> {
    cargo("host-hotplug-agent", "locum-qemu", "x86_64-unknown-linux-gnu", true)
}

/// What has a libvirt domain cross without the rest of the agent, linked statically.
///
/// # Errors
/// As [`l0`].
pub(crate) fn lab_domain() -> Result<PathBuf> {
    cargo("lab-domain", "lab-domain", "x86_64-unknown-linux-gnu", true)
}

/// What stands for a machine of a fleet, linked statically.
///
/// # Errors
/// As [`l0`].
pub(crate) fn stand_in() -> Result<PathBuf> {
    cargo("lab-standin", "lab-standin", "x86_64-unknown-linux-gnu", true)
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Has rustup add the standard library of `target`, which it leaves out where the toolchain itself was there before.
fn ensure_target(target: &str) -> Result<()> {
    let libraries = tools::output(Command::new("rustc").current_dir(paths::workspace()).args([
        "--print",
        "target-libdir",
        "--target",
        target,
    ]))?;
    if Path::new(libraries.trim()).exists() {
        return Ok(());
    }
    say(&format!("adding Rust's target {target}"));
    tools::run(
        Command::new("rustup")
            .current_dir(paths::workspace())
            .args(["target", "add", target]),
    )
    .with_context(|| format!("Rust has no target {target}; install it: rustup target add {target}"))
}

/// The agent's tests of real QEMUs, as `cargo test` builds them.
///
/// # Errors
/// They do not build.
pub(crate) fn handover_tests() -> Result<PathBuf> {
    let words = ["--package", "host-hotplug-agent", "--test", "handover", "--no-run"];
    let mut command = tools::cargo();
    command
        .args(["test", "--quiet", "--message-format=json-render-diagnostics"])
        .args(words)
        .stderr(Stdio::inherit());
    built(command, "handover")
}

fn cargo(package: &str, binary: &str, target: &str, is_static: bool) -> Result<PathBuf> {
    let mut command = tools::cargo();
    command
        .args([
            "build",
            "--quiet",
            "--release",
            "--message-format=json-render-diagnostics",
        ])
        .args(["--package", package, "--bin", binary, "--target", target])
        .stderr(Stdio::inherit());
    if is_static {
        // A directory of its own: other flags would make cargo build everything anew each time.
        command
            .env("CARGO_TARGET_DIR", static_dir())
            .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    }
    built(command, binary).with_context(|| package.to_owned())
}

/// The program of that name that cargo builds by `command`.
fn built(mut command: Command, binary: &str) -> Result<PathBuf> {
    let output = command.output().context("starting cargo")?;
    if !output.status.success() {
        bail!("{binary} does not build (see above)");
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok())
        .filter(|message| message.reason == "compiler-artifact")
        .filter(|message| message.target.as_ref().is_some_and(|target| target.name == binary))
        .find_map(|message| message.executable)
        .with_context(|| format!("cargo built no program {binary}"))
}

fn static_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| paths::out().join("static"), |dir| Path::new(&dir).join("static"))
}

/// A kernel module of the workspace.
struct Module {
    /// Its file.
    name: &'static str,
    /// The folder that makes it.
    folder: &'static str,
    /// Parts of the workspace that its source may include, kept at the same places relative to each other.
    sources: &'static [&'static str],
}

/// The product's.
const LOCUM: Module = Module {
    name: "locum.ko",
    folder: "host-hotplug-agent/kmod",
    sources: &["host-hotplug-agent/kmod", "l0-monitor/abi"],
};

/// The lab's own, which executes instructions.
const PROBE: Module = Module {
    name: "lab_probe.ko",
    folder: "host-hotplug-agent/kmod/tests/probe",
    sources: &["host-hotplug-agent/kmod/tests/probe"],
};

/// `locum.ko` for a kernel; `None` while the workspace has no module.
///
/// # Errors
/// It does not compile.
pub(crate) fn module(kernel: &Kernel) -> Result<Option<PathBuf>> {
    if !paths::workspace().join(LOCUM.folder).join("Makefile").exists() {
        return Ok(None);
    }
    make(kernel, &LOCUM).map(Some)
}

/// `lab_probe.ko` for a kernel.
///
/// # Errors
/// It does not compile.
pub(crate) fn probe(kernel: &Kernel) -> Result<PathBuf> {
    make(kernel, &PROBE)
}

/// A module for a kernel.
fn make(kernel: &Kernel, what: &Module) -> Result<PathBuf> {
    // Each tree its own: the same kernel may be built for with its headers alone, too.
    let out = paths::out()
        .join("kmod")
        .join(kernel.root().name())
        .join(kernel.release());
    let _lock = paths::lock(&out, "build")?;
    let module = out.join(what.name);
    let fingerprint = fingerprint(kernel, what)?;
    // The first module's has been there from the beginning.
    let stamp = out.join(if what.name == LOCUM.name {
        "stamp"
    } else {
        "stamp-probe"
    });
    if module.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == fingerprint) {
        return Ok(module);
    }
    let name = what.name;
    say(&format!("building {name} for {}", kernel.release()));
    make_module(kernel, what, &module).with_context(|| format!("building {name} for {}", kernel.release()))?;
    fs::write(&stamp, &fingerprint)?;
    Ok(module)
}

/// Has the kernel's own tree build the module, from a copy of its sources there.
fn make_module(kernel: &Kernel, what: &Module, module: &Path) -> Result<()> {
    let inner = format!("build/{}", std::process::id());
    let tree = kernel.root().path(&inner);
    sweep(&kernel.root().path("build"))?;
    for part in what.sources {
        copy_tree(&paths::workspace().join(part), &tree.join(part))?;
    }
    let made = tools::run(kernel.root().chroot().args([
        "make",
        "-C",
        &format!("/lib/modules/{}/build", kernel.release()),
        &format!("M=/{inner}/{}", what.folder),
        // Ours is the machine on which a warning is an error.
        "WERROR=1",
        "modules",
    ]))
    .and_then(|()| {
        let part = module.with_extension("ko.part");
        let built = tree.join(what.folder).join(what.name);
        fs::copy(built, &part).with_context(|| format!("the module's Makefile made no {}", what.name))?;
        Ok(fs::rename(part, module)?)
    });
    fs::remove_dir_all(&tree)?;
    made
}

/// Removes what builds left that were interrupted: they are named by process, and those are gone.
pub(crate) fn sweep(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        let pid = path.file_name().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            // Another run may sweep at the same time.
            fs::remove_dir_all(&path)
                .or_else(|error| if path.exists() { Err(error) } else { Ok(()) })
                .with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

fn fingerprint(kernel: &Kernel, what: &Module) -> Result<String> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    kernel.root().dir().hash(&mut hasher);
    for part in what.sources {
        for file in sources(&paths::workspace().join(part)) {
            let file = file?;
            file.path().hash(&mut hasher);
            fs::read(file.path())?.hash(&mut hasher);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

pub(crate) fn copy_tree(source: &Path, target: &Path) -> Result<()> {
    for file in sources(source) {
        let file = file?;
        let to = target.join(file.path().strip_prefix(source)?);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(file.path(), to)?;
    }
    Ok(())
}

/// Files in a fixed order, without what an earlier build by hand may have left.
fn sources(dir: &Path) -> impl Iterator<Item = walkdir::Result<walkdir::DirEntry>> {
    let made =
        |name: &str| name.ends_with(".ko") || name.ends_with(".o") || name.ends_with(".cmd") || name.contains(".mod");
    walkdir::WalkDir::new(dir)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(|entry| entry.file_name() != "target")
        .filter(move |entry| {
            entry.as_ref().map_or(true, |entry| {
                entry.file_type().is_file() && !made(&entry.file_name().to_string_lossy())
            })
        })
}
