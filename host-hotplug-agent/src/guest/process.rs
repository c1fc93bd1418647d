//! The process of a running QEMU, and files as it sees them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use super::argv;
use crate::sysroot::SysRoot;

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

    /// The files that it maps shared; none if it has ended.
    pub fn mappings(&self) -> Vec<Mapping> {
        let maps = fs::read_to_string(self.proc("maps")).unwrap_or_default();
        maps.lines().filter_map(Mapping::parse).collect()
    }

    /// Something below its directory in `/proc`.
    pub fn proc(&self, name: &str) -> PathBuf {
        self.sys.path(format!("proc/{}/{name}", self.pid.as_raw_nonzero()))
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
    /// Of a line of `/proc/PID/maps` (Linux `Documentation/filesystems/proc.rst`), if it is one.
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let (start, end) = words.next()?.split_once('-')?;
        let mode = words.next()?;
        let offset = hex(words.next()?)?;
        let file = PathBuf::from(words.nth(2)?.trim_start());
        let len = hex(end)?.checked_sub(hex(start)?)?;
        let writable = mode.contains('w');
        (mode.ends_with('s') && file.is_absolute()).then_some(Self {
            file,
            offset,
            len,
            writable,
        })
    }
}
