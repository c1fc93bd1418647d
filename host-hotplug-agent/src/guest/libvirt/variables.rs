//! UEFI variables of a domain that has crossed: its QEMU has them in a file of the tree that it runs in, which is memory.
//! Once it has ended they belong where libvirt has the domain's variables next, on the machine's own disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result};

use crate::file;
use crate::sysroot::SysRoot;

/// The tree that QEMUs run in which took guests over (`debian/initramfs/locum`).
const TREE: &str = "run/locum/host";

/// Brings a domain's variables back from the tree to `path`, if it has some there; the ones at `path` are older. Its QEMU has
/// ended, or has not started yet.
///
/// # Errors
/// If they cannot be written. They stay where they are.
pub(super) fn bring_back(sys: &SysRoot, path: &Path) -> Result<()> {
    // From the root of this host, and not of the machine that a test stands on.
    let inner = path.strip_prefix("/").unwrap_or(path);
    let (there, here) = (sys.path(TREE).join(inner), sys.path(inner));
    let Ok(fresh) = fs::metadata(&there) else {
        return Ok(());
    };
    let old = fs::metadata(&here).ok();
    // Whoever runs in the tree has them already.
    if old
        .as_ref()
        .is_some_and(|old| (old.dev(), old.ino()) == (fresh.dev(), fresh.ino()))
    {
        return Ok(());
    }
    let owner = old.as_ref().unwrap_or(&fresh);
    let bring = || {
        if let Some(dir) = here.parent() {
            fs::create_dir_all(dir)?;
        }
        file::replace(&here, fs::read(&there)?)?;
        chown(&here, Some(owner.uid()), Some(owner.gid()))?;
        fs::set_permissions(&here, owner.permissions())?;
        // Another QEMU has the ones at `here`, and these are not the newest any more.
        file::remove(&there)
    };
    bring().with_context(|| {
        format!(
            "the domain's UEFI variables are in {}, and cannot be brought to {}",
            there.display(),
            here.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::tree::Tree;

    const PATH: &str = "/var/lib/libvirt/qemu/nvram/one_VARS.fd";

    #[test]
    fn what_a_qemu_wrote_in_the_tree_is_brought_back_once() {
        let tree = Tree::lab();
        let here = tree.put(PATH.trim_start_matches('/'), "old");
        fs::set_permissions(&here, PermissionsExt::from_mode(0o600)).unwrap();
        let there = tree.put(format!("{TREE}{PATH}"), "new");
        bring_back(&tree.sys(), Path::new(PATH)).unwrap();
        assert_eq!(fs::read_to_string(&here).unwrap(), "new");
        assert_eq!(fs::metadata(&here).unwrap().mode() & 0o777, 0o600);
        // The next QEMU writes here, and no older ones come over that.
        assert!(!there.exists());
        fs::write(&here, "newer").unwrap();
        bring_back(&tree.sys(), Path::new(PATH)).unwrap();
        assert_eq!(fs::read_to_string(&here).unwrap(), "newer");
    }

    #[test]
    fn a_host_without_a_tree_and_one_in_it_have_the_variables_that_they_have() {
        let tree = Tree::lab();
        bring_back(&tree.sys(), Path::new(PATH)).unwrap();
        assert!(!tree.path().join(PATH.trim_start_matches('/')).exists());
        let here = tree.put(PATH.trim_start_matches('/'), "same");
        let there = tree.put(format!("{TREE}{PATH}"), "");
        fs::remove_file(&there).unwrap();
        fs::hard_link(&here, &there).unwrap();
        bring_back(&tree.sys(), Path::new(PATH)).unwrap();
        assert_eq!(fs::read_to_string(there).unwrap(), "same");
    }

    #[test]
    fn variables_that_cannot_be_brought_back_stay_and_are_told() {
        let tree = Tree::lab();
        // Where their directory should be is a file.
        tree.put("var/lib/libvirt/qemu/nvram", "");
        let there = tree.put(format!("{TREE}{PATH}"), "new");
        let told = bring_back(&tree.sys(), Path::new(PATH)).unwrap_err().to_string();
        assert!(
            told.contains("UEFI variables") && told.contains("one_VARS.fd"),
            "{told}"
        );
        assert_eq!(fs::read_to_string(there).unwrap(), "new");
    }
}
