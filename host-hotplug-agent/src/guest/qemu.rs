//! Real guests: QEMU over QMP. What one QEMU does is in [`super::running`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use partitioner::PlanError;
use rustix::process::Pid;
use serde_json::{Value, json};

use super::bound::Bound;
use super::others::{self, Other};
use super::pool::Pool;
use super::process::Process;
use super::qmp::{Monitor, Qmp};
use super::renew::{self, Renewed};
use super::running::QemuVm;
use super::{Hypervisor, Ram, Spec, Vm, argv, discover, orphan, storage, tied, users};
use crate::config;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::sysroot::SysRoot;

/// For QEMU to answer a command that does not wait for anything.
pub(super) const ANSWER: Duration = Duration::from_secs(30);
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
        let pid = qmp.peer().map_err(refuse)?;
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
        let spec = self.survey(guest, channel, &mut qmp, process, &refuse)?;
        let command = command(guest, &running, process)?;
        let command = with_machine(&mut qmp, guest, &command, &until);
        Ok(Spec {
            command: argv::incoming(&command),
            ..spec
        })
    }

    fn attach(&self, spec: &Spec) -> Result<Box<dyn Vm>> {
        let vm = QemuVm::at(&spec.qmp).context("its QEMU does not answer")?;
        Ok(Box::new(vm))
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

    fn guests_here(&self) -> Result<Vec<config::Guest>, Refusal> {
        self.discover(&|_| None)
    }

    fn renew(&self, spec: &Spec, until: &Deadline<'_>) -> Result<Renewed> {
        let in_pool = |vm: &mut QemuVm| {
            let process = Process::new(&self.sys, vm.pid);
            let found = self.in_pool(&mut vm.qmp, process, until)?;
            found
                .map(drop)
                .map_err(|problem| anyhow!("its RAM would not be in the pool ({problem})"))
        };
        renew::renew(&self.sys, spec, until, &in_pool)
    }

    fn go_on_renewing(&self) -> Vec<String> {
        let users = users::each(&self.sys, &self.pool).into_iter();
        let socket = |pid| {
            let command = Process::new(&self.sys, pid).command().ok()?;
            discover::socket(&argv::items(&command))
        };
        renew::go_on(&self.sys, &users.filter_map(socket).collect())
    }

    fn others(&self, going: &[Spec]) -> Vec<Other> {
        self.others_with(going, &|_| None)
    }

    fn shut_down(&self, other: &Other, until: &Deadline<'_>) -> Result<()> {
        others::shut_down(&self.sys, other, until)
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
    /// What is found out of any QEMU by its monitor. How it is started is not in it.
    ///
    /// # Errors
    /// [`Refusal::NotInPool`], [`Refusal::Tied`], [`PlanError::NoPool`], or what `refuse` makes of an error.
    pub(super) fn survey(
        &self,
        guest: &config::Guest,
        channel: usize,
        qmp: &mut dyn Monitor,
        process: Process<'_>,
        refuse: &dyn Fn(anyhow::Error) -> Refusal,
    ) -> Result<Spec, Refusal> {
        let until = Deadline::after(ANSWER);
        if self.pool == Pool::None {
            return Err(PlanError::NoPool.into());
        }
        let files = self.in_pool(qmp, process, &until).map_err(refuse)?;
        let files = files.map_err(|problem| Refusal::NotInPool {
            guest: guest.name.clone(),
            problem,
            device: self.pool.device(&self.sys),
        })?;
        let ties = tied::examine(qmp, &until).map_err(refuse)?;
        if !ties.is_empty() {
            return Err(Refusal::Tied {
                guest: guest.name.clone(),
                what: ties.join("; "),
            });
        }
        let disks = storage::examine(qmp, process, &until).map_err(refuse)?;
        let ram = files.into_iter().filter_map(|backend| {
            let Backend { file, offset, size } = backend;
            let at = self.pool.address(&self.sys, process, &file)?;
            let known = self.pool.is_one_piece(&self.sys, process, &file);
            let size = if known { size } else { 0 };
            Some(Ram { file, at, offset, size })
        });
        let uuid = qmp.execute("query-uuid", json!({}), &until).unwrap_or_default();
        let uuid = uuid.get("UUID").and_then(Value::as_str).map(str::to_owned);
        let release = release(qmp, &until).unwrap_or_else(|error| {
            tracing::warn!("guest {}: its QEMU does not tell its release ({error:#})", guest.name);
            None
        });
        Ok(Spec {
            name: guest.name.clone(),
            qmp: guest.qmp.clone(),
            command: Vec::new(),
            output: output(process, &guest.name),
            channel,
            ram: ram.collect(),
            uuid,
            libvirt: guest.libvirt.clone(),
            release,
            pid: Some(process.pid()),
            disks,
            networks: Vec::new(),
            confined: None,
        })
    }

    /// The guests that are here, of those that libvirt has as `domains` says.
    ///
    /// # Errors
    /// As [`discover::guests`].
    pub(super) fn discover(&self, domains: discover::Domains<'_>) -> Result<Vec<config::Guest>, Refusal> {
        discover::guests(&self.sys, &self.pool, domains)
    }

    /// [`Hypervisor::others`], of which libvirt has some as `domains` says.
    pub(super) fn others_with(&self, going: &[Spec], domains: discover::Domains<'_>) -> Vec<Other> {
        let going: Vec<Pid> = going.iter().filter_map(|spec| spec.pid).collect();
        others::all(&self.sys, &going, &users::each(&self.sys, &self.pool), domains)
    }

    /// The files with a guest's RAM, or what is wrong if some of it is not in the pool.
    fn in_pool(
        &self,
        qmp: &mut dyn Monitor,
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
fn with_machine(qmp: &mut dyn Monitor, guest: &config::Guest, command: &[String], until: &Deadline<'_>) -> Vec<String> {
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
pub(super) fn release(qmp: &mut dyn Monitor, until: &Deadline<'_>) -> Result<Option<(u32, u32)>> {
    let version = qmp.execute("query-version", json!({}), until)?;
    let number = |part| u32::try_from(version.get("qemu")?.get(part)?.as_u64()?).ok();
    Ok(number("major").zip(number("minor")))
}

/// The name of the machine type, versioned if it has versions.
fn machine_type(qmp: &mut dyn Monitor, until: &Deadline<'_>) -> Result<String> {
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

/// Whether a connection failed because no QEMU is there.
pub(super) fn nobody_listens(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
}
