//! QEMUs that run, by their command lines.

use std::fs::File;
use std::io::Read;

use rustix::process::Pid;

use crate::guest::argv;
use crate::guest::bound::Bound;
use crate::guest::keyval::{Pair, pairs};
use crate::guest::process::Process;
use crate::guest::there;
use crate::sysroot::SysRoot;

/// Bytes that are read of a program.
const LARGEST: u64 = 512 << 20;

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Qemu {
    /// Its process.
    pub pid: i32,
    /// Name of its guest.
    pub name: String,
    /// Release, major and minor, if it tells.
    pub version: Option<(u32, u32)>,
    /// Machine type as given.
    pub machine: Option<String>,
    /// CPU model as given.
    pub cpu: Option<String>,
    /// All its RAM is in a shared memory-backend-file.
    pub ram_in_shared_file: bool,
    /// It has a QMP socket.
    pub qmp: bool,
    /// It has devices of the machine.
    pub passthrough: bool,
    /// What binds it to its one start.
    pub bound: Option<String>,
}

impl Qemu {
    /// All QEMUs of this host.
    pub fn all(sys: &SysRoot) -> Vec<Self> {
        let names = sys.list("proc").unwrap_or_default();
        let pids = names.iter().filter_map(|name| Pid::from_raw(name.parse().ok()?));
        pids.filter_map(|pid| Self::of(sys, pid)).collect()
    }

    fn of(sys: &SysRoot, pid: Pid) -> Option<Self> {
        let process = Process::new(sys, pid);
        let command = process.command().ok()?;
        argv::is_qemu(command.first()?).then_some(())?;
        let mut qemu = Self::parse(&command);
        let find = |path: &std::path::Path| process.file(path);
        let bound = Bound::of(&argv::incoming(&command), Some(&find));
        qemu.bound = (!bound.is_free()).then(|| bound.to_string());
        qemu.pid = pid.as_raw_nonzero().get();
        qemu.version = version(process);
        if qemu.name.is_empty() {
            qemu.name = "without a name".to_owned();
        }
        Some(qemu)
    }

    /// What the command line tells.
    pub fn parse(command: &[String]) -> Self {
        let mut qemu = Self::default();
        let mut backends = Vec::new();
        for item in argv::items(command) {
            let Some(argument) = item.argument() else { continue };
            let pairs = pairs(argument);
            let get = |keys: &[&str]| value(&pairs, keys);
            match item.name {
                "name" => qemu.name = get(&["guest", ""]).unwrap_or_default(),
                "machine" | "M" => qemu.machine = get(&["type", ""]).or(qemu.machine),
                "cpu" => qemu.cpu = get(&[""]),
                "object" => {
                    let kind = get(&["qom-type", ""]).unwrap_or_default();
                    if kind.starts_with("memory-backend-") {
                        let shared =
                            get(&["share"]).is_some_and(|share| ["on", "true", "yes"].contains(&share.as_str()));
                        backends.push(kind == "memory-backend-file" && shared);
                    }
                }
                "qmp" | "qmp-pretty" => qemu.qmp = true,
                "mon" => qemu.qmp |= get(&["mode"]).as_deref() == Some("control"),
                "device" => qemu.passthrough |= get(&["driver", ""]).is_some_and(|driver| driver.starts_with("vfio-")),
                _ => {}
            }
        }
        qemu.ram_in_shared_file = !backends.is_empty() && backends.into_iter().all(|fits| fits);
        qemu
    }
}

/// The value of the first key that is there.
fn value(pairs: &[Pair], keys: &[&str]) -> Option<String> {
    let find = |key: &&str| {
        pairs
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.clone())
    };
    keys.iter().find_map(find)
}

/// The release of the program. It is not run: whoever called it so may be anybody.
fn version(process: Process<'_>) -> Option<(u32, u32)> {
    let program = File::open(process.proc("exe")).ok()?;
    let mut bytes = Vec::new();
    program.take(LARGEST).read_to_end(&mut bytes).ok()?;
    there::release(&bytes)
}
