//! The QEMU that a guest is to go on in: does it know the guest's machine type and CPU model? And has libvirt there the networks
//! of its domain?
//!
//! It lies in the successor's initramfs, which is here. A QEMU that is looked at is not run: machine types (as
//! `NAME-machine`), CPU models and the release are texts in the program, each ended by a zero (QEMU
//! `include/hw/boards.h`, `target/i386/cpu.c`, `system/vl.c`). What cannot be looked at is said.

use std::collections::{BTreeMap, BTreeSet};

use memchr::memmem;

use super::{Spec, argv};
use crate::error::Refusal;
use crate::load::{initramfs, squashfs};
use crate::preflight::Qemu;

/// What every QEMU says when asked for its version.
const MARK: &[u8] = b"QEMU emulator version ";
/// CPU models that every QEMU makes of what there is.
const ANYWHERE: [&str; 3] = ["host", "max", "base"];
/// File types in a mode.
const TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// A QEMU in the initramfs.
struct Program {
    release: Option<(u32, u32)>,
    /// Of the texts that were looked for, those in it.
    texts: Vec<Vec<u8>>,
}

/// Looks at the QEMU of each guest. Returns what to beware of.
///
/// # Errors
/// [`Refusal::UnknownThere`], [`Refusal::OlderThere`].
pub fn check(initramfs: &[u8], guests: &[Spec]) -> Result<Vec<String>, Refusal> {
    // A script starts what it likes.
    let with_qemu = |guest: &&Spec| guest.command.first().is_some_and(|program| argv::is_qemu(program));
    let guests: Vec<(&Spec, Wanted)> = guests
        .iter()
        .filter(with_qemu)
        .map(|guest| (guest, Wanted::of(guest)))
        .collect();
    if guests.is_empty() {
        return Ok(Vec::new());
    }
    let texts: Vec<&[u8]> = guests.iter().flat_map(|(_, wanted)| wanted.texts()).collect();
    let Looked {
        programs,
        links,
        opaque,
        networks,
    } = Looked::at(initramfs, &texts);
    let mut notes = Vec::new();
    for (guest, wanted) in &guests {
        // What made another initramfs may make its networks, too.
        if let Some(there) = &networks {
            on_networks(guest, there)?;
            // The rules are of the machine's own root.
            notes.extend(guest.confined.as_ref().map(|model| {
                let name = &guest.name;
                format!(
                    "guest {name}: {model} confines its QEMU here, and not in the successor; `locum renew {name}` afterwards \
                     has it confined again"
                )
            }));
        }
        let name = base(guest.command.first().map_or("", String::as_str));
        let target = links.get(name).map_or(name, |target| base(target));
        let Some(program) = programs.get(target) else {
            let why = match opaque.first() {
                Some(what) => what.clone(),
                None => "it is not in its initramfs".to_owned(),
            };
            notes.push(format!(
                "guest {}: {name} of the successor was not looked at ({why}): see that its release, machine types and CPU \
                 models are those of this host",
                guest.name
            ));
            continue;
        };
        notes.extend(judge(guest, wanted, name, program)?);
    }
    Ok(notes)
}

fn on_networks(guest: &Spec, there: &BTreeSet<String>) -> Result<(), Refusal> {
    match guest.networks.iter().find(|network| !there.contains(*network)) {
        Some(network) => Err(Refusal::NoNetworkThere {
            guest: guest.name.clone(),
            network: network.clone(),
        }),
        None => Ok(()),
    }
}

fn judge(guest: &Spec, wanted: &Wanted, name: &str, program: &Program) -> Result<Option<String>, Refusal> {
    let release = |release: Option<(u32, u32)>| match release {
        Some((major, minor)) => format!("{major}.{minor}"),
        None => "of unknown release".to_owned(),
    };
    for text in [&wanted.machine, &wanted.cpu].into_iter().flatten() {
        if !program.texts.contains(&text.bytes) {
            return Err(Refusal::UnknownThere {
                guest: guest.name.clone(),
                program: format!("{name} ({})", release(program.release)),
                what: text.what.clone(),
            });
        }
    }
    let (Some(here), Some(there)) = (guest.release, program.release) else {
        return Ok(None);
    };
    let both = format!(
        "it runs in QEMU {}, and {name} of the successor is {}",
        release(Some(here)),
        release(Some(there))
    );
    if there < here {
        return Err(Refusal::OlderThere {
            guest: guest.name.clone(),
            here: release(Some(here)),
            program: name.to_owned(),
            there: release(Some(there)),
        });
    }
    Ok(if there != here && !wanted.versioned {
        Some(format!(
            "guest {}: {both}, and its machine type has no versions: put the same release there",
            guest.name
        ))
    } else {
        None
    })
}

/// A text that a QEMU must have.
struct Text {
    what: String,
    bytes: Vec<u8>,
}

/// What a guest needs of a QEMU.
struct Wanted {
    machine: Option<Text>,
    cpu: Option<Text>,
    /// The machine type has versions, which promise that its state fits later releases.
    versioned: bool,
}

impl Wanted {
    fn of(guest: &Spec) -> Self {
        let qemu = Qemu::parse(&guest.command);
        // Proxmox' own version of a machine type follows QEMU's.
        let machine = qemu
            .machine
            .map(|name| name.split('+').next().unwrap_or_default().to_owned());
        let versioned = machine
            .as_ref()
            .is_some_and(|name| name.ends_with(|c: char| c.is_ascii_digit()));
        let machine = machine.filter(|name| !name.is_empty()).map(|name| Text {
            bytes: format!("{name}-machine\0").into_bytes(),
            what: format!("machine type `{name}`"),
        });
        let cpu = qemu
            .cpu
            .filter(|model| !model.is_empty() && !ANYWHERE.contains(&model.as_str()));
        let cpu = cpu.map(|model| Text {
            bytes: format!("{}\0", unversioned(&model)).into_bytes(),
            what: format!("CPU model `{model}`"),
        });
        Self {
            machine,
            cpu,
            versioned,
        }
    }

    fn texts(&self) -> impl Iterator<Item = &[u8]> {
        [&self.machine, &self.cpu]
            .into_iter()
            .flatten()
            .map(|text| text.bytes.as_slice())
    }
}

/// A CPU model without its version, which QEMU appends as it starts: `Skylake-Server-v4`.
fn unversioned(model: &str) -> &str {
    match model.rsplit_once("-v") {
        Some((name, digits)) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => model,
    }
}

/// The QEMUs in an initramfs.
#[derive(Default)]
struct Looked {
    /// By their file names.
    programs: BTreeMap<String, Program>,
    /// Symbolic links by theirs.
    links: BTreeMap<String, String>,
    /// What may hide others.
    opaque: Vec<String>,
    /// Networks that libvirt starts by itself, where it is in an initramfs that `locum image` has made.
    networks: Option<BTreeSet<String>>,
}

impl Looked {
    fn at(initramfs: &[u8], texts: &[&[u8]]) -> Self {
        let mut looked = Self::default();
        let opaque = initramfs::each_file(initramfs, &mut |entry| match entry.mode & TYPE {
            LINK => looked.link(entry.name, entry.content),
            REGULAR if is_libvirt(entry.name) => drop(looked.networks.get_or_insert_default()),
            REGULAR => {
                looked.program(entry.name, entry.content, texts);
                looked.image(entry.content, texts);
            }
            _ => {}
        });
        let archives = opaque
            .into_iter()
            .map(|format| format!("its initramfs is compressed by {format}"));
        looked.opaque.extend(archives);
        looked
    }

    fn link(&mut self, path: &[u8], target: &[u8]) {
        if let Some(network) = network_name(path) {
            self.networks.get_or_insert_default().insert(network);
        }
        if let Some(name) = qemu_name(path) {
            let target = String::from_utf8_lossy(target).trim_end_matches('\0').to_owned();
            self.links.insert(name, target);
        }
    }

    fn program(&mut self, path: &[u8], content: &[u8], texts: &[&[u8]]) {
        let Some(name) = qemu_name(path).filter(|_| memmem::find(content, MARK).is_some()) else {
            return;
        };
        let there = |text: &&&[u8]| memmem::find(content, text).is_some();
        let program = Program {
            release: release(content),
            texts: texts.iter().filter(there).map(|text| text.to_vec()).collect(),
        };
        self.programs.insert(name, program);
    }

    /// A file system in the initramfs, which its `init` mounts.
    fn image(&mut self, content: &[u8], texts: &[&[u8]]) {
        let wanted = |name: &[u8]| qemu_name(name).is_some();
        let outcome = squashfs::each_file(content, &wanted, &mut |found| match found.link {
            true => self.link(&found.path, &found.content),
            false => self.program(&found.path, &found.content, texts),
        });
        if let Some(Err(what)) = outcome {
            self.opaque.push(format!("in its initramfs is {what}"));
        }
    }
}

/// libvirt's daemon in the tree that `locum image` makes (`debian/locum.initramfs-hook`).
fn is_libvirt(path: &[u8]) -> bool {
    [&b"locum/usr/sbin/libvirtd"[..], b"locum/usr/sbin/virtqemud"].contains(&path)
}

/// A network that it starts there by itself.
fn network_name(path: &[u8]) -> Option<String> {
    let path = String::from_utf8_lossy(path);
    let file = path.strip_prefix("locum/etc/libvirt/qemu/networks/autostart/")?;
    file.strip_suffix(".xml").map(str::to_owned)
}

/// The name of a file without its directories, if it is one of QEMU's.
fn qemu_name(path: &[u8]) -> Option<String> {
    let path = String::from_utf8_lossy(path);
    let name = base(&path);
    argv::is_qemu(name).then(|| name.to_owned())
}

/// The release of a QEMU, major and minor, from its program: "QEMU emulator version 10.0.13 (Debian ...)".
pub fn release(program: &[u8]) -> Option<(u32, u32)> {
    const LONGEST: usize = 32;
    let at = memmem::find(program, MARK)? + MARK.len();
    let text = program.get(at..)?;
    let text = String::from_utf8_lossy(text.get(..LONGEST).unwrap_or(text));
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::cpio;
    use std::path::PathBuf;

    /// What of a QEMU is looked at.
    fn qemu(release: &str) -> Vec<u8> {
        let texts = format!(
            "\x7fELF\0QEMU emulator version {release}.3 (Debian)\n{pad}\0pc-q35-9.2-machine\0microvm-machine\0Skylake-Server\0qemu64\0",
            pad = "x".repeat(100)
        );
        texts.into_bytes()
    }

    /// An initramfs with that file at /usr/bin/qemu-system-x86_64, and /usr/bin/kvm that points there.
    fn initramfs(content: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("qemu-system-x86_64"), content).unwrap();
        std::os::unix::fs::symlink("qemu-system-x86_64", dir.path().join("kvm")).unwrap();
        cpio::pack(&[dir.path().join("qemu-system-x86_64"), dir.path().join("kvm")]).unwrap()
    }

    fn spec(command: &str, release: (u32, u32)) -> Spec {
        Spec {
            name: "vm1".to_owned(),
            command: command.split(' ').map(str::to_owned).collect(),
            channel: 1,
            release: Some(release),
            ..Spec::default()
        }
    }

    fn checked(release: &str, command: &str) -> Result<Vec<String>, Refusal> {
        check(&initramfs(&qemu(release)), &[spec(command, (9, 2))])
    }

    #[test]
    fn what_the_qemu_there_does_not_know_is_refused() {
        for program in ["/usr/bin/qemu-system-x86_64", "kvm"] {
            for good in [
                "-machine pc-q35-9.2,accel=kvm -cpu Skylake-Server-v4,-hle",
                "-M pc-q35-9.2+pve0 -cpu host,migratable=on",
                "-machine type=pc-q35-9.2 -cpu qemu64",
                "-machine microvm",
            ] {
                assert_eq!(
                    checked("9.2", &format!("{program} {good}")).unwrap(),
                    [] as [&str; 0],
                    "{good}"
                );
            }
            for (bad, words) in [
                (
                    "-machine pc-q35-10.0",
                    "(9.2) in the successor's initramfs knows no machine type `pc-q35-10.0`",
                ),
                (
                    "-machine pc-q35-9.2 -cpu GraniteRapids-v1",
                    "CPU model `GraniteRapids-v1`",
                ),
            ] {
                let error = checked("9.2", &format!("{program} {bad}")).unwrap_err().to_string();
                assert!(error.contains(words) && error.contains("guest vm1"), "{error}");
            }
        }
    }

    #[test]
    fn a_qemu_in_a_squashfs_is_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, image) = (dir.path().join("tree/usr/bin"), dir.path().join("host.sqfs"));
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::write(tree.join("qemu-system-x86_64"), qemu("9.2")).unwrap();
        std::os::unix::fs::symlink("qemu-system-x86_64", tree.join("kvm")).unwrap();
        let made = std::process::Command::new("mksquashfs")
            .args([&dir.path().join("tree"), &image])
            .args(["-quiet", "-no-progress"])
            .output();
        if !made.is_ok_and(|made| made.status.success()) {
            eprintln!("no mksquashfs on this machine");
            return;
        }
        let initramfs = |image: &PathBuf| cpio::pack(std::slice::from_ref(image)).unwrap();
        let guest = |machine: &str| [spec(&format!("kvm -machine {machine}"), (9, 2))];
        assert_eq!(
            check(&initramfs(&image), &guest("pc-q35-9.2")).unwrap(),
            [] as [&str; 0]
        );
        let error = check(&initramfs(&image), &guest("pc-q35-10.0"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("knows no machine type `pc-q35-10.0`"), "{error}");
        // One that cannot be read.
        let mut bytes = std::fs::read(&image).unwrap();
        bytes[20] = 3;
        std::fs::write(&image, bytes).unwrap();
        let notes = check(&initramfs(&image), &guest("pc-q35-10.0")).unwrap();
        assert!(
            notes.len() == 1 && notes[0].contains("a squashfs compressed by lzo"),
            "{notes:?}"
        );
    }

    #[test]
    fn an_older_release_is_refused_and_one_that_may_not_fit_is_warned_of() {
        let q35 = "kvm -machine pc-q35-9.2";
        let older = checked("9.0", q35).unwrap_err();
        assert!(matches!(&older, Refusal::OlderThere { .. }), "{older}");
        assert!(
            older.to_string().contains("runs in QEMU 9.2") && older.to_string().contains("is 9.0"),
            "{older}"
        );
        assert_eq!(checked("10.0", q35).unwrap(), [] as [&str; 0]);
        let microvm = checked("10.0", "kvm -machine microvm").unwrap();
        assert!(microvm.len() == 1 && microvm[0].contains("no versions"), "{microvm:?}");
    }

    #[test]
    fn a_domain_whose_network_libvirt_does_not_start_there_is_refused() {
        // As cpio has them: pack() knows only files that are there.
        let archive = |files: &[(&str, u32)]| {
            let mut archive = Vec::new();
            for (name, mode) in files.iter().chain(&[(cpio::TRAILER, 0)]) {
                archive.extend_from_slice(b"070701");
                let fields = [1, *mode, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u32 + 1, 0];
                archive.extend(fields.iter().flat_map(|field| format!("{field:08x}").into_bytes()));
                archive.extend_from_slice(name.as_bytes());
                archive.push(0);
                archive.resize(archive.len().next_multiple_of(4), 0);
            }
            archive
        };
        let mut guest = spec("qemu-system-x86_64 -machine pc-q35-9.2", (9, 2));
        guest.networks = vec!["default".to_owned()];
        guest.confined = Some("apparmor".to_owned());
        let guest = [guest];
        let libvirtd = ("locum/usr/sbin/libvirtd", REGULAR | 0o755);
        let autostart = "locum/etc/libvirt/qemu/networks/autostart/default.xml";
        let error = check(&archive(&[libvirtd]), &guest).unwrap_err();
        assert!(
            matches!(&error, Refusal::NoNetworkThere { network, .. } if network == "default"),
            "{error}"
        );
        let confined = |files: &[(&str, u32)]| {
            let notes = check(&archive(files), &guest).unwrap();
            notes
                .iter()
                .any(|note| note.contains("apparmor confines") && note.contains("locum renew"))
        };
        assert!(confined(&[libvirtd, (autostart, LINK | 0o777)]));
        // Nobody knows what another one does.
        assert!(!confined(&[("usr/sbin/libvirtd", REGULAR | 0o755)]));
    }

    #[test]
    fn releases_are_read_from_programs() {
        assert_eq!(release(&qemu("10.0")), Some((10, 0)));
        assert_eq!(release(b"QEMU emulator version 9.2.4"), Some((9, 2)));
        for text in ["", "QEMU emulator version %s", "QEMU emulator version 9"] {
            assert_eq!(release(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_looked_at_is_said() {
        let guest = [spec("kvm -machine pc-q35-10.0", (10, 0))];
        let script = initramfs(b"#!/bin/sh\nexec qemu");
        let notes = check(&script, &guest).unwrap();
        assert!(
            notes.len() == 1 && notes[0].contains("not in its initramfs"),
            "{notes:?}"
        );
        let hidden = b"BZh91AY&SY";
        let notes = check(hidden, &guest).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("bzip2"), "{notes:?}");
        let by_script = [spec("/etc/locum/start-vm1 -machine pc-q35-10.0", (10, 0))];
        assert_eq!(check(&script, &by_script).unwrap(), [] as [&str; 0]);
    }
}
