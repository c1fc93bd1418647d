//! Whatever runs guests on this host: QEMUs of their own, and those of libvirt.

use anyhow::{Result, ensure};

use super::libvirt::{self, DomainState, DomainVm, Libvirt};
use super::others::Other;
use super::pool::Pool;
use super::process::Process;
use super::qemu::{ANSWER, Qemu};
use super::renew::Renewed;
use super::{Hypervisor, Spec, Vm, argv};
use crate::config;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::sysroot::SysRoot;

/// Both.
#[derive(Clone, Debug)]
pub struct Here {
    sys: SysRoot,
    qemu: Qemu,
}

impl Here {
    /// With guests' RAM in `pool`.
    pub fn new(sys: SysRoot, pool: Pool) -> Self {
        Self {
            qemu: Qemu::new(sys.clone(), pool),
            sys,
        }
    }

    fn libvirt(&self) -> Result<Libvirt> {
        Ok(Libvirt::needed(&self.sys)?)
    }

    fn inspect_domain(&self, guest: &config::Guest, domain: &str, channel: usize) -> Result<Spec, Refusal> {
        let refuse = |error: anyhow::Error| Refusal::NoDomain {
            guest: guest.name.clone(),
            domain: domain.to_owned(),
            problem: format!("{error:#}"),
        };
        let libvirt = self.libvirt().map_err(refuse)?;
        let until = Deadline::after(ANSWER);
        match libvirt.state(domain, &until).map_err(refuse)? {
            DomainState::Running => {}
            state => {
                return Err(Refusal::GuestNotRunning {
                    guest: guest.name.clone(),
                    status: if state == DomainState::Off { "off" } else { "paused" }.to_owned(),
                });
            }
        }
        let pid = libvirt::pid(&self.sys, domain).map_err(refuse)?;
        let process = Process::new(&self.sys, pid);
        let running = process.command().map_err(|error| refuse(error.into()))?;
        let mut monitor = libvirt.monitor(domain);
        let spec = self.qemu.survey(guest, channel, &mut monitor, process, &refuse)?;
        // libvirt makes another one there. This tells what machine it is.
        let xml = libvirt.run(&["dumpxml", domain], &until).map_err(refuse)?;
        Ok(Spec {
            command: argv::incoming(&running),
            networks: libvirt::hook::networks(&xml).map_err(refuse)?,
            confined: libvirt::confined_by(&xml).map_err(refuse)?,
            ..spec
        })
    }

    /// Domains that have a QEMU: name and UUID. A daemon that does not answer knows of none, and then its QEMUs are refused by
    /// name.
    fn active(&self) -> Vec<(String, String)> {
        let Some(libvirt) = Libvirt::here(&self.sys.path("")) else {
            return Vec::new();
        };
        libvirt.active(&Deadline::after(ANSWER)).unwrap_or_else(|error| {
            tracing::warn!("libvirt: {error:#}");
            Vec::new()
        })
    }

    fn domain(&self, spec: &Spec) -> Result<DomainVm> {
        DomainVm::new(&self.sys, self.libvirt()?, spec)
    }
}

fn name_of(active: &[(String, String)], uuid: &str) -> Option<String> {
    let domain = active.iter().find(|(_, known)| known == uuid);
    domain.map(|(name, _)| name.clone())
}

impl Hypervisor for Here {
    fn inspect(&self, guest: &config::Guest, channel: usize) -> Result<Spec, Refusal> {
        match &guest.libvirt {
            Some(domain) => self.inspect_domain(guest, domain, channel),
            None => self.qemu.inspect(guest, channel),
        }
    }

    fn attach(&self, spec: &Spec) -> Result<Box<dyn Vm>> {
        if spec.libvirt.is_none() {
            return self.qemu.attach(spec);
        }
        let vm = self.domain(spec)?;
        ensure!(vm.is_here()?, "libvirt has no QEMU of guest {}", spec.name);
        Ok(Box::new(vm))
    }

    fn find(&self, spec: &Spec) -> Result<Option<Box<dyn Vm>>> {
        if spec.libvirt.is_none() {
            return self.qemu.find(spec);
        }
        let vm = self.domain(spec)?;
        Ok(if vm.is_here()? { Some(Box::new(vm)) } else { None })
    }

    fn prepare(&self, spec: &Spec, until: &Deadline<'_>) -> Result<Box<dyn Vm>> {
        if spec.libvirt.is_none() {
            return self.qemu.prepare(spec, until);
        }
        Ok(Box::new(DomainVm::waiting(&self.sys, spec, until)?))
    }

    fn guests_here(&self) -> Result<Vec<config::Guest>, Refusal> {
        let active = self.active();
        self.qemu.discover(&|uuid| name_of(&active, uuid))
    }

    fn renew(&self, spec: &Spec, until: &Deadline<'_>) -> Result<Renewed> {
        if spec.libvirt.is_some() {
            return libvirt::renew::renew(&self.sys, &self.libvirt()?, spec, until);
        }
        self.qemu.renew(spec, until)
    }

    fn go_on_renewing(&self) -> Vec<String> {
        let mut problems = self.qemu.go_on_renewing();
        problems.extend(libvirt::renew::go_on(&self.sys));
        problems
    }

    fn others(&self, going: &[Spec]) -> Vec<Other> {
        let active = self.active();
        self.qemu.others_with(going, &|uuid| name_of(&active, uuid))
    }

    fn shut_down(&self, other: &Other, until: &Deadline<'_>) -> Result<()> {
        self.qemu.shut_down(other, until)
    }

    fn users(&self) -> Option<String> {
        self.qemu.users()
    }
}
