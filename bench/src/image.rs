//! The initramfs that every host in the lab runs from, whichever generation it is.
//!
//! One image serves all generations: it holds the modules of every kernel and the kernels themselves, and a host finds
//! the image that it was booted from in `/sys/firmware/initrd` (`retain_initrd`), so a successor can be started from a
//! host that has no disk. The image is two archives: first a plain one with what changes often, then a compressed one
//! with what depends on Debian's versions only, which is made once.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{archive::Archive, build, kernel::Kernel, paths, roots::Root, say, tools};

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

/// How the unchanging part is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// `lz4 -l`.
    #[default]
    Lz4,
    /// `zstd -19`.
    Zstd,
}

/// What goes into an image.
#[derive(Debug)]
pub struct Image<'a> {
    /// Kernels whose modules and images it holds; guests run the first.
    pub kernels: &'a [Kernel],
    /// `locum.ko` per kernel, as far as built.
    pub modules: &'a [Option<PathBuf>],
    /// The `locum` program, if built.
    pub agent: Option<&'a Path>,
    /// Further files: path in the image, source, mode.
    pub extra: &'a [(String, PathBuf, u32)],
    /// Compression of the unchanging part.
    pub packing: Packing,
}

impl Image<'_> {
    /// Builds the image into `target`.
    ///
    /// # Errors
    /// A part is missing or cannot be built.
    pub fn build(&self, target: &Path) -> Result<()> {
        let _lock = paths::lock(&paths::out(), "image")?;
        let base = self.base()?;
        let mut out = BufWriter::new(File::create(target)?);
        self.overlay()?.write(&mut out)?;
        std::io::copy(&mut File::open(base)?, &mut out)?;
        out.flush()?;
        Ok(())
    }

    fn overlay(&self) -> Result<Archive> {
        let mut archive = Archive::default();
        for directory in [
            "proc",
            "sys",
            "dev",
            "tmp",
            "root",
            "var/log",
            "etc/locum",
            "boot",
        ] {
            archive.directory(directory);
        }
        archive.bytes("init", include_bytes!("../image/init"), 0o755);
        archive.bytes("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n", 0o644);
        archive.bytes("etc/group", "root:x:0:\n", 0o644);
        archive.file("sbin/labd", build::labd()?, 0o755);
        if let Some(agent) = self.agent {
            archive.file("sbin/locum", agent, 0o755);
        }
        for (kernel, module) in self.kernels.iter().zip(self.modules) {
            let release = kernel.release();
            let modules = kernel.modules(module.as_deref())?;
            add_tree(&mut archive, &modules, &format!("lib/modules/{release}"))?;
            archive.file(&format!("boot/vmlinuz-{release}"), kernel.image(), 0o644);
        }
        if let Some(kernel) = self.kernels.first() {
            archive.link(
                "guest/vmlinuz",
                &format!("/boot/vmlinuz-{}", kernel.release()),
            );
        }
        archive.bytes("guest/initrd", guest_initrd()?, 0o644);
        for (path, source, mode) in self.extra {
            archive.file(path, source, *mode);
        }
        Ok(archive)
    }

    /// The part that depends on the host root only: made once per root and packing.
    fn base(&self) -> Result<PathBuf> {
        let root = Root::host()?;
        let key = root
            .dir()
            .file_name()
            .context("root without a name")?
            .to_string_lossy()
            .into_owned();
        let plain = paths::cache()?.join(format!("{key}-base.cpio"));
        if !plain.exists() {
            say("packing QEMU and busybox");
            let part = plain.with_extension("part");
            let mut out = BufWriter::new(File::create(&part)?);
            base_archive(&root)?.write(&mut out)?;
            out.flush()?;
            fs::rename(&part, &plain)?;
        }
        let (suffix, program, options): (_, _, &[&str]) = match self.packing {
            Packing::Plain => return Ok(plain),
            Packing::Lz4 => ("lz4", "lz4", &["-l", "-9", "-f", "-q"]),
            Packing::Zstd => ("zst", "zstd", &["-19", "-f", "-q"]),
        };
        let packed = PathBuf::from(format!("{}.{suffix}", plain.display()));
        if !packed.exists() {
            say(&format!("compressing with {program}"));
            let part = packed.with_extension("part");
            let mut command = Command::new(program);
            command.args(options).arg(&plain);
            match self.packing {
                Packing::Zstd => command.arg("-o").arg(&part),
                _ => command.arg(&part),
            };
            tools::run(&mut command)?;
            fs::rename(&part, &packed)?;
        }
        Ok(packed)
    }
}

fn base_archive(root: &Root) -> Result<Archive> {
    let mut archive = Archive::default();
    archive.file("bin/busybox", root.path("usr/bin/busybox"), 0o755);
    let applets = tools::output(Command::new(root.path("usr/bin/busybox")).arg("--list"))?;
    for applet in applets.lines().filter(|name| *name != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
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

fn guest_initrd() -> Result<Vec<u8>> {
    let root = Root::host()?;
    let mut archive = Archive::default();
    for directory in ["proc", "sys", "dev"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", root.path("usr/bin/busybox"), 0o755);
    archive.link("bin/sh", "busybox");
    archive.bytes("init", include_bytes!("../image/guest-init"), 0o755);
    let mut bytes = Vec::new();
    archive.write(&mut bytes)?;
    Ok(bytes)
}

fn add_tree(archive: &mut Archive, source: &Path, target: &str) -> Result<()> {
    for entry in walkdir::WalkDir::new(source) {
        let entry = entry?;
        let inner = entry.path().strip_prefix(source)?.to_string_lossy();
        if entry.file_type().is_file() {
            archive.file(&format!("{target}/{inner}"), entry.path(), 0o644);
        }
    }
    Ok(())
}
