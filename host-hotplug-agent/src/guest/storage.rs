//! What a guest's disks are made of: can the successor open them while this host has the machine, and is nothing of them in
//! this host's page cache?
//!
//! QEMU shows a disk as a tree of block nodes (`qapi/block-core.json`, `query-named-block-nodes`). Its leaves say where the
//! bytes are. A leaf of QEMU's own network drivers is reached from either host, and has no page cache; so has a file of a
//! network file system that is opened with `cache.direct`. Everything else is this host's until the opposite is shown: a file
//! that is only read is fine if the successor's initramfs has the same one, which [`settled`] looks at.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::process::Process;
use super::qmp::Monitor;
use crate::deadline::Deadline;
use crate::load::{initramfs, squashfs};

/// Formats and filters: their bytes are in other nodes.
const INNER: [&str; 26] = [
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "vmdk",
    "vdi",
    "vpc",
    "vhdx",
    "parallels",
    "dmg",
    "bochs",
    "cloop",
    "luks",
    "blkdebug",
    "blkverify",
    "blklogwrites",
    "blkreplay",
    "commit_top",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "mirror_top",
    "preallocate",
    "quorum",
    "snapshot-access",
    "throttle",
];
/// Network drivers of QEMU's own. They name a server.
const NETWORK: [&str; 11] = [
    "nbd", "rbd", "iscsi", "iser", "nfs", "gluster", "ssh", "http", "https", "ftp", "ftps",
];
/// Without any bytes.
const EMPTY: [&str; 2] = ["null-co", "null-aio"];
/// Files and block devices of this host.
const LOCAL: [&str; 3] = ["file", "host_device", "host_cdrom"];
/// File systems that several hosts mount at a time.
const SHARED: [&str; 15] = [
    "nfs",
    "nfs4",
    "ceph",
    "fuse.ceph",
    "cifs",
    "smb3",
    "fuse.glusterfs",
    "gfs2",
    "ocfs2",
    "lustre",
    "gpfs",
    "beegfs",
    "afs",
    "orangefs",
    "fuse.juicefs",
];
/// What serves a disk, if it is this host.
const SOCKET: &str = "a socket of this host";
const LOOPBACK: &str = "a server of this host";
/// Most bytes of a file that is compared with the successor's: firmware, and small images.
const COMPARED_MAX: u64 = 64 << 20;

/// A disk, or a part of one, that the successor may not have as this host has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// What it is, and what is wrong with it.
    pub problem: String,
    /// A file that is only read, as QEMU names it, and as it is to be opened here. Fine if the successor has the same.
    pub read_only: Option<(PathBuf, PathBuf)>,
}

/// A file that is looked for in the successor's initramfs.
struct Wanted {
    /// Its path, without a slash at the start.
    path: Vec<u8>,
    content: Vec<u8>,
}

impl Wanted {
    fn of(disk: &Disk) -> Option<Self> {
        let (name, here) = disk.read_only.as_ref()?;
        // Of several slashes one counts.
        let name: PathBuf = name.components().collect();
        let path = name.strip_prefix("/").ok()?.as_os_str().as_encoded_bytes().to_vec();
        let small = fs::metadata(here).is_ok_and(|file| file.is_file() && file.len() <= COMPARED_MAX);
        let content = small.then(|| fs::read(here).ok()).flatten()?;
        Some(Self { path, content })
    }

    /// Without its directories.
    fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }

    fn is(&self, path: &[u8], content: &[u8]) -> bool {
        self.path == path && self.content == content
    }
}

/// Of each of the disks, whether it is a file that is only read, and the successor's initramfs, or a file system in it, has one
/// with the same bytes at the same path.
pub fn settled(disks: &[&Disk], archive: &[u8]) -> Vec<bool> {
    let wanted: Vec<_> = disks.iter().map(|disk| Wanted::of(disk)).collect();
    let mut settled = vec![false; wanted.len()];
    if wanted.iter().all(Option::is_none) {
        return settled;
    }
    let mut see = |path: &[u8], content: &[u8]| {
        for (wanted, settled) in wanted.iter().zip(&mut settled) {
            *settled |= wanted.as_ref().is_some_and(|wanted| wanted.is(path, content));
        }
    };
    let is_wanted = |name: &[u8]| wanted.iter().flatten().any(|wanted| wanted.name() == name);
    initramfs::each_file(archive, &mut |entry| {
        see(entry.name, entry.content);
        let image = squashfs::each_file(entry.content, &is_wanted, &mut |file| see(&file.path, &file.content));
        // One that cannot be read has nothing to show.
        drop(image);
    });
    settled
}

/// The disks of a guest that the successor may not have.
///
/// # Errors
/// If its QEMU does not tell.
pub(super) fn examine(qmp: &mut dyn Monitor, process: Process<'_>, until: &Deadline<'_>) -> Result<Vec<Disk>> {
    // Without `flat` (QEMU 5.0) each node comes with those below it, which are in the list themselves.
    let nodes = match qmp.execute("query-named-block-nodes", json!({ "flat": true }), until) {
        Ok(nodes) => nodes,
        Err(_) => qmp
            .execute("query-named-block-nodes", json!({}), until)
            .context("its QEMU does not tell what its disks are made of")?,
    };
    let nodes = nodes.as_array().context("its block nodes are no list")?;
    let judged = nodes.iter().filter_map(|node| judge(&Node::of(node), process));
    Ok(judged.collect())
}

/// What QEMU tells of a block node.
struct Node {
    name: String,
    driver: String,
    file: String,
    read_only: bool,
    direct: bool,
}

impl Node {
    fn of(node: &Value) -> Self {
        let text = |key: &str| node.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let flag = |value: Option<&Value>| value.and_then(Value::as_bool) == Some(true);
        Self {
            name: text("node-name"),
            driver: text("drv"),
            file: text("file"),
            read_only: flag(node.get("ro")),
            direct: flag(node.get("cache").and_then(|cache| cache.get("direct"))),
        }
    }
}

fn judge(node: &Node, process: Process<'_>) -> Option<Disk> {
    let driver = node.driver.as_str();
    if INNER.contains(&driver) || EMPTY.contains(&driver) {
        return None;
    }
    // libvirt's names for the firmware and its variables. It has them made where the domain goes, and QEMU writes all of the
    // variables there when they have come with the guest's state (`hw/block/pflash_cfi01.c`, `postload_update_cb()`).
    if node.name.starts_with("libvirt-pflash") {
        return None;
    }
    let disk = |problem: String| Disk {
        problem,
        read_only: None,
    };
    let file = &node.file;
    if NETWORK.contains(&driver) {
        let server = server_here(file)?;
        return Some(disk(format!("{file} is served by {server}")));
    }
    if !LOCAL.contains(&driver) {
        let name = if file.is_empty() { &node.name } else { file };
        return Some(disk(format!(
            "{name} is opened by QEMU's driver `{driver}`: whether the successor can open it is not known"
        )));
    }
    if driver != "file" {
        return Some(disk(format!("{file} is a device of this host")));
    }
    let path = Path::new(file);
    let here = process.file(path);
    let kind = here.as_deref().and_then(|here| process.file_system(here));
    match kind {
        Some(kind) if SHARED.contains(&kind.as_str()) && (node.direct || node.read_only) => None,
        Some(kind) if SHARED.contains(&kind.as_str()) => Some(disk(format!(
            "{file} ({kind}) is written through this host's page cache: give it `cache=none`, or `cache.direct=on`"
        ))),
        kind => Some(Disk {
            problem: match kind {
                Some(kind) => format!("{file} is a file of this host ({kind})"),
                None => format!("{file} is a file of this host"),
            },
            read_only: here.filter(|_| node.read_only).map(|here| (path.to_owned(), here)),
        }),
    }
}

/// What of this host serves a network disk, if it is this host. `file` is a URL, or `json:` and the node's options.
fn server_here(file: &str) -> Option<&'static str> {
    if let Some(options) = file.strip_prefix("json:") {
        let options: Value = serde_json::from_str(options).unwrap_or_default();
        return within(&options).map(|unix| if unix { SOCKET } else { LOOPBACK });
    }
    let (scheme, rest) = file.split_once("://")?;
    if scheme.ends_with("+unix") {
        return Some(SOCKET);
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    is_loopback(host_of(host)).then_some(LOOPBACK)
}

/// A host without the port that may follow it.
fn host_of(address: &str) -> &str {
    let mut parts = match address.strip_prefix('[') {
        Some(bracketed) => bracketed.split(']'),
        None => return address.split(':').next().unwrap_or_default(),
    };
    parts.next().unwrap_or_default()
}

/// Whether options of a block node name a server here: by a socket (true), or an address of the loopback (false).
fn within(options: &Value) -> Option<bool> {
    match options {
        // Keys of nested options are joined by dots.
        Value::Object(members) => members.iter().find_map(|(key, value)| {
            let text = value.as_str().unwrap_or_default();
            match key.rsplit('.').next().unwrap_or_default() {
                "type" if text == "unix" => Some(true),
                "host" if is_loopback(text) => Some(false),
                // Of iSCSI, with its port.
                "portal" if is_loopback(host_of(text)) => Some(false),
                "url" | "uri" => server_here(text).map(|what| what == SOCKET),
                _ => within(value),
            }
        }),
        Value::Array(items) => items.iter().find_map(within),
        _ => None,
    }
}

fn is_loopback(host: &str) -> bool {
    let address: Option<std::net::IpAddr> = host.parse().ok();
    host == "localhost" || host.ends_with(".localhost") || address.is_some_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::cpio;

    #[test]
    fn a_server_of_this_host_is_known_by_its_url_or_options() {
        for (file, server) in [
            ("nbd://10.0.2.2:10809/disk", None),
            ("nbd://[fd00::1]:10809/disk", None),
            ("ssh://root@store/images/a.raw", None),
            ("rbd:pool/image:conf=/etc/ceph/ceph.conf", None),
            (
                r#"json:{"driver":"iscsi","portal":"10.1.1.1:3260","target":"iqn.x"}"#,
                None,
            ),
            (
                r#"json:{"driver":"nbd","server":{"type":"inet","host":"store","port":"1"}}"#,
                None,
            ),
            ("nbd://127.0.0.1:10809", Some("a server of this host")),
            ("nbd://[::1]:10809/disk", Some("a server of this host")),
            ("nfs://localhost/export/a", Some("a server of this host")),
            ("nbd+unix:///disk?socket=/run/nbd", Some("a socket of this host")),
            (
                r#"json:{"driver":"nbd","server.type":"unix","server.path":"/run/nbd"}"#,
                Some("a socket of this host"),
            ),
            (
                r#"json:{"driver":"iscsi","transport":"tcp","portal":"127.0.0.1:3260","target":"iqn.x"}"#,
                Some("a server of this host"),
            ),
            (
                r#"json:{"driver":"nbd","server":{"type":"unix","path":"/run/nbd"}}"#,
                Some("a socket of this host"),
            ),
            (
                r#"json:{"server":[{"type":"inet","host":"127.3.0.1"}]}"#,
                Some("a server of this host"),
            ),
        ] {
            assert_eq!(server_here(file), server, "{file}");
        }
    }

    #[test]
    fn a_file_that_is_only_read_is_fine_if_the_successor_has_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().join("code.fd");
        fs::write(&here, "firmware").unwrap();
        let archive = cpio::pack(std::slice::from_ref(&here)).unwrap();
        let disk = |read_only| Disk {
            problem: String::new(),
            read_only,
        };
        let is_settled = |disk: Disk| settled(&[&disk], &archive) == [true];
        assert!(is_settled(disk(Some((here.clone(), here.clone())))));
        let elsewhere = dir.path().join("other/code.fd");
        assert!(!is_settled(disk(Some((elsewhere, here.clone())))));
        assert!(!is_settled(disk(None)));
        let both = [disk(None), disk(Some((here.clone(), here.clone())))];
        assert_eq!(settled(&both.iter().collect::<Vec<_>>(), &archive), [false, true]);
        fs::write(&here, "another firmware").unwrap();
        assert!(!is_settled(disk(Some((here.clone(), here)))));
    }
}
