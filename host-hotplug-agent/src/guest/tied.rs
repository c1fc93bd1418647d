//! What ties a guest to this host though its RAM is in the pool: devices that are this host's, and state that its QEMU cannot
//! hand over.
//!
//! QEMU itself knows most of it (`query-migrate`, `blocked-reasons`, since 6.0). What it would send all the same, and the
//! successor could not use, is found among the devices (`qom-list`) and the network's other ends (`info network`).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::qmp::Monitor;
use crate::deadline::Deadline;

/// Where devices are that were given by an operator, with and without a name (QEMU `system/qdev-monitor.c`).
const DEVICES: [&str; 2] = ["/machine/peripheral", "/machine/peripheral-anon"];
/// How a device's type begins, and what it is.
const TIED: [(&str, &str); 9] = [
    ("vfio-", "a device of this host that is passed through"),
    (
        "vhost-user-",
        "a device whose other half is a process of this host (vhost-user)",
    ),
    ("vhost-scsi", "a device whose disks are this host's (vhost)"),
    ("vhost-vdpa", "a device of this host that is passed through (vDPA)"),
    ("virtio-9p-", "a directory of this host (9p)"),
    (
        "tpm-",
        "a TPM, which is a process of this host (swtpm), or the host's own",
    ),
    ("ivshmem-", "memory that is shared with other processes of this host"),
    ("usb-host", "a USB device of this host"),
    ("u2f-passthru", "a USB device of this host"),
];
/// Kinds of a network's other end, as `info network` names them.
const NETWORKS: [(&str, &str); 2] = [
    (
        "vhost-user",
        "a network whose other end is a process of this host (vhost-user)",
    ),
    (
        "vhost-vdpa",
        "a network device of this host that is passed through (vDPA)",
    ),
];

/// What ties the guest, in words; nothing if nothing does.
///
/// # Errors
/// If its QEMU does not tell.
pub(super) fn examine(qmp: &mut dyn Monitor, until: &Deadline<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for place in DEVICES {
        let devices = qmp
            .execute("qom-list", json!({ "path": place }), until)
            .with_context(|| format!("its QEMU does not list its devices ({place})"))?;
        found.extend(devices.as_array().into_iter().flatten().filter_map(device));
    }
    let networks = qmp
        .execute(
            "human-monitor-command",
            json!({ "command-line": "info network" }),
            until,
        )
        .context("its QEMU does not list its networks")?;
    found.extend(networks.as_str().unwrap_or_default().lines().filter_map(network));
    // One that cannot tell does not refuse, either, before it is asked to migrate.
    let told = qmp.execute("query-migrate", json!({}), until).unwrap_or_default();
    let blockers = told.get("blocked-reasons").and_then(Value::as_array);
    let blockers = blockers.into_iter().flatten().filter_map(Value::as_str);
    found.extend(blockers.map(|reason| format!("QEMU's own word: {}", reason.trim_end_matches(['.', '\n']))));
    Ok(found)
}

/// An entry of `qom-list`: `{"name": "vga", "type": "child<VGA>"}`.
fn device(entry: &Value) -> Option<String> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str);
    let kind = text("type")?.strip_prefix("child<")?.strip_suffix('>')?;
    let (_, what) = TIED.iter().find(|(begin, _)| kind.starts_with(begin))?;
    Some(format!("`{}` ({kind}) is {what}", text("name").unwrap_or_default()))
}

/// A line of `info network` (QEMU `net/net.c`): ` \ net0: index=0,type=vhost-user,chardev ...`.
fn network(line: &str) -> Option<String> {
    let (name, about) = line.trim_start_matches([' ', '\\']).split_once(": ")?;
    let kind = about.split(',').find_map(|pair| pair.strip_prefix("type="))?;
    let (_, what) = NETWORKS.iter().find(|(known, _)| *known == kind)?;
    Some(format!("`{name}` is {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_this_host_are_known_by_their_types() {
        let entry = |name: &str, kind: &str| device(&json!({ "name": name, "type": kind }));
        assert_eq!(
            entry("hostdev0", "child<vfio-pci>").as_deref(),
            Some("`hostdev0` (vfio-pci) is a device of this host that is passed through")
        );
        assert!(entry("fs0", "child<vhost-user-fs-pci>").unwrap().contains("vhost-user"));
        assert!(entry("tpm0", "child<tpm-crb>").unwrap().contains("swtpm"));
        for (name, kind) in [
            ("net0", "child<virtio-net-pci>"),
            ("usb", "child<usb-tablet>"),
            ("device[0]", "link<vfio-pci>"),
            ("type", "string"),
        ] {
            assert_eq!(entry(name, kind), None, "{name}");
        }
    }

    #[test]
    fn other_ends_of_networks_are_known_by_their_types() {
        let lines = "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56\n \\ hostnet0: \
                     index=0,type=vhost-user,netdev=hostnet0,chardev net0 fd 3 (unix)\n\
                     net1: index=0,type=nic,model=e1000e\n \\ hostnet1: index=0,type=tap,ifname=tap0,vhost=on\n";
        let found: Vec<_> = lines.lines().filter_map(network).collect();
        assert_eq!(
            found,
            ["`hostnet0` is a network whose other end is a process of this host (vhost-user)"]
        );
    }
}
