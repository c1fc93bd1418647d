//! What an operator installs, in a directory that has a server's system: no machine is booted.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{debian::root::Root, package, progress::say, tools};

/// What GRUB's generators ask of the disk. A directory has none, so this one is made up.
const PROBE: &str = r#"#!/bin/sh
for word; do
    case $word in
    --target=*) target=${word#--target=} ;;
    esac
    [ "$last" != --target ] || target=$word
    last=$word
done
case $target in
device) echo /dev/sda2 ;;
fs) echo "${LAB_FS:-ext2}" ;;
fs_uuid) echo 01234567-89ab-cdef-0123-456789abcdef ;;
partuuid) echo 00000000-01 ;;
partmap) echo gpt ;;
drive) echo '(hd0,gpt2)' ;;
hints_string) echo --hint=hd0,gpt2 ;;
esac
"#;

/// Purges the package in a host that came by a refresh, with the log of one that was given up. In the tree in which its guests'
/// QEMUs are, directories of its own are mounted.
const PURGE: &str = r#"
set -e
mkdir --parents /var/log/locum /run/locum/host /srv/own
echo Oops >/var/log/locum/next-1-1.log
echo {} >/run/locum/kept.json
echo mine >/srv/own/file
unshare --mount --propagation unchanged sh -e -c '
    mount -t tmpfs locum-host /run/locum/host
    mkdir /run/locum/host/dev
    mount --bind /srv/own /run/locum/host/dev
    trap "umount /run/locum/host/dev /run/locum/host" EXIT
    echo runs >/run/locum/host/qemu
    dpkg --purge locum
    test -e /run/locum/host/qemu
    test -e /srv/own/file
    test ! -e /run/locum/kept.json
'
rmdir /run/locum/host /run/locum
rm -r /srv/own
"#;

/// Directories whose files come and go with any package.
const COMMON: [&str; 5] = ["var/lib/dpkg", "var/log", "var/cache", "run", "etc/ld.so.cache"];

/// All of it.
pub(super) fn all(dir: &Path) -> Result<()> {
    tools::ensure()?;
    let deb = package::make()?;
    let found = package::lint(&deb)?;
    ensure!(found.is_empty(), "lintian finds:\n{found}");
    say("lintian is quiet");

    let server = Server::new(dir)?;
    let before = server.files()?;
    server.install(&deb)?;
    server.modules()?;
    server.menu()?;
    server.next_boot()?;
    server.image()?;
    server.hook()?;
    server.documents()?;
    server.root.sh(PURGE).context("purging")?;
    let logs = server.root.path("var/log/locum");
    ensure!(!logs.exists(), "purge leaves {}", logs.display());
    let left: Vec<_> = server.files()?.difference(&before).cloned().collect();
    ensure!(left.is_empty(), "purge leaves {left:?}");
    let menu = server.menu_text()?;
    ensure!(!menu.contains("locum"), "purge leaves GRUB's menu as it was:\n{menu}");
    say("purge leaves nothing");
    tools::remove_tree(server.root.dir())
}

/// A server's system in a directory.
struct Server {
    root: Root,
}

impl Server {
    fn new(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let root = Root::server()?.copy(&dir.join("server"))?;
        let probe = root.path("usr/sbin/grub-probe");
        fs::write(&probe, PROBE)?;
        fs::set_permissions(&probe, fs::Permissions::from_mode(0o755))?;
        fs::create_dir_all(root.path("boot/grub"))?;
        let server = Self { root };
        // A tree is made without initramfs.
        server
            .root
            .sh("update-initramfs -c -k all && grub-editenv /boot/grub/grubenv create && update-grub")?;
        Ok(server)
    }

    /// Every file but those that come and go with any package.
    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let base = self.root.dir();
        let mut files = BTreeSet::new();
        for entry in walkdir::WalkDir::new(base) {
            let path = entry?.path().strip_prefix(base)?.to_owned();
            if !COMMON.iter().any(|common| path.starts_with(common)) {
                files.insert(path);
            }
        }
        Ok(files)
    }

    fn install(&self, deb: &Path) -> Result<()> {
        fs::copy(deb, self.root.path("tmp/locum.deb"))?;
        let text = self.root.sh("dpkg --install /tmp/locum.deb")?;
        ensure!(text.contains("locum preflight"), "it says what comes next:\n{text}");
        // Again, as an upgrade: nothing is asked, nothing fails.
        self.root.sh("dpkg --install /tmp/locum.deb")?;
        Ok(fs::remove_file(self.root.path("tmp/locum.deb"))?)
    }

    fn modules(&self) -> Result<()> {
        for release in self.root.kernels()? {
            let path = self.root.sh(&format!("modinfo -k {release} -n locum"))?;
            ensure!(path.contains("/updates/dkms/"), "DKMS put no module there: {path}");
            say(&format!("DKMS built locum.ko for {release}"));
        }
        Ok(())
    }

    fn menu_text(&self) -> Result<String> {
        Ok(fs::read_to_string(self.root.path("boot/grub/grub.cfg"))?)
    }

    /// One entry for each kernel, and the environment block decides which one is the default.
    fn menu(&self) -> Result<()> {
        self.root.sh("grub-script-check /boot/grub/grub.cfg")?;
        let menu = self.menu_text()?;
        for release in self.root.kernels()? {
            for line in [
                format!("--id 'locum-{release}' {{"),
                "    save_env locum_next".into(),
                "    insmod all_video".into(),
                "    multiboot2 /boot/locum-l0 pool=50% ".into(),
                format!("    module2 /boot/vmlinuz-{release} root="),
                "dax_hmem.region_idle=1 movablecore=50%".into(),
                format!("    module2 --nounzip /boot/initrd.img-{release}"),
                format!("    set default=\"locum-{release}\""),
                "        set fallback=0".into(),
            ] {
                ensure!(menu.contains(&line), "GRUB's menu lacks {line:?}:\n{menu}");
            }
        }
        let plain = menu.find("menuentry ").unwrap_or_default();
        let locum = menu.find("by way of Locum").unwrap_or_default();
        ensure!(plain < locum, "an entry without Locum comes first");
        say("GRUB's menu has the entry");
        Ok(())
    }

    /// The initramfs of a successor has what takes guests over, and the host's own initramfs has none of it.
    fn image(&self) -> Result<()> {
        for release in self.root.kernels()? {
            let path = format!("/var/lib/locum/images/{release}.img");
            let said = self.root.sh(&format!("locum image {release}"))?;
            ensure!(said.starts_with(&format!("{path}: ")), "it tells where it is: {said}");
            let list = self.root.sh(&format!("lsinitramfs {path}"))?;
            let files: BTreeSet<&str> = list.lines().collect();
            for file in [
                "scripts/init-top/locum",
                "usr/bin/chroot",
                "locum/usr/sbin/locum",
                "locum/usr/bin/sh",
                "locum/etc/passwd",
            ] {
                ensure!(files.contains(file), "the image lacks {file}:\n{list}");
            }
            for module in ["locum.ko", "kvm-intel.ko", "bridge.ko"] {
                ensure!(
                    list.contains(&format!("/{module}")),
                    "the image lacks {module}:\n{list}"
                );
            }
            let order = self.root.sh(&format!(
                "d=$(mktemp -d) && unmkinitramfs {path} $d && cat $d/scripts/init-top/ORDER $d/main/scripts/init-top/ORDER \
                 2>/dev/null; rm -r $d"
            ))?;
            let (udev, locum) = (order.find("/udev "), order.find("/locum "));
            ensure!(
                udev.is_some() && udev < locum,
                "the script does not run after udev has begun:\n{order}"
            );
            let usual = self.root.sh(&format!("lsinitramfs /boot/initrd.img-{release}"))?;
            ensure!(
                !usual.contains("locum/usr"),
                "the host's own initramfs is furnished, too:\n{usual}"
            );
            say(said.trim());
        }
        Ok(())
    }

    /// libvirt's hook lets a domain start on a host without L0, and says what it cannot read.
    fn hook(&self) -> Result<()> {
        let call = |xml: &str| {
            let script = format!("echo \"{xml}\" | /etc/libvirt/hooks/qemu.d/locum g prepare begin -");
            tools::status(self.root.chroot().args(["sh", "-c", &script]))
        };
        let domain = "<domain><name>g</name><uuid>11111111-2222-4333-8444-555555555555</uuid><memory>65536</memory>\
             <devices><emulator>/usr/lib/locum/qemu</emulator></devices></domain>";
        let (status, text) = call(domain)?;
        ensure!(status == Some(0), "the hook fails: {status:?}\n{text}");
        let (status, text) = call("no domain")?;
        ensure!(
            status == Some(1) && text.contains("no XML"),
            "the hook does not say what is wrong: {status:?}\n{text}"
        );
        say("libvirt's hook answers");
        Ok(())
    }

    /// What is read or played where it lies is not compressed.
    fn documents(&self) -> Result<()> {
        for name in [
            "examples/refresh.yml",
            "examples/inventory.yml",
            "nova.md",
            "proxmox.md",
        ] {
            let path = self.root.path("usr/share/doc/locum").join(name);
            ensure!(path.exists(), "the package lacks {}", path.display());
        }
        Ok(())
    }

    /// It changes when it is asked for, and not where GRUB could not take it back.
    fn next_boot(&self) -> Result<()> {
        const LIST: &str = "grub-editenv /boot/grub/grubenv list";
        ensure!(!self.root.sh(LIST)?.contains("locum_next"), "nothing has asked for it");
        let (status, text) = tools::status(self.root.chroot().args(["env", "LAB_FS=btrfs", "locum", "setup"]))?;
        ensure!(
            status == Some(1) && text.contains("cannot write to btrfs"),
            "it is refused on btrfs: {status:?}\n{text}"
        );
        ensure!(!self.root.sh(LIST)?.contains("locum_next"), "a refusal changes nothing");
        self.root.sh("locum setup --check")?;
        self.root.sh("locum setup")?;
        ensure!(
            self.root.sh(LIST)?.contains("locum_next=1"),
            "the next boot goes by way of Locum"
        );
        say("the next boot goes by way of Locum, once");
        Ok(())
    }
}
