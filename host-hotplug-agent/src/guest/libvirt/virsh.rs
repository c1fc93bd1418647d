//! What Locum has libvirt do, by `virsh`: libvirt's own library would bind this program to one build of it.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::deadline::Deadline;
use crate::guest::qemu::ANSWER;
use crate::guest::qmp::Monitor;
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

    /// Notes when a domain's QEMU tells of an event, until it is dropped.
    ///
    /// # Errors
    /// If `virsh` does not start.
    pub fn watch(&self, domain: &str, event: &str) -> Result<Watch> {
        let mut command = self.command(&["qemu-monitor-event", domain, "--event", event, "--loop"]);
        let mut child = Running(command.stderr(Stdio::null()).spawn().context("starting virsh")?);
        let out = child.0.stdout.take().context("virsh has no output")?;
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(out).lines().map_while(Result::ok);
            lines
                .filter(|line| line.starts_with("event "))
                .map(|_| tsc::now())
                .last()
        });
        Ok(Watch { child, reader })
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
    reader: std::thread::JoinHandle<Option<u64>>,
}

impl Watch {
    /// The TSC at the last one that was heard of.
    pub fn last(self) -> Option<u64> {
        drop(self.child);
        self.reader.join().ok().flatten()
    }
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
