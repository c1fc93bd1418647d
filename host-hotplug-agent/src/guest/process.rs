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

    /// Something below its directory in `/proc`.
    pub fn proc(&self, name: &str) -> PathBuf {
        self.sys.path(format!("proc/{}/{name}", self.pid.as_raw_nonzero()))
    }
}
