//! `locum daemon`: hears requests, works on one at a time; in a successor it first serves the incumbent.

pub mod ipc;
mod keep;
mod work;

use std::fs;
use std::io::{self, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use crate::guest::qemu::Qemu;
use crate::machine::{Access, Device, Host, Machine};
use crate::refresh::{Agent, Shared};
use crate::sysroot::SysRoot;
use ipc::{Answer, Question};
pub use work::Worker;

/// What the path of a pool device starts with.
pub const POOL: &str = "/dev/dax";

/// Runs until it is ended.
///
/// # Errors
/// If there is no L0 or module, or another daemon runs.
pub fn run(sys: SysRoot, config_dir: &Path, socket: &Path) -> Result<()> {
    let device = Device::open(&sys, Access::Control)?;
    device.listen()?;
    let host = Arc::new(Host::new(sys.clone(), device)?);
    let machine: Arc<dyn Machine> = host.clone();
    let status = machine.status()?;
    let own = status.hosts[machine.facts().slot].generation;
    let kept = keep::load(&sys, status.generation);
    let agent = Agent {
        machine,
        hypervisor: Arc::new(Qemu::new(sys, POOL)),
        shared: Arc::new(Shared::new(u64::from(own), kept.unreclaimed, kept.report)),
    };
    let worker = Arc::new(Worker::new(agent.clone(), config_dir.to_owned()));
    let listener = listen(socket)?;
    agent.publish();
    ready();
    if own != status.generation {
        worker.succeed(u64::from(own));
    }
    loop {
        let mut fds = [
            PollFd::new(&listener, PollFlags::IN),
            PollFd::new(host.device().file(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            outcome => outcome?,
        };
        let [client, request] = fds.map(|fd| !fd.revents().is_empty());
        if client {
            match listener.accept() {
                Ok((stream, _)) => {
                    let worker = worker.clone();
                    std::thread::spawn(move || serve(&worker, stream));
                }
                Err(error) => tracing::warn!("{error}"),
            }
        }
        if request && let Some(name) = host.device().next_request()? {
            let worker = worker.clone();
            std::thread::spawn(move || {
                if let Err(error) = worker.begin(&name) {
                    tracing::warn!("{error:#}");
                }
            });
        }
    }
}

/// Answers one client.
fn serve(worker: &Arc<Worker>, mut stream: UnixStream) {
    let answer = match stream.try_clone().map(BufReader::new) {
        Ok(mut reader) => ipc::receive::<Question>(&mut reader).and_then(|question| worker.answer(&question)),
        Err(error) => Err(error.into()),
    };
    let answer = match answer {
        Ok(status) => Answer::Status(Box::new(status)),
        Err(error) => Answer::Refused(format!("{error:#}")),
    };
    // A client that does not wait for the answer is no fault of ours.
    let _ = ipc::send(&mut stream, &answer);
}

fn listen(socket: &Path) -> Result<UnixListener> {
    if UnixStream::connect(socket).is_ok() {
        anyhow::bail!("another `locum daemon` answers at {}: stop it first", socket.display());
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", socket.display()));
        }
        _ => {}
    }
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    let listener = UnixListener::bind(socket).with_context(|| format!("listening at {}", socket.display()))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Tells systemd that the daemon is up (`sd_notify(3)`), if systemd wants to know.
fn ready() {
    if let Some(path) = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from) {
        let told = std::os::unix::net::UnixDatagram::unbound().and_then(|socket| socket.send_to(b"READY=1", path));
        if let Err(error) = told {
            tracing::debug!("systemd: {error}");
        }
    }
}
