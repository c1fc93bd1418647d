//! The guests that run on this host, found by what they use: every QEMU that can write to the pool.

use std::path::PathBuf;

use rustix::process::Pid;

use super::argv::{self, Item};
use super::keyval::{self, Pair};
use super::pool::Pool;
use super::process::Process;
use super::users;
use crate::config;
use crate::error::Refusal;
use crate::sysroot::SysRoot;

/// Each with its name and its QMP socket, both as its command line has them.
///
/// # Errors
/// [`Refusal::PoolUser`] for a process that is no QEMU, [`Refusal::NoSocket`] for a QEMU whose socket is not to be found
/// out: none may be left behind unasked.
pub fn guests(sys: &SysRoot, pool: &Pool, domains: Domains<'_>) -> Result<Vec<config::Guest>, Refusal> {
    let users = users::each(sys, pool).into_iter();
    users.map(|pid| guest(sys, pid, domains)).collect()
}

/// Tells libvirt's name for the domain with a UUID, if libvirt has such a one.
pub type Domains<'a> = &'a dyn Fn(&str) -> Option<String>;

fn guest(sys: &SysRoot, pid: Pid, domains: Domains<'_>) -> Result<config::Guest, Refusal> {
    let command = Process::new(sys, pid).command().unwrap_or_default();
    if !argv::starts_qemu(&command) {
        return Err(Refusal::PoolUser(users::in_words(sys, pid)));
    }
    let items = argv::items(&command);
    let name = name(&items);
    if let Some(domain) = uuid(&items).and_then(domains) {
        return Ok(config::Guest {
            name: domain.clone(),
            qmp: PathBuf::new(),
            libvirt: Some(domain),
            command: Vec::new(),
            channel: None,
            trust_storage: false,
        });
    }
    let Some(qmp) = socket(&items) else {
        return Err(Refusal::NoSocket {
            guest: name.unwrap_or_else(|| users::in_words(sys, pid)),
        });
    };
    let stem = || qmp.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    Ok(config::Guest {
        name: name.or_else(stem).unwrap_or_else(|| users::in_words(sys, pid)),
        qmp,
        libvirt: None,
        command: Vec::new(),
        channel: None,
        trust_storage: false,
    })
}

/// Of `-uuid`.
pub(super) fn uuid<'a>(items: &[Item<'a>]) -> Option<&'a str> {
    items.iter().rev().find(|item| item.name == "uuid")?.argument()
}

/// Of `-name`: `guest=NAME`, or the first word.
pub(super) fn name(items: &[Item<'_>]) -> Option<String> {
    let pairs = last(items, "name")?;
    let value = value(&pairs, "guest").or_else(|| value(&pairs, ""));
    value.filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The first Unix socket that speaks QMP: of `-qmp`, or of a `-mon` in control mode and its `-chardev`. Only a path will
/// do: a descriptor, or an abstract name, is not for another process to find.
pub(super) fn socket(items: &[Item<'_>]) -> Option<PathBuf> {
    let short = items
        .iter()
        .filter(|item| ["qmp", "qmp-pretty"].contains(&item.name))
        .filter_map(|item| {
            let first = keyval::parts(item.argument()?).first().copied().unwrap_or_default();
            first.strip_prefix("unix:").map(|path| path.replace(",,", ","))
        });
    let chardev = |id: &str| {
        let pairs = items
            .iter()
            .filter(|item| item.name == "chardev")
            .map(pairs)
            .find(|pairs| value(pairs, "id") == Some(id))?;
        let is_socket = value(&pairs, "") == Some("socket") || value(&pairs, "backend") == Some("socket");
        let is_abstract = value(&pairs, "abstract").is_some_and(|value| value != "off");
        let path = value(&pairs, "path").filter(|_| is_socket && !is_abstract);
        path.map(str::to_owned)
    };
    let long = items
        .iter()
        .filter(|item| item.name == "mon")
        .map(pairs)
        .filter(|pairs| value(pairs, "mode") == Some("control"))
        .filter_map(|pairs| chardev(value(&pairs, "chardev").or_else(|| value(&pairs, ""))?));
    let mut paths = short.chain(long).map(PathBuf::from);
    paths.find(|path| path.is_absolute())
}

fn pairs(item: &Item<'_>) -> Vec<Pair> {
    keyval::pairs(item.argument().unwrap_or_default())
}

fn last(items: &[Item<'_>], name: &str) -> Option<Vec<Pair>> {
    items.iter().rev().find(|item| item.name == name).map(pairs)
}

fn value<'p>(pairs: &'p [Pair], key: &str) -> Option<&'p str> {
    let found = pairs.iter().find(|(found, _)| found == key);
    found.map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::testing::tree::Tree;

    /// A process with that command line, which has the pool open.
    fn runs(tree: &Tree, pid: u32, command: &str) {
        tree.put(format!("proc/{pid}/comm"), "some\n");
        tree.put(format!("proc/{pid}/cmdline"), command.replace(' ', "\0"));
        tree.put(format!("proc/{pid}/fdinfo/3"), "pos:\t0\nflags:\t02100002\n");
        let link = tree.path().join(format!("proc/{pid}/fd/3"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink("/pool", link).unwrap();
    }

    fn found(commands: &[&str]) -> Result<Vec<(String, PathBuf)>, String> {
        let tree = Tree::lab();
        for (pid, command) in (7..).zip(commands) {
            runs(&tree, pid, command);
        }
        let pool = Pool::File(PathBuf::from("/pool"));
        let domains = |uuid: &str| (uuid == "u1").then(|| "web".to_owned());
        let guests = guests(&tree.sys(), &pool, &domains).map_err(|error| error.to_string())?;
        Ok(guests.into_iter().map(|guest| (guest.name, guest.qmp)).collect())
    }

    #[test]
    fn each_qemu_in_the_pool_is_a_guest() {
        assert_eq!(found(&[]), Ok(vec![]));
        let ways = [
            "qemu-system-x86_64 -name one -qmp unix:/run/one.qmp,server=on,wait=off",
            "kvm -name guest=one,debug-threads=on -monitor none -qmp-pretty unix:/run/one.qmp,server,nowait",
            "/opt/vmm -qmp unix:/run/one.qmp,server=on",
            "qemu-system-x86_64 -name one -chardev stdio,id=s -mon s -chardev socket,id=q,path=/run/one.qmp,server=on \
             -mon chardev=q,mode=control",
            r#"qemu-system-x86_64 -name one -chardev {"backend":"socket","id":"q","path":"/run/one.qmp"} -mon {"chardev":"q","mode":"control"}"#,
        ];
        for way in ways {
            let one = ("one".to_owned(), Path::new("/run/one.qmp").to_owned());
            assert_eq!(found(&[way]), Ok(vec![one]), "{way}");
        }
        let names = found(&[
            "kvm -name a -qmp unix:/run/a",
            "kvm -name b -name c -qmp tcp:localhost:1 -qmp unix:/run/b",
        ]);
        let names: Vec<String> = names.unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["a", "c"], "the last of an option counts");
    }

    #[test]
    fn a_domain_of_libvirts_needs_no_socket() {
        let domain = "qemu-system-x86_64 -name guest=w -uuid u1 -chardev socket,id=charmonitor,fd=25,server=on -mon \
                      chardev=charmonitor,id=monitor,mode=control";
        assert_eq!(found(&[domain]), Ok(vec![("web".to_owned(), PathBuf::new())]));
        assert!(
            found(&[&domain.replace("u1", "u2")]).is_err(),
            "libvirt does not know it"
        );
    }

    #[test]
    fn none_is_left_behind_unasked() {
        for command in [
            "kvm -name one",
            "kvm -name one -monitor unix:/run/one",
            "kvm -name one -qmp tcp:localhost:4444",
            "kvm -name one -qmp unix:one.qmp",
            "kvm -name one -chardev socket,id=q,fd=21,server=on -mon chardev=q,mode=control",
            "kvm -name one -chardev socket,id=q,path=/run/one -mon chardev=q,mode=readline",
            "kvm -name one -chardev socket,id=q,path=/run/one,abstract=on -mon chardev=q,mode=control",
        ] {
            let error = found(&["kvm -name a -qmp unix:/run/a", command]).unwrap_err();
            assert!(
                error.contains("guest one") && error.contains("-qmp unix:"),
                "{command}: {error}"
            );
        }
        let error = found(&["dd if=/pool of=/dev/null"]).unwrap_err();
        assert!(error.contains("process 7 (some)"), "{error}");
    }
}
