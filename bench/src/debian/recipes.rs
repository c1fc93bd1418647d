//! The trees that the lab takes programs and kernels from.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{
    pocket::Pocket,
    recipe::{Incompatible, Recipe},
    root::Root,
};
use crate::{progress::say, tools};

/// What the lab's Bochs needs changed, and how it is built.
const BOCHS_PATCH: &str = include_str!("../../emulator/bochs.patch");
const BOCHS_BUILD: &str = include_str!("../../emulator/build.sh");
/// What `build.sh` ends with if the patch does not apply.
const DOES_NOT_APPLY: i32 = 3;
/// How Linux's own tests of KVM are built.
const SELFTESTS_BUILD: &str = include_str!("../../selftests/build.sh");
/// What Debian does after a first boot: caches are up to date.
const SETTLED: &str =
    "chroot \"$1\" sh -ec 'ldconfig; journalctl --update-catalog; /usr/lib/systemd/systemd-update-done'";
/// What every server has here that Debian installs: kernel, initramfs, systemd, and what builds modules.
const SERVER: &[&str] = &[
    "linux-image-amd64",
    "linux-headers-amd64",
    "initramfs-tools",
    "zstd",
    "systemd-sysv",
    "udev",
    "e2fsprogs",
    "fdisk",
    "dkms",
];
/// What an operator sets in the stock guest.
const GUEST_SETUP: &str = include_str!("../../guest/stock/setup.sh");

impl Root {
    /// The emulator, `usr/bin/bochs`: built from Debian's source with the lab's fixes, which takes some minutes the
    /// first time.
    ///
    /// # Errors
    /// The tree cannot be fetched, or Bochs does not build and was never built.
    pub(crate) fn bochs() -> Result<Self> {
        let packages = ["g++", "make", "patch", "xz-utils", "bochsbios", "vgabios"];
        Recipe {
            // Of the same source package, and of the same version.
            lead: Some("bochsbios"),
            source: Some("bochs"),
            ingredients: &[BOCHS_PATCH, BOCHS_BUILD],
            ..Recipe::new("bochs", "the emulator's source and a compiler", &packages)
        }
        .tree(build_bochs)
    }

    /// User space of a host: busybox, QEMU, and what workloads need.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn host() -> Result<Self> {
        let packages = [
            "qemu-system-x86",
            "busybox-static",
            "seabios",
            "kmod",
            "socat",
            "setserial",
            "redis-server",
        ];
        Recipe {
            lead: Some("qemu-system-x86"),
            ..Recipe::new("host", "user space of the hosts (QEMU, Redis)", &packages)
        }
        .tree(as_it_is)
    }

    /// What loads a crash kernel, and what writes its dump.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn crash() -> Result<Self> {
        Recipe {
            lead: Some("makedumpfile"),
            ..Recipe::new("crash", "what makes crash dumps", &["kexec-tools", "makedumpfile"])
        }
        .tree(as_it_is)
    }

    /// What the second board boots by: UEFI firmware, and GRUB for it.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn uefi() -> Result<Self> {
        let packages = ["ovmf", "grub-common", "grub-efi-amd64-bin"];
        Recipe {
            lead: Some("ovmf"),
            ..Recipe::new("uefi", "UEFI firmware and GRUB for it", &packages)
        }
        .tree(as_it_is)
    }

    /// A Debian system as an operator has it in a virtual machine: kernel, initramfs, systemd, a web server. `boot/`
    /// has the kernel and its initramfs.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn guest() -> Result<Self> {
        let packages = [
            "linux-image-cloud-amd64",
            "initramfs-tools",
            "zstd",
            "systemd-sysv",
            "udev",
            "dbus",
            "e2fsprogs",
            "lighttpd",
        ];
        Recipe {
            lead: Some("linux-image-cloud-amd64"),
            hook: Some(GUEST_SETUP),
            ..Recipe::new("guest", "a stock Debian guest", &packages)
        }
        .tree(as_it_is)
    }

    /// A kernel of the given release (`uname -r`), its headers, and what builds modules for it.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn kernel(release: &str, pocket: Pocket) -> Result<Self> {
        let [image, headers] = ["image", "headers"].map(|part| format!("linux-{part}-{release}"));
        // Headers bring a compiler, but no assembler.
        let packages = [&image, &headers, "gcc", "binutils", "make"];
        Recipe {
            backports: pocket == Pocket::Backports,
            ..Recipe::new(&format!("kernel-{release}"), &format!("kernel {release}"), &packages)
        }
        .tree(as_it_is)
    }

    /// A server as Debian installs it, before Locum: a kernel with its headers, GRUB, and what builds modules.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn server() -> Result<Self> {
        let packages = [SERVER, &["grub2-common", "grub-efi-amd64-bin"]].concat();
        Recipe {
            lead: Some("linux-image-amd64"),
            ..Recipe::new("server", "a server as Debian installs it", &packages)
        }
        .tree(as_it_is)
    }

    /// A host as Debian installs it, before Locum: a kernel with its headers, systemd, what builds modules, QEMU and libvirt.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn debian_host() -> Result<Self> {
        let own = [
            "dbus",
            "grub-common",
            "busybox-static",
            "iproute2",
            "qemu-system-x86",
            "seabios",
            "libvirt-daemon-system",
            "libvirt-clients",
            "apparmor",
        ];
        let packages = [SERVER, &own].concat();
        Recipe {
            lead: Some("linux-image-amd64"),
            hook: Some(SETTLED),
            ..Recipe::new("debian-host", "a host as Debian installs it", &packages)
        }
        .tree(as_it_is)
    }

    /// QEMU, and libvirt as Debian installs it.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn libvirt() -> Result<Self> {
        let packages = ["qemu-system-x86", "seabios", "libvirt-daemon-system", "libvirt-clients"];
        Recipe {
            lead: Some("libvirt-daemon-system"),
            ..Recipe::new("libvirt", "libvirt and QEMU", &packages)
        }
        .tree(as_it_is)
    }

    /// What makes and checks the package.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn packager() -> Result<Self> {
        let packages = ["debhelper", "dh-dkms", "lintian"];
        Recipe {
            lead: Some("debhelper"),
            ..Recipe::new("packager", "Debian's tools for packages", &packages)
        }
        .tree(as_it_is)
    }

    /// Ansible, as an operator of a fleet has it.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn ansible() -> Result<Self> {
        Recipe {
            lead: Some("ansible-core"),
            ..Recipe::new("ansible", "Ansible", &["ansible-core"])
        }
        .tree(as_it_is)
    }

    /// Linux's own tests of KVM (`tools/testing/selftests/kvm`), `usr/lib/kvm-selftests/`: built from the newest source
    /// that Debian has of a kernel's line (`6.12`), which takes some minutes the first time.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn selftests(line: &str, pocket: Pocket) -> Result<Self> {
        let source = format!("linux-source-{line}");
        // rsync is what `make headers` copies with.
        let packages = [&source, "gcc", "libc6-dev", "binutils", "make", "xz-utils", "rsync"];
        Recipe {
            lead: Some(&source),
            backports: pocket == Pocket::Backports,
            ingredients: &[SELFTESTS_BUILD],
            ..Recipe::new(
                &format!("selftests-{line}"),
                "Linux's tests of KVM and a compiler",
                &packages,
            )
        }
        .tree(build_selftests)
    }

    /// What builds modules, for kernels whose headers are put there.
    ///
    /// # Errors
    /// As [`Root::bochs`].
    pub(crate) fn compiler() -> Result<Self> {
        // What headers packages would bring; the libraries are for the kernel's own tools.
        let packages = ["gcc", "binutils", "make", "pahole", "libelf1t64", "libssl3t64"];
        Recipe {
            lead: Some("gcc"),
            ..Recipe::new("compiler", "a compiler for modules", &packages)
        }
        .tree(as_it_is)
    }
}

/// Nothing is to be done to a tree once it is fetched.
fn as_it_is(_: &Root, _: &str) -> Result<()> {
    Ok(())
}

fn build_selftests(root: &Root, version: &str) -> Result<()> {
    say("building Linux's tests of KVM, once");
    fs::write(root.path("usr/src/build.sh"), SELFTESTS_BUILD)?;
    tools::run(root.chroot().args(["sh", "/usr/src/build.sh"]))
        .with_context(|| format!("the tests of linux-source {version} do not build (bench/selftests/build.sh)"))
}

fn build_bochs(root: &Root, version: &str) -> Result<()> {
    say("building Bochs, once");
    fs::write(root.path("usr/src/bochs.patch"), BOCHS_PATCH)?;
    fs::write(root.path("usr/src/build.sh"), BOCHS_BUILD)?;
    let (status, text) = tools::status(root.chroot().args(["sh", "/usr/src/build.sh"]))?;
    if status == Some(DOES_NOT_APPLY) {
        // The patch says in its first line what it is for.
        let patched = BOCHS_PATCH.split(',').next().unwrap_or_default();
        bail!(Incompatible(format!(
            "bench/emulator/bochs.patch is for {patched} and does not apply to Debian's Bochs {version}; mend the patch:\n{}",
            tools::last_lines(&text, 10)
        )));
    }
    ensure!(
        status == Some(0),
        "Bochs {version} does not build (bench/emulator/build.sh):\n{}",
        tools::last_lines(&text, 30)
    );
    Ok(())
}
