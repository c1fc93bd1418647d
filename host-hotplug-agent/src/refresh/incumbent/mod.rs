//! The incumbent's actions.

mod guests;
pub mod image;
mod settle;
mod talk;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::{CpuMode, Grant, Will};
use partitioner::{Action, MemRange, Owner, PciAddress, Plan, Resource, Transfer};

use super::{Agent, Ports, Prepared};
use crate::channel::Link;
use crate::config::Config;
use crate::deadline::Deadline;
use crate::evidence::{self, Dead};
use crate::guest::Spec;
use crate::journal::Brief;
use crate::l0::view;
use crate::load::Files;
use crate::machine::Start;

/// For the last process to close guests' memory. Each QEMU has ended before: only who looks on can still have it open.
const UNUSED: Duration = Duration::from_secs(1);

/// Does what the state machine tells the incumbent.
pub struct Incumbent {
    agent: Agent,
    config: Config,
    /// Where the configuration is from.
    path: PathBuf,
    /// Gone once loaded.
    files: Option<Files>,
    guests: BTreeMap<String, Spec>,
    order: Vec<Spec>,
    /// How the successor starts, once loaded.
    start: Option<Start>,
    link: Option<Link>,
    ports: Ports,
    /// Whether another daemon began this, or an answer was lost: the successor may be in the middle of something.
    resumed: bool,
    /// A guest on its way back of which it is not known where it runs.
    unsure: Option<String>,
    /// A guest on its way back that has not run here for certain.
    not_here: Option<String>,
    /// A guest whose QEMU in the successor was ended, and that is to go there again.
    missing: Option<String>,
    /// Whether the successor's agent said that it is in charge once this host is gone.
    entrusted: bool,
}

impl Incumbent {
    /// For a refresh that was accepted.
    pub fn new(agent: Agent, prepared: Prepared) -> Self {
        {
            let mut inner = agent.shared.lock();
            inner.brief = Brief {
                config: Some(prepared.text.clone()),
                guests: prepared.guests.clone(),
                ..Brief::default()
            };
        }
        Self::with(
            agent,
            prepared.config,
            prepared.text.path,
            Some(prepared.files),
            prepared.guests,
        )
    }

    /// For a refresh that another daemon began. Everything else is in what the threads share.
    ///
    /// # Errors
    /// If what that daemon wrote down lacks the configuration.
    pub fn resume(agent: Agent) -> Result<Self> {
        let (brief, next) = {
            let inner = agent.shared.lock();
            (inner.brief.clone(), inner.refresh.next_action().cloned())
        };
        let text = brief.config.context("the journal lacks the configuration")?;
        let config = Config::parse(&text.path, &text.text)?;
        let unsure = match next {
            Some(Action::ReturnGuest(name)) => Some(name),
            _ => None,
        };
        Ok(Self {
            start: brief.start,
            resumed: true,
            unsure,
            ..Self::with(agent, config, text.path, None, brief.guests)
        })
    }

    fn with(agent: Agent, config: Config, path: PathBuf, files: Option<Files>, guests: Vec<Spec>) -> Self {
        Self {
            agent,
            config,
            path,
            files,
            guests: guests.iter().map(|spec| (spec.name.clone(), spec.clone())).collect(),
            order: guests,
            start: None,
            link: None,
            ports: Ports::default(),
            resumed: false,
            unsure: None,
            not_here: None,
            missing: None,
            entrusted: false,
        }
    }

    /// Performs one action, all or nothing. One that a daemon before this one has done is done.
    ///
    /// # Errors
    /// Why it could not be done.
    pub fn perform(&mut self, action: &Action) -> Result<()> {
        let agent = self.agent.clone();
        let machine = &*agent.machine;
        if agent.found(action)? == Some(true) {
            tracing::info!("{action}: done already");
            return Ok(());
        }
        match action {
            Action::RemoveMemory { range, .. } => machine.remove_memory(*range),
            Action::AddMemory { range, online } => agent.add_memory(*range, self.node(*range), *online),
            Action::OfflineCpu(apic) => {
                machine.offline_cpu(agent.cpu_number(*apic)?)?;
                self.await_parked(apic.0)
            }
            Action::OnlineCpu(apic) => machine.online_cpu(agent.cpu_number(*apic)?),
            Action::RemovePci(address) => machine.remove_pci(*address),
            Action::AddPci(address) => machine.find_pci(*address),
            Action::LoadSuccessor => self.load(),
            Action::WipeSuccessor => {
                let blocks: Vec<MemRange> = self.plan(|plan| plan.blocks.iter().map(|block| block.range).collect())?;
                self.save(&blocks);
                blocks.into_iter().try_for_each(|range| machine.wipe(range))
            }
            Action::EnterNested(apic) => {
                agent.settings_while_nested();
                machine.enter(agent.cpu_number(*apic)?)
            }
            Action::LeaveNested(apic) => agent.leave_nested(*apic),
            Action::Transfer(transfer) => self.transfer(*transfer),
            Action::StartSuccessor => {
                let start = self.start.context("the successor's image is not loaded")?;
                // Until the successor's agent knows how to go on alone, it would strand the machine.
                machine.will(Will::Reset)?;
                agent.shared.lock().brief.started = true;
                machine.start(start)
            }
            Action::StopSuccessor => self.take_back(),
            Action::AwaitSuccessor => self.await_successor(),
            Action::MoveGuest(name) => self.move_guest(name),
            Action::ReturnGuest(name) => self.return_guest(name),
            Action::Entrust => self.entrust(),
            Action::PowerOff => {
                self.yield_machine();
                machine.power_off(&self.config.poweroff)
            }
            Action::AwaitIncumbentGone | Action::TakeIncumbent => {
                bail!("that is the successor's to do")
            }
        }
    }

    /// Lets the successor take this host by force, should it hang while it powers off: no guest runs in it any more.
    fn yield_machine(&self) {
        let hypervisor = &*self.agent.hypervisor;
        let unused = Deadline::after(UNUSED).comes_true(Duration::from_millis(50), || hypervisor.users().is_none());
        if !unused && let Some(users) = hypervisor.users() {
            tracing::warn!(
                "guests' memory is still open for writing ({users}): should this host hang while it powers off, the successor \
                 waits until somebody switches it off; end what is named"
            );
            return;
        }
        match self.agent.machine.will(Will::Yield) {
            Ok(true) => tracing::info!("the successor may take this host's CPUs from now on"),
            Ok(false) => tracing::info!(
                "the module or L0 is older than this `locum`: should this host hang while it powers off, the successor waits"
            ),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }

    /// Saves what is left of a successor, before its memory is cleared.
    fn save(&self, memory: &[MemRange]) {
        let (name, why, started) = {
            let inner = self.agent.shared.lock();
            (
                inner.running.clone().unwrap_or_default(),
                inner.refresh.last_error().unwrap_or("it is not known why").to_owned(),
                inner.brief.started,
            )
        };
        let saved = evidence::save(
            &*self.agent.machine,
            &Dead {
                name: &name,
                why: &why,
                memory,
                started,
                keep_image: self.config.keep_image,
            },
        );
        if let Some(report) = &mut self.agent.shared.lock().report {
            report.saved = saved;
        }
    }

    fn plan<T>(&self, look: impl FnOnce(&Plan) -> T) -> Result<T> {
        let inner = self.agent.shared.lock();
        inner.refresh.plan().map(look).context("there is no plan")
    }

    fn node(&self, range: MemRange) -> u32 {
        let node = self.plan(|plan| {
            plan.blocks
                .iter()
                .find(|block| block.range == range)
                .map(|block| block.node.0)
        });
        node.ok().flatten().unwrap_or(0)
    }

    /// Linux says that a CPU is offline a moment before it has reached L0.
    fn await_parked(&self, apic_id: u32) -> Result<()> {
        let until = Deadline::after(self.config.timeouts.cpu);
        let parked = until.find(Duration::from_millis(2), || {
            let status = self.agent.machine.status()?;
            let cpu = view::used(&status).iter().find(|cpu| cpu.apic_id == apic_id);
            let parked = cpu.is_some_and(|cpu| cpu.mode == CpuMode::Parked as u32);
            anyhow::Ok(parked.then_some(()))
        })?;
        parked.with_context(|| {
            format!("APIC {apic_id} is offline, but did not come to L0: is the kernel Linux 6.11 or later?")
        })
    }

    /// On the way there, a grant; on the way back, L0 takes everything at once.
    fn transfer(&mut self, transfer: Transfer) -> Result<()> {
        let own = Owner::Host(self.plan(Plan::incumbent)?);
        let nobodys = transfer.to == Owner::Nobody;
        if transfer.to == own || nobodys {
            return self.take_back();
        }
        self.agent.machine.grant(grant(transfer.resource))
    }

    /// Once L0 has no other host, nor a partition for one, everything is this host's.
    fn take_back(&mut self) -> Result<()> {
        if self.agent.has_other() {
            self.agent.await_dump(self.config.timeouts.dump);
            self.agent.machine.abort()?;
        }
        self.link = None;
        self.ports = Ports::default();
        Ok(())
    }

    /// Gives all that has been given once more. For a successor that has not been started: L0 tells which host has a CPU,
    /// but of nothing else which has it, so all is taken back first.
    ///
    /// # Errors
    /// If L0 does not take it back, or does not give it.
    pub fn give_again(&mut self) -> Result<()> {
        let done = self.agent.shared.lock().refresh.done().to_vec();
        let given = done.iter().filter_map(|action| match action {
            Action::Transfer(transfer) => Some(*transfer),
            _ => None,
        });
        self.take_back()?;
        for transfer in given {
            self.transfer(transfer)?;
        }
        Ok(())
    }
}

/// A resource of the plan in L0's words.
fn grant(resource: Resource) -> Grant {
    match resource {
        Resource::Cpu(apic) => Grant::Cpu { apic_id: apic.0 },
        Resource::Memory(range) => Grant::Memory {
            start: range.start(),
            end: range.end(),
        },
        Resource::Function(address) => Grant::Pci {
            function: requester_id(address),
        },
        Resource::Ports(ports) => Grant::Ports {
            first: ports.first(),
            last: ports.last(),
        },
        Resource::Pin(gsi) => Grant::Pin { gsi: gsi.0 },
    }
}

/// L0 knows segment 0 only, and no plan moves a function of another.
fn requester_id(address: PciAddress) -> u16 {
    u16::from_be_bytes([address.bus(), address.device() << 3 | address.function()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use partitioner::PortRange;

    #[test]
    fn what_the_plan_moves_is_what_l0_is_asked_for() {
        let function: PciAddress = "0000:03:1f.2".parse().unwrap();
        assert_eq!(grant(Resource::Function(function)), Grant::Pci { function: 0x03fa });
        let memory = MemRange::new(0x4800_0000, 0x5000_0000).unwrap();
        let (start, end) = (0x4800_0000, 0x5000_0000);
        assert_eq!(grant(Resource::Memory(memory)), Grant::Memory { start, end });
        let ports = PortRange::new(0x2f8, 0x2ff).unwrap();
        let (first, last) = (0x2f8, 0x2ff);
        assert_eq!(grant(Resource::Ports(ports)), Grant::Ports { first, last });
    }
}
