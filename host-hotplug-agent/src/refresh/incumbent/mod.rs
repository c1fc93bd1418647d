//! The incumbent's actions.

mod guests;
pub mod image;
mod talk;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::{CpuMode, Grant};
use partitioner::{Action, MemRange, Owner, PciAddress, Plan, Resource, Transfer};

use super::{Agent, Ports, Prepared};
use crate::channel::Link;
use crate::deadline::Deadline;
use crate::guest::Spec;
use crate::l0::view;
use crate::load::Files;
use crate::machine::Start;

/// Beyond a guest's time, for the successor to say how it went, its QEMU's end included.
const VERDICT: Duration = Duration::from_secs(30);
/// For a message to get through.
const MESSAGE: Duration = Duration::from_secs(30);

/// Does what the state machine tells the incumbent.
pub struct Incumbent {
    agent: Agent,
    config: crate::config::Config,
    /// Gone once loaded.
    files: Option<Files>,
    guests: BTreeMap<String, Spec>,
    order: Vec<Spec>,
    /// How the successor starts, once loaded.
    start: Option<Start>,
    link: Option<Link>,
    ports: Ports,
    /// Whether L0 has taken everything back already.
    taken_back: bool,
}

impl Incumbent {
    /// For a refresh that was accepted.
    pub fn new(agent: Agent, prepared: Prepared) -> Self {
        Self {
            agent,
            config: prepared.config,
            files: Some(prepared.files),
            guests: prepared
                .guests
                .iter()
                .map(|spec| (spec.name.clone(), spec.clone()))
                .collect(),
            order: prepared.guests,
            start: None,
            link: None,
            ports: Ports::default(),
            taken_back: false,
        }
    }

    /// Performs one action, all or nothing.
    ///
    /// # Errors
    /// Why it could not be done.
    pub fn perform(&mut self, action: &Action) -> Result<()> {
        let agent = self.agent.clone();
        let machine = &*agent.machine;
        match action {
            Action::RemoveMemory { range, .. } => machine.remove_memory(*range),
            Action::AddMemory { range, online } => machine.add_memory(*range, self.node(*range), *online),
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
                blocks.into_iter().try_for_each(|range| machine.wipe(range))
            }
            Action::EnterNested(apic) => machine.enter(agent.cpu_number(*apic)?),
            Action::LeaveNested(apic) => machine.leave(agent.cpu_number(*apic)?),
            Action::Transfer(transfer) => self.transfer(*transfer),
            Action::StartSuccessor => {
                let start = self.start.context("the successor's image is not loaded")?;
                self.taken_back = false;
                machine.start(start)
            }
            Action::StopSuccessor => self.take_back(),
            Action::AwaitSuccessor => self.await_successor(),
            Action::MoveGuest(name) => self.move_guest(name),
            Action::ReturnGuest(name) => self.return_guest(name),
            Action::Entrust => self.entrust(),
            Action::PowerOff => machine.power_off(&self.config.poweroff),
            Action::AwaitIncumbentGone | Action::TakeIncumbent => {
                bail!("that is the successor's to do")
            }
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
        self.taken_back = false;
        self.agent.machine.grant(grant(transfer.resource))
    }

    fn take_back(&mut self) -> Result<()> {
        if !self.taken_back {
            self.agent.machine.abort()?;
            self.taken_back = true;
            self.link = None;
            self.ports = Ports::default();
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
