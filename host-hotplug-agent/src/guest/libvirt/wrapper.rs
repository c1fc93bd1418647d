//! The command line of a libvirt domain's QEMU, with its RAM moved to the pool.
//!
//! libvirt has no words for a piece of a device, nor for `x-ignore-shared`. So a domain that is to cross has
//! `/usr/lib/locum/qemu` for its emulator (`src/bin/locum-qemu.rs`), which changes the command line that libvirt made and
//! becomes QEMU. What it changes it to was decided before by libvirt's hook ([`super::hook`]), which is root.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::guest::argv;

/// The emulator of a domain that is to cross.
pub const EMULATOR: &str = "/usr/lib/locum/qemu";
/// What [`EMULATOR`] becomes.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// QMP commands that a QEMU reads from there as it starts, if its guest is to come without its RAM.
pub const COMMANDS: &str = "/usr/lib/locum/incoming.qmp";
/// Where the hook says what a domain has of the pool: `UUID.json`.
const GIVEN: &str = "run/locum/libvirt";
/// Alignment of a mapping of device-DAX (Linux `drivers/dax/device.c`).
const ALIGN: u64 = 2 << 20;
/// What a backend of another kind may have been told, and one of a device may not, or need not.
const DROPPED: [&str; 11] = [
    "discard-data",
    "hugetlb",
    "hugetlbsize",
    "pmem",
    "prealloc",
    "prealloc-context",
    "prealloc-threads",
    "readonly",
    "reserve",
    "rom",
    "seal",
];

/// What a domain has of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Given {
    /// The device.
    pub device: PathBuf,
    /// Where in it the domain's RAM begins, in bytes.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// Whether the guest is on its way from the other host, so its RAM is there.
    pub crossing: bool,
}

/// Why a command line stays as it is, and QEMU does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// More RAM than was given.
    #[error(
        "its RAM takes {wanted} bytes, and {given} bytes of the pool were given to it: has it memory devices (`<memory>`)?"
    )]
    TooMuch {
        /// What QEMU is told.
        wanted: u64,
        /// What there is.
        given: u64,
    },
    /// A backend without a size.
    #[error("`-object {0}` has no size")]
    NoSize(String),
    /// Nothing to move.
    #[error("libvirt gives it no memory backend: has it a machine type of before QEMU 5.0?")]
    NoBackend,
}

/// Where the hook says what the domain with that UUID has.
pub fn given_path(uuid: &str) -> PathBuf {
    Path::new(GIVEN).join(format!("{uuid}.json"))
}

/// The domain's UUID, if it is one: libvirt also starts QEMU to ask what it can do.
pub fn uuid(command: &[String]) -> Option<&str> {
    let items = argv::items(command);
    items.iter().rev().find(|item| item.name == "uuid")?.argument()
}

/// `command` as QEMU is to have it.
///
/// # Errors
/// [`Unfit`].
pub fn rewrite(command: &[String], given: &Given) -> Result<Vec<String>, Unfit> {
    let mut out = vec![QEMU.to_owned()];
    let mut used = 0;
    let mut incoming = false;
    for item in argv::items(command) {
        incoming |= item.name == "incoming";
        let backend = item.argument().filter(|_| item.name == "object").and_then(backend);
        let Some((backend, argument)) = backend.zip(item.argument()) else {
            out.extend_from_slice(item.words);
            continue;
        };
        let size = backend.get("size").and_then(Value::as_u64);
        let size = size.ok_or_else(|| Unfit::NoSize(argument.to_owned()))?;
        let offset = given.offset.saturating_add(used);
        used = used.saturating_add(size.next_multiple_of(ALIGN));
        out.extend(["-object".to_owned(), in_pool(backend, given, offset)]);
    }
    if used == 0 {
        return Err(Unfit::NoBackend);
    }
    if used > given.size {
        return Err(Unfit::TooMuch {
            wanted: used,
            given: given.size,
        });
    }
    if incoming && given.crossing {
        let chardev = format!("file,id=locum,path=/dev/null,input-path={COMMANDS}");
        let monitor = "chardev=locum,mode=control".to_owned();
        out.extend(["-chardev".to_owned(), chardev, "-mon".to_owned(), monitor]);
    }
    Ok(out)
}

/// A memory backend, as libvirt writes it since 7.2 (JSON).
fn backend(argument: &str) -> Option<Map<String, Value>> {
    let object: Map<String, Value> = serde_json::from_str(argument).ok()?;
    let kind = object.get("qom-type")?.as_str()?;
    kind.starts_with("memory-backend-").then_some(object)
}

fn in_pool(mut backend: Map<String, Value>, given: &Given, offset: u64) -> String {
    backend.retain(|key, _| !DROPPED.contains(&key.as_str()));
    let Value::Object(ours) = json!({
        "qom-type": "memory-backend-file",
        "mem-path": given.device,
        "offset": offset,
        "share": true,
        "align": ALIGN,
        // Else the stream names this RAM by its place among QEMU's objects, which the other QEMU's need not be.
        "x-use-canonical-path-for-ramblock-id": false,
    }) else {
        unreachable!("an object was written")
    };
    backend.extend(ours);
    Value::Object(backend).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn given(size: u64, crossing: bool) -> Given {
        Given {
            device: "/dev/dax0.0".into(),
            offset: 64 * MIB,
            size,
            crossing,
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// The backends of a command line.
    fn backends(command: &[String]) -> Vec<Value> {
        let items = argv::items(command);
        let objects = items.iter().filter(|item| item.name == "object");
        objects
            .filter_map(|item| serde_json::from_str(item.argument()?).ok())
            .filter(|value: &Value| value.get("mem-path").is_some())
            .collect()
    }

    #[test]
    fn ram_is_moved_to_the_pool_and_all_else_stays() {
        let ram = r#"{"qom-type":"memory-backend-memfd","id":"pc.ram","hugetlb":true,"hugetlbsize":2097152,"share":true,"prealloc":true,"size":67108864,"host-nodes":[0],"policy":"bind"}"#;
        let command = words(&[
            EMULATOR,
            "-name",
            "guest=g",
            "-object",
            r#"{"qom-type":"secret","id":"s","file":"/x"}"#,
            "-object",
            ram,
            "-uuid",
            "u",
            "-append",
            "-incoming",
        ]);
        let out = rewrite(&command, &given(64 * MIB, true)).unwrap();
        assert_eq!(out[0], QEMU);
        assert_eq!(out[1..5], command[1..5]);
        assert_eq!(out[7..], command[7..], "an argument is no option");
        let right = json!({
            "qom-type": "memory-backend-file", "id": "pc.ram", "mem-path": "/dev/dax0.0", "offset": 64 * MIB,
            "share": true, "align": 2 * MIB, "x-use-canonical-path-for-ramblock-id": false, "size": 64 * MIB,
            "host-nodes": [0], "policy": "bind",
        });
        assert_eq!(backends(&out), [right]);
        assert_eq!(uuid(&command), Some("u"));
    }

    #[test]
    fn the_ram_of_each_node_follows_that_of_the_one_before() {
        let node = |number: u32, size: u64| {
            format!(r#"{{"qom-type":"memory-backend-ram","id":"ram-node{number}","size":{size}}}"#)
        };
        let command = words(&[EMULATOR, "-object", &node(0, 33 * MIB), "-object", &node(1, 30 * MIB)]);
        let out = rewrite(&command, &given(64 * MIB, false)).unwrap();
        let offsets: Vec<_> = backends(&out)
            .iter()
            .map(|backend| backend["offset"].as_u64())
            .collect();
        assert_eq!(offsets, [Some(64 * MIB), Some(98 * MIB)]);
        let error = rewrite(&command, &given(62 * MIB, false)).unwrap_err();
        assert!(matches!(error, Unfit::TooMuch { .. }), "{error}");
    }

    #[test]
    fn only_a_guest_that_crosses_comes_without_its_ram() {
        let ram = r#"{"qom-type":"memory-backend-ram","id":"pc.ram","size":2097152}"#;
        let incoming = words(&[EMULATOR, "-object", ram, "-incoming", "defer"]);
        let other = |command: &[String], crossing| {
            let out = rewrite(command, &given(2 * MIB, crossing)).unwrap();
            out.iter().any(|word| word.contains(COMMANDS))
        };
        assert!(other(&incoming, true));
        assert!(!other(&incoming, false), "an ordinary migration");
        assert!(!other(&incoming[..3], true), "an ordinary start");
    }

    #[test]
    fn what_has_no_ram_to_move_is_refused() {
        let none = words(&[EMULATOR, "-m", "64"]);
        assert_eq!(rewrite(&none, &given(MIB, false)), Err(Unfit::NoBackend));
        let sizeless = words(&[
            EMULATOR,
            "-object",
            r#"{"qom-type":"memory-backend-ram","id":"pc.ram"}"#,
        ]);
        assert!(matches!(rewrite(&sizeless, &given(MIB, false)), Err(Unfit::NoSize(_))));
        // To ask what QEMU can do.
        assert_eq!(
            uuid(&words(&[EMULATOR, "-S", "-machine", "none", "-qmp", "unix:/x"])),
            None
        );
    }

    #[test]
    fn the_emulator_is_a_link_to_what_apparmor_lets_libvirtd_start() {
        let links = include_str!("../../../debian/links");
        let (program, name) = links.trim().split_once(' ').unwrap();
        assert_eq!(format!("/{name}"), EMULATOR);
        // Debian's rules for libvirtd: `/usr/sbin/* PUx`.
        assert_eq!(program.rsplit_once('/').unwrap().0, "usr/sbin");
        let rules = include_str!("../../../debian/apparmor/locum");
        assert!(rules.contains(&format!("  /{program} rmix,\n")), "{rules}");
    }
}
