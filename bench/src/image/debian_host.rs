//! The disk of a host on the emulated server that is a whole Debian: its own kernel and initramfs, systemd, DKMS, QEMU, and
//! Locum's package, installed as an operator installs it. GRUB is on a CD there, so the disk has none.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    build,
    disk::{self, Partition},
    ext4,
    files::Files,
    initramfs,
    kernel::Kernel,
    server_disk,
    stock_guest::StockGuest,
};
use crate::{
    debian::{kernels::NEXT, root::Root},
    machine::qemu,
    package, paths,
    progress::say,
    tools,
};

/// The root, from where on and how large, in MiB: the host, and some room.
const ROOT: (u64, u64) = (1, 3072);
/// All of it: GPT has a copy of itself at the end.
const SIZE: u64 = ROOT.0 + ROOT.1 + 1;

/// What an operator sets, and the lab's hand.
const FILES: &[(&str, &str)] = &[
    ("etc/fstab", "LABEL=root / ext4 defaults 0 1\n"),
    ("etc/hostname", "debian\n"),
    ("etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n"),
    // GRUB's environment block would be on the CD.
    (
        "etc/default/locum",
        "LOCUM_POOL=\"50%\"\nLOCUM_L0=\"\"\nLOCUM_CMDLINE=\"\"\nLOCUM_STAY=\"no\"\n\
         LOCUM_REFRESH_CPUS=2\nLOCUM_REFRESH_MEMORY=896M\nLOCUM_IMAGE_EXTRA=/srv/guest\n",
    ),
    (
        "etc/systemd/system/labd.service",
        "[Unit]\nDescription=The lab's hand\n[Service]\nExecStart=/bin/sh /usr/local/sbin/labd-serve\nKillMode=process\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    // COM3 in even generations, COM4 in odd ones.
    (
        "usr/local/sbin/labd-serve",
        "generation=0\nfor word in $(cat /proc/cmdline); do\n    case $word in\n    locum.generation=*) \
         generation=${word#*=} ;;\n    esac\ndone\nexec labd serve ttyS$((2 + generation % 2))\n",
    ),
    (
        "etc/systemd/system/lab-card.service",
        "[Unit]\nDescription=The lab's network\n[Service]\nType=oneshot\nExecStart=/etc/locum/successor.d/card\n\
         [Install]\nWantedBy=multi-user.target\n",
    ),
    // Nobody looks at a login, and on two of the lines it would wait in the lab's way.
    (
        "etc/systemd/system/serial-getty@.service.d/none.conf",
        "[Unit]\nConditionPathExists=/none\n",
    ),
    // What looks for QEMU in the image unpacks it: zstd takes the emulator minutes for that, gzip one.
    ("etc/initramfs-tools/conf.d/lab", "COMPRESS=gzip\n"),
    // Each line written to the disk costs the emulator more than it tells.
    ("etc/systemd/journald.conf.d/lab.conf", "[Journal]\nStorage=volatile\n"),
];

/// Brings a network card up, in the host and in a successor's image: names one, and then does as the lab's other hosts.
const CARD: [&str; 2] = [
    include_str!("../../image/debian-card"),
    include_str!("../../image/network"),
];
const CARD_FILE: &str = "etc/locum/successor.d/card";

/// A guest of libvirt's: the stock guest, its disk at `@PORT@` of the lab.
const DOMAIN: &str = include_str!("../../guest/scripts/d1.xml");

/// libvirt has none of its daemons up before somebody asks, and then starts its network, as `virsh net-autostart` has it;
/// `locum setup` tells the line that its guests need. What the daemons write as they start for the first time is there already: the
/// successor's image would be made anew for that.
const LIBVIRT: &str = "systemctl disable libvirtd.service libvirt-guests.service && systemctl enable libvirtd.socket virtlogd.socket && \
    mkdir -p /etc/libvirt/qemu/networks/autostart && \
    ln -s /etc/libvirt/qemu/networks/default.xml /etc/libvirt/qemu/networks/autostart/ && \
    sed -i \"s|</name>|&<uuid>d62ea439-582c-42a3-b96b-14e1eb5451e2</uuid>|; s|<bridge .*/>|&<mac address='52:54:00:83:02:c6'/>|\" \
        /etc/libvirt/qemu/networks/default.xml && \
    grep -q '<uuid>.*</uuid>' /etc/libvirt/qemu/networks/default.xml && grep -q '<mac ' /etc/libvirt/qemu/networks/default.xml && \
    mkdir -p -m 0700 /etc/libvirt/secrets && \
    line=$(locum setup --check | sed -n 's/.*write `\\(cgroup_device_acl[^`]*\\)`.*/\\1/p'); \
    [ -n \"$line\" ] && echo \"$line\" >>/etc/libvirt/qemu.conf";

/// What [`SUCCESSOR_LOCUM`] says if all is well.
const WELL: &str = "lab: a domain is on the network";
/// Stands for `locum` in a successor's image, and starts a domain there.
const SUCCESSOR_LOCUM: &[u8] = include_bytes!("../../image/successor-locum");

/// How a guest is started.
const GUEST_SCRIPT: &str = include_str!("../../guest/scripts/guest.sh");

/// What becomes a package that does nothing but to be there.
const WITNESS: &[(&str, &str)] = &[
    (
        "srv/witness/DEBIAN/control",
        "Package: lab-witness\nVersion: 1\nArchitecture: all\nMaintainer: The lab <lab@localhost>\n\
         Description: a file that was installed\n",
    ),
    ("srv/witness/usr/share/lab-witness", "installed\n"),
];

/// Units that would look after a server at night: they cost the emulator much, and show nothing.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
];

/// Installs the package for a kernel. A machine that has an id of its own does not boot for the first time. What the
/// operator has set in a file of the package's stays.
const INSTALL: &str = "systemd-machine-id-setup && dpkg --force-confold --install /tmp/locum.deb && \
                       rm /tmp/locum.deb && modinfo -k \"$release\" -n locum | grep updates/dkms";

/// Installs a kernel beside the one that there is, as an operator does once Locum is there: DKMS makes its module.
/// It needs no initramfs here.
const UPGRADE: &str = "INITRD=No apt-get install --yes /tmp/kernel/*.deb && rm -r /tmp/kernel && \
                       modinfo -k \"$release\" -n locum | grep updates/dkms";

/// The host as it is installed.
#[derive(Debug, Clone)]
pub(crate) struct DebianHost {
    dir: PathBuf,
    /// Its kernel's release.
    pub release: String,
    /// That of another kernel, which was installed later.
    pub next: String,
}

impl DebianHost {
    /// Installs it, unless it is there and nothing that it is made of has changed.
    ///
    /// # Errors
    /// It cannot be fetched, something of Locum does not build or install, or its disk cannot be made.
    pub(crate) fn get() -> Result<Self> {
        let root = Root::debian_host()?;
        let stock = StockGuest::get()?;
        let deb = package::make()?;
        let parts = Parts {
            labd: build::labd()?,
            lab_guest: build::lab_guest()?,
            guest_init: build::guest_init()?,
            stock_kernel: stock.kernel()?,
            stock_initrd: stock.initrd()?,
        };
        let release = root.kernels()?.into_iter().max().unwrap_or_default();
        let next = Kernel::release_of(NEXT)?;
        let host = Self {
            dir: paths::out().join("debian-host"),
            release,
            next,
        };
        let _lock = paths::lock(&paths::out(), "debian-host")?;
        let mut hasher = DefaultHasher::new();
        (FILES, MASKED, INSTALL, LIBVIRT, DOMAIN, ROOT).hash(&mut hasher);
        (CARD, GUEST_SCRIPT, WITNESS, UPGRADE).hash(&mut hasher);
        (root.name(), &host.next, fs::read(&deb)?).hash(&mut hasher);
        for part in [
            &parts.labd,
            &parts.lab_guest,
            &parts.guest_init,
            &parts.stock_kernel,
            &parts.stock_initrd,
        ] {
            fs::read(part)?.hash(&mut hasher);
        }
        let stamp = format!("{:016x}", hasher.finish());
        if fs::read_to_string(host.dir.join("stamp")).is_ok_and(|old| old == stamp) {
            return Ok(host);
        }
        say("installing a Debian host with Locum's package");
        if host.dir.exists() {
            tools::remove_tree(&host.dir)?;
        }
        fs::create_dir_all(&host.dir)?;
        host.make(&root, &deb, &parts)?;
        fs::write(host.dir.join("stamp"), stamp)?;
        Ok(host)
    }

    /// Its kernel.
    #[must_use]
    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// Its initramfs.
    #[must_use]
    pub(crate) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// Puts a copy of its disk at `target`.
    ///
    /// # Errors
    /// There is no room for it.
    pub(crate) fn disk(&self, target: &Path) -> Result<()> {
        tools::shell(
            r#"cp --sparse=always --reflink=auto "$1" "$2""#,
            &[&self.dir.join("disk.img"), target],
        )
    }

    /// A guest as the lab's other hosts have it, what looks at it, the stock guest as a domain, and a package to install.
    fn guests(&self, tree: &Root, parts: &Parts) -> Result<()> {
        let dir = tree.path("srv/guest");
        fs::create_dir_all(dir.join("stock"))?;
        fs::copy(&parts.stock_kernel, dir.join("stock/vmlinuz"))?;
        fs::copy(&parts.stock_initrd, dir.join("stock/initrd"))?;
        fs::write(dir.join("initrd"), initramfs::bare_guest(&parts.guest_init)?)?;
        let script = dir.join("guest.sh");
        fs::write(&script, GUEST_SCRIPT)?;
        fs::write(dir.join("d1.xml"), DOMAIN)?;
        fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
        let looker = tree.path("usr/local/bin/lab-guest");
        fs::copy(&parts.lab_guest, &looker)?;
        fs::set_permissions(looker, fs::Permissions::from_mode(0o755))?;
        disk::put(tree, WITNESS)?;
        tree.sh(&format!(
            "cp /boot/vmlinuz-{} /srv/guest/vmlinuz && \
             dpkg-deb --root-owner-group --build /srv/witness /srv/lab-witness.deb && rm -r /srv/witness",
            self.release
        ))
        .map(drop)
    }

    fn make(&self, root: &Root, deb: &Path, parts: &Parts) -> Result<()> {
        let tree = root.copy(&self.dir.join("tree"))?;
        disk::put(&tree, FILES)?;
        disk::put(&tree, &[(CARD_FILE, &card_script())])?;
        fs::set_permissions(tree.path(CARD_FILE), fs::Permissions::from_mode(0o755))?;
        disk::hand(&tree, &parts.labd)?;
        self.guests(&tree, parts)?;
        for unit in MASKED {
            symlink("/dev/null", tree.path(&format!("etc/systemd/system/{unit}")))?;
        }
        install(&tree, deb, &self.release)?;
        tree.sh("systemctl enable lab-card.service")?;
        tree.sh(LIBVIRT).context("telling libvirt of the pool")?;
        disk::initramfs(&tree)?;
        upgrade(&tree, &self.next)?;
        // Each would take the emulator ten minutes.
        for release in [&self.release, &self.next] {
            tree.sh(&format!("locum image {release}"))
                .context("making the image of a successor")?;
        }
        for (from, to) in [("vmlinuz", self.kernel()), ("initrd.img", self.initrd())] {
            let from = tree.path(&format!("boot/{from}-{}", self.release));
            fs::copy(&from, to).with_context(|| format!("copying {}", from.display()))?;
        }
        self.starts_libvirt(&tree)?;
        let image = self.dir.join("disk.img");
        disk::partition(root, &image, SIZE, &[Partition::new("root", "L", ROOT)])?;
        ext4::make(root, tree.dir(), &image, "root", Some(ROOT))?;
        tools::remove_tree(tree.dir())
    }

    /// In the image of a successor libvirt starts, its network, and a domain on it: in a machine without VMX, which says so in
    /// seconds. A refresh would only after minutes.
    fn starts_libvirt(&self, tree: &Root) -> Result<()> {
        let initrd = self.dir.join("successor.img");
        let image = tree.path(&format!("var/lib/locum/images/{}.img", self.release));
        fs::copy(&image, &initrd).with_context(|| format!("copying {}", image.display()))?;
        let mut more = Files::default();
        more.bytes("locum/usr/sbin/locum", SUCCESSOR_LOCUM, 0o755);
        more.bytes("locum/srv/guest/plain.xml", plain_domain(), 0o644);
        let mut file = fs::OpenOptions::new().append(true).open(&initrd)?;
        // Archives begin at words of four bytes; what is later in an initramfs goes over what is before.
        let length = usize::try_from(file.metadata()?.len() % 4)?;
        file.write_all(&[0; 4][..(4 - length) % 4])?;
        more.write(&mut file)?;
        drop(file);
        let said = tools::output(
            Command::new("setpriv")
                .args(["--pdeathsig", "KILL"])
                .args(qemu::words()?)
                .args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "2048", "-net", "none"])
                .args([
                    "-nographic",
                    "-no-reboot",
                    "-no-user-config",
                    "-append",
                    "console=ttyS0 panic=-1 quiet tsc=unstable locum.generation=1",
                ])
                .arg("-kernel")
                .arg(self.kernel())
                .arg("-initrd")
                .arg(&initrd)
                .stdin(Stdio::null()),
        )?;
        fs::remove_file(initrd)?;
        ensure!(
            said.contains(WELL),
            "libvirt starts no domain on its network in a successor's image; the machine said:\n{said}"
        );
        Ok(())
    }
}

/// Files of the lab's that are in it.
struct Parts {
    labd: PathBuf,
    lab_guest: PathBuf,
    guest_init: PathBuf,
    stock_kernel: PathBuf,
    stock_initrd: PathBuf,
}

fn upgrade(tree: &Root, release: &str) -> Result<()> {
    tools::shell(
        r#"mkdir "$1" && tar -C "$1" -xf "$2""#,
        &[&tree.path("tmp/kernel"), &server_disk::kernel(release)?],
    )?;
    tree.sh(&format!("release={release}; {UPGRADE}"))
        .map(drop)
        .with_context(|| format!("kernel {release} cannot be installed in the Debian host"))
}

/// There is no `/own` there, where other hosts of the lab have what names a card.
fn card_script() -> String {
    let [card, network] = CARD;
    format!("{card}{}", network.replace(". /own/card\n", ""))
}

/// The domain where there is neither VMX nor a network.
fn plain_domain() -> String {
    let domain = DOMAIN
        .replace("type='kvm'", "type='qemu'")
        .replace("host-passthrough", "maximum");
    match (domain.split_once("<disk "), domain.split_once("</disk>")) {
        (Some((before, _)), Some((_, after))) => format!("{before}{after}"),
        _ => domain,
    }
}

/// Installs the package, and DKMS makes the module.
fn install(tree: &Root, deb: &Path, release: &str) -> Result<()> {
    fs::copy(deb, tree.path("tmp/locum.deb"))?;
    tree.sh(&format!("release={release}; {INSTALL}"))
        .map(drop)
        .context("Locum's package cannot be installed in the Debian host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_domain_has_no_disk_and_all_else() {
        let plain = plain_domain();
        assert!(!plain.contains("disk") && !plain.contains("@PORT@"), "{plain}");
        assert!(plain.contains("<domain type='qemu'>") && plain.contains("<interface "));
    }

    #[test]
    fn the_card_needs_no_file_but_its_own() {
        let script = card_script();
        assert!(!script.contains("/own/"), "{script}");
        assert!(script.contains("modprobe e1000") && script.contains("10.0.2.15/24"));
    }
}
