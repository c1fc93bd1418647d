//! Real guests: QEMU over QMP.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use partitioner::PlanError;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::bound::Bound;
use super::pool::Pool;
use super::process::Process;
use super::qmp::Qmp;
use super::{Hypervisor, Place, Ram, Received, Sent, Spec, Vm, argv, orphan, users};
use crate::channel::port::PortError;
use crate::channel::{Port, stream};
use crate::config;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::sysroot::SysRoot;
use crate::tsc;

/// For QEMU to answer a command that does not wait for anything.
const ANSWER: Duration = Duration::from_secs(30);
/// For QEMU to close its connection once it is told to quit.
const QUIT: Duration = Duration::from_secs(10);
/// For its process to end after that.
const END: Duration = Duration::from_secs(2);
/// For its process to be gone once it is killed.
const KILLED: Duration = Duration::from_secs(3);
/// The capability that leaves shared RAM out of the stream.
const IGNORE_SHARED: &str = "x-ignore-shared";
/// Where output of a QEMU goes whose own output is no file.
const OUTPUT_DIR: &str = "run/locum";

/// QEMU on this host.
#[derive(Clone, Debug)]
pub struct Qemu {
    sys: SysRoot,
    pool: Pool,
}

impl Qemu {
    /// With guests' RAM in `pool`.
    pub fn new(sys: SysRoot, pool: Pool) -> Self {
        Self { sys, pool }
    }
}

impl Hypervisor for Qemu {
    fn inspect(&self, guest: &config::Guest, channel: usize) -> Result<Spec, Refusal> {
        let until = Deadline::after(ANSWER);
        let refuse = |error: anyhow::Error| Refusal::NoGuest {
            guest: guest.name.clone(),
            path: guest.qmp.clone(),
            problem: format!("{error:#}"),
        };
        let mut qmp = Qmp::connect(&guest.qmp, &until).map_err(refuse)?;
        let status = qmp.execute("query-status", json!({}), &until).map_err(refuse)?;
        if status.get("running") != Some(&Value::Bool(true)) {
            let status = status
                .get("status")
                .and_then(Value::as_str)
                .unwrap_or("not running")
                .to_owned();
            return Err(Refusal::GuestNotRunning {
                guest: guest.name.clone(),
                status,
            });
        }
        if self.pool == Pool::None {
            return Err(PlanError::NoPool.into());
        }
        let pid = peer(&qmp).map_err(refuse)?;
        let process = Process::new(&self.sys, pid);
        let running = process.command().map_err(|error| refuse(error.into()))?;
        if !argv::starts_qemu(&running) {
            // Who opens a socket is at its other end, even if another process got it from there.
            return Err(refuse(anyhow!(
                "it was opened by process {} (`{}`), which is no QEMU",
                pid.as_raw_nonzero(),
                running.join(" ")
            )));
        }
        let files = self.in_pool(&mut qmp, process, &until).map_err(refuse)?;
        let files = files.map_err(|problem| Refusal::NotInPool {
            guest: guest.name.clone(),
            problem,
            device: self.pool.device(&self.sys),
        })?;
        let ram = files.into_iter().filter_map(|backend| {
            let Backend { file, offset, size } = backend;
            let at = self.pool.address(&self.sys, process, &file)?;
            let known = self.pool.is_one_piece(&self.sys, process, &file);
            let size = if known { size } else { 0 };
            Some(Ram { file, at, offset, size })
        });
        let uuid = qmp.execute("query-uuid", json!({}), &until).unwrap_or_default();
        let uuid = uuid.get("UUID").and_then(Value::as_str).map(str::to_owned);
        let command = command(guest, &running, process)?;
        let command = with_machine(&mut qmp, guest, &command, &until);
        let release = release(&mut qmp, &until).unwrap_or_else(|error| {
            tracing::warn!("guest {}: its QEMU does not tell its release ({error:#})", guest.name);
            None
        });
        Ok(Spec {
            name: guest.name.clone(),
            qmp: guest.qmp.clone(),
            command: argv::incoming(&command),
            output: output(process, &guest.name),
            channel,
            ram: ram.collect(),
            uuid,
            release,
        })
    }

    fn attach(&self, spec: &Spec) -> Result<Box<dyn Vm>> {
        let qmp = Qmp::connect(&spec.qmp, &Deadline::after(ANSWER)).context("its QEMU does not answer")?;
        let pid = peer(&qmp)?;
        Ok(Box::new(QemuVm { qmp, pid, child: None }))
    }

    fn find(&self, spec: &Spec) -> Result<Option<Box<dyn Vm>>> {
        match self.attach(spec) {
            Err(error) if nobody_listens(&error) => {
                orphan::end(&self.sys, spec)?;
                Ok(None)
            }
            outcome => outcome.map(Some),
        }
    }

    fn prepare(&self, spec: &Spec, until: &Deadline<'_>) -> Result<Box<dyn Vm>> {
        let spec = self.here(spec);
        // One that was started before would have the guest's RAM, and its disks.
        orphan::end(&self.sys, &spec)?;
        let mut vm = QemuVm::start(&spec, until)?;
        let process = Process::new(&self.sys, vm.pid);
        // A QEMU makes a file that is not there: then the guest would go on with empty RAM.
        let problem = match self.in_pool(&mut vm.qmp, process, until) {
            Ok(Ok(_)) => return Ok(Box::new(vm)),
            Ok(Err(problem)) => anyhow!("its RAM is not in the pool here ({problem}): make the pool a device first"),
            Err(error) => error,
        };
        vm.quit()?;
        Err(problem)
    }

    fn users(&self) -> Option<String> {
        users::of(&self.sys, &self.pool)
    }
}

/// A guest's RAM in the pool.
struct Backend {
    file: PathBuf,
    offset: u64,
    size: u64,
}

impl Qemu {
    /// The files with a guest's RAM, or what is wrong if some of it is not in the pool.
    fn in_pool(
        &self,
        qmp: &mut Qmp,
        process: Process<'_>,
        until: &Deadline<'_>,
    ) -> Result<Result<Vec<Backend>, String>> {
        let backends = qmp.execute("query-memdev", json!({}), until)?;
        let backends = backends.as_array().cloned().unwrap_or_default();
        if backends.is_empty() {
            return Ok(Err("it has no memory backend".to_owned()));
        }
        let mut files = Vec::new();
        for backend in backends {
            let id = backend.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
            let path = format!("/objects/{id}");
            let mut get = |property: &str| {
                qmp.execute("qom-get", json!({ "path": path, "property": property }), until)
                    .unwrap_or_default()
            };
            let kind = get("type");
            if kind.as_str() != Some("memory-backend-file") {
                let kind = kind.as_str().unwrap_or("backend of unknown type");
                return Ok(Err(format!("`{id}` is a {kind}")));
            }
            let file = get("mem-path");
            let file = PathBuf::from(file.as_str().unwrap_or_default());
            if let Some(problem) = self.pool.outside(&self.sys, process, &file) {
                return Ok(Err(format!("`{id}` lies in {}, {problem}", file.display())));
            }
            if get("share") != Value::Bool(true) {
                return Ok(Err(format!("`{id}` is not share=on")));
            }
            // QEMU before 8.1 has no offset.
            let (offset, size) = (get("offset").as_u64(), get("size").as_u64());
            files.push(Backend {
                file,
                offset: offset.unwrap_or_default(),
                size: size.unwrap_or_default(),
            });
        }
        Ok(Ok(files))
    }

    /// The specification with this host's names for the devices with the guest's RAM.
    fn here(&self, spec: &Spec) -> Spec {
        let elsewhere = |file: &str| {
            let ram = spec.ram.iter().find(|ram| ram.file == Path::new(file))?;
            let device = self.pool.device_at(&self.sys, ram.at)?;
            (device != ram.file).then(|| device.to_string_lossy().into_owned())
        };
        Spec {
            command: argv::with_ram(&spec.command, &elsewhere),
            ..spec.clone()
        }
    }
}

/// The command line to start another QEMU with, if that can be.
fn command(guest: &config::Guest, running: &[String], process: Process<'_>) -> Result<Vec<String>, Refusal> {
    let find = |path: &Path| process.file(path);
    let own = Bound::of(&argv::incoming(running), Some(&find));
    if !own.temporary.is_empty() {
        return Err(Refusal::TemporaryDisk {
            guest: guest.name.clone(),
            option: own.temporary.join(", "),
        });
    }
    let refuse = |bound: Bound, whose, remedy| {
        Err(Refusal::OneStart {
            guest: guest.name.clone(),
            whose,
            what: bound.to_string(),
            remedy,
        })
    };
    let given = &guest.command;
    if given.is_empty() {
        return match own.is_free() {
            true => Ok(running.to_vec()),
            false => refuse(
                own,
                "the command line of its QEMU",
                "give the guest a `command` that opens and makes these itself",
            ),
        };
    }
    // A script may open descriptors for the QEMU that it starts.
    if given.first().is_some_and(|program| argv::is_qemu(program)) {
        let bound = Bound::of(&argv::incoming(given), None);
        if !bound.is_free() {
            return refuse(
                bound,
                "its `command`",
                "have a script open and make these, and start QEMU",
            );
        }
    }
    Ok(given.clone())
}

/// The command line with the machine type that runs, by its full name.
fn with_machine(qmp: &mut Qmp, guest: &config::Guest, command: &[String], until: &Deadline<'_>) -> Vec<String> {
    let program = command.first().map_or("", String::as_str);
    // A script may have the option itself.
    let may_lack = guest.command.is_empty() || argv::is_qemu(program);
    match machine_type(qmp, until) {
        Ok(machine) => argv::with_machine(command, &machine, may_lack),
        Err(error) => {
            tracing::warn!(
                "guest {}: its QEMU does not tell its machine type ({error:#}): if the successor's is of another version, \
                 start it with a versioned type (`-machine help`)",
                guest.name
            );
            command.to_vec()
        }
    }
}

/// QEMU's release, major and minor.
fn release(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<Option<(u32, u32)>> {
    let version = qmp.execute("query-version", json!({}), until)?;
    let number = |part| u32::try_from(version.get("qemu")?.get(part)?.as_u64()?).ok();
    Ok(number("major").zip(number("minor")))
}

/// The name of the machine type, versioned if it has versions.
fn machine_type(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<String> {
    let class = qmp.execute("qom-get", json!({ "path": "/machine", "property": "type" }), until)?;
    let name = class.as_str().and_then(|class| class.strip_suffix("-machine"));
    name.map(str::to_owned)
        .with_context(|| format!("{class} is no machine"))
}

/// Where the other QEMU's output goes: to the same file, if this one's goes to a file.
fn output(process: Process<'_>, name: &str) -> PathBuf {
    match fs::read_link(process.proc("fd/1")) {
        Ok(path) if path.is_absolute() && fs::metadata(&path).is_ok_and(|file| file.is_file()) => path,
        _ => Path::new("/").join(OUTPUT_DIR).join(format!("{name}.log")),
    }
}

/// One QEMU process.
struct QemuVm {
    qmp: Qmp,
    pid: Pid,
    child: Option<Child>,
}

impl QemuVm {
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

    fn start(spec: &Spec, until: &Deadline<'_>) -> Result<Self> {
        let (program, args) = spec
            .command
            .split_first()
            .context("the guest's command line is empty")?;
        // A socket left by an earlier QEMU would be taken for the new one's.
        match fs::remove_file(&spec.qmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
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
        };
        if let Err(error) = set_up(&mut vm.qmp, until) {
            let _ = vm.quit();
            return Err(error);
        }
        Ok(vm)
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

/// Whether a connection failed because no QEMU is there.
fn nobody_listens(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
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
            None if until.given_up() => Err(PortError::GivenUp.into()),
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
        sent.stopped = stopped?;
        sent.state_bytes = bytes?;
        sent.saved = saved;
        let info = self.qmp.execute("query-migrate", json!({}), until)?;
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
        let (bytes, received) = pumped.map_err(|_| anyhow!("the pump panicked"))?;
        match (bytes, resumed) {
            (_, Ok(resumed)) => Ok(Received { received, resumed }),
            (Err(stream), Err(_)) => Err(anyhow!(stream).context("reading the guest's state")),
            (Ok(_), Err(error)) => Err(error.context("QEMU did not accept the guest's state; see its output")),
        }
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

    fn plain(&mut self) -> Result<()> {
        let until = Deadline::after(ANSWER);
        let off = json!({ "capabilities": [{ "capability": IGNORE_SHARED, "state": false }] });
        let mut refused = None;
        // QEMU refuses as long as a migration, or its cancellation, goes on.
        let done = until.find(Duration::from_millis(20), || {
            match self.qmp.execute("migrate-set-capabilities", off.clone(), &until) {
                Err(error) if error.downcast_ref::<PortError>().is_none() => {
                    refused = Some(error);
                    Ok(None)
                }
                outcome => outcome.map(Some),
            }
        })?;
        if done.is_none() {
            let why = refused.unwrap_or_else(|| anyhow!("no answer"));
            return Err(why.context(format!("switching {IGNORE_SHARED} off")));
        }
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
        let _ = kill_process(self.pid, Signal::KILL);
        if self.ends_within(KILLED) {
            return Ok(());
        }
        bail!(
            "its QEMU (process {}) does not end: `kill -9` it",
            self.pid.as_raw_nonzero()
        )
    }
}

/// QEMU's `RunState`.
fn run_state(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<String> {
    let status = qmp.execute("query-status", json!({}), until)?;
    let state = status.get("status").and_then(Value::as_str);
    Ok(state.context("QEMU does not tell its state")?.to_owned())
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
fn memory_size(qmp: &mut Qmp, until: &Deadline<'_>) -> Result<u64> {
    let summary = qmp.execute("query-memory-size-summary", json!({}), until)?;
    Ok(summary.get("base-memory").and_then(Value::as_u64).unwrap_or(u64::MAX))
}

/// The process at the other end of the socket.
fn peer(qmp: &Qmp) -> Result<Pid> {
    let credentials = rustix::net::sockopt::socket_peercred(qmp.stream())?;
    Ok(credentials.pid)
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
