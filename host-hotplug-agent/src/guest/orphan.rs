//! QEMUs that a daemon started and then died, before they had opened their sockets: nothing but `/proc` knows of them.
//!
//! Each is started with the path of its socket in its environment, which it keeps through a script, too. There is no moment at which
//! it exists without that.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Spec;
use super::qemu::ended;
use crate::deadline::Deadline;
use crate::sysroot::SysRoot;

/// The environment variable that names the socket.
pub const MARK: &str = "LOCUM_QMP";
/// For its process to be gone once it is killed.
const KILLED: Duration = Duration::from_secs(10);

/// Ends the guest's QEMUs of which no socket is known, so that none has the guest's RAM and disks.
///
/// # Errors
/// If one has opened its socket after all: then a guest may run in it. Or if it cannot be ended.
pub fn end(sys: &SysRoot, spec: &Spec) -> Result<()> {
    if !sys.is_hosts() {
        return Ok(());
    }
    for pid in marked(sys, &spec.qmp)? {
        if ended(pid) {
            continue;
        }
        if listens(sys, spec) {
            bail!(
                "guest {} has a QEMU here already (process {}), and its socket {} is open, but cannot be reached: end that \
                 process, if the guest does not run in it",
                spec.name,
                pid.as_raw_nonzero(),
                spec.qmp.display()
            );
        }
        tracing::warn!(
            "guest {}: ending process {}, which an earlier daemon had started",
            spec.name,
            pid.as_raw_nonzero()
        );
        let _ = kill_process(pid, Signal::KILL);
        if !Deadline::after(KILLED).comes_true(Duration::from_millis(10), || ended(pid)) {
            bail!(
                "guest {}: process {}, which an earlier daemon had started, does not end: `kill -9` it",
                spec.name,
                pid.as_raw_nonzero()
            );
        }
    }
    Ok(())
}

/// Processes that were started for the guest.
fn marked(sys: &SysRoot, qmp: &Path) -> Result<Vec<Pid>> {
    let wanted = format!("{MARK}={}", qmp.display());
    let ours = std::process::id().to_string();
    let mut found = Vec::new();
    for name in sys.list("proc").context("looking for QEMUs")? {
        let Some(pid) = name.parse().ok().and_then(Pid::from_raw).filter(|_| name != ours) else {
            continue;
        };
        // Others' processes, and those that have just ended, cannot be read.
        let environment = fs::read(sys.path(format!("proc/{name}/environ"))).unwrap_or_default();
        if environment
            .split(|&byte| byte == 0)
            .any(|word| word == wanted.as_bytes())
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Whether a socket was bound to the guest's path, be it there still or not.
fn listens(sys: &SysRoot, spec: &Spec) -> bool {
    let path = spec.qmp.to_string_lossy();
    let sockets = sys.read_optional("proc/net/unix").unwrap_or_default();
    sockets.lines().any(|line| line.split(' ').next_back() == Some(&*path))
}
