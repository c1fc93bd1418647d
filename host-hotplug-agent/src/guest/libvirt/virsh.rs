//! What Locum has libvirt do, by `virsh`: libvirt's own library would bind this program to one build of it.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::absent::Absent;
use crate::deadline::Deadline;
use crate::guest::qemu::ANSWER;
use crate::guest::qmp::Monitor;
use crate::sysroot::SysRoot;
use crate::tsc;

/// The program.
const VIRSH: &str = "virsh";
/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(10);
/// Sockets of libvirt's daemons: of the one for all, and of QEMU's own.
const SOCKETS: [&str; 2] = ["run/libvirt/libvirt-sock", "run/libvirt/virtqemud-sock"];

/// The libvirt of one host.
#[derive(Clone, Debug)]
pub struct Libvirt {
    /// Its daemon's socket.
    socket: PathBuf,
}

/// What a domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// It is not known, or shut off.
    Off,
    /// It runs.
    Running,
    /// It has a QEMU, and does not run.
    Paused,
}

impl Libvirt {
    /// With the daemon that listens there.
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// This host's, if there is one.
    pub fn here(root: &Path) -> Option<Self> {
        let mut sockets = SOCKETS.iter().map(|socket| root.join(socket));
        sockets.find(|socket| socket.exists()).map(Self::at)
    }

    /// This host's, which there must be.
    ///
    /// # Errors
    /// There is none.
    pub fn needed(sys: &SysRoot) -> Result<Self, Absent> {
        Self::here(&sys.path("")).ok_or_else(|| Absent::on(sys))
    }

    /// Its daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has `virsh` do that, and returns what it printed.
    ///
    /// # Errors
    /// What it said, or that it took too long: then it is ended.
    pub fn run<W: AsRef<OsStr>>(&self, words: &[W], until: &Deadline<'_>) -> Result<String> {
        let what = words.first().map(|word| word.as_ref().to_string_lossy().into_owned());
        let what = format!("virsh {}", what.unwrap_or_default());
        let mut child = Running(self.command(words).spawn().context("starting virsh")?);
        let (mut out, mut err) = (child.0.stdout.take(), child.0.stderr.take());
        let (text, complaint, status) = std::thread::scope(|scope| {
            let read = |from: Option<&mut (dyn Read + Send)>| {
                let mut bytes = Vec::new();
                if let Some(from) = from {
                    let _ = from.read_to_end(&mut bytes);
                }
                String::from_utf8_lossy(&bytes).trim().to_owned()
            };
            let text = scope.spawn(move || read(out.as_mut().map(|out| out as _)));
            let complaint = scope.spawn(move || read(err.as_mut().map(|err| err as _)));
            let status = until.find(LOOK, || child.0.try_wait());
            if !matches!(status, Ok(Some(_))) {
                let _ = child.0.kill();
            }
            (
                text.join().unwrap_or_default(),
                complaint.join().unwrap_or_default(),
                status,
            )
        });
        match status? {
            Some(status) if status.success() => Ok(text),
            Some(_) => bail!("{what}: {}", complaint.strip_prefix("error: ").unwrap_or(&complaint)),
            None if until.given_up() => bail!("{what}: given up"),
            None => bail!("{what} did not end in time: does libvirt's daemon hang?"),
        }
    }

    fn command<W: AsRef<OsStr>>(&self, words: &[W]) -> Command {
        let mut command = Command::new(VIRSH);
        command
            .args(["--quiet", "--connect"])
            .arg(format!("qemu+unix:///system?socket={}", self.socket.display()))
            .args(words)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// What a domain does.
    ///
    /// # Errors
    /// If libvirt does not say.
    pub fn state(&self, domain: &str, until: &Deadline<'_>) -> Result<DomainState> {
        let told = match self.run(&["domstate", domain], until) {
            Err(error) if format!("{error}").contains("failed to get domain") => return Ok(DomainState::Off),
            told => told?,
        };
        Ok(match told.as_str() {
            // It runs on while it is saved, or shuts down.
            "running" | "in shutdown" | "idle" => DomainState::Running,
            "shut off" | "crashed" | "no state" => DomainState::Off,
            _ => DomainState::Paused,
        })
    }

    /// Domains that have a QEMU: name and UUID.
    ///
    /// # Errors
    /// If libvirt does not say.
    pub fn active(&self, until: &Deadline<'_>) -> Result<Vec<(String, String)>> {
        let told = self.run(&["list", "--name", "--uuid"], until)?;
        let pairs = told.lines().filter_map(|line| {
            let (uuid, name) = line.trim().split_once(' ')?;
            Some((name.trim().to_owned(), uuid.to_owned()))
        });
        Ok(pairs.collect())
    }

    /// The monitor of a domain's QEMU.
    pub fn monitor<'a>(&'a self, domain: &'a str) -> impl Monitor + 'a {
        DomainMonitor { libvirt: self, domain }
    }

    /// Notes when a domain's QEMU tells of an event.
    ///
    /// # Errors
    /// If `virsh` does not start.
    pub fn watch(&self, domain: &str, event: &str) -> Result<Watch> {
        let words = ["qemu-monitor-event", domain, "--event", event, "--loop"];
        let mut command = self.command(&words);
        let child = Running(command.stderr(Stdio::null()).spawn().context("starting virsh")?);
        Ok(Watch {
            child,
            begun: Moment::now(),
        })
    }
}

/// The same moment by the TSC and by the wall clock, of which QEMU tells.
#[derive(Clone, Copy, Debug)]
struct Moment {
    tsc: u64,
    seconds: f64,
}

impl Moment {
    #[expect(
        clippy::disallowed_methods,
        reason = "QEMU tells by that clock, and nothing waits for it"
    )]
    fn now() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            tsc: tsc::now(),
            seconds: wall.as_secs_f64(),
        }
    }

    /// The TSC at `seconds`, if that lies between this moment and a later one.
    fn tsc_at(&self, seconds: f64, later: Self) -> Option<u64> {
        let part = (seconds - self.seconds) / (later.seconds - self.seconds);
        let ticks = later.tsc.checked_sub(self.tsc)?;
        // A clock that was set meanwhile tells nothing.
        (0.0..=1.0)
            .contains(&part)
            .then(|| self.tsc + (ticks as f64 * part) as u64)
    }
}

/// A process that is ended with this.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for an event.
#[derive(Debug)]
pub struct Watch {
    child: Running,
    begun: Moment,
}

impl Watch {
    /// The TSC at the last one that it heard of.
    pub fn last(mut self) -> Option<u64> {
        let pid = i32::try_from(self.child.0.id()).ok().and_then(Pid::from_raw)?;
        // It says what it heard as it ends by that.
        kill_process(pid, Signal::INT).ok()?;
        let mut told = String::new();
        self.child.0.stdout.take()?.read_to_string(&mut told).ok()?;
        let seconds = told.lines().filter_map(event_time).next_back()?;
        self.begun.tsc_at(seconds, Moment::now())
    }
}

/// When QEMU told of an event, in seconds: `event STOP at 1795909092.876398 for domain 'g': <null>`.
fn event_time(line: &str) -> Option<f64> {
    let (_, rest) = line.strip_prefix("event ")?.split_once(" at ")?;
    rest.split(' ').next()?.parse().ok()
}

/// The monitor of a domain's QEMU, which is libvirt's.
struct DomainMonitor<'a> {
    libvirt: &'a Libvirt,
    domain: &'a str,
}

impl Monitor for DomainMonitor<'_> {
    fn execute(&mut self, command: &str, arguments: Value, until: &Deadline<'_>) -> Result<Value> {
        let command = json!({ "execute": command, "arguments": arguments }).to_string();
        let told = self
            .libvirt
            .run(&["qemu-monitor-command", self.domain, &command], until)?;
        let answer: Value = serde_json::from_str(&told).with_context(|| format!("{told} is no JSON"))?;
        if let Some(error) = answer.get("error") {
            let text = error.get("desc").and_then(Value::as_str);
            bail!("QMP: {}", text.unwrap_or("an error without description"));
        }
        Ok(answer.get("return").cloned().unwrap_or_default())
    }
}

/// For an answer of libvirt's.
pub fn answer() -> Deadline<'static> {
    Deadline::after(ANSWER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_placed_between_two_moments() {
        let line = "event STOP at 1795909092.876398 for domain 'g': <null>";
        let seconds = event_time(line).unwrap();
        assert!((seconds - 1_795_909_092.876_398).abs() < 1e-5);
        assert_eq!(event_time("events received: 1"), None);
        assert_eq!(event_time("event loop interrupted"), None);
        let at = |tsc, seconds| Moment { tsc, seconds };
        let (first, last) = (at(1000, 10.0), at(3000, 12.0));
        assert_eq!(first.tsc_at(10.5, last), Some(1500));
        assert_eq!(first.tsc_at(9.0, last), None, "the clock was set");
        assert_eq!(first.tsc_at(13.0, last), None);
        assert_eq!(first.tsc_at(10.5, at(3000, 10.0)), None);
    }
}
