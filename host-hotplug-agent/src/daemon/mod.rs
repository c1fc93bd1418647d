//! `locum daemon`: hears requests, works on one at a time; in a successor it first serves the incumbent. Whatever a daemon
//! before it left undone it takes up first.

pub mod ipc;
mod work;

use std::fs;
use std::io::{self, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::channel::Versions;
use crate::error::Told;
use crate::file;
use crate::guest::here::Here;
use crate::guest::pool::Pool;
use crate::journal::{Journal, keep};
use crate::machine::{Access, Device, Host, Machine};
use crate::refresh::{Agent, Limits, Shared};
use crate::sysroot::SysRoot;
use crate::systemd;
use ipc::{Answer, Question};
pub use work::Worker;

/// How often it is looked whether this host reigns.
const LOOK: Duration = Duration::from_millis(500);

/// Runs until it is ended; if `until_reigning`, no longer than until this host reigns alone, and all that it was to get is
/// its own.
///
/// # Errors
/// If there is no L0 or module, or another daemon runs.
pub fn run(sys: SysRoot, config_dir: &Path, socket: &Path, until_reigning: bool) -> Result<()> {
    let device = Device::open(&sys, Access::Control)?;
    device.listen()?;
    let host = Arc::new(Host::new(sys.clone(), device)?);
    let machine: Arc<dyn Machine> = host.clone();
    let status = machine.status()?;
    let own = status.hosts[machine.facts().slot].generation;
    let kept = keep::load(&sys, status.generation);
    let pool = Pool::of(&machine.facts().header);
    let agent = Agent {
        machine,
        hypervisor: Arc::new(Here::new(sys.clone(), pool)),
        shared: Arc::new(Shared::new(u64::from(own), kept.unreclaimed, kept.report)),
        journal: Arc::new(Journal::at(&sys)),
        limits: Limits::default(),
        speaks: Versions::OURS,
    };
    let worker = Arc::new(Worker::new(agent.clone(), config_dir.to_owned()));
    let listener = listen(socket)?;
    agent.publish();
    systemd::ready();
    worker.take_up()?;
    let watchdog = systemd::watchdog();
    let most = watchdog.into_iter().chain(until_reigning.then_some(LOOK)).min();
    // Nothing here may take long: whatever does has a thread of its own.
    loop {
        let [client, request] = wait(&listener, host.device().file(), most)?;
        if until_reigning && worker.has_succeeded() {
            return Ok(());
        }
        if watchdog.is_some() {
            // A daemon that nobody gets an answer of is not alive, either: every answer needs this lock.
            drop(agent.shared.lock());
            systemd::alive();
        }
        if client {
            match listener.accept() {
                Ok((stream, _)) => {
                    let worker = worker.clone();
                    std::thread::spawn(move || serve(&worker, stream));
                }
                // It has gone again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => tracing::warn!("{error}"),
            }
        }
        if request && let Some(name) = host.device().next_request()? {
            let worker = worker.clone();
            std::thread::spawn(move || {
                if let Err(error) = worker.begin(name.as_str()) {
                    tracing::warn!("{error:#}");
                }
            });
        }
    }
}

/// Waits for a client and for a request through the module, `most` so long. Says which of them is there.
fn wait(clients: &impl AsFd, requests: &impl AsFd, most: Option<Duration>) -> Result<[bool; 2]> {
    let mut fds = [
        PollFd::new(clients, PollFlags::IN),
        PollFd::new(requests, PollFlags::IN),
    ];
    let most = most.map(Timespec::try_from).transpose()?;
    match poll(&mut fds, most.as_ref()) {
        Err(rustix::io::Errno::INTR) => Ok([false; 2]),
        outcome => {
            outcome?;
            Ok(fds.map(|fd| !fd.revents().is_empty()))
        }
    }
}

/// Answers one client.
pub(crate) fn serve(worker: &Arc<Worker>, mut stream: UnixStream) {
    let answer = match stream.try_clone().map(BufReader::new) {
        Ok(mut reader) => ipc::receive::<Question>(&mut reader).and_then(|question| worker.answer(&question)),
        Err(error) => Err(error.into()),
    };
    let answer = match answer {
        Ok(status) => Answer::Status(Box::new(status)),
        Err(error) => Answer::Refused(Told::of(&error)),
    };
    // A client that does not wait for the answer is no fault of ours.
    let _ = ipc::send(&mut stream, &answer);
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if UnixStream::connect(socket).is_ok() {
        anyhow::bail!("another `locum daemon` answers at {}: stop it first", socket.display());
    }
    file::remove(socket).with_context(|| format!("removing {}", socket.display()))?;
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_loop_goes_round_though_nobody_wants_anything() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("run/locum.sock");
        let listener = listen(&socket).unwrap();
        let (requests, _module) = UnixStream::pair().unwrap();
        let brief = Some(Duration::from_millis(10));
        assert_eq!(wait(&listener, &requests, brief).unwrap(), [false, false]);
        let client = UnixStream::connect(&socket).unwrap();
        assert_eq!(wait(&listener, &requests, None).unwrap(), [true, false]);
        drop(listener.accept().unwrap());
        drop(client);
        assert_eq!(
            listener.accept().unwrap_err().kind(),
            io::ErrorKind::WouldBlock,
            "a client that has gone again does not stop the loop"
        );
    }

    #[test]
    fn a_second_daemon_does_not_take_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("locum.sock");
        let first = listen(&socket).unwrap();
        let second = listen(&socket).unwrap_err().to_string();
        assert!(second.contains("another `locum daemon`"), "{second}");
        drop(first);
        listen(&socket).unwrap();
    }
}
