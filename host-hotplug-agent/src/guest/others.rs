//! Guests of this host that do not go over: they would end with it, unasked. So each is named before anything begins, and shut
//! down if an operator wants that.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::process::Pid;
use serde_json::{Value, json};

use super::argv::{self, Item};
use super::libvirt::{DomainState, Libvirt};
use super::process::Process;
use super::qmp::{Monitor, Qmp};
use super::{discover, process, users};
use crate::deadline::Deadline;
use crate::sysroot::SysRoot;

/// Between two looks whether a guest has shut down.
const LOOK: Duration = Duration::from_millis(200);
/// What a descriptor of KVM's for a virtual machine leads to (Linux `virt/kvm/kvm_main.c`, `kvm_dev_ioctl_create_vm()`).
const KVM_VM: &str = "anon_inode:kvm-vm";
/// QEMU's run state when its guest has shut down and it was told to stay (`-no-shutdown`).
const SHUT_DOWN: &str = "shutdown";

/// A virtual machine of this host that does not go over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// What its own command line calls it, or libvirt; else its process.
    pub name: String,
    /// Its process.
    pub pid: Pid,
    /// Whether it could write to the pool.
    pub in_pool: bool,
    /// Who can be asked to shut it down.
    pub by: By,
}

/// Who shuts a guest down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// libvirt, which has it as that domain.
    Libvirt(String),
    /// Its QEMU, at that socket.
    Qmp(PathBuf),
    /// Nobody that is known here.
    Nobody,
}

/// All virtual machines of this host but those in `going` processes.
pub(super) fn all(sys: &SysRoot, going: &[Pid], in_pool: &[Pid], domains: discover::Domains<'_>) -> Vec<Other> {
    process::every(sys)
        .filter(|pid| !going.contains(pid))
        .filter_map(|pid| {
            let process = Process::new(sys, pid);
            let command = process.command().unwrap_or_default();
            let items = argv::items(&command);
            let is_qemu = command.first().is_some_and(|program| argv::is_qemu(program));
            if !(is_qemu || has_vm(process)) || has_no_machine(&items) || is_helper(sys, process, &command) {
                return None;
            }
            let domain = discover::uuid(&items).and_then(domains);
            let by = match (&domain, discover::socket(&items)) {
                (Some(domain), _) => By::Libvirt(domain.clone()),
                (None, Some(socket)) => By::Qmp(socket),
                (None, None) => By::Nobody,
            };
            let named = domain.or_else(|| discover::name(&items));
            Some(Other {
                name: named.unwrap_or_else(|| users::in_words(sys, pid)),
                pid,
                in_pool: in_pool.contains(&pid),
                by,
            })
        })
        .collect()
}

/// Whether it has a virtual machine of KVM's.
fn has_vm(process: Process<'_>) -> bool {
    // It has ended, or is a thread of the kernel's, if there is none.
    let entries = fs::read_dir(process.proc("fd")).into_iter().flatten().flatten();
    let mut links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.any(|link| link == Path::new(KVM_VM))
}

/// Whether its parent is the same QEMU: one that is torn down asynchronously (`-run-with async-teardown=on`) has such a child.
fn is_helper(sys: &SysRoot, process: Process<'_>, command: &[String]) -> bool {
    let parent = process.stat().and_then(|stat| Pid::from_raw(stat.parent));
    let theirs = parent.and_then(|parent| Process::new(sys, parent).command().ok());
    theirs.is_some_and(|theirs| theirs == *command)
}

/// libvirt starts such QEMUs to ask them what they can do.
fn has_no_machine(items: &[Item<'_>]) -> bool {
    let machines = items.iter().filter(|item| ["machine", "M"].contains(&item.name));
    let mut types = machines.filter_map(|item| item.argument()?.split(',').next());
    types.any(|kind| kind == "none" || kind == "type=none")
}

/// Has a guest shut down, and waits until it has.
///
/// # Errors
/// Why it does not.
pub(super) fn shut_down(sys: &SysRoot, other: &Other, until: &Deadline<'_>) -> Result<()> {
    let ended = match &other.by {
        By::Libvirt(domain) => {
            let libvirt = Libvirt::needed(sys)?;
            libvirt.run(&["shutdown", domain], until)?;
            until.find(LOOK, || {
                let off = libvirt.state(domain, until)? == DomainState::Off;
                anyhow::Ok(off.then_some(()))
            })?
        }
        By::Qmp(socket) => {
            let process = Process::new(sys, other.pid);
            let mut qmp = Qmp::connect(socket, until)?;
            // Another one's may have that name by now, or in this host's root.
            let listens = qmp.peer()?;
            ensure!(
                listens == other.pid,
                "process {} listens at {}, and not process {}: end the guest yourself",
                listens.as_raw_nonzero(),
                socket.display(),
                other.pid.as_raw_nonzero()
            );
            qmp.execute("system_powerdown", json!({}), until)?;
            until.find(LOOK, || look(process, &mut qmp, until))?
        }
        By::Nobody => bail!(
            "nobody is known who could be asked for that: end {} yourself",
            other.name
        ),
    };
    match ended {
        Some(()) => Ok(()),
        None if until.given_up() => bail!("given up"),
        None => bail!("it goes on, as if it did not listen to its power button"),
    }
}

/// Whether a QEMU has ended. One whose guest is off, and that stays, is told to quit.
fn look(process: Process<'_>, qmp: &mut Qmp, until: &Deadline<'_>) -> Result<Option<()>> {
    if process.ended() {
        return Ok(Some(()));
    }
    // It may end at any time.
    let status = qmp.execute("query-status", json!({}), until).unwrap_or_default();
    if status.get("status").and_then(Value::as_str) == Some(SHUT_DOWN) {
        let _ = qmp.execute("quit", json!({}), until);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::tree::Tree;

    fn runs(tree: &Tree, pid: u32, command: &str, link: &str) {
        tree.put(format!("proc/{pid}/comm"), "some\n");
        tree.put(format!("proc/{pid}/cmdline"), command.replace(' ', "\0"));
        let fd = tree.path().join(format!("proc/{pid}/fd/9"));
        fs::create_dir_all(fd.parent().unwrap()).unwrap();
        symlink(link, fd).unwrap();
    }

    #[test]
    fn every_virtual_machine_is_found_whatever_runs_it() {
        let tree = Tree::lab();
        let uuid = "5e0d1000-0000-4000-8000-0000000000d1";
        runs(
            &tree,
            100,
            "/usr/bin/qemu-system-x86_64 -name guest=goes -qmp unix:/run/goes.qmp",
            KVM_VM,
        );
        runs(
            &tree,
            101,
            "/usr/bin/kvm -name a -qmp unix:/run/a.qmp,server=on",
            KVM_VM,
        );
        runs(
            &tree,
            102,
            "/usr/lib/locum/qemu -name guest=web -uuid 5e0d1000-0000-4000-8000-0000000000d1",
            KVM_VM,
        );
        runs(&tree, 103, "/opt/firecracker --api-sock /run/f", KVM_VM);
        runs(&tree, 104, "qemu-system-x86_64 -accel tcg -name soft", "/dev/null");
        runs(
            &tree,
            105,
            "/usr/bin/qemu-system-x86_64 -S -machine none,accel=kvm:tcg -qmp unix:/q",
            KVM_VM,
        );
        runs(
            &tree,
            107,
            "/usr/bin/kvm -name a -qmp unix:/run/a.qmp,server=on",
            KVM_VM,
        );
        tree.put("proc/107/stat", format!("107 (cleanup/101) S 101{}\n", " 1".repeat(48)));
        runs(&tree, 106, "/usr/sbin/nginx -c /etc/nginx.conf", "/dev/kvm");
        let pid = |pid| Pid::from_raw(pid).unwrap();
        let domain = |known: &str| (known == uuid).then(|| "web".to_owned());
        let mut others = all(&tree.sys(), &[pid(100)], &[pid(100), pid(101)], &domain);
        others.sort_by_key(|other| other.pid.as_raw_nonzero());
        let other = |name: &str, number, in_pool, by| Other {
            name: name.to_owned(),
            pid: pid(number),
            in_pool,
            by,
        };
        assert_eq!(
            others,
            [
                other("a", 101, true, By::Qmp(PathBuf::from("/run/a.qmp"))),
                other("web", 102, false, By::Libvirt("web".to_owned())),
                other("process 103 (some)", 103, false, By::Nobody),
                other("soft", 104, false, By::Nobody),
            ]
        );
    }
}
