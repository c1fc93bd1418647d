//! Where the playbook is played: Ansible's tree, without a network, with the directory of the scenario in it.

use std::{
    fmt,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use lab_fleet::{Machine, told};
use serde_json::json;

use super::{NAMES, NEW};
use crate::{debian::root::Root, image::build, paths, tools};

/// Where the tree has the scenario's directory.
const HERE: &str = "/mnt";
/// The playbook in it, and its inventory.
const PLAYBOOK: &str = "refresh.yml";
const INVENTORY: &str = "machines.json";
/// In the tree, with devices of this machine: `sh -c SCRIPT sh TREE DIRECTORY WORDS...`.
const ENTER: &str = r#"set -e
tree=$1
mount --rbind /dev "$tree/dev"
mount -t tmpfs shm "$tree/dev/shm"
mount --bind "$2" "$tree/mnt"
shift 2
exec chroot "$tree" "$@""#;
/// Seconds that a machine may be away: nothing that stands for one needs any.
const WAIT: u32 = 4;

/// The bed.
pub(super) struct Bed {
    tree: Root,
    dir: PathBuf,
}

impl Bed {
    /// Puts the package's playbook there, and what stands for machines.
    pub(super) fn new(tree: Root, program: &Path, dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("tmp"))?;
        let workspace = paths::workspace();
        let playbook = workspace.join("host-hotplug-agent/debian/fleet").join(PLAYBOOK);
        fs::copy(&playbook, dir.join(PLAYBOOK)).with_context(|| playbook.display().to_string())?;
        let plugins = "connection_plugins";
        build::copy_tree(&workspace.join("bench/fleet").join(plugins), &dir.join(plugins))?;
        let mut hosts = serde_json::Map::new();
        for name in NAMES {
            let own = dir.join(name);
            fs::create_dir_all(&own)?;
            let to = own.join("locum");
            fs::copy(program, &to).with_context(|| program.display().to_string())?;
            fs::set_permissions(&to, Permissions::from_mode(0o755))?;
            hosts.insert(
                name.to_owned(),
                json!({ "locum_program": format!("{HERE}/{name}/locum") }),
            );
        }
        // Variables of the machines go before the playbook's own words: nobody is to become root.
        let vars = json!({
            "ansible_connection": "standin",
            "ansible_become": false,
            "ansible_python_interpreter": "/usr/bin/python3",
            "locum_poll": 0,
            "locum_wait": WAIT,
        });
        let inventory = json!({ "locum": { "hosts": hosts, "vars": vars } });
        fs::write(dir.join(INVENTORY), inventory.to_string())?;
        Ok(Self {
            tree,
            dir: dir.to_owned(),
        })
    }

    /// Has the machines be like these.
    pub(super) fn furnish(&self, machines: &[Machine; 2]) -> Result<()> {
        let events = self.dir.join("events");
        if events.exists() {
            fs::remove_file(events)?;
        }
        for (name, machine) in NAMES.iter().zip(machines) {
            machine.write(&self.dir.join(name))?;
        }
        Ok(())
    }

    /// What the machines are like.
    pub(super) fn machines(&self) -> Result<[Machine; 2]> {
        let [a, b] = NAMES.map(|name| Machine::read(&self.dir.join(name)));
        Ok([a?, b?])
    }

    /// What was done to them, in order.
    pub(super) fn events(&self) -> Result<Vec<String>> {
        told(&self.dir)
    }

    /// Plays the playbook.
    pub(super) fn play(&self, words: &[&str]) -> Result<Played> {
        let variables = [
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL=C.UTF-8",
            "HOME=/mnt/tmp",
            "ANSIBLE_NOCOLOR=1",
            "ANSIBLE_PIPELINING=1",
            "ANSIBLE_LOCAL_TEMP=/mnt/tmp",
            "ANSIBLE_REMOTE_TEMP=/mnt/tmp",
            "ANSIBLE_CONNECTION_PLUGINS=/mnt/connection_plugins",
        ];
        let kernel = format!("locum_kernel={NEW}");
        let (status, text) = tools::status(
            Command::new("unshare")
                .args(["--mount", "--pid", "--net", "--fork", "--kill-child"])
                .arg(format!("--mount-proc={}", self.tree.path("proc").display()))
                .args(["sh", "-c", ENTER, "sh"])
                .args([self.tree.dir(), &self.dir])
                .args(["env", "--ignore-environment", "--chdir", HERE])
                .args(variables)
                .args([
                    "ansible-playbook",
                    "--inventory",
                    INVENTORY,
                    PLAYBOOK,
                    "--extra-vars",
                    &kernel,
                ])
                .args(words),
        )?;
        Ok(Played { status, text })
    }
}

/// How the playbook ended, and what was said.
pub(super) struct Played {
    status: Option<i32>,
    text: String,
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Played {
    /// It ended well, or it did not.
    pub(super) fn ends(&self, well: bool) -> Result<()> {
        ensure!(
            self.status.is_some_and(|status| (status == 0) == well),
            "the playbook ended with {:?}:\n{self}",
            self.status
        );
        Ok(())
    }

    /// That is among what was said.
    pub(super) fn says(&self, words: &str) -> Result<()> {
        ensure!(self.text.contains(words), "it does not say `{words}`:\n{self}");
        Ok(())
    }

    /// So many tasks have changed something, for each machine.
    pub(super) fn changes(&self, right: &[u32; 2]) -> Result<()> {
        for (name, right) in NAMES.iter().zip(right) {
            let told = recapped(&self.text, name);
            ensure!(
                told == Some(*right),
                "{told:?} tasks have changed {name}, not {right}:\n{self}"
            );
        }
        Ok(())
    }
}

/// Tasks that have changed something of that machine, by Ansible's recapitulation.
fn recapped(text: &str, name: &str) -> Option<u32> {
    let (_, recap) = text.split_once("PLAY RECAP")?;
    let line = recap
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name))?;
    let mut words = line.split_whitespace();
    words.find_map(|word| word.strip_prefix("changed=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recapitulation_is_read() {
        let text = "ok: [a] changed=9\nPLAY RECAP ***\na   : ok=12   changed=2    unreachable=0\nb : ok=3 changed=0 failed=0\n";
        assert_eq!(recapped(text, "a"), Some(2));
        assert_eq!(recapped(text, "b"), Some(0));
        assert_eq!(recapped(text, "c"), None);
    }
}
