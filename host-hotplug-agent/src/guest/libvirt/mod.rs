//! Guests that libvirt owns: they cross by its own migration, from the daemon of the one host to that of the other, over
//! sockets that a channel of Locum's carries ([`crate::channel::tunnel`]). Their RAM stays in the pool ([`wrapper`]).
//!
//! libvirt resumes a guest where it came from when it does not hear how its migration ended, though it may run where it went
//! (`qemuMigrationSrcPerformPeer2Peer3`). So it is asked to leave the guest stopped there (`--suspend`), and Locum has it
//! resumed once the other libvirt has given it up.

mod absent;
mod description;
pub mod hook;
pub(super) mod renew;
mod variables;
mod virsh;
pub mod wrapper;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Pid;

pub use description::confined_by;
pub use virsh::{DomainState, Libvirt};

use self::absent::Absent;
use self::description::Description;
use self::virsh::answer;
use super::qmp::Monitor;
use super::running::{ignore_shared, memory_size};
use super::{Place, Received, Sent, Spec, Vm};
use crate::channel::Port;
use crate::channel::tunnel::{self, CONNECTIONS, End, Ending, Side, TunnelError};
use crate::deadline::Deadline;
use crate::file;
use crate::sysroot::SysRoot;
use crate::tsc;

/// Where the sockets of guests that cross are. A QEMU makes one of them.
const SOCKETS: &str = "run/locum/libvirt/sockets";
/// Belongs to whom libvirt's QEMUs run as.
const QEMUS: &str = "var/lib/libvirt/qemu";
/// Between two looks for a daemon that is to come.
const LOOK: Duration = Duration::from_millis(200);
/// For libvirt to end a migration that is given up.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Of the tunnel's connections, the one with the guest's state.
const STATE: usize = 1;

/// The sockets of one guest's crossing, the same on both hosts.
#[derive(Clone, Debug)]
struct Sockets {
    /// What the daemons say to each other.
    words: PathBuf,
    /// The guest's state.
    state: PathBuf,
}

impl Sockets {
    fn of(sys: &SysRoot, uuid: &str) -> Self {
        let path = |name: &str| sys.path(format!("{SOCKETS}/{uuid}.{name}"));
        Self {
            words: path("words"),
            state: path("state"),
        }
    }

    /// Makes their directory, in which a QEMU of libvirt's may make one.
    fn make_room(&self, sys: &SysRoot) -> Result<()> {
        let dir = sys.path(SOCKETS);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&dir)
            .with_context(|| dir.display().to_string())?;
        if let Ok(qemus) = fs::metadata(sys.path(QEMUS)) {
            std::os::unix::fs::chown(&dir, Some(qemus.uid()), Some(qemus.gid()))
                .with_context(|| dir.display().to_string())?;
        }
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        for path in [&self.words, &self.state] {
            file::remove(path).with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    fn listen(&self) -> Result<[UnixListener; CONNECTIONS]> {
        let listen = |path: &Path| UnixListener::bind(path).with_context(|| path.display().to_string());
        Ok([listen(&self.words)?, listen(&self.state)?])
    }
}

/// A domain of a libvirt.
pub struct DomainVm {
    sys: SysRoot,
    libvirt: Libvirt,
    domain: String,
    uuid: String,
    sockets: Sockets,
    /// What is here of the guest is nothing worth: it goes on in the other host.
    void: bool,
}

impl DomainVm {
    /// Of the guest, whether its domain has a QEMU or not.
    ///
    /// # Errors
    /// If `spec` is of no libvirt's.
    pub fn new(sys: &SysRoot, libvirt: Libvirt, spec: &Spec) -> Result<Self> {
        let domain = spec.libvirt.clone().context("it is no guest of libvirt's")?;
        let uuid = spec.uuid.as_deref().context("its domain has no UUID")?;
        Ok(Self {
            sys: sys.clone(),
            libvirt,
            domain,
            uuid: uuid.to_owned(),
            sockets: Sockets::of(sys, uuid),
            void: false,
        })
    }

    /// One that waits for the guest: libvirt starts its QEMU when the other libvirt asks for that.
    ///
    /// # Errors
    /// If there is no libvirt, or it cannot take the guest.
    pub fn waiting(sys: &SysRoot, spec: &Spec, until: &Deadline<'_>) -> Result<Self> {
        let found = until.find(LOOK, || Ok::<_, anyhow::Error>(Libvirt::here(&sys.path(""))))?;
        let libvirt = found.ok_or_else(|| Absent::on(sys))?;
        let vm = Self::new(sys, libvirt, spec)?;
        // It asks the QEMU what it can do, once for each: longer than a guest should stand still.
        vm.libvirt
            .run(&["domcapabilities", "--emulatorbin", wrapper::EMULATOR], until)
            .context("libvirt does not know the emulator")?;
        let state = vm.libvirt.state(&vm.domain, until)?;
        ensure!(
            state == DomainState::Off,
            "libvirt has domain {} running or paused here already",
            vm.domain
        );
        vm.sockets.make_room(sys)?;
        Ok(vm)
    }

    fn monitor(&self) -> impl Monitor {
        self.libvirt.monitor(&self.domain)
    }

    /// Whether its domain has a QEMU.
    ///
    /// # Errors
    /// If libvirt does not say.
    pub fn is_here(&self) -> Result<bool> {
        Ok(self.state()? != DomainState::Off)
    }

    fn state(&self) -> Result<DomainState> {
        self.libvirt.state(&self.domain, &answer())
    }

    /// Whether all of the guest has come, and libvirt does not go on with it.
    fn is_complete(&self) -> Result<bool> {
        let told = self.libvirt.run(&["domstate", "--reason", &self.domain], &answer())?;
        Ok(told.starts_with("paused") && !told.contains("migrat"))
    }

    /// How a migration ended that `virsh` calls a failure, or that was `cut_short` here. Only one that has ended by itself
    /// says that the guest stays.
    fn ending(&self, cut_short: bool) -> Ending {
        // libvirt's daemon does it, and goes on without whoever asked.
        let until = Deadline::after(GIVE_UP);
        let _ = self.libvirt.run(&["domjobabort", &self.domain], &until);
        let stays = match self.state() {
            _ if cut_short => false,
            Ok(DomainState::Running) => true,
            Ok(DomainState::Paused) => self.is_complete().unwrap_or(false),
            Ok(DomainState::Off) | Err(_) => false,
        };
        if stays { Ending::Kept } else { Ending::Unknown }
    }

    /// What it does with its guest, once libvirt has ended a migration that it is in the midst of. It does so by itself when
    /// the other libvirt is not to be reached any more: with the guest where it came from, or with nothing where it went.
    fn at_rest(&self) -> Result<Place> {
        let place = Deadline::after(GIVE_UP).find(LOOK, || {
            anyhow::Ok(match self.state()? {
                DomainState::Running => Some(Place::Running),
                DomainState::Off => Some(Place::Waiting),
                DomainState::Paused => self.is_complete()?.then_some(Place::Stopped),
            })
        })?;
        place.with_context(|| format!("libvirt does not end its migration of domain {}", self.domain))
    }

    /// The guest's own libvirt sends it, and gives it up.
    fn migrate(&self, port: &mut Port, until: &Deadline<'_>) -> Result<Sent> {
        let ram = memory_size(&mut self.monitor(), until)?;
        let description = Description::write(&self.sys, &self.libvirt, (&self.domain, &self.uuid), until)?;
        let description = description.path().to_string_lossy();
        ignore_shared(&mut self.monitor(), true, until)?;
        self.sockets.make_room(&self.sys)?;
        let listeners = self.sockets.listen()?;
        let stop = self.libvirt.watch(&self.domain, "STOP")?;
        let to = format!("qemu+unix:///system?socket={}", self.sockets.words.display());
        let by = format!("unix://{}", self.sockets.state.display());
        let words = [
            "migrate",
            "--live",
            "--p2p",
            "--persistent",
            "--suspend",
            // Of caches: what a guest has open is for `plan` to look at.
            "--unsafe",
            &self.domain,
            &to,
            "--migrateuri",
            &by,
            "--xml",
            &description,
        ];
        let end = End::default();
        let begun = tsc::now();
        let (migrated, carried) = std::thread::scope(|scope| {
            let end = &end;
            let tunnel = scope.spawn(move || tunnel::carry(port, Side::Opens { listeners, end }, until));
            let broken = || until.given_up() || tunnel.is_finished();
            let migrated = self.libvirt.run(&words, &until.or_when(&broken));
            end.set(match &migrated {
                Ok(_) => Ending::Well,
                Err(_) => self.ending(until.passed() || broken()),
            });
            (migrated, tunnel.join())
        });
        let saved = tsc::now();
        let carried = carried.unwrap_or_else(|_| Err(io::Error::other("the tunnel panicked").into()));
        let counts = match (migrated, carried) {
            (Ok(_), carried) => carried.context("libvirt has sent the guest, but")?,
            (Err(_), Err(error)) if !matches!(error, TunnelError::Abandoned | TunnelError::Broken) => {
                return Err(error.into());
            }
            (Err(error), _) => return Err(error),
        };
        let state = self.state()?;
        ensure!(
            state == DomainState::Off,
            "libvirt has sent domain {}, and keeps it ({state:?})",
            self.domain
        );
        let state_bytes = counts.get(STATE).copied().unwrap_or_default();
        Ok(Sent {
            begun,
            // It stood still since then at most.
            stopped: stop.last().unwrap_or(begun),
            saved,
            state_bytes,
            ram_bytes_copied: if state_bytes >= ram { state_bytes } else { 0 },
        })
    }
}

impl Vm for DomainVm {
    fn send(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Sent> {
        let mut begun = port.other_half()?;
        let before = begun.sent();
        let outcome = self.migrate(port, until);
        if outcome.is_err() && begun.sent() == before {
            tunnel::abandon(&mut begun);
        }
        let _ = self.sockets.remove();
        outcome
    }

    fn receive(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Received> {
        let sockets = [self.libvirt.socket().to_owned(), self.sockets.state.clone()];
        let carried = tunnel::carry(port, Side::Follows { sockets }, until);
        let _ = self.sockets.remove();
        if let Err(error) = carried {
            self.void = matches!(error, TunnelError::Abandoned);
            return Err(error).context("libvirt of the other host did not send the guest");
        }
        let received = tsc::now();
        self.libvirt.run(&["resume", &self.domain], until)?;
        Ok(Received {
            received,
            resumed: tsc::now(),
        })
    }

    fn resume(&mut self) -> Result<()> {
        let until = Deadline::after(GIVE_UP);
        // libvirt does so itself once its migration has failed.
        let runs = until.find(LOOK, || match self.state()? {
            DomainState::Running => Ok(Some(())),
            DomainState::Paused if self.is_complete()? => {
                self.libvirt.run(&["resume", &self.domain], &until)?;
                Ok(Some(()))
            }
            DomainState::Paused => Ok(None),
            DomainState::Off => bail!("libvirt has no QEMU of domain {}: the guest is not here", self.domain),
        })?;
        runs.with_context(|| format!("libvirt does not end its migration of domain {}", self.domain))?;
        self.plain()
    }

    fn place(&mut self) -> Result<Place> {
        Ok(match self.state()? {
            DomainState::Running => Place::Running,
            DomainState::Off => Place::Waiting,
            DomainState::Paused if self.is_complete()? => Place::Stopped,
            DomainState::Paused => Place::Waiting,
        })
    }

    fn arrive(&mut self) -> Result<Place> {
        // In the midst of a migration it is not known whether what is here is the guest, or not yet.
        let place = self.at_rest()?;
        if place == Place::Running {
            self.plain()?;
        }
        // Stopped: whether the other libvirt has given it up is not known here.
        Ok(place)
    }

    fn has_gone(&mut self) -> Result<bool> {
        // One that libvirt has here still is not let run in the other host.
        Ok(false)
    }

    fn plain(&mut self) -> Result<()> {
        ignore_shared(&mut self.monitor(), false, &answer())
    }

    fn quit(&mut self) -> Result<()> {
        match self.state()? {
            DomainState::Off => return Ok(()),
            DomainState::Paused if !self.void && self.is_complete()? => bail!(
                "domain {} has come here whole, and may be nowhere else: it stays as it is",
                self.domain
            ),
            _ => {}
        }
        match self.libvirt.run(&["destroy", &self.domain], &answer()) {
            Err(_) if self.state()? == DomainState::Off => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    fn discard(&mut self) -> Result<()> {
        self.void = true;
        self.quit()
    }
}

/// The process of a domain's QEMU (libvirt's `virPidFile`).
pub fn pid(sys: &SysRoot, domain: &str) -> Result<Pid> {
    let path = format!("run/libvirt/qemu/{domain}.pid");
    let text = sys.read(&path).with_context(|| sys.path(&path).display().to_string())?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.with_context(|| format!("/{path}: `{text}` is no process"))
}
