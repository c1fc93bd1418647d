//! The initramfs that every host in the lab runs from, whichever generation it is.
//!
//! One image serves all generations: it holds the modules of every kernel and the kernels themselves, and a host finds
//! the image that it was booted from in `/sys/firmware/initrd` (`retain_initrd`), so a successor can be started from a
//! host that has no disk.
//!
//! Its bulk is two squashfs images that a host mounts instead of unpacking: the emulator would need 7 s to decompress
//! QEMU and its libraries, of which a run touches a part. `base.sqfs` depends on Debian's versions only and is made
//! once; `own.sqfs` holds what is built here, and the modules of every kernel.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{build, files::Files, kernel::Kernel, stock_guest::StockGuest};
use crate::{debian::root::Root, paths, tools};

/// Blobs that QEMU loads for the machines of the lab (microvm, pc, q35), from `usr/share`.
const FIRMWARE: &[&str] = &[
    "seabios/bios-microvm.bin",
    "seabios/bios-256k.bin",
    "qemu/kvmvapic.bin",
    "qemu/linuxboot_dma.bin",
    "qemu/pvh.bin",
    "qemu/qboot.rom",
];

/// Programs from the host root beside busybox.
const PROGRAMS: &[&str] = &["usr/bin/qemu-system-x86_64"];

/// Modules that a guest loads for its network card, in this order.
const NET_MODULES: &[&str] = &[
    "kernel/net/core/failover.ko",
    "kernel/drivers/net/net_failover.ko",
    "kernel/drivers/net/virtio_net.ko",
];

/// The one for its disk.
const DISK_MODULE: &str = "kernel/drivers/block/virtio_blk.ko";

/// How guests are started, in `/guest`.
const GUEST_SCRIPTS: &[(&str, &str)] = &[
    ("pool-up.sh", include_str!("../../guest/scripts/pool-up.sh")),
    ("guest.sh", include_str!("../../guest/scripts/guest.sh")),
    ("tap.sh", include_str!("../../guest/scripts/tap.sh")),
    ("measure.sh", include_str!("../../guest/scripts/measure.sh")),
    ("redis.sh", include_str!("../../guest/scripts/redis.sh")),
];

/// The server in the guest of `redis.sh`, from the host root.
const REDIS: &str = "usr/bin/redis-server";

/// What loads a crash kernel, and what writes its dump, from [`Root::crash`].
const KEXEC: &str = "usr/sbin/kexec";
const MAKEDUMPFILE: &str = "usr/bin/makedumpfile";

/// What goes into an image.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    /// Kernels whose modules and images it holds; guests run the first.
    pub kernels: &'a [Kernel],
    /// `locum.ko` per kernel, as far as built.
    pub modules: Vec<Option<PathBuf>>,
    /// The `locum` program, if built.
    pub agent: Option<PathBuf>,
    /// Whether the Redis benchmark is in it. Successors have little memory, so others do without.
    pub workload: bool,
    /// Whether its cards hang on a segment: a bridge, and the Redis server that is reached by it.
    pub segment: bool,
    /// Whether a host can have a crash kernel: what loads one, and its initramfs.
    pub crash: bool,
    /// The stock guest, if it is to be started: its kernel and initramfs, and a network for its disk.
    pub stock_guest: Option<StockGuest>,
    /// Further files: path in the image, source, mode.
    pub extra: Vec<(String, PathBuf, u32)>,
}

impl Image<'_> {
    /// Builds the image into `target`.
    ///
    /// # Errors
    /// A part is missing or cannot be built.
    pub(crate) fn build(&self, target: &Path) -> Result<()> {
        let _lock = paths::lock(&paths::out(), "image")?;
        let mut out = BufWriter::new(File::create(target)?);
        self.archive()?.write(&mut out)?;
        out.flush()?;
        Ok(())
    }

    fn archive(&self) -> Result<Files> {
        let mut archive = Files::default();
        for directory in DIRECTORIES {
            archive.directory(directory);
        }
        add_busybox(&mut archive)?;
        archive.bytes("init", include_bytes!("../../image/init"), 0o755);
        archive.bytes("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
        archive.bytes("etc/group", "root:x:0:\n", 0o644);
        archive.file("sbin/labd", build::labd()?, 0o755);
        for (path, target) in LINKS {
            archive.link(path, target);
        }
        for kernel in self.kernels {
            let release = kernel.release();
            archive.file(&format!("boot/vmlinuz-{release}"), kernel.image(), 0o644);
        }
        archive.file("images/base.sqfs", base()?, 0o644);
        let own = paths::out().join("own.sqfs");
        squashfs(&self.own(&mut archive)?, &own)?;
        archive.file("images/own.sqfs", own, 0o644);
        for (path, source, mode) in &self.extra {
            archive.file(path, source, *mode);
        }
        Ok(archive)
    }

    /// The files of `own.sqfs`; what is needed to mount it goes straight into `archive`.
    fn own(&self, archive: &mut Files) -> Result<Files> {
        let mut own = Files::default();
        if let Some(agent) = &self.agent {
            own.file("bin/locum", agent, 0o755);
        }
        own.file("bin/lab-guest", build::lab_guest()?, 0o755);
        if let Some(guest) = &self.stock_guest {
            own.file("guest/stock/vmlinuz", guest.kernel()?, 0o644);
            own.file("guest/stock/initrd", guest.initrd()?, 0o644);
            let network = include_bytes!("../../image/network");
            archive.bytes("etc/init.d/network", network, 0o755);
        }
        if self.segment {
            let bridge = include_bytes!("../../image/segment");
            archive.bytes("etc/init.d/segment", bridge, 0o755);
        }
        if self.workload {
            own.file("bin/lab-ycsb", build::lab_ycsb()?, 0o755);
        }
        if self.crash {
            add_crash(&mut own)?;
        }
        own.bytes("card", include_bytes!("../../image/card"), 0o644);
        own.bytes("begin", include_bytes!("../../image/begin"), 0o755);
        for (name, text) in GUEST_SCRIPTS {
            own.bytes(&format!("guest/{name}"), *text, 0o755);
        }
        for (kernel, module) in self.kernels.iter().zip(&self.modules) {
            let release = kernel.release();
            let modules = kernel.modules(module.as_deref())?;
            add_tree(&mut own, &modules, &format!("modules/{release}"))?;
            for early in ["loop", "squashfs"] {
                let file = kernel.find_module(&modules, early)?;
                archive.file(&format!("early/{release}/{early}.ko"), file, 0o644);
            }
            // Guests run the first kernel.
            if !own.contains("guest/vmlinuz") {
                own.link("guest/vmlinuz", &format!("/boot/vmlinuz-{release}"));
                own.bytes("guest/initrd", guest_initrd(&modules)?, 0o644);
                if self.workload || self.segment {
                    own.bytes("guest/redis", redis_initrd(&modules)?, 0o644);
                }
            }
        }
        Ok(own)
    }
}

/// Where a host mounts things, or writes.
const DIRECTORIES: &[&str] = &[
    "proc",
    "sys",
    "dev",
    "tmp",
    "root",
    "run",
    "var/log",
    "etc/locum",
    "boot",
    "system",
    "own",
];

/// Names in the mounted base image that programs expect at the usual place.
const LINKS: &[(&str, &str)] = &[
    ("lib64", "/system/lib64"),
    ("usr/lib", "/system/usr/lib"),
    ("usr/share", "/system/usr/share"),
    ("usr/bin", "/system/usr/bin"),
    ("lib/modules", "/own/modules"),
    ("guest", "/own/guest"),
];

/// How squashfs images are packed: quickly read, and the same from the same files.
const SQUASHFS: &[&str] = &[
    "-quiet",
    "-no-progress",
    "-noappend",
    "-all-root",
    "-all-time",
    "0",
    "-no-xattrs",
    "-comp",
    "lz4",
    "-Xhc",
    "-b",
    "64K",
];

/// Linux's own tests of KVM as an image to be mounted: made once for each tree.
///
/// # Errors
/// As [`Image::build`].
pub(crate) fn selftests(root: &Root) -> Result<PathBuf> {
    root.derived("programs.sqfs", SQUASHFS, |part| {
        let programs = root.path("usr/lib/kvm-selftests");
        tools::run(Command::new("mksquashfs").arg(programs).arg(part).args(SQUASHFS))
    })
}

/// The image that depends on the host root only, and on what is taken from there: made once.
fn base() -> Result<PathBuf> {
    let root = Root::host()?;
    root.derived("base.sqfs", (PROGRAMS, FIRMWARE, SQUASHFS), |part| {
        squashfs(&base_archive(&root)?, part)
    })
}

fn squashfs(archive: &Files, target: &Path) -> Result<()> {
    let stage = paths::out().join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    archive.stage(&stage)?;
    tools::run(Command::new("mksquashfs").arg(&stage).arg(target).args(SQUASHFS))?;
    fs::remove_dir_all(&stage)?;
    Ok(())
}

fn add_busybox(archive: &mut Files) -> Result<()> {
    let busybox = Root::host()?.path("usr/bin/busybox");
    let applets = tools::output(Command::new(&busybox).arg("--list"))?;
    archive.file("bin/busybox", busybox, 0o755);
    for applet in applets.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    Ok(())
}

fn base_archive(root: &Root) -> Result<Files> {
    let mut archive = Files::default();
    for program in PROGRAMS {
        archive.file(program, root.path(program), 0o755);
        for library in root.libraries(program)? {
            archive.file(&library, root.path(&library), 0o755);
        }
    }
    for blob in FIRMWARE {
        let name = blob.rsplit('/').next().unwrap_or(blob);
        archive.file(
            &format!("usr/share/qemu/{name}"),
            root.path(&format!("usr/share/{blob}")),
            0o644,
        );
    }
    Ok(archive)
}

/// The initramfs of a guest without devices: the program that checks, alone.
///
/// # Errors
/// It cannot be read.
pub(crate) fn bare_guest(init: &Path) -> Result<Vec<u8>> {
    checking_guest(init, Path::new(""), &[])
}

/// The guests' initramfs: the program that checks, and the modules for the guest that has devices.
fn guest_initrd(modules: &Path) -> Result<Vec<u8>> {
    checking_guest(&build::guest_init()?, modules, &[NET_MODULES, &[DISK_MODULE]].concat())
}

fn checking_guest(init: &Path, modules: &Path, names: &[&str]) -> Result<Vec<u8>> {
    let mut archive = Files::default();
    for directory in ["proc", "dev"] {
        archive.directory(directory);
    }
    archive.file("init", init, 0o755);
    add_guest_modules(&mut archive, modules, names);
    to_bytes(&archive)
}

/// The initramfs of the guest that is a Redis server.
fn redis_initrd(modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Files::default();
    for directory in ["proc", "dev", "sys"] {
        archive.directory(directory);
    }
    archive.bytes("init", include_bytes!("../../image/redis-init"), 0o755);
    add_busybox(&mut archive)?;
    let root = Root::host()?;
    archive.file("bin/redis-server", root.path(REDIS), 0o755);
    for library in root.libraries(REDIS)? {
        archive.file(&library, root.path(&library), 0o755);
    }
    add_guest_modules(&mut archive, modules, NET_MODULES);
    to_bytes(&archive)
}

/// Adds what loads a crash kernel, and that one's initramfs.
fn add_crash(own: &mut Files) -> Result<()> {
    let root = Root::crash()?;
    own.bytes("crash/load", include_bytes!("../../image/crash-load"), 0o755);
    own.file("crash/kexec", root.path(KEXEC), 0o755);
    for library in root.libraries(KEXEC)? {
        let name = library.rsplit('/').next().unwrap_or(&library);
        own.file(&format!("crash/lib/{name}"), root.path(&library), 0o755);
    }
    let mut initrd = Files::default();
    // makedumpfile wants to write to the last.
    for directory in ["proc", "dev", "sys", "tmp"] {
        initrd.directory(directory);
    }
    initrd.bytes("init", include_bytes!("../../image/crash-init"), 0o755);
    add_busybox(&mut initrd)?;
    initrd.file("bin/makedumpfile", root.path(MAKEDUMPFILE), 0o755);
    for library in root.libraries(MAKEDUMPFILE)? {
        initrd.file(&library, root.path(&library), 0o755);
    }
    own.bytes("crash/initrd", to_bytes(&initrd)?, 0o644);
    Ok(())
}

/// Adds modules, and the order to load them in.
fn add_guest_modules(archive: &mut Files, modules: &Path, names: &[&str]) {
    let mut order = String::new();
    for module in names {
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.file(&format!("modules/{name}"), modules.join(module), 0o644);
        order.push_str(name);
        order.push('\n');
    }
    archive.bytes("modules/order", order, 0o644);
}

fn to_bytes(archive: &Files) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    archive.write(&mut bytes)?;
    Ok(bytes)
}

fn add_tree(archive: &mut Files, source: &Path, target: &str) -> Result<()> {
    for entry in walkdir::WalkDir::new(source) {
        let entry = entry?;
        let inner = entry.path().strip_prefix(source)?.to_string_lossy();
        if entry.file_type().is_file() {
            archive.file(&format!("{target}/{inner}"), entry.path(), 0o644);
        }
    }
    Ok(())
}
