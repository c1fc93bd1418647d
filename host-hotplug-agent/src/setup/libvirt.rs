//! What libvirt is to be told so that its domains can have their RAM in the pool.
//!
//! It gives each QEMU a `/dev` of its own, and a list of the devices in it (`cgroup_device_acl` in `qemu.conf`). Those that a
//! domain's description names are added; of the pool, which our emulator adds later, it knows nothing.

use super::Finding;
use crate::sysroot::SysRoot;

const WHAT: &str = "libvirt";
const FILE: &str = "etc/libvirt/qemu.conf";
const KEY: &str = "cgroup_device_acl";
const DEVICES: &str = "sys/bus/dax/devices";
/// The pool's device if no other memory is soft reserved.
const USUAL: &str = "/dev/dax0.0";
/// libvirt's own list (`src/qemu/qemu_cgroup.c`, `defaultDeviceACL`): a list of one's own takes its place.
const USUALLY: [&str; 8] = [
    "/dev/null",
    "/dev/full",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
    "/dev/ptmx",
    "/dev/kvm",
    "/dev/userfaultfd",
];

/// Whether QEMUs of libvirt's can map the pool; `None` where there is no libvirt.
pub fn finding(sys: &SysRoot) -> Option<Finding> {
    let text = sys.read_optional(FILE)?;
    let mut wanted: Vec<String> = sys.list(DEVICES).unwrap_or_default();
    wanted.iter_mut().for_each(|name| *name = format!("/dev/{name}"));
    if wanted.is_empty() {
        wanted.push(USUAL.to_owned());
    }
    let given = list(&text);
    let missing = given
        .as_ref()
        .is_none_or(|given| wanted.iter().any(|device| !given.contains(device)));
    let finding = if missing {
        let mut all = given.unwrap_or_else(|| USUALLY.map(str::to_owned).to_vec());
        wanted.retain(|device| !all.contains(device));
        all.extend(wanted);
        let all: Vec<String> = all.iter().map(|device| format!("\"{device}\"")).collect();
        Finding::bad(
            WHAT,
            format!(
                "its guests cannot have the pool: write `{KEY} = [ {} ]` to /{FILE}, and restart libvirtd",
                all.join(", ")
            ),
        )
    } else {
        Finding::ok(WHAT, "its guests can have the pool")
    };
    Some(Finding {
        needed: false,
        ..finding
    })
}

/// The list in libvirt's configuration (`src/util/virconf.c`): strings in quotes, with commas and lines between; `#` begins
/// a comment. The last one counts.
fn list(text: &str) -> Option<Vec<String>> {
    let lines = text.lines().map(|line| match line.split_once('#') {
        // None of these paths has one in it.
        Some((before, _)) => before,
        None => line,
    });
    let text: String = lines.collect::<Vec<_>>().join("\n");
    let (_, after) = text.rsplit_once(KEY)?;
    let (_, after) = after.split_once('[')?;
    let (inside, _) = after.split_once(']')?;
    let strings = inside.split(['"', '\'']).skip(1).step_by(2);
    Some(strings.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    fn found(text: &str, devices: &[&str]) -> (bool, String) {
        let tree = Tree::lab();
        tree.put(FILE, text);
        for device in devices {
            tree.put(format!("{DEVICES}/{device}/size"), "0\n");
        }
        let finding = finding(&tree.sys()).unwrap();
        assert!(!finding.needed, "the next boot is good without");
        (finding.ok, finding.text)
    }

    #[test]
    fn without_libvirt_nothing_is_wanted() {
        assert_eq!(finding(&Tree::lab().sys()), None);
    }

    #[test]
    fn the_pool_must_be_among_the_devices_of_guests() {
        let (ok, text) = found("#cgroup_device_acl = [\n#  \"/dev/dax0.0\"\n#]\n", &[]);
        assert!(
            !ok && text.contains("\"/dev/kvm\", \"/dev/userfaultfd\", \"/dev/dax0.0\" ]"),
            "{text}"
        );
        let own = "user = \"x\"\ncgroup_device_acl = [\n  \"/dev/kvm\", # as ever\n  '/dev/dax1.0'\n]\n";
        assert!(found(own, &["dax1.0"]).0);
        let (ok, text) = found(own, &["dax0.0", "dax1.0"]);
        assert!(
            !ok && text.contains("[ \"/dev/kvm\", \"/dev/dax1.0\", \"/dev/dax0.0\""),
            "{text}"
        );
        let twice = format!("{own}\ncgroup_device_acl = [ \"/dev/kvm\" ]\n");
        assert!(!found(&twice, &["dax1.0"]).0, "the last one counts");
    }
}
