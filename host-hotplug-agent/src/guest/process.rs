//! The process of a running QEMU, and files as it sees them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::{argv, pool};
use crate::sysroot::SysRoot;

/// Every process of this host, in the order of `/proc`; none if that cannot be read.
pub fn every(sys: &SysRoot) -> impl Iterator<Item = Pid> {
    let names = sys.list("proc").unwrap_or_default();
    names.into_iter().filter_map(|name| Pid::from_raw(name.parse().ok()?))
}

/// A process on this host.
#[derive(Clone, Copy, Debug)]
pub struct Process<'s> {
    sys: &'s SysRoot,
    pid: Pid,
}

impl<'s> Process<'s> {
    /// The process with that id.
    pub fn new(sys: &'s SysRoot, pid: Pid) -> Self {
        Self { sys, pid }
    }

    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its command line.
    ///
    /// # Errors
    /// If `/proc` does not show it.
    pub fn command(&self) -> io::Result<Vec<String>> {
        Ok(argv::split(&fs::read(self.proc("cmdline"))?))
    }

    /// A file that it names: in its own root and working directory (libvirt gives each QEMU a `/dev` of its own), else
    /// in ours.
    pub fn file(&self, name: &Path) -> Option<PathBuf> {
        let own = match name.strip_prefix("/") {
            Ok(below) => [self.proc("root").join(below), self.sys.path(below)],
            Err(_) => [self.proc("cwd").join(name), self.sys.path(name)],
        };
        own.into_iter().find(|path| path.exists())
    }

    /// The type of the file system that a file of [`Self::file`] is on: the process may have mounts of its own.
    pub fn file_system(&self, file: &Path) -> Option<String> {
        let file = fs::canonicalize(file).ok()?;
        // Of a root that is another one, `/proc/PID/root` leads out of `/proc`.
        let roots = [self.proc("root"), self.sys.path("")].map(|root| fs::canonicalize(&root).unwrap_or(root));
        let below = roots.iter().find_map(|root| file.strip_prefix(root).ok())?;
        let path = Path::new("/").join(below);
        let mounts = fs::read_to_string(self.proc("mountinfo")).ok()?;
        let mut best: Option<(usize, &str)> = None;
        for (point, kind) in mounts.lines().filter_map(mount) {
            let depth = Path::new(&point).components().count();
            // Of two at one place the later one is seen.
            if path.starts_with(&point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
                best = Some((depth, kind));
            }
        }
        best.map(|(_, kind)| kind.to_owned())
    }

    /// Names of the Unix sockets at which it listens, as it has bound them (Linux `net/unix/af_unix.c`, `unix_seq_show()`).
    ///
    /// # Errors
    /// If `/proc` does not show them.
    pub fn listens_at(&self) -> io::Result<Vec<PathBuf>> {
        /// `__SO_ACCEPTCON`.
        const LISTENS: u32 = 1 << 16;
        let mut own = BTreeSet::new();
        for entry in fs::read_dir(self.proc("fd"))? {
            // One that has been closed since is none.
            let link = fs::read_link(entry?.path()).unwrap_or_default();
            let inode = link
                .to_str()
                .and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
            own.extend(inode.map(str::to_owned));
        }
        // Num RefCount Protocol Flags Type St Inode Path
        let table = fs::read_to_string(self.proc("net/unix"))?;
        let socket = |line: &str| {
            let words: Vec<&str> = line.splitn(8, ' ').collect();
            let flags = u32::from_str_radix(words.get(3)?, 16).ok()?;
            let (inode, path) = words
                .get(6..)?
                .join(" ")
                .trim_start()
                .split_once(' ')
                .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
            let named = flags & LISTENS != 0 && path.starts_with('/') && own.contains(&inode);
            named.then(|| PathBuf::from(path))
        };
        Ok(table.lines().skip(1).filter_map(socket).collect())
    }

    /// The files that it maps shared; none if it has ended.
    pub fn mappings(&self) -> Vec<Mapping> {
        let maps = fs::read_to_string(self.proc("maps")).unwrap_or_default();
        let named = maps.lines().filter_map(Mapping::parse);
        named
            .map(|(area, map)| Mapping {
                file: self.here(&format!("map_files/{area}"), map.file),
                ..map
            })
            .collect()
    }

    /// How this host names a file that the process knows as `named`: one with a root of its own, or a `/dev` of its own, may
    /// have the pool by any name. `link` is a magic link below its directory in `/proc`, which leads to the file itself.
    pub fn here(&self, link: &str, named: PathBuf) -> PathBuf {
        let file = fs::metadata(self.proc(link)).ok();
        file.and_then(|file| pool::file_of(self.sys, &file)).unwrap_or(named)
    }

    /// How it stands; `None` if it is gone.
    pub fn stat(&self) -> Option<Stat> {
        Stat::parse(&fs::read_to_string(self.proc("stat")).ok()?)
    }

    /// Whether it has ended, reaped by its parent or not. Of one that is not our child.
    pub fn ended(&self) -> bool {
        self.stat().is_none_or(|stat| stat.ended)
    }

    /// Whether exec has taken its old memory from it, and not yet given it its environment (Linux `load_elf_binary()`).
    pub fn in_exec(&self) -> bool {
        // Of others' processes neither can be read; kernel threads and those that have ended have no program.
        let no_environment = fs::read(self.proc("environ")).is_ok_and(|environment| environment.is_empty());
        let has_program = fs::read_link(self.proc("exe")).is_ok();
        // One that was given no variable at all has a place for them all the same.
        no_environment && has_program && self.stat().is_some_and(|stat| stat.env_end == 0)
    }

    /// Something below its directory in `/proc`.
    pub fn proc(&self, name: &str) -> PathBuf {
        self.sys.path(format!("proc/{}/{name}", self.pid.as_raw_nonzero()))
    }
}

/// Where something is mounted, and the type of its file system: a line of `mountinfo` (Linux
/// `Documentation/filesystems/proc.rst`).
fn mount(line: &str) -> Option<(String, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    // `seq_escape()` of what would part fields or lines.
    let point = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |point, (escaped, plain)| {
            point.replace(escaped, plain)
        });
    Some((point, after.split(' ').next()?))
}

/// What `/proc/PID/stat` tells (Linux `Documentation/filesystems/proc.rst`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// It has ended.
    pub ended: bool,
    /// Its parent's number; 0 for none.
    pub parent: i32,
    /// Where its environment ends; 0 while it has none.
    pub env_end: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name is in parentheses and may hold any character.
        let (_, rest) = text.rsplit_once(')')?;
        let words: Vec<&str> = rest.split_whitespace().collect();
        // The state is the third.
        let word = |number: usize| words.get(number - 3).copied();
        Some(Self {
            ended: word(3)?.starts_with(['Z', 'X']),
            parent: word(4)?.parse().ok()?,
            env_end: word(51)?.parse().ok()?,
        })
    }
}

/// A shared mapping of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The file's path.
    pub file: PathBuf,
    /// Where in the file it begins.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether it may be written to.
    pub writable: bool,
}

impl Mapping {
    /// Of a line of `/proc/PID/maps` (Linux `Documentation/filesystems/proc.rst`), if it is one, with its name in `map_files`.
    fn parse(line: &str) -> Option<(String, Self)> {
        let mut words = line.splitn(6, ' ');
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = words.next()?.split_once('-')?;
        let mode = words.next()?;
        let offset = hex(words.next()?)?;
        let file = PathBuf::from(words.nth(2)?.trim_start());
        let (start, end) = (hex(start)?, hex(end)?);
        let map = Self {
            file,
            offset,
            len: end.checked_sub(start)?,
            writable: mode.contains('w'),
        };
        (mode.ends_with('s') && map.file.is_absolute()).then(|| (format!("{start:x}-{end:x}"), map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_very_process_is_told_from_its_stat() {
        let sys = SysRoot::default();
        let own = Process::new(&sys, rustix::process::getpid());
        let stat = own.stat().unwrap();
        assert_eq!(
            Some(stat.parent),
            rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get())
        );
        assert!(!stat.ended && stat.env_end > 0);
        assert!(!own.ended() && !own.in_exec());
    }

    #[test]
    fn a_name_may_hold_any_character() {
        let numbers = vec!["7"; 48].join(" ");
        let stat = |name: &str, state: &str| Stat::parse(&format!("4 ({name}) {state} 1 {numbers}"));
        assert_eq!(stat("a) Z (b", "S").unwrap().parent, 1);
        assert!(!stat("a) Z (b", "S").unwrap().ended);
        assert!(stat("sleep", "Z").unwrap().ended);
        assert_eq!(Stat::parse("4 (sleep) S 1"), None);
    }
}
