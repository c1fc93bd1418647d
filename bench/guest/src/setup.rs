//! What a kernel expects of PID 1 before anything else works.

use crate::params::Params;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use std::os::unix::fs::FileExt;

/// Where the initramfs keeps modules; `order` lists them, one per line, in the order of loading.
pub(crate) const MODULES: &str = "/modules";

pub(crate) fn mounts() -> Result<()> {
    for (kind, place) in [("proc", "/proc"), ("devtmpfs", "/dev")] {
        mount(kind, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind}: is {place} in the initramfs?"))?;
    }
    // Compaction must not move the beat page, also when it is locked: hosts look where it was first.
    std::fs::write("/proc/sys/vm/compact_unevictable_allowed", "0").context("cannot keep compaction off")
}

/// Loads the modules and returns how many.
pub(crate) fn load_modules() -> Result<usize> {
    let order = std::fs::read_to_string(format!("{MODULES}/order")).unwrap_or_default();
    for name in order.lines() {
        let path = format!("{MODULES}/{name}");
        let file = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .with_context(|| format!("{path} is listed but not in the initramfs"))?;
        rustix::system::finit_module(&file, c"", 0).with_context(|| {
            format!("cannot load {path}: built for another kernel, or listed before its dependency")
        })?;
    }
    Ok(order.lines().count())
}

pub(crate) fn params() -> Result<Params> {
    let line = std::fs::read_to_string("/proc/cmdline").context("cannot read the kernel's command line")?;
    Params::parse(&line).map_err(anyhow::Error::msg)
}

/// Restarts the machine, which ends a QEMU with `-no-reboot`.
pub(crate) fn reboot() -> Result<()> {
    Ok(rustix::system::reboot(rustix::system::RebootCommand::Restart)?)
}

/// Guest-physical address behind a virtual one (Documentation/admin-guide/mm/pagemap.rst).
pub(crate) fn physical_address(address: u64) -> Result<u64> {
    let mut entry = [0; 8];
    let pagemap = std::fs::File::open("/proc/self/pagemap").context("cannot open pagemap")?;
    pagemap
        .read_exact_at(&mut entry, address / 4096 * 8)
        .context("cannot read pagemap")?;
    let entry = u64::from_le_bytes(entry);
    let (present, frame) = (entry >> 63 == 1, entry & ((1 << 55) - 1));
    if !present || frame == 0 {
        bail!("the beat page has no frame: run as root");
    }
    Ok(frame * 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "reads /proc")]
    fn an_address_without_memory_has_no_frame() {
        assert!(physical_address(0).is_err());
    }
}
