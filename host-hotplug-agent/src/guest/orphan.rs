//! QEMUs that a daemon started and then died, before they had opened their sockets: nothing but `/proc` knows of them.
//!
//! Each is started with the path of its socket in its environment, which it keeps through a script, too. Only at the very
//! beginning it has none to show: until exec it shares the daemon's memory, and outlives it; then exec builds its own. Whoever
//! may be such a one is waited for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::Spec;
use super::process::Process;
use crate::deadline::Deadline;
use crate::sysroot::SysRoot;

/// The environment variable that names the socket.
pub const MARK: &str = "LOCUM_QMP";
/// For one that has just begun to show what it is.
const BEGUN: Duration = Duration::from_secs(10);
/// For its process to be gone once it is killed.
const KILLED: Duration = Duration::from_secs(10);

/// Ends the guest's QEMUs of which no socket is known, so that none has the guest's RAM and disks.
///
/// # Errors
/// If one has opened its socket after all: then a guest may run in it. Or if it cannot be ended, or does not show what it is.
pub fn end(sys: &SysRoot, spec: &Spec) -> Result<()> {
    if !sys.is_hosts() {
        return Ok(());
    }
    wait_for_undecided(sys, spec)?;
    for pid in marked(sys, &spec.qmp)? {
        if Process::new(sys, pid).ended() {
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
        kill(sys, spec, pid)?;
    }
    Ok(())
}

/// Ends every QEMU that was started for the guest, whether it has opened its socket or not, but the process `kept`.
///
/// # Errors
/// If one cannot be ended.
pub fn end_but(sys: &SysRoot, spec: &Spec, kept: Pid) -> Result<()> {
    if !sys.is_hosts() {
        return Ok(());
    }
    wait_for_undecided(sys, spec)?;
    let mut others = marked(sys, &spec.qmp)?.into_iter().filter(|pid| *pid != kept);
    others.try_for_each(|pid| kill(sys, spec, pid))
}

/// Waits until everyone shows whether it is the guest's QEMU.
fn wait_for_undecided(sys: &SysRoot, spec: &Spec) -> Result<()> {
    let own = rustix::process::getpid();
    match still_undecided(sys, own, &Deadline::after(BEGUN))? {
        None => Ok(()),
        Some(pid) => bail!(
            "guest {}: process {} may have been started as its QEMU by an earlier daemon, and has not come as far as to show it: \
             end it, or wait",
            spec.name,
            pid.as_raw_nonzero()
        ),
    }
}

fn kill(sys: &SysRoot, spec: &Spec, pid: Pid) -> Result<()> {
    let _ = kill_process(pid, Signal::KILL);
    let ended = || Process::new(sys, pid).ended();
    if !Deadline::after(KILLED).comes_true(Duration::from_millis(10), ended) {
        bail!(
            "guest {}: process {}, which an earlier daemon had started, does not end: `kill -9` it",
            spec.name,
            pid.as_raw_nonzero()
        );
    }
    Ok(())
}

/// All processes but `own`.
fn others(sys: &SysRoot, own: Pid) -> Result<impl Iterator<Item = Pid>> {
    let names = sys.list("proc").context("looking for QEMUs")?;
    let pids = names.into_iter().filter_map(|name| Pid::from_raw(name.parse().ok()?));
    Ok(pids.filter(move |pid| *pid != own))
}

/// A process that does not show in time what it is. A daemon that is dead begins no more, so only those that are there at first
/// are waited for; a child of ours is no dead daemon's.
fn still_undecided(sys: &SysRoot, own: Pid, until: &Deadline<'_>) -> Result<Option<Pid>> {
    let our_command = Process::new(sys, own).command().context("looking for QEMUs")?;
    let undecided = |pid: Pid| {
        let process = Process::new(sys, pid);
        // With the memory of a daemon it has that one's command, which is ours.
        let shares_memory = || process.command().is_ok_and(|command| command == our_command);
        let orphan = || {
            process
                .stat()
                .is_some_and(|stat| !stat.ended && stat.parent != own.as_raw_nonzero().get())
        };
        (process.in_exec() || shares_memory()) && orphan()
    };
    let mut left: Vec<Pid> = others(sys, own)?.collect();
    until.comes_true(Duration::from_millis(5), || {
        left.retain(|pid| undecided(*pid));
        left.is_empty()
    });
    Ok(left.first().copied())
}

/// Processes that were started for the guest.
fn marked(sys: &SysRoot, qmp: &Path) -> Result<Vec<Pid>> {
    let wanted = format!("{MARK}={}", qmp.display());
    let mut found = Vec::new();
    for pid in others(sys, rustix::process::getpid())? {
        // Others' processes, and those that have just ended, cannot be read.
        let environment = fs::read(Process::new(sys, pid).proc("environ")).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const DAEMON: &str = "/usr/sbin/locum\0daemon\0";
    const NOW: Duration = Duration::ZERO;

    /// A `/proc` of plain files.
    struct Proc {
        dir: tempfile::TempDir,
    }

    impl Proc {
        /// With a daemon as process 10.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let proc = Self { dir };
            proc.put(10, 1, DAEMON, "PATH=/bin\0");
            proc
        }

        fn put(&self, pid: i32, parent: i32, command: &str, environment: &str) {
            let dir = self.dir.path().join(format!("proc/{pid}"));
            fs::create_dir_all(&dir).unwrap();
            let env_end = environment.len();
            // env_end is the 51st.
            let between = vec!["0"; 46].join(" ");
            fs::write(
                dir.join("stat"),
                format!("{pid} (x) S {parent} {between} {env_end} 0\n"),
            )
            .unwrap();
            fs::write(dir.join("cmdline"), command).unwrap();
            fs::write(dir.join("environ"), environment).unwrap();
            let _ = symlink("/usr/sbin/x", dir.join("exe"));
        }

        fn undecided(&self, limit: Duration) -> Option<i32> {
            let sys = SysRoot::at(self.dir.path());
            let found = still_undecided(&sys, Pid::from_raw(10).unwrap(), &Deadline::after(limit));
            found.unwrap().map(|pid| pid.as_raw_nonzero().get())
        }
    }

    #[test]
    fn one_that_a_dead_daemon_has_just_begun_is_waited_for() {
        let proc = Proc::new();
        assert_eq!(proc.undecided(NOW), None);
        // Before exec it has a daemon's command, in the midst of it no environment.
        for (command, environment) in [(DAEMON, "PATH=/bin\0"), ("", ""), ("qemu\0", "")] {
            proc.put(20, 1, command, environment);
            assert_eq!(proc.undecided(NOW), Some(20), "{command:?}");
            // One that this daemon has begun itself is none.
            proc.put(20, 10, command, environment);
            assert_eq!(proc.undecided(NOW), None, "{command:?}");
        }
        proc.put(20, 1, DAEMON, "PATH=/bin\0");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(50));
                proc.put(20, 1, "qemu\0", "LOCUM_QMP=/run/one\0");
            });
            assert_eq!(proc.undecided(Duration::from_secs(60)), None);
        });
        let sys = SysRoot::at(proc.dir.path());
        let found = marked(&sys, Path::new("/run/one")).unwrap();
        assert_eq!(found, [Pid::from_raw(20).unwrap()]);
    }

    #[test]
    fn who_has_no_program_or_no_variable_is_not_waited_for() {
        let proc = Proc::new();
        let dir = proc.dir.path().join("proc/30");
        // A kernel thread, or one that has ended.
        proc.put(30, 2, "", "");
        fs::remove_file(dir.join("exe")).unwrap();
        assert_eq!(proc.undecided(NOW), None);
        // `env -i`: it has a place for variables, and none.
        proc.put(30, 1, "x\0", "PATH=/bin\0");
        fs::write(dir.join("environ"), "").unwrap();
        assert_eq!(proc.undecided(NOW), None);
        // One of another user's.
        proc.put(30, 1, "x\0", "");
        fs::remove_file(dir.join("environ")).unwrap();
        assert_eq!(proc.undecided(NOW), None);
    }
}
