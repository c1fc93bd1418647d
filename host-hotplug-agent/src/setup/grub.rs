//! GRUB as Debian installs it: its menu, its environment block, and the tools that read and write them.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sysroot::SysRoot;

const MENU: &str = "boot/grub/grub.cfg";
const DIRECTORY: &str = "boot/grub";
const ENVIRONMENT: &str = "boot/grub/grubenv";
const EDIT: &str = "usr/bin/grub-editenv";
const PROBE: &str = "usr/sbin/grub-probe";
/// The word in the environment block.
const WORD: &str = "locum_next";
/// What the entries' identifiers begin with.
pub(super) const PREFIX: &str = "locum-";

/// What GRUB reads files through but cannot write: its disk abstractions and file systems (GRUB 2.12, util/grub.d/00_header).
const UNWRITABLE: [&str; 10] = [
    "diskfilter",
    "lvm",
    "btrfs",
    "cpiofs",
    "newc",
    "odc",
    "romfs",
    "squash4",
    "tarfs",
    "zfs",
];

/// GRUB of one host.
pub struct Grub<'a> {
    sys: &'a SysRoot,
}

impl<'a> Grub<'a> {
    /// That of `sys`.
    pub fn of(sys: &'a SysRoot) -> Self {
        Self { sys }
    }

    /// The first entry of the menu by way of Locum.
    pub fn newest_entry(&self) -> Option<String> {
        newest_entry(&self.sys.read_optional(MENU)?)
    }

    /// Why GRUB cannot write its environment block, if it cannot: an entry could not take its word back then, and a boot
    /// that fails would be tried for ever.
    pub fn unwritable(&self) -> Option<String> {
        for target in ["abstraction", "fs"] {
            let found = match self.tool(PROBE, &["--target", target, &self.path(DIRECTORY)]) {
                Ok(found) => found,
                Err(error) => return Some(format!("{error:#}")),
            };
            if let Some(what) = found.split_whitespace().find(|word| UNWRITABLE.contains(word)) {
                return Some(format!(
                    "GRUB cannot write to {what}, on which /{DIRECTORY} is, so it cannot boot Locum once only; put /boot on a \
                     partition of its own, or choose the entry in the menu each time"
                ));
            }
        }
        None
    }

    /// Whether the next boot goes by way of Locum.
    ///
    /// # Errors
    /// If the environment block cannot be read.
    pub fn next(&self) -> Result<bool> {
        if !self.sys.exists(ENVIRONMENT) {
            return Ok(false);
        }
        let list = self.tool(EDIT, &[&self.path(ENVIRONMENT), "list"])?;
        Ok(list.lines().any(|line| line == format!("{WORD}=1")))
    }

    /// The next boot goes by way of Locum.
    ///
    /// # Errors
    /// If the environment block cannot be written.
    pub fn set_next(&self) -> Result<()> {
        self.tool(EDIT, &[&self.path(ENVIRONMENT), "set", &format!("{WORD}=1")])?;
        if !self.next()? {
            bail!("/{ENVIRONMENT} does not keep what is written to it");
        }
        Ok(())
    }

    fn path(&self, inner: &str) -> String {
        self.sys.path(inner).to_string_lossy().into_owned()
    }

    fn tool(&self, tool: &str, words: &[&str]) -> Result<String> {
        let what = || format!("/{tool} {}", words.join(" "));
        let output = Command::new(self.sys.path(tool)).args(words).output();
        let output = output.with_context(|| format!("{} cannot be run", what()))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}", what(), text.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The identifier of the first entry of Locum's in a menu.
fn newest_entry(menu: &str) -> Option<String> {
    let ids = menu
        .lines()
        .filter(|line| line.trim_start().starts_with("menuentry "))
        .filter_map(|line| line.split_once("--id '")?.1.split_once('\''));
    ids.map(|(id, _)| id.to_owned()).find(|id| id.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Confirmed, confirm, examine, once};
    use super::*;

    /// A server with tools that do what GRUB's do, on plain files.
    struct Server {
        dir: tempfile::TempDir,
    }

    impl Server {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let server = Self { dir };
            server.put("boot/locum-l0", "");
            server.put(
                MENU,
                "menuentry 'Debian' --id 'gnulinux-simple' {\n}\nmenuentry 'Locum' --class os --id 'locum-6.12.1' {\n}\n\
                 menuentry 'Locum' --id 'locum-6.12.0' {\n}\n",
            );
            server.script(EDIT, "case $2 in list) cat \"$1\" ;; set) echo \"$3\" >>\"$1\" ;; esac");
            server.script(PROBE, "echo ext2");
            server
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn script(&self, path: &str, text: &str) {
            self.put(path, &format!("#!/bin/sh\n{text}\n"));
            let path = self.dir.path().join(path);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn sys(&self) -> SysRoot {
            SysRoot::at(self.dir.path())
        }

        fn goes_by_locum(&self) -> bool {
            Grub::of(&self.sys()).next().unwrap()
        }
    }

    #[test]
    fn the_next_boot_goes_by_way_of_locum_once_it_is_asked_for() {
        let server = Server::new();
        assert!(!server.goes_by_locum());
        let findings = examine(&server.sys());
        assert!(
            findings.iter().all(|finding| finding.ok || !finding.needed),
            "{findings:?}"
        );
        let image = findings.iter().find(|finding| finding.what == "successor").unwrap();
        assert!(!image.ok && image.text.contains("`locum image 6.12.1`"), "{image:?}");
        assert!(findings.iter().any(|finding| finding.text == "entry locum-6.12.1"));
        assert!(!server.goes_by_locum(), "looking changes nothing");
        once(&server.sys()).unwrap();
        assert!(server.goes_by_locum());
    }

    #[test]
    fn what_is_missing_is_told_and_nothing_changes() {
        type Change = fn(&Server);
        let cases: [(Change, &str); 4] = [
            (|server| server.put(MENU, "menuentry 'Debian' {\n}\n"), "update-grub"),
            (
                |server| fs::remove_file(server.dir.path().join("boot/locum-l0")).unwrap(),
                "install the package anew",
            ),
            (|server| server.script(PROBE, "echo btrfs"), "cannot write to btrfs"),
            (
                |server| server.script(PROBE, "echo no such device >&2; exit 1"),
                "no such device",
            ),
        ];
        for (change, word) in cases {
            let server = Server::new();
            change(&server);
            let error = format!("{:#}", once(&server.sys()).unwrap_err());
            assert!(error.contains(word), "{error}");
            assert!(!server.goes_by_locum());
        }
    }

    #[test]
    fn a_boot_is_confirmed_only_by_way_of_locum_and_if_wanted() {
        let server = Server::new();
        let error = confirm(&server.sys()).unwrap_err().to_string();
        assert!(error.contains("without L0"), "{error}");
        server.put("sys/firmware/acpi/tables/LOCM", "");
        server.put("etc/default/locum", "LOCUM_STAY=\"no\"\n");
        assert_eq!(confirm(&server.sys()).unwrap(), Confirmed::NotWanted);
        assert!(!server.goes_by_locum());
        server.put("etc/default/locum", "");
        assert_eq!(confirm(&server.sys()).unwrap(), Confirmed::Stays);
        assert!(server.goes_by_locum());
        server.script(PROBE, "echo lvm");
        let error = confirm(&server.sys()).unwrap_err().to_string();
        assert!(error.contains("cannot write to lvm"), "{error}");
    }

    #[test]
    fn an_environment_block_that_keeps_nothing_is_told() {
        let server = Server::new();
        server.put(ENVIRONMENT, "");
        server.script(EDIT, "exit 0");
        let error = once(&server.sys()).unwrap_err().to_string();
        assert!(error.contains("does not keep"), "{error}");
    }
}
