//! `/proc/iomem`: this host's RAM.

use anyhow::{Result, bail};
use partitioner::MemRange;

use crate::sysroot::SysRoot;

const HIDDEN: &str = "/proc/iomem shows no System RAM: run as root";

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
        bail!(HIDDEN);
    }
    ranges.sort_unstable();
    Ok(ranges)
}

/// RAM that Linux cannot divide, up to the end of its own image or of a crash kernel's memory: it would give these to the
/// lower part of their "System RAM", wherever they are (`__adjust_resource()` fails in Linux `kernel/resource.c`).
///
/// # Errors
/// If the file cannot be read, or hides addresses from this user.
pub fn indivisible(sys: &SysRoot) -> Result<Vec<MemRange>> {
    let text = sys.read("proc/iomem")?;
    let mut found: Vec<MemRange> = Vec::new();
    let mut resource = None;
    for line in text.lines() {
        let Some((addresses, name)) = line.trim().split_once(" : ") else {
            continue;
        };
        if name.starts_with("System RAM") {
            resource = range(addresses);
        } else if name == "Crash kernel" || name.starts_with("Kernel ") {
            let (Some(all), Some(part)) = (resource, range(addresses)) else {
                continue;
            };
            found.extend(MemRange::new(all.start(), part.end()).filter(|_| all.contains(part)));
        }
    }
    if resource.is_none() {
        bail!(HIDDEN);
    }
    Ok(found)
}

/// Whether a block would have to be cut out of the middle of one of these.
pub fn inside(indivisible: &[MemRange], block: MemRange) -> bool {
    indivisible
        .iter()
        .any(|range| range.start() < block.start() && block.start() < range.end())
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
    fn nothing_is_cut_out_below_the_image_or_a_crash_kernel() {
        let tree = crate::testing::tree::Tree::lab();
        let stuck = |iomem: &str, starts: &[u64]| -> Vec<bool> {
            tree.put("proc/iomem", iomem);
            let ranges = indivisible(&tree.sys()).unwrap();
            let block = |&start: &u64| MemRange::with_len(start, 0x800_0000).unwrap();
            starts.iter().map(|start| inside(&ranges, block(start))).collect()
        };
        let image =
            "48000000-7fffffff : System RAM\n  51000000-523fffff : Kernel code\n  52400000-52ffffff : Kernel data\n";
        let blocks = [0x4000_0000, 0x4800_0000, 0x5000_0000, 0x5800_0000, 0x8000_0000];
        assert_eq!(
            stuck(&format!("{image}80000000-87ffffff : System RAM (locum)\n"), &blocks),
            [false, false, true, false, false],
            "the first block of a stretch can go, and all above the image"
        );
        let crash = "48000000-7fffffff : System RAM\n  78000000-7fffffff : Crash kernel\n";
        assert_eq!(stuck(crash, &blocks), [false, false, true, true, false]);
        assert_eq!(stuck("48000000-7fffffff : System RAM\n", &blocks), [false; 5]);
    }

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
