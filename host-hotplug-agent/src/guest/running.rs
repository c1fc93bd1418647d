//! A running QEMU: started for a guest, the guest sent, received and resumed, and its end.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::frames::{self, Coming, Frame, Held};
use super::process::Process;
use super::qemu::ANSWER;
use super::qmp::{Monitor, Qmp, QmpError};
use super::{Place, Received, Sent, Spec, Vm, orphan};
use crate::channel::{Port, stream};
use crate::deadline::Deadline;
use crate::file;
use crate::sysroot::SysRoot;
use crate::tsc;

/// For QEMU to close its connection once it is told to quit.
const QUIT: Duration = Duration::from_secs(10);
/// For its process to end after that.
const END: Duration = Duration::from_secs(2);
/// For its process to be gone once it is killed.
const KILLED: Duration = Duration::from_secs(3);
/// For the other agent to say what came for a guest there, once it runs here.
const LATE: Duration = Duration::from_millis(500);
/// The capability that leaves shared RAM out of the stream.
const IGNORE_SHARED: &str = "x-ignore-shared";
/// One QEMU process.
pub struct QemuVm {
    /// Its monitor.
    pub(super) qmp: Qmp,
    /// Its number.
    pub(super) pid: Pid,
    /// If this daemon has started it.
    child: Option<Child>,
    /// Whether all of its guest went into the channel, if this daemon has sent it.
    sent: Option<bool>,
    /// Its taps, while its guest leaves.
    held: Option<Held>,
    /// Its taps, when its guest has just come.
    coming: Coming,
}

impl QemuVm {
    /// One that was there before, by its monitor's socket.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn at(path: &Path) -> Result<Self> {
        let qmp = Qmp::connect(path, &Deadline::after(ANSWER))?;
        let pid = qmp.peer()?;
        Ok(Self {
            qmp,
            pid,
            child: None,
            sent: None,
            held: None,
            coming: Coming::default(),
        })
    }

    /// What was kept goes to the tap, for whoever has it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn let_frames_pass(&mut self) -> Result<()> {
        self.held.take().map_or(Ok(()), Held::give_back)
    }

    /// Begins an outgoing migration: its stream, the guest's RAM in bytes, and the TSC at which it began.
    fn migrate(&mut self, until: &Deadline<'_>) -> Result<(UnixStream, u64, u64)> {
        set_up(&mut self.qmp, until)?;
        let ram_size = memory_size(&mut self.qmp, until)?;
        let (ours, theirs) = UnixStream::pair()?;
        self.qmp.getfd("locum", theirs.as_fd(), until)?;
        drop(theirs);
        self.qmp.drop_events();
        let begun = tsc::now();
        self.qmp.execute("migrate", json!({ "uri": "fd:locum" }), until)?;
        Ok((ours, ram_size, begun))
    }

    /// Starts one for a guest that is to come.
    ///
    /// # Errors
    /// What QEMU said last, if it ends or does not answer.
    pub fn start(spec: &Spec, until: &Deadline<'_>) -> Result<Self> {
        let (program, args) = spec
            .command
            .split_first()
            .context("the guest's command line is empty")?;
        // A socket left by an earlier QEMU would be taken for the new one's.
        file::remove(&spec.qmp)?;
        for path in [&spec.output, &spec.qmp] {
            if let Some(dir) = path.parent() {
                fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
            }
        }
        let output = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&spec.output)
            .with_context(|| format!("opening {}", spec.output.display()))?;
        let child = Command::new(program)
            .args(args)
            .env(orphan::MARK, &spec.qmp)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let mut started = Started(Some(child));
        let qmp = started.connect(spec, until)?;
        let child = started.0.take();
        let pid = child
            .as_ref()
            .and_then(|child| Pid::from_raw(i32::try_from(child.id()).ok()?));
        let mut vm = Self {
            qmp,
            pid: pid.context("a process without an id")?,
            child,
            sent: None,
            held: None,
            coming: Coming::default(),
        };
        if let Err(error) = set_up(&mut vm.qmp, until) {
            let _ = vm.quit();
            return Err(error);
        }
        Ok(vm)
    }

    /// Ends it without a chance to clean up: a QEMU that quits removes its sockets by their names, which another one may have.
    ///
    /// # Errors
    /// If the process does not end.
    pub(super) fn kill(&mut self) -> Result<()> {
        let _ = kill_process(self.pid, Signal::KILL);
        if self.ends_within(KILLED) {
            return Ok(());
        }
        bail!("process {} does not end: `kill -9` it", self.pid.as_raw_nonzero())
    }

    /// Whether its process has ended, or is about to.
    pub(super) fn has_ended(&mut self) -> bool {
        self.ends_within(END)
    }

    fn ends_within(&mut self, limit: Duration) -> bool {
        Deadline::after(limit).comes_true(Duration::from_millis(10), || self.gone())
    }

    fn gone(&mut self) -> bool {
        match &mut self.child {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => Process::new(&SysRoot::default(), self.pid).ended(),
        }
    }
}

/// A process that is killed unless it becomes a [`QemuVm`].
struct Started(Option<Child>);

impl Started {
    fn connect(&mut self, spec: &Spec, until: &Deadline<'_>) -> Result<Qmp> {
        let found = until.find(Duration::from_millis(5), || {
            if let Ok(qmp) = Qmp::connect(&spec.qmp, until) {
                return Ok(Some(qmp));
            }
            match self.0.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                Some(status) => bail!("QEMU ended ({status}): {}", last_line(&spec.output)),
                None => Ok(None),
            }
        })?;
        match found {
            Some(qmp) => Ok(qmp),
            None if until.given_up() => Err(QmpError::GivenUp.into()),
            None => bail!(
                "QEMU did not open {} in time: {}",
                spec.qmp.display(),
                last_line(&spec.output)
            ),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Vm for QemuVm {
    fn send(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Sent> {
        self.sent = Some(false);
        let (ours, ram_size, begun) = self.migrate(until).inspect_err(|_| stream::abandon(port, until))?;
        let mut sent = Sent {
            begun,
            ..Sent::default()
        };
        let qmp = &mut self.qmp;
        let (pumped, stopped) = std::thread::scope(|scope| {
            let pump = scope.spawn(move || {
                let bytes = stream::send(ours, port, until);
                (bytes, tsc::now())
            });
            let stopped = completion(qmp, until);
            (pump.join(), stopped)
        });
        let (bytes, saved) = pumped.map_err(|_| anyhow!("the pump panicked"))?;
        self.sent = Some(bytes.is_ok());
        sent.stopped = stopped?;
        sent.state_bytes = bytes?;
        sent.saved = saved;
        let info = qmp.execute("query-migrate", json!({}), until)?;
        let ram = |key: &str| {
            info.get("ram")
                .and_then(|ram| ram.get(key))
                .and_then(Value::as_u64)
                .unwrap_or(0)
        };
        // Ignored blocks are left out of the total: guest RAM in it means that it was sent.
        sent.ram_bytes_copied = if ram("total") >= ram_size {
            ram("normal-bytes")
        } else {
            0
        };
        Ok(sent)
    }

    fn receive(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Received> {
        let (ours, theirs) = UnixStream::pair()?;
        self.qmp.getfd("locum", theirs.as_fd(), until)?;
        drop(theirs);
        self.qmp.drop_events();
        self.qmp
            .execute("migrate-incoming", json!({ "uri": "fd:locum" }), until)?;
        let qmp = &mut self.qmp;
        let (pumped, resumed) = std::thread::scope(|scope| {
            let pump = scope.spawn(move || {
                let bytes = stream::receive(port, ours, until);
                (bytes, tsc::now())
            });
            let resumed = resumption(qmp, until);
            (pump.join(), resumed)
        });
        self.coming.end_after(LATE);
        let (bytes, received) = pumped.map_err(|_| anyhow!("the pump panicked"))?;
        match (bytes, resumed) {
            (_, Ok(resumed)) => Ok(Received { received, resumed }),
            (Err(stream), Err(_)) => Err(anyhow!(stream).context("reading the guest's state")),
            (Ok(_), Err(error)) => Err(error.context("QEMU did not accept the guest's state; see its output")),
        }
    }

    fn keep_frames(&mut self) {
        self.held = Held::of(&SysRoot::default(), self.pid);
    }

    fn late_frames(&mut self) -> Vec<Vec<Frame>> {
        let taken = self.held.take().map_or(Ok(Vec::new()), Held::take);
        taken.unwrap_or_else(|error| {
            tracing::warn!("what its network had for the guest while it crossed is lost: {error:#}");
            Vec::new()
        })
    }

    fn hold_frames(&mut self) {
        self.coming = Coming::of(&SysRoot::default(), self.pid);
    }

    fn give_frames(&mut self, all: &[Vec<Frame>]) -> Result<()> {
        let give = || frames::give(&SysRoot::default(), self.pid, all);
        self.coming.follow(give)
    }

    fn resume(&mut self) -> Result<()> {
        let until = Deadline::after(ANSWER);
        // Harmless if no migration is under way.
        let _ = self.qmp.execute("migrate_cancel", json!({}), &until);
        loop {
            match run_state(&mut self.qmp, &until)?.as_str() {
                "running" => return self.plain(),
                // Between stop and the end of a migration, or of its cancellation.
                "finish-migrate" | "save-vm" => std::thread::sleep(Duration::from_millis(10)),
                _ => {
                    self.qmp
                        .execute("cont", json!({}), &until)
                        .context("resuming the guest")?;
                }
            }
            if until.passed() {
                bail!("QEMU does not resume the guest");
            }
        }
    }

    fn place(&mut self) -> Result<Place> {
        Ok(match run_state(&mut self.qmp, &Deadline::after(ANSWER))?.as_str() {
            "running" => Place::Running,
            "inmigrate" => Place::Waiting,
            _ => Place::Stopped,
        })
    }

    fn arrive(&mut self) -> Result<Place> {
        let place = self.place()?;
        if place == Place::Running {
            self.plain()?;
        }
        if place != Place::Waiting {
            return Ok(place);
        }
        // While a state is awaited, this only keeps the guest from running when it has come (QEMU's qmp_stop()).
        let until = Deadline::after(ANSWER);
        self.qmp.execute("stop", json!({}), &until)?;
        if self.place()? == Place::Waiting {
            self.quit()?;
            return Ok(Place::Waiting);
        }
        // It came between the two questions, all of it: so it is stopped in the other host.
        self.qmp.execute("cont", json!({}), &until)?;
        self.plain()?;
        Ok(Place::Running)
    }

    fn has_gone(&mut self) -> Result<bool> {
        match self.sent {
            Some(sent) => Ok(sent),
            // Into the stream at least, of which the channel may not have had the end.
            None => Ok(run_state(&mut self.qmp, &Deadline::after(ANSWER))? == "postmigrate"),
        }
    }

    fn has_come(&mut self) -> Result<bool> {
        match self.arrive() {
            Ok(Place::Waiting) => return Ok(false),
            Ok(Place::Running) => return Ok(true),
            Ok(Place::Stopped) => return self.resume().map(|()| true),
            Err(error) => tracing::debug!("{error:#}"),
        }
        self.quit()?;
        // QEMU tells so before its guest runs.
        if self.qmp.heard("RESUME") {
            bail!("the guest had run before its QEMU ended");
        }
        Ok(false)
    }

    fn plain(&mut self) -> Result<()> {
        if let Err(error) = self.let_frames_pass() {
            tracing::warn!("what its network had for the guest while it was to cross is lost: {error:#}");
        }
        let until = Deadline::after(ANSWER);
        ignore_shared(&mut self.qmp, false, &until)?;
        // QEMU's own (migration/options.c). A guest may not stand still as long in an ordinary migration.
        let parameters = json!({ "max-bandwidth": 128u64 << 20, "downtime-limit": 300 });
        self.qmp.execute("migrate-set-parameters", parameters, &until).map(drop)
    }

    fn quit(&mut self) -> Result<()> {
        let until = Deadline::after(QUIT);
        let _ = self.qmp.execute("quit", json!({}), &until);
        let _ = self.qmp.wait_closed(&until);
        if self.ends_within(END) {
            return Ok(());
        }
        self.kill().context("its QEMU")
    }
}

/// QEMU's `RunState`.
fn run_state(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<String> {
    let status = qmp.execute("query-status", json!({}), until)?;
    let state = status.get("status").and_then(Value::as_str);
    Ok(state.context("QEMU does not tell its state")?.to_owned())
}

/// Has an outgoing or incoming migration leave shared RAM where it is, or not.
///
/// # Errors
/// If QEMU refuses.
pub(super) fn ignore_shared(qmp: &mut dyn Monitor, state: bool, until: &Deadline<'_>) -> Result<()> {
    let capabilities = json!({ "capabilities": [{ "capability": IGNORE_SHARED, "state": state }] });
    let mut refused = None;
    // QEMU refuses as long as a migration, or its cancellation, goes on.
    let done = until.find(Duration::from_millis(20), || {
        match qmp.execute("migrate-set-capabilities", capabilities.clone(), until) {
            Err(error) if error.downcast_ref::<QmpError>().is_none() => {
                refused = Some(error);
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    })?;
    if done.is_none() {
        let why = refused.unwrap_or_else(|| anyhow!("no answer"));
        let what = if state { "on" } else { "off" };
        return Err(why.context(format!("switching {IGNORE_SHARED} {what}")));
    }
    Ok(())
}

/// Capabilities and limits of a migration, the same on both sides.
fn set_up(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<()> {
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = [on(IGNORE_SHARED), on("events")];
    qmp.execute(
        "migrate-set-capabilities",
        json!({ "capabilities": capabilities }),
        until,
    )
    .context("this QEMU cannot leave shared RAM where it is: use QEMU 4.0 or later")?;
    // Nothing is to wait for a rate limit, nor to iterate: what is left is small.
    let parameters = json!({ "max-bandwidth": 100u64 << 30, "downtime-limit": 300_000 });
    qmp.execute("migrate-set-parameters", parameters, until).map(drop)
}

/// Waits for the end of an outgoing migration; returns the TSC at which the guest stopped.
fn completion(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<u64> {
    let mut stopped = 0;
    loop {
        let event = qmp.event(&["STOP", "MIGRATION"], until)?;
        if event.name == "STOP" {
            stopped = event.tsc;
            continue;
        }
        match event.data.get("status").and_then(Value::as_str) {
            Some("completed") => return Ok(stopped),
            Some(status @ ("failed" | "cancelled")) => {
                let info = qmp.execute("query-migrate", json!({}), until).unwrap_or_default();
                let why = info
                    .get("error-desc")
                    .and_then(Value::as_str)
                    .unwrap_or("QEMU does not say why");
                bail!("the migration {status}: {why}");
            }
            _ => {}
        }
    }
}

/// Waits for the guest to run after an incoming migration; returns the TSC.
fn resumption(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<u64> {
    loop {
        let event = qmp.event(&["RESUME", "MIGRATION"], until)?;
        if event.name == "RESUME" {
            return Ok(event.tsc);
        }
        if event.data.get("status").and_then(Value::as_str) == Some("failed") {
            bail!("the incoming migration failed");
        }
    }
}

/// Bytes of the guest's RAM.
pub(super) fn memory_size(qmp: &mut dyn Monitor, until: &Deadline<'_>) -> Result<u64> {
    let summary = qmp.execute("query-memory-size-summary", json!({}), until)?;
    Ok(summary.get("base-memory").and_then(Value::as_u64).unwrap_or(u64::MAX))
}

/// The last line that QEMU printed.
fn last_line(path: &Path) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    match text.trim_end().lines().last() {
        Some(line) => line.to_owned(),
        None => format!("it printed nothing to {}", path.display()),
    }
}
