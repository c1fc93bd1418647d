//! Processes that have memory pinned for devices: for direct I/O through io_uring, RDMA, device passthrough.

use crate::sysroot::SysRoot;

/// How many are named.
const NAMED: usize = 4;
/// What a driver pins by it is not in VmPin.
const PASSTHROUGH: &str = "/dev/vfio/";

/// The processes in words, the one with the most pinned memory first; `None` if there is none.
pub fn holders(sys: &SysRoot) -> Option<String> {
    let pids = sys
        .list("proc")
        .unwrap_or_default()
        .into_iter()
        .filter(|name| name.parse::<u32>().is_ok());
    let mut holders: Vec<(u64, String)> = pids.filter_map(|pid| holder(sys, &pid)).collect();
    holders.sort_by(|(a, _), (b, _)| b.cmp(a));
    let more = match holders.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let words: Vec<String> = holders.into_iter().take(NAMED).map(|(_, words)| words).collect();
    (!words.is_empty()).then(|| words.join(", ") + &more)
}

fn holder(sys: &SysRoot, pid: &str) -> Option<(u64, String)> {
    let status = sys.read_optional(format!("proc/{pid}/status"))?;
    let value = |key: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map(str::trim)
    };
    let pinned: u64 = value("VmPin")
        .and_then(|text| text.strip_suffix(" kB")?.parse().ok())
        .unwrap_or(0);
    let fds = format!("proc/{pid}/fd");
    let passthrough = sys.list(&fds).unwrap_or_default().iter().any(|fd| {
        let target = std::fs::read_link(sys.path(&fds).join(fd));
        target.is_ok_and(|target| target.to_string_lossy().starts_with(PASSTHROUGH))
    });
    let what = match (pinned, passthrough) {
        (0, false) => return None,
        (0, true) => "devices of the machine".to_owned(),
        (pinned, _) => format!("{pinned} KiB pinned"),
    };
    Some((
        pinned,
        format!("process {pid} ({}, {what})", value("Name").unwrap_or("?")),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::tree::Tree;

    #[test]
    fn who_pins_memory_is_named() {
        let tree = Tree::lab();
        assert_eq!(holders(&tree.sys()), None);
        let process = |pid: u32, name: &str, pinned: u32| {
            tree.put(
                format!("proc/{pid}/status"),
                format!("Name:\t{name}\nVmPin:\t{pinned:8} kB\nVmLck:\t 8 kB\n"),
            );
        };
        process(7, "sh", 0);
        assert_eq!(holders(&tree.sys()), None);
        process(8, "ublk", 64);
        process(9, "mlx", 4096);
        process(10, "qemu-system-x86", 0);
        tree.put("proc/10/fd/0", "");
        symlink("/dev/vfio/12", tree.path().join("proc/10/fd/31")).unwrap();
        let told = holders(&tree.sys()).unwrap();
        assert_eq!(
            told,
            "process 9 (mlx, 4096 KiB pinned), process 8 (ublk, 64 KiB pinned), \
             process 10 (qemu-system-x86, devices of the machine)"
        );
        for pid in 20..23 {
            process(pid, "more", 4);
        }
        assert!(holders(&tree.sys()).unwrap().ends_with(" and 2 more"));
    }
}
