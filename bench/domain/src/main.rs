//! One side of the crossing of a libvirt domain, for tests: the program runs once in each of two hosts (or namespaces that
//! stand for hosts), and a socket that both see is the channel.
//!
//! `lab-domain send|receive NAME UUID SOCKET`: whoever receives makes the socket. Prints the bytes of the guest's state.

use std::env;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_agent::channel::Port;
use locum_agent::deadline::Deadline;
use locum_agent::guest::libvirt::{DomainVm, Libvirt};
use locum_agent::guest::{Spec, Vm};
use locum_agent::sysroot::SysRoot;

/// What only a test that hangs takes.
const HANG: Duration = Duration::from_secs(300);

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [role, name, uuid, socket] = words.as_slice() else {
        bail!("usage: lab-domain send|receive NAME UUID SOCKET");
    };
    let spec = Spec {
        name: name.clone(),
        qmp: PathBuf::new(),
        command: Vec::new(),
        output: PathBuf::new(),
        channel: 1,
        ram: Vec::new(),
        uuid: Some(uuid.clone()),
        libvirt: Some(name.clone()),
        release: None,
        pid: None,
        disks: Vec::new(),
    };
    let sys = SysRoot::default();
    let until = Deadline::after(HANG);
    match role.as_str() {
        "send" => {
            let libvirt = Libvirt::here(&sys.path("")).context("there is no libvirt")?;
            let mut vm = DomainVm::new(&sys, libvirt, &spec)?;
            let sent = match vm.send(&mut Port::over(UnixStream::connect(socket)?)?, &until) {
                Err(error) => {
                    vm.resume().with_context(|| format!("after {error:#}"))?;
                    return Err(error.context("it runs on here"));
                }
                sent => sent?,
            };
            println!("{} {}", sent.state_bytes, sent.ram_bytes_copied);
        }
        "receive" => {
            let listener = UnixListener::bind(socket)?;
            let mut vm = DomainVm::waiting(&sys, &spec, &until)?;
            let (stream, _) = listener.accept()?;
            if let Err(error) = vm.receive(&mut Port::over(stream)?, &until) {
                vm.quit()?;
                return Err(error);
            }
            vm.plain()?;
        }
        _ => bail!("`{role}` is neither send nor receive"),
    }
    Ok(())
}
