//! Makes the pool's memory devices of this host.
//!
//! Booted with `dax_hmem.region_idle=1`, Linux makes a device-DAX device of size 0 of each Soft Reserved range and leaves
//! the rest to user space (Linux drivers/dax/hmem/hmem.c, drivers/dax/bus.c). Whether a range is the pool's can be told only
//! once its device has a size, and so an address; a device of other memory gets its size of 0 back.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use anyhow::{Context, Result, ensure};
use partitioner::MemRange;
use serde::Serialize;

use crate::sysroot::SysRoot;

const DEVICES: &str = "sys/bus/dax/devices";
const DRIVER: &str = "sys/bus/dax/drivers/device_dax";
/// Whoever may start guests: QEMUs that are not root's are in it, as those of libvirt's are.
const GROUP: &str = "kvm";

/// A device of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Up {
    /// Its file.
    pub device: String,
    /// Physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Whether it was there before.
    pub was_there: bool,
}

/// Makes a device of each of `pieces` that has none. May be called again.
///
/// # Errors
/// If a piece has no device afterwards; what was made stays.
pub fn up(sys: &SysRoot, pieces: &[MemRange]) -> Result<Vec<Up>> {
    ensure!(
        !pieces.is_empty(),
        "L0 has no pool: add pool=50% or pool=64G to its arguments (`LOCUM_POOL` in /etc/default/locum), and reboot"
    );
    let names = sys.list(DEVICES).unwrap_or_default();
    let mut made = Vec::new();
    for name in names {
        made.extend(device(sys, pieces, &name).with_context(|| format!("device-DAX {name}"))?);
    }
    let bare = pieces.iter().find(|piece| {
        let within = |up: &&Up| piece.start() <= up.start && up.start < piece.end();
        made.iter().filter(within).map(|up| up.size).sum::<u64>() < piece.len()
    });
    if let Some(piece) = bare {
        anyhow::bail!(
            "the pool's {piece} is no device: /proc/iomem must show it as Soft Reserved, dax_hmem must have been loaded with \
             region_idle=1 (add `dax_hmem.region_idle=1` to the kernel's command line), and no other driver may have it"
        );
    }
    Ok(made)
}

/// The device `name` with all of its region, if that is the pool's.
fn device(sys: &SysRoot, pieces: &[MemRange], name: &str) -> Result<Option<Up>> {
    let file = |leaf: &str| format!("{DEVICES}/{name}/{leaf}");
    let bound = sys.link_name(file("driver"));
    let mut size = sys.read_number(file("size"))?;
    let idle = size == 0;
    if idle {
        if bound.is_some() {
            return Ok(None);
        }
        size = sys.read_number(file("../dax_region/available_size"))?;
        if size == 0 {
            return Ok(None);
        }
        sys.write(file("size"), &size.to_string())?;
    }
    let start = sys.read_number(file("resource"))?;
    let range = MemRange::with_len(start, size).with_context(|| format!("{size} bytes at {start:#x}"))?;
    if !pieces.iter().any(|piece| piece.contains(range)) {
        if idle {
            sys.write(file("size"), "0")?;
        }
        return Ok(None);
    }
    match bound.as_deref() {
        None => sys.write(format!("{DRIVER}/new_id"), name)?,
        Some("device_dax") => {}
        Some(other) => anyhow::bail!("the driver {other} has this piece of the pool; unbind it, or boot without it"),
    }
    ensure!(
        sys.exists(format!("dev/{name}")),
        "it has no file /dev/{name}: is devtmpfs mounted on /dev?"
    );
    open_to_group(sys, name)?;
    Ok(Some(Up {
        device: format!("/dev/{name}"),
        start,
        size,
        was_there: bound.is_some(),
    }))
}

/// As `/dev/kvm` is. Each guest's QEMU can reach the RAM of all guests then: one device has it.
fn open_to_group(sys: &SysRoot, name: &str) -> Result<()> {
    let groups = sys.read_optional("etc/group").unwrap_or_default();
    let gid = groups.lines().find_map(|line| {
        let mut words = line.split(':');
        (words.next() == Some(GROUP)).then(|| words.nth(1)?.parse().ok())?
    });
    let Some(gid) = gid else { return Ok(()) };
    let file = sys.path(format!("dev/{name}"));
    chown(&file, None, Some(gid))
        .and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o660)))
        .with_context(|| format!("giving {} to the group {GROUP}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const POOL: u64 = 0x1_0000_0000;
    const SIZE: u64 = 0x4000_0000;

    struct Machine {
        dir: tempfile::TempDir,
    }

    impl Machine {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for path in [DEVICES, DRIVER, "dev"] {
                fs::create_dir_all(dir.path().join(path)).unwrap();
            }
            fs::write(dir.path().join(DRIVER).join("new_id"), "").unwrap();
            Self { dir }
        }

        /// A device as sysfs has it, in a region of its own. Plain files keep the address that a device of a size has.
        fn add(&self, name: &str, region: &str, (size, at): (u64, u64), driver: Option<&str>) {
            let region = self.dir.path().join("sys/devices/platform").join(region);
            let real = region.join(name);
            fs::create_dir_all(&real).unwrap();
            fs::create_dir_all(region.join("dax_region")).unwrap();
            fs::write(region.join("dax_region/available_size"), (SIZE - size).to_string()).unwrap();
            fs::write(real.join("size"), size.to_string()).unwrap();
            fs::write(real.join("resource"), format!("{at:#x}")).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../../bus/dax/drivers/{driver}"), real.join("driver")).unwrap();
            }
            symlink(&real, self.dir.path().join(DEVICES).join(name)).unwrap();
            fs::write(self.dir.path().join("dev").join(name), "").unwrap();
        }

        fn up(&self) -> Result<Vec<Up>> {
            let pieces = [MemRange::with_len(POOL, SIZE).unwrap()];
            up(&SysRoot::at(self.dir.path()), &pieces)
        }

        fn text(&self, path: &str) -> String {
            fs::read_to_string(self.dir.path().join(path)).unwrap()
        }
    }

    fn found(was_there: bool) -> Vec<Up> {
        vec![Up {
            device: "/dev/dax1.0".into(),
            start: POOL,
            size: SIZE,
            was_there,
        }]
    }

    #[test]
    fn the_pool_gets_a_size_and_a_driver_and_other_memory_stays_as_it_was() {
        let machine = Machine::new();
        machine.add("dax0.0", "hmem.0", (0, POOL + SIZE), None);
        machine.add("dax1.0", "hmem.1", (0, POOL), None);
        machine.add("dax2.0", "hmem.2", (SIZE, POOL + 2 * SIZE), Some("kmem"));
        assert_eq!(machine.up().unwrap(), found(false));
        assert_eq!(machine.text(&format!("{DEVICES}/dax0.0/size")), "0");
        assert_eq!(machine.text(&format!("{DEVICES}/dax1.0/size")), SIZE.to_string());
        assert_eq!(machine.text(&format!("{DRIVER}/new_id")), "dax1.0");
    }

    #[test]
    fn whoever_may_start_guests_may_map_it() {
        let machine = Machine::new();
        machine.add("dax1.0", "hmem.1", (0, POOL), None);
        machine.add("dax2.0", "hmem.2", (SIZE, POOL + 2 * SIZE), Some("kmem"));
        let mode = |name: &str| {
            let file = fs::metadata(machine.dir.path().join("dev").join(name)).unwrap();
            file.permissions().mode() & 0o777
        };
        let other = mode("dax2.0");
        // Not even root's tests may give files to any group.
        let own = rustix::process::getegid().as_raw();
        fs::create_dir_all(machine.dir.path().join("etc")).unwrap();
        fs::write(
            machine.dir.path().join("etc/group"),
            format!("root:x:0:\nkvm:x:{own}:me\n"),
        )
        .unwrap();
        machine.up().unwrap();
        assert_eq!(mode("dax1.0"), 0o660);
        assert_eq!(mode("dax2.0"), other, "no guest's memory");
    }

    #[test]
    fn what_is_there_already_is_left_alone() {
        let machine = Machine::new();
        machine.add("dax1.0", "hmem.1", (SIZE, POOL), Some("device_dax"));
        assert_eq!(machine.up().unwrap(), found(true));
        assert_eq!(machine.text(&format!("{DRIVER}/new_id")), "");
    }

    #[test]
    fn a_pool_that_is_no_device_is_told_with_the_remedy() {
        let machine = Machine::new();
        assert!(format!("{:#}", machine.up().unwrap_err()).contains("region_idle=1"));
        machine.add("dax1.0", "hmem.1", (SIZE / 2, POOL), Some("device_dax"));
        assert!(format!("{:#}", machine.up().unwrap_err()).contains("0x100000000"));
        machine.add("dax3.0", "hmem.3", (SIZE / 2, POOL + SIZE / 2), Some("kmem"));
        let error = format!("{:#}", machine.up().unwrap_err());
        assert!(error.contains("device-DAX dax3.0: the driver kmem"), "{error}");
        assert!(format!("{:#}", up(&SysRoot::at("/"), &[]).unwrap_err()).contains("LOCUM_POOL"));
    }
}
