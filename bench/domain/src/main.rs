//! One side of the crossing of a libvirt domain, for tests: the program runs once in each of two hosts (or namespaces that
//! stand for hosts), and a socket that both see is the channel.
//!
//! `lab-domain send|receive NAME UUID SOCKET`: whoever receives makes the socket. Prints the bytes of the guest's state.
//!
//! `lab-domain renew NAME UUID`: the domain gets another QEMU within its host. Prints the same. `lab-domain go-on` ends what was
//! begun so.

use std::env;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use locum_agent::channel::Port;
use locum_agent::deadline::Deadline;
use locum_agent::guest::here::Here;
use locum_agent::guest::libvirt::{DomainVm, Libvirt};
use locum_agent::guest::pool::Pool;
use locum_agent::guest::{Hypervisor, Spec, Vm};
use locum_agent::sysroot::SysRoot;

/// What only a test that hangs takes.
const HANG: Duration = Duration::from_secs(300);

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["renew", name, uuid] => {
            let renewed = here().renew(&spec(name, uuid), &Deadline::after(HANG))?;
            println!("{} {}", renewed.state_bytes, renewed.ram_bytes_copied);
            Ok(())
        }
        ["go-on"] => {
            let problems = here().go_on_renewing();
            ensure!(problems.is_empty(), problems.join("\n"));
            Ok(())
        }
        [role, name, uuid, socket] => cross(role, &spec(name, uuid), socket),
        _ => bail!("usage: lab-domain send|receive NAME UUID SOCKET, renew NAME UUID, or go-on"),
    }
}

fn here() -> Here {
    Here::new(SysRoot::default(), Pool::None)
}

fn spec(name: &str, uuid: &str) -> Spec {
    Spec {
        name: name.to_owned(),
        channel: 1,
        uuid: Some(uuid.to_owned()),
        libvirt: Some(name.to_owned()),
        ..Spec::default()
    }
}

fn cross(role: &str, spec: &Spec, socket: &str) -> Result<()> {
    let sys = SysRoot::default();
    let until = Deadline::after(HANG);
    match role {
        "send" => {
            let libvirt = Libvirt::here(&sys.path("")).context("there is no libvirt")?;
            let mut vm = DomainVm::new(&sys, libvirt, spec)?;
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
            let mut vm = DomainVm::waiting(&sys, spec, &until)?;
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
