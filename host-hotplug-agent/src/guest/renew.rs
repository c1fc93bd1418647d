//! The QEMU of a guest is replaced by the one that is installed now, within one host, the guest's RAM in place: the same
//! crossing as to another host, through a pair of sockets.
//!
//! Both QEMUs have the same sockets, monitor and consoles: the old one's are renamed meanwhile, which a Unix socket that listens
//! does not mind, and it is killed in the end, for a QEMU that quits removes the names that it once bound. So a daemon that dies
//! leaves two monitors by which the next one finds out where the guest is ([`go_on`]), and a file beside them says what it is.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::process::Process;
use super::qemu::{self, ANSWER};
use super::running::QemuVm;
use super::{Place, Spec, Vm, argv, frames, orphan};
use crate::channel::Port;
use crate::deadline::Deadline;
use crate::file;
use crate::sysroot::SysRoot;

/// What follows the socket's name: the old QEMU's, while the new one has it.
const BEFORE: &str = ".before";
/// And of the file that says so, a [`Guest`].
const NOTE: &str = ".renewing";
/// The unit of the agent's daemon.
const OWN_UNIT: &str = "locum.service";
/// Bytes of a Unix socket's name (`sun_path`, with a zero at its end).
const NAME_MAX: usize = 107;

/// A guest with another QEMU than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// Its name.
    pub guest: String,
    /// Release of the QEMU before, major and minor, if it told.
    pub from: Option<(u32, u32)>,
    /// Of the one that it has now.
    pub to: Option<(u32, u32)>,
    /// Ticks of the TSC from the guest's stop to its resume.
    pub stopped_ticks: u64,
    /// Bytes of its state.
    pub state_bytes: u64,
    /// Bytes of its RAM among them.
    pub ram_bytes_copied: u64,
}

/// Whose QEMU is being replaced.
#[derive(Debug, Serialize, Deserialize)]
struct Guest {
    spec: Spec,
    /// Sockets at which the old QEMU listens, by the names that they have before and after.
    sockets: Vec<PathBuf>,
}

impl Guest {
    /// With the sockets of that process.
    fn of(sys: &SysRoot, spec: &Spec, pid: Pid) -> Result<Self> {
        let sockets = Process::new(sys, pid)
            .listens_at()
            .context("its sockets are not known")?;
        ensure!(
            sockets.contains(&spec.qmp),
            "it does not listen at {} itself: another program opened that socket for it, and would have to do so again",
            spec.qmp.display()
        );
        let guest = Self {
            spec: spec.clone(),
            sockets,
        };
        let longest = guest.aside().as_os_str().len();
        ensure!(
            longest <= NAME_MAX,
            "{} would be a name of {longest} bytes, and a socket has {NAME_MAX} at most: start it with a shorter `-qmp`",
            guest.aside().display()
        );
        Ok(guest)
    }

    fn note(&self) -> PathBuf {
        beside(&self.spec.qmp, NOTE)
    }

    /// Where the old QEMU's monitor is meanwhile.
    fn aside(&self) -> PathBuf {
        beside(&self.spec.qmp, BEFORE)
    }

    /// Writes down that it begins, and makes room for the other QEMU's sockets.
    fn begin(&self) -> Result<()> {
        file::put_json(&self.note(), self)?;
        for socket in &self.sockets {
            let aside = beside(socket, BEFORE);
            fs::rename(socket, &aside)
                .with_context(|| format!("renaming {} to {}", socket.display(), aside.display()))?;
        }
        Ok(())
    }

    /// The guest has its QEMU, by its sockets.
    fn end(&self) -> Result<()> {
        // The monitor's goes after all others: as long as it is there, none of these is taken for the guest's own.
        let others = self.sockets.iter().filter(|socket| **socket != self.spec.qmp);
        let asides = others.map(|socket| beside(socket, BEFORE));
        for path in asides.chain([self.aside(), self.note()]) {
            file::remove(&path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// The old QEMU runs the guest, and has its sockets back.
    fn back(&self, old: &mut QemuVm) -> Result<()> {
        old.resume().context("resuming the guest in its QEMU")?;
        for socket in &self.sockets {
            let aside = beside(socket, BEFORE);
            match fs::rename(&aside, socket) {
                // An earlier daemon had not come as far as that, or had come here.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome.with_context(|| format!("renaming {} back", aside.display()))?,
            }
        }
        self.end()
    }

    /// Ends it, whatever came before: the guest runs in one of both, and the other one is gone. Returns whether it is the new
    /// one.
    fn settle(&self, old: Option<&mut QemuVm>, new: Option<&mut QemuVm>, came: Came) -> Result<bool> {
        let place = match new {
            Some(new) => match new.arrive() {
                Err(error) if !new.has_ended() => return Err(error.context("asking the new QEMU")),
                // It has ended.
                Err(_) => None,
                Ok(place) => Some(place),
            },
            None => None,
        };
        let name = &self.spec.name;
        match (place, old, came) {
            // One that has stopped since, for an error of its disk or by its own will, is whole there.
            (Some(Place::Running), old, _) | (Some(Place::Stopped), old, Came::Yes) => {
                if let Some(old) = old {
                    old.kill().context("ending the QEMU that the guest had before")?;
                }
                self.end().map(|()| true)
            }
            (Some(Place::Stopped), ..) => bail!(
                "guest {name} is stopped in its new QEMU ({}), and may be whole in the one before ({}): resume one, and end the other",
                self.spec.qmp.display(),
                self.aside().display()
            ),
            (None, _, Came::Yes) => bail!("guest {name} ran on in its new QEMU, which has ended since"),
            (None | Some(Place::Waiting), Some(old), came) => {
                // Its RAM may have changed since it was stopped here.
                if place.is_none() && came == Came::Unknown && old.has_gone()? {
                    bail!(
                        "guest {name} may have run on in a QEMU that has ended since, and then what is in the one before ({}) is \
                         not whole: end that one and start the guest anew, or have it go on by `cont` if you know better",
                        self.aside().display()
                    );
                }
                self.back(old).map(|()| false)
            }
            (None | Some(Place::Waiting), None, _) => {
                self.end()?;
                bail!("neither QEMU of guest {name} is there any more")
            }
        }
    }
}

/// Whether the guest ran in the new QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Yes,
    No,
    Unknown,
}

/// Replaces the QEMU of a guest that runs, by one with the same command line.
///
/// # Errors
/// Why not. The guest runs on in its QEMU, unless the error says otherwise.
pub(super) fn renew(
    sys: &SysRoot,
    spec: &Spec,
    until: &Deadline<'_>,
    in_pool: &dyn Fn(&mut QemuVm) -> Result<()>,
) -> Result<Renewed> {
    let mut old = attach(&spec.qmp)?.context("its QEMU does not answer")?;
    let guest = Guest::of(sys, spec, old.pid)?;
    let running = Process::new(sys, old.pid);
    let running = running.command().context("the command line of its QEMU")?;
    restarted_by(sys, old.pid)?;
    let (mut out, mut into) = Port::pair()?;
    if let Err(error) = guest.begin() {
        guest.back(&mut old)?;
        return Err(error);
    }
    let started = QemuVm::start(spec, until).and_then(|mut new| match in_pool(&mut new) {
        Ok(()) => Ok(new),
        Err(error) => {
            new.quit()?;
            Err(error)
        }
    });
    let mut new = match started {
        Ok(new) => new,
        Err(error) => {
            guest.back(&mut old)?;
            return Err(error.context("the QEMU that is installed does not take its place"));
        }
    };
    old.keep_frames();
    let same_tap = frames::share_a_tap(sys, old.pid, new.pid);
    // What is kept from the one then waits for the other, too.
    if !same_tap {
        new.hold_frames();
    }
    let (sent, received) = std::thread::scope(|scope| {
        let sending = scope.spawn(|| old.send(&mut out, until));
        let received = new.receive(&mut into, until);
        let sent = sending.join();
        (sent.unwrap_or_else(|_| Err(anyhow!("the sender panicked"))), received)
    });
    if received.is_ok() {
        let given = match same_tap {
            true => old.let_frames_pass(),
            false => new.give_frames(&old.late_frames()),
        };
        if let Err(error) = given {
            tracing::warn!(
                "guest {} does not get what its network had for it meanwhile: {error:#}",
                spec.name
            );
        }
    }
    let to = qemu::release(&mut new.qmp, &Deadline::after(ANSWER)).unwrap_or_default();
    let came = if received.is_ok() { Came::Yes } else { Came::No };
    let moved = guest.settle(Some(&mut old), Some(&mut new), came)?;
    match (moved, sent, received) {
        (true, sent, received) => {
            write_pid(sys, &running, old.pid, new.pid);
            let (sent, received) = (sent.unwrap_or_default(), received.unwrap_or_default());
            Ok(Renewed {
                guest: spec.name.clone(),
                from: spec.release,
                to,
                stopped_ticks: received.resumed.saturating_sub(sent.stopped),
                state_bytes: sent.state_bytes,
                ram_bytes_copied: sent.ram_bytes_copied,
            })
        }
        (false, _, Err(error)) | (false, Err(error), Ok(_)) => {
            Err(error.context("the QEMU that is installed does not take its state; it runs on in the one that it had"))
        }
        (false, Ok(_), Ok(_)) => bail!("it runs on in the QEMU that it had, and nothing says why"),
    }
}

/// Ends what a daemon that is no more had begun with the guests whose QEMUs have these sockets. Returns what could not be ended,
/// in words.
pub(super) fn go_on(sys: &SysRoot, sockets: &BTreeSet<PathBuf>) -> Vec<String> {
    let mut problems = Vec::new();
    for socket in sockets {
        let ended = match fs::read(beside(socket, NOTE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => Err(error.into()),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(anyhow::Error::from),
        };
        if let Err(error) = ended.and_then(|guest: Guest| found(sys, &guest)) {
            problems.push(format!(
                "the QEMU at {} was being replaced: {error:#}",
                socket.display()
            ));
        }
    }
    problems
}

fn found(sys: &SysRoot, guest: &Guest) -> Result<()> {
    let mut old = attach(&guest.aside())?;
    let mut new = attach(&guest.spec.qmp)?;
    if old.is_none() && !guest.aside().exists() {
        // Its monitor was not renamed yet, or is so no more: the QEMU that has it has the guest.
        return match &mut new {
            Some(only) => guest.back(only),
            None => guest.end(),
        };
    }
    if let (Some(old), None) = (&old, &new) {
        // One that was just started would take the guest's sockets.
        orphan::end_but(sys, &guest.spec, old.pid)?;
    }
    let moved = guest.settle(old.as_mut(), new.as_mut(), Came::Unknown)?;
    let which = if moved { "its new QEMU" } else { "the QEMU that it had" };
    tracing::info!("guest {}: it runs in {which}", guest.spec.name);
    Ok(())
}

/// Refuses a QEMU that systemd would start anew when it is killed: one that is its own child, in a service.
fn restarted_by(sys: &SysRoot, pid: Pid) -> Result<()> {
    let process = Process::new(sys, pid);
    if process
        .stat()
        .is_none_or(|stat| stat.parent != Pid::INIT.as_raw_nonzero().get())
    {
        return Ok(());
    }
    let groups = fs::read_to_string(process.proc("cgroup")).unwrap_or_default();
    let mut names = groups.lines().filter_map(|line| line.rsplit('/').next());
    // Locum's own has those that came by a refresh, and ends with its daemon alone.
    match names.find(|name| name.ends_with(".service") && *name != OWN_UNIT) {
        Some(unit) => bail!(
            "its QEMU is the process of {unit}, and systemd would start it anew, or take the guest for dead: restart that unit, \
             or start the guest in a scope (`systemd-run --scope`)"
        ),
        None => Ok(()),
    }
}

/// Puts the new process into the file that had the old one (`-pidfile`).
fn write_pid(sys: &SysRoot, command: &[String], old: Pid, new: Pid) {
    let items = argv::items(command);
    let named = items
        .iter()
        .rev()
        .find(|item| item.name == "pidfile")
        .and_then(argv::Item::argument);
    let Some(path) = named.and_then(|name| name.strip_prefix('/')).map(|name| sys.path(name)) else {
        return;
    };
    let is_old = fs::read_to_string(&path).is_ok_and(|text| text.trim() == old.as_raw_nonzero().to_string());
    if is_old && let Err(error) = fs::write(&path, format!("{}\n", new.as_raw_nonzero())) {
        tracing::warn!("{}: {error}", path.display());
    }
}

/// The QEMU at that socket; `None` if nobody listens there.
fn attach(path: &Path) -> Result<Option<QemuVm>> {
    match QemuVm::at(path) {
        Err(error) if qemu::nobody_listens(&error) => Ok(None),
        outcome => outcome.map(Some).with_context(|| path.display().to_string()),
    }
}

fn beside(socket: &Path, ending: &str) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(ending);
    PathBuf::from(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    #[test]
    fn a_service_that_systemd_would_start_anew_is_refused() {
        let tree = Tree::lab();
        let refused = |parent: u32, group: &str| {
            tree.put("proc/100/stat", format!("100 (qemu) S {parent}{}\n", " 1".repeat(48)));
            tree.put("proc/100/cgroup", format!("0::{group}\n"));
            restarted_by(&tree.sys(), Pid::from_raw(100).unwrap()).is_err()
        };
        assert!(refused(1, "/system.slice/vm1.service"));
        assert!(!refused(1, "/machine.slice/vm1.scope"));
        assert!(!refused(1, "/system.slice/locum.service"));
        assert!(
            !refused(77, "/system.slice/runner.service"),
            "a child of another process"
        );
    }

    #[test]
    fn a_pidfile_has_the_new_process_if_it_had_the_old_one() {
        let tree = Tree::lab();
        let command: Vec<String> = ["qemu", "-pidfile", "/run/vm1.pid"].map(str::to_owned).into();
        let after = |before: &str| {
            tree.put("run/vm1.pid", before);
            let pid = |pid| Pid::from_raw(pid).unwrap();
            write_pid(&tree.sys(), &command, pid(100), pid(200));
            tree.sys().read("run/vm1.pid").unwrap()
        };
        assert_eq!(after("100\n"), "200");
        assert_eq!(after("300\n"), "300");
    }
}
