//! Processes that could write to the pool: as long as there is one, a guest may run on this host.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::pool::Pool;
use super::process::{self, Process};
use crate::sysroot::SysRoot;

/// How many are named.
const NAMED: usize = 4;
/// Of the flags of an open file: how it may be accessed (O_ACCMODE), and 0 is for reading only.
const ACCESS_MODE: u32 = 0o3;

/// These processes in words; `None` if there is none.
pub fn of(sys: &SysRoot, pool: &Pool) -> Option<String> {
    let users = each(sys, pool);
    let named: Vec<String> = users.iter().take(NAMED).map(|pid| in_words(sys, *pid)).collect();
    let more = match users.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    (!named.is_empty()).then(|| named.join(", ") + &more)
}

/// These processes, in the order of `/proc`.
pub fn each(sys: &SysRoot, pool: &Pool) -> Vec<Pid> {
    process::every(sys).filter(|pid| uses(sys, pool, *pid)).collect()
}

/// A process with its name.
pub fn in_words(sys: &SysRoot, pid: Pid) -> String {
    let pid = pid.as_raw_nonzero();
    let name = sys.read_optional(format!("proc/{pid}/comm")).unwrap_or_default();
    format!("process {pid} ({name})")
}

fn uses(sys: &SysRoot, pool: &Pool, pid: Pid) -> bool {
    let process = Process::new(sys, pid);
    let in_pool = |file: &Path| may_be(pool, file) && pool.outside(sys, process, file).is_none();
    opened(process).iter().any(|file| in_pool(file)) || mapped(process).iter().any(|file| in_pool(file))
}

/// Spares a look at files that cannot be the pool.
fn may_be(pool: &Pool, file: &Path) -> bool {
    match pool {
        Pool::None => false,
        Pool::Memory(_) => file.starts_with("/dev"),
        Pool::File(pool) => file == pool,
    }
}

/// Files that it has open for writing.
fn opened(process: Process<'_>) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(process.proc("fd")) else {
        // It has ended, or is a thread of the kernel's.
        return Vec::new();
    };
    let entries = entries.flatten().filter(|entry| {
        let info = fs::read_to_string(process.proc("fdinfo").join(entry.file_name())).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        // Without a word of how it is open, it counts.
        flags.is_none_or(|flags| u32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| flags & ACCESS_MODE != 0))
    });
    let file = |entry: fs::DirEntry| {
        let named = fs::read_link(entry.path()).ok()?;
        Some(process.here(&format!("fd/{}", entry.file_name().display()), named))
    };
    entries.filter_map(file).collect()
}

/// Files that it has mapped shared and for writing: the file itself may have been closed since.
fn mapped(process: Process<'_>) -> Vec<PathBuf> {
    let mappings = process.mappings().into_iter();
    mappings.filter(|map| map.writable).map(|map| map.file).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::testing::tree::Tree;

    struct Proc<'t>(&'t Tree, u32);

    impl Proc<'_> {
        fn opens(&self, fd: u32, file: &str, flags: &str) {
            let Self(tree, pid) = self;
            tree.put(format!("proc/{pid}/comm"), "qemu-system-x86\n");
            tree.put(
                format!("proc/{pid}/fdinfo/{fd}"),
                format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t5\n"),
            );
            let link = tree.path().join(format!("proc/{pid}/fd/{fd}"));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(file, link).unwrap();
        }

        fn maps(&self, mode: &str, file: &str) {
            let Self(tree, pid) = self;
            tree.put(format!("proc/{pid}/comm"), "other\n");
            tree.put(
                format!("proc/{pid}/maps"),
                format!("00400000-00401000 r--p 00000000 00:05 7  /bin/sh\n7f0000000000-7f0000200000 {mode} 00000000 00:05 8                {file}\n7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\n"),
            );
        }
    }

    /// As a guest is that came from the host before this one.
    #[test]
    fn whoever_has_the_pool_by_another_name_is_found() {
        let tree = Tree::lab();
        let dir = "sys/bus/dax/devices/dax0.0";
        for (file, text) in [
            ("resource", "0x100000000\n"),
            ("size", "1073741824\n"),
            ("dev", "1:3\n"),
        ] {
            tree.put(format!("{dir}/{file}"), text);
        }
        let pool = Pool::of(&locum_abi::Header {
            pool: 4 << 30,
            pool_size: 1 << 30,
            ..locum_abi::Header::of_this_release()
        });
        // A character device that every host has stands for it.
        let link = |path: &str, to: &str| {
            let link = tree.path().join(path);
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink(to, link).unwrap();
        };
        Proc(&tree, 7).maps("rw-s", "/run/locum/host/dev/dax0.0");
        link("proc/7/map_files/7f0000000000-7f0000200000", "/dev/null");
        Proc(&tree, 8).maps("rw-s", "/run/locum/host/dev/zero");
        link("proc/8/map_files/7f0000000000-7f0000200000", "/dev/zero");
        tree.put("proc/9/comm", "other\n");
        tree.put("proc/9/fdinfo/3", "flags:\t02100002\n");
        link("proc/9/fd/3", "/dev/null");
        assert_eq!(
            of(&tree.sys(), &pool).as_deref(),
            Some("process 7 (other), process 9 (other)")
        );
        let process = Process::new(&tree.sys(), Pid::from_raw(7).unwrap()).mappings();
        assert_eq!(process[0].file, Path::new("/dev/dax0.0"));
    }

    #[test]
    fn who_could_write_to_the_pool_is_named() {
        let tree = Tree::lab();
        let pool = Pool::File(PathBuf::from("/pool"));
        let users = || of(&tree.sys(), &pool);
        assert_eq!(users(), None);
        Proc(&tree, 7).opens(3, "/pool", "0100000");
        Proc(&tree, 8).opens(3, "/other", "0100002");
        Proc(&tree, 9).maps("r--s", "/pool");
        assert_eq!(users(), None, "who only reads runs no guest");
        Proc(&tree, 10).opens(3, "/pool", "02100002");
        assert_eq!(users().as_deref(), Some("process 10 (qemu-system-x86)"));
        Proc(&tree, 11).maps("rw-s", "/pool");
        assert_eq!(
            users().as_deref(),
            Some("process 10 (qemu-system-x86), process 11 (other)")
        );
        assert_eq!(of(&tree.sys(), &Pool::None), None);
    }
}
