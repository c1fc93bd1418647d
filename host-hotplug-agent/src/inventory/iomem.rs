//! `/proc/iomem`: this host's RAM.

use anyhow::{Result, bail};
use partitioner::MemRange;

use crate::sysroot::SysRoot;

/// Every "System RAM" range, with the driver that manages it ("System RAM (locum)") if one does.
///
/// # Errors
/// If the file cannot be read, or hides addresses from this user.
pub fn ram(sys: &SysRoot) -> Result<Vec<(MemRange, Option<String>)>> {
    let text = sys.read("proc/iomem")?;
    let mut ranges = Vec::new();
    for line in text.lines() {
        let Some((addresses, name)) = line.trim().split_once(" : ") else {
            continue;
        };
        if let Some(driver) = name.strip_prefix("System RAM") {
            let driver = driver.trim().strip_prefix('(').and_then(|name| name.strip_suffix(')'));
            ranges.extend(range(addresses).map(|range| (range, driver.map(str::to_owned))));
        }
    }
    if ranges.is_empty() {
        bail!("/proc/iomem shows no System RAM: run as root");
    }
    ranges.sort_unstable();
    Ok(ranges)
}

/// `START-LAST` in hexadecimal.
pub fn range(text: &str) -> Option<MemRange> {
    let (start, last) = text.trim().split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let last = u64::from_str_radix(last, 16).ok()?;
    // All zeroes is what a user without CAP_SYS_ADMIN gets to see.
    if last == 0 {
        None
    } else {
        MemRange::new(start, last.checked_add(1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_kinds_of_system_ram_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let sys = SysRoot::at(dir.path());
        let file = dir.path().join("proc/iomem");
        std::fs::write(
            &file,
            "00001000-0009efff : System RAM\n00a00000-47ffffff : System RAM\n  02000000-03ffffff : Kernel code\n\
             48000000-4fffffff : Reserved\n  48000000-4fffffff : System RAM (locum)\nfec00000-fec003ff : IOAPIC 0\n",
        )
        .unwrap();
        let found = ram(&sys).unwrap();
        assert_eq!(found.len(), 3);
        let added = MemRange::new(0x4800_0000, 0x5000_0000).unwrap();
        assert_eq!(found[2], (added, Some("locum".to_owned())));
        assert_eq!(found[0].1, None);
        std::fs::write(&file, "00000000-00000000 : System RAM\n").unwrap();
        assert!(ram(&sys).unwrap_err().to_string().contains("root"));
    }
}
