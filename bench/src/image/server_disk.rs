//! The disk of a server as Debian's installer leaves it: a GPT with an EFI system partition and a root on ext4. What the
//! lab adds is its own hand (`labd`), and a first GRUB that finds the root; the server installs Debian's own over it.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{
    build,
    disk::{self, Partition},
    ext4,
    iso::{self, GRUB},
};
use crate::{
    debian::{Archive, Pocket, apt::Apt, index, root::Root},
    paths, tools,
};

/// Where the EFI system partition is and how large, in MiB.
const ESP: (u64, u64) = (1, 64);
/// The same of the root: the server and the modules that it will build.
const ROOT: (u64, u64) = (ESP.0 + ESP.1, 3072);
/// All of it: GPT has a copy of itself at the end.
const SIZE: u64 = ROOT.0 + ROOT.1 + 1;

/// What the installer writes, but for labels instead of UUIDs. On a busy machine the emulator's guest is as slow as it
/// gets: nothing there may be given up for that.
const FILES: &[(&str, &str)] = &[
    (
        "etc/fstab",
        "LABEL=root / ext4 defaults 0 1\nLABEL=EFI /boot/efi vfat umask=0077 0 1\n",
    ),
    (
        "etc/default/grub",
        "GRUB_DEFAULT=0\nGRUB_TIMEOUT=0\nGRUB_DISTRIBUTOR=Debian\nGRUB_CMDLINE_LINUX_DEFAULT=\n\
         GRUB_CMDLINE_LINUX=\"console=ttyS0,115200 panic=0 systemd.default_timeout_start_sec=3600 \
         systemd.default_device_timeout_sec=3600\"\n",
    ),
    ("etc/hostname", "server\n"),
    (
        "etc/systemd/system/labd.service",
        "[Unit]\nDescription=The lab's hand\n[Service]\nExecStart=/usr/local/sbin/labd serve ttyS2\nKillMode=process\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    // Nobody looks at it, and a login there waits for a line that the lab has.
    (
        "etc/systemd/system/serial-getty@ttyS0.service.d/none.conf",
        "[Unit]\nConditionPathExists=/none\n",
    ),
];

/// What the first GRUB does.
const FIRST: &str = "search --no-floppy --label root --set=root\nset prefix=($root)/boot/grub\n\
                     configfile $prefix/grub.cfg\n";
/// Its modules.
const MODULES: &str = "normal linux part_gpt ext2 search search_label configfile gzio all_video";

/// A copy of the server's disk at `target`, made once, with more files in it: path from the root, and what is there.
///
/// # Errors
/// The server cannot be fetched, or the disk cannot be made.
pub(crate) fn copy(target: &Path, more: &[(&str, &Path)]) -> Result<()> {
    let root = Root::server()?;
    let labd = build::labd()?;
    let ingredients = (FILES, FIRST, MODULES, ESP, ROOT, fs::read(&labd)?);
    let disk = root.derived("disk.img", ingredients, |part| make(&root, &labd, part))?;
    tools::shell(r#"cp --sparse=always --reflink=auto "$1" "$2""#, &[&disk, target])?;
    for (path, file) in more {
        // Files of a file system that nobody has mounted (debugfs(8)).
        let request = format!("write {} {path}", file.display());
        let mut place = OsString::from(target);
        place.push(format!("?offset={}", ROOT.0 << 20));
        let said = tools::output(root.program("usr/sbin/debugfs").args(["-w", "-R", &request]).arg(place))?;
        ensure!(
            said.contains("Allocated inode"),
            "putting {path} on the server's disk: {said}"
        );
    }
    Ok(())
}

/// The packages of another kernel with its headers, for the server to install: an archive of them, fetched once.
///
/// # Errors
/// They cannot be fetched.
pub(crate) fn kernel(release: &str) -> Result<PathBuf> {
    let server = Root::server()?;
    server.derived(&format!("{release}.tar"), "with all that they need", |part| {
        let archive = Archive::today()?;
        let index = archive
            .index
            .as_ref()
            .map_err(|why| anyhow!("Debian's archive can't be reached: {why}"))?;
        let mut packages = index::headers(index, release);
        let image = format!("linux-image-{release}");
        let pocket = index.newest(&image, &Pocket::ALL).map(|package| package.pocket);
        let suite = pocket
            .with_context(|| format!("Debian's archive has no {image}"))?
            .suite();
        packages.push(image);
        let debs = part.with_extension("debs");
        fs::create_dir_all(&debs)?;
        let status = server.path("var/lib/dpkg/status");
        Apt::new(&paths::cache()?)?.download_beside(&status, &suite, &packages, &debs)?;
        tools::shell(r#"tar -C "$1" -cf "$2" ."#, &[&debs, part])?;
        Ok(fs::remove_dir_all(debs)?)
    })
}

fn make(root: &Root, labd: &Path, image: &Path) -> Result<()> {
    let tree = image.with_extension("tree");
    furnish(&root.copy(&tree)?, labd)?;
    let partitions = [Partition::new("EFI", "U", ESP), Partition::new("root", "L", ROOT)];
    disk::partition(root, image, SIZE, &partitions)?;
    esp(root, image)?;
    ext4::make(root, &tree, image, "root", Some(ROOT))?;
    tools::remove_tree(&tree)
}

/// Makes a tree a server that boots.
fn furnish(server: &Root, labd: &Path) -> Result<()> {
    disk::put(server, FILES)?;
    disk::hand(server, labd)?;
    fs::create_dir_all(server.path("boot/efi"))?;
    fs::create_dir_all(server.path("boot/grub"))?;
    let kernel = disk::initramfs(server)?;
    let first = format!(
        "linux /boot/vmlinuz-{kernel} root=LABEL=root ro console=ttyS0,115200\ninitrd /boot/initrd.img-{kernel}\nboot\n"
    );
    Ok(fs::write(server.path("boot/grub/grub.cfg"), first)?)
}

/// The EFI system partition, with the first GRUB where firmware looks for one (UEFI 2.10, 3.5.1.1).
fn esp(root: &Root, disk: &Path) -> Result<()> {
    const MAKE: &str = r#"set -e
        at="$1@@$OFFSET"
        mformat -i "$at" -F -T "$SECTORS" -v EFI ::
        mmd -i "$at" ::/EFI ::/EFI/BOOT
        mcopy -i "$at" "$2" ::/EFI/BOOT/BOOTX64.EFI"#;
    let program = disk.with_extension("efi");
    // The server has GRUB's modules only.
    iso::grub(&root.path(GRUB), FIRST, MODULES, &program)?;
    let script = MAKE
        .replace("$OFFSET", &(ESP.0 << 20).to_string())
        .replace("$SECTORS", &(ESP.1 << 11).to_string());
    tools::shell(&script, &[disk, &program])?;
    Ok(fs::remove_file(program)?)
}
