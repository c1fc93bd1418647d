//! The incumbent's actions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use locum_abi::{CpuMode, HostState, ResourceKind};
use partitioner::{Action, MemRange, Owner, PciAddress, Plan, Refresh, Resource, Transfer};

use super::{Ports, Prepared, Shared, cpu_number, other_host, until};
use crate::channel::message::MessageError;
use crate::channel::port::PortError;
use crate::channel::{Link, Message};
use crate::clock::Clock;
use crate::guest::{Hypervisor, Spec, Vm};
use crate::l0::view;
use crate::load::{self, Files, Layout, cmdline};
use crate::machine::Machine;
use crate::report::GuestReport;

/// Seconds beyond a guest's time that the successor gets to say how it went, its QEMU's end included.
const VERDICT: u64 = 30;
/// Seconds for a message to get through.
const MESSAGE: u64 = 30;

/// Does what the state machine tells the incumbent.
pub struct Incumbent {
    machine: Arc<dyn Machine>,
    hypervisor: Arc<dyn Hypervisor>,
    shared: Arc<Shared>,
    config: crate::config::Config,
    /// Gone once loaded.
    files: Option<Files>,
    guests: BTreeMap<String, Spec>,
    order: Vec<Spec>,
    layout: Option<(u64, u64)>,
    link: Option<Link>,
    ports: Ports,
    /// Whether L0 has taken everything back already.
    taken_back: bool,
}

impl Incumbent {
    /// For a refresh that was accepted.
    pub fn new(
        machine: Arc<dyn Machine>,
        hypervisor: Arc<dyn Hypervisor>,
        shared: Arc<Shared>,
        prepared: Prepared,
    ) -> Self {
        Self {
            machine,
            hypervisor,
            shared,
            config: prepared.config,
            files: Some(prepared.files),
            guests: prepared
                .guests
                .iter()
                .map(|spec| (spec.name.clone(), spec.clone()))
                .collect(),
            order: prepared.guests,
            layout: None,
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
        let machine = Arc::clone(&self.machine);
        match action {
            Action::RemoveMemory { range, .. } => machine.remove_memory(*range),
            Action::AddMemory { range, online } => {
                machine.add_memory(*range, self.node(*range), *online)
            }
            Action::OfflineCpu(apic) => {
                machine.offline_cpu(cpu_number(&*machine, *apic)?)?;
                self.await_parked(apic.0)
            }
            Action::OnlineCpu(apic) => machine.online_cpu(cpu_number(&*machine, *apic)?),
            Action::RemovePci(address) => machine.remove_pci(*address),
            Action::AddPci(address) => machine.find_pci(*address),
            Action::LoadSuccessor => self.load(),
            Action::WipeSuccessor => {
                let blocks: Vec<MemRange> =
                    self.plan(|plan| plan.blocks.iter().map(|block| block.range).collect())?;
                blocks.into_iter().try_for_each(|range| machine.wipe(range))
            }
            Action::EnterNested(apic) => machine.enter(cpu_number(&*machine, *apic)?),
            Action::LeaveNested(apic) => machine.leave(cpu_number(&*machine, *apic)?),
            Action::Transfer(transfer) => self.transfer(*transfer),
            Action::StartSuccessor => {
                let boot = self.plan(|plan| plan.cpus.first().map(|cpu| cpu.apic.0))?;
                let boot = boot.context("the plan has no boot CPU")?;
                let (entry, zero_page) =
                    self.layout.context("the successor's image is not loaded")?;
                self.taken_back = false;
                machine.start(entry, zero_page, boot)
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
        let inner = self.shared.lock();
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
        let deadline = super::after(self.config.timeouts.cpu);
        loop {
            let status = self.machine.status()?;
            let cpu = view::used(&status)
                .iter()
                .find(|cpu| cpu.apic_id == apic_id);
            if cpu.is_some_and(|cpu| cpu.mode == CpuMode::Parked as u32) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "APIC {apic_id} is offline, but did not come to L0: is the kernel Linux 6.11 or later?"
                );
            }
            sleep(Duration::from_millis(2));
        }
    }

    fn load(&mut self) -> Result<()> {
        let files = self
            .files
            .take()
            .context("the successor's files are gone")?;
        let facts = *self.machine.facts();
        let sys = self.machine.sys();
        let (plan, generation) = {
            let inner = self.shared.lock();
            let plan = inner.refresh.plan().cloned().context("there is no plan")?;
            let generation = plan.generation.next().0;
            (plan, generation)
        };
        let (tables, rsdp) = load::tables::acpi(
            sys,
            self.machine.memory(),
            &facts.header,
            facts.header_address,
            &plan,
        )?;
        let e820 = load::tables::memory_map(sys, &facts.header, &plan)?;
        let line = cmdline::complete(
            &self.config.cmdline,
            cmdline::Facts {
                cpus: plan.cpus.len(),
                tsc_khz: facts.tsc_khz,
                generation,
            },
        );
        tracing::info!("successor's command line: {line}");
        let range = removed_part(&plan).context("no block of the plan is in its boot range")?;
        let Layout {
            pieces,
            entry,
            zero_page,
        } = load::layout(files, range, &line, rsdp, &e820)?;
        for piece in tables.iter().chain(&pieces) {
            tracing::debug!(
                "{} at {:#x}, {} bytes",
                piece.what,
                piece.at,
                piece.bytes.len()
            );
            self.machine
                .write(piece.at, &piece.bytes)
                .with_context(|| format!("copying the {} to {:#x}", piece.what, piece.at))?;
        }
        self.layout = Some((entry, zero_page));
        Ok(())
    }

    /// On the way there, a grant; on the way back, L0 takes everything at once.
    fn transfer(&mut self, transfer: Transfer) -> Result<()> {
        let own = Owner::Host(self.plan(Plan::incumbent)?);
        let nobodys = transfer.to == Owner::Nobody;
        if transfer.to == own || nobodys {
            return self.take_back();
        }
        self.taken_back = false;
        let (kind, b, c) = grant(transfer.resource);
        self.machine.grant(kind, b, c)
    }

    fn take_back(&mut self) -> Result<()> {
        if !self.taken_back {
            self.machine.abort()?;
            self.taken_back = true;
            self.link = None;
            self.ports = Ports::default();
        }
        Ok(())
    }

    /// Whether waiting makes no sense any more: the operator wants to stop, or the successor is dead.
    fn hopeless(machine: &dyn Machine, shared: &Shared) -> bool {
        shared.aborting() || dead(machine).is_some()
    }

    /// Why a wait ended, in place of the channel's error.
    fn explain(&self, error: MessageError) -> anyhow::Error {
        if let Some(reason) = dead(&*self.machine) {
            return anyhow!("the successor died: {reason}");
        }
        match error {
            MessageError::Port(PortError::GivenUp) => anyhow!("stopped by the operator"),
            MessageError::Port(PortError::Timeout) => {
                anyhow!("the successor did not answer in time")
            }
            error => error.into(),
        }
    }

    /// Waits for a message for which `wanted` gives a value; others are out of turn.
    fn expect<T>(&mut self, seconds: u64, wanted: impl Fn(&Message) -> Option<T>) -> Result<T> {
        let (machine, shared) = (Arc::clone(&self.machine), Arc::clone(&self.shared));
        let given_up = || Self::hopeless(&*machine, &shared);
        let until = until(seconds, &given_up);
        let link = self
            .link
            .as_mut()
            .context("there is no channel to the successor")?;
        loop {
            match link.receive(&until) {
                Ok(message) => match wanted(&message) {
                    Some(value) => return Ok(value),
                    None => tracing::warn!("unexpected message from the successor: {message:?}"),
                },
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    fn tell(&mut self, message: &Message) -> Result<()> {
        let machine = Arc::clone(&self.machine);
        let given_up = || dead(&*machine).is_some();
        let link = self
            .link
            .as_mut()
            .context("there is no channel to the successor")?;
        link.send(message, &until(MESSAGE, &given_up))
            .map_err(|error| self.explain(error))
    }

    fn await_successor(&mut self) -> Result<()> {
        self.link = Some(Link::new(self.machine.channel(0)?));
        let hello = |message: &Message| match message {
            Message::Hello {
                generation,
                kernel,
                cpus,
            } => Some((*generation, kernel.clone(), *cpus)),
            _ => None,
        };
        let (generation, kernel, cpus) = self
            .expect(self.config.timeouts.boot, hello)
            .with_context(|| {
                format!(
                    "the successor's agent did not come up within {} s; see its console",
                    self.config.timeouts.boot
                )
            })?;
        let (expected, planned) = self.plan(|plan| (plan.generation.next().0, plan.cpus.len()))?;
        if generation != expected {
            bail!("a host of generation {generation} answered, generation {expected} was started");
        }
        if cpus != planned {
            bail!("the successor came up with {cpus} of {planned} CPUs; see its console");
        }
        if let Some(report) = &mut self.shared.lock().report {
            report.successor = kernel;
        }
        let clock = Clock::now(self.machine.facts().tsc_khz);
        self.tell(&Message::Welcome {
            clock,
            guests: self.order.clone(),
            seconds: self.config.timeouts.guest_start,
        })?;
        for _ in 0..self.order.len() {
            let answer = |message: &Message| match message {
                Message::Prepared { name, ticks } => Some(Ok((name.clone(), *ticks))),
                Message::Failed { name, reason } => Some(Err(anyhow!("guest {name}: {reason}"))),
                _ => None,
            };
            let (name, ticks) =
                self.expect(self.config.timeouts.guest_start + VERDICT, answer)??;
            self.note(&name, |guest| guest.prepare_ticks = ticks);
        }
        Ok(())
    }

    fn note(&self, name: &str, change: impl FnOnce(&mut GuestReport)) {
        if let Some(report) = &mut self.shared.lock().report {
            let guest = report.guest(name);
            change(guest);
            guest.conclude();
        }
    }

    /// On failure the guest runs here, and nowhere else.
    fn move_guest(&mut self, name: &str) -> Result<()> {
        let spec = self
            .guests
            .get(name)
            .cloned()
            .with_context(|| format!("guest {name} is not in the plan"))?;
        let seconds = self.config.timeouts.guest_move;
        let mut vm = self.hypervisor.attach(&spec)?;
        self.tell(&Message::Receive {
            name: name.to_owned(),
            seconds,
        })?;
        let receiving = |message: &Message| match message {
            Message::Receiving { .. } => Some(Ok(())),
            Message::Failed { reason, .. } => Some(Err(anyhow!("{reason}"))),
            _ => None,
        };
        self.expect(MESSAGE, receiving)??;
        let machine = Arc::clone(&self.machine);
        let given_up = || dead(&*machine).is_some();
        let port = self.ports.get(&*self.machine, spec.channel)?;
        let sent = vm.send(port, &until(seconds, &given_up));
        let verdict = self.verdict(name, seconds);
        match (sent, verdict) {
            (
                Ok(sent),
                Ok(Message::Resumed {
                    received, resumed, ..
                }),
            ) => {
                self.note(name, |guest| {
                    guest.begun = sent.begun;
                    guest.stopped = sent.stopped;
                    guest.saved = sent.saved;
                    guest.state_bytes = sent.state_bytes;
                    guest.ram_bytes_copied = sent.ram_bytes_copied;
                    guest.received = received;
                    guest.resumed = resumed;
                });
                vm.quit()
            }
            // It runs there: whatever went wrong here came after the last byte.
            (Err(error), Ok(Message::Resumed { .. })) => {
                tracing::warn!("guest {name} runs in the successor, but: {error:#}");
                self.note(name, |guest| guest.resumed = 1);
                vm.quit()
            }
            (sent, Ok(Message::Failed { reason, .. })) => {
                vm.resume().with_context(|| {
                    format!("guest {name} does not run on after a failed handover")
                })?;
                match sent {
                    Ok(_) => bail!("the successor's QEMU refused the state: {reason}"),
                    Err(error) => Err(error.context(reason)),
                }
            }
            (_, Ok(other)) => bail!("unexpected answer {other:?}"),
            (_, Err(silence)) => {
                // Nobody says where the guest runs. Stop the successor for certain; then it runs here only.
                self.take_back()
                    .context("the successor must be stopped before the guest may run on")?;
                self.shared.lock().lost = Some(format!("{silence:#}"));
                vm.resume().with_context(|| {
                    format!("guest {name} does not run on after a failed handover")
                })?;
                Err(silence)
            }
        }
    }

    /// The successor's word on a guest. The operator must wait for it: until then it is not known where the guest runs.
    fn verdict(&mut self, name: &str, seconds: u64) -> Result<Message> {
        let machine = Arc::clone(&self.machine);
        let given_up = || dead(&*machine).is_some();
        let until = until(seconds + VERDICT, &given_up);
        let link = self
            .link
            .as_mut()
            .context("there is no channel to the successor")?;
        loop {
            match link.receive(&until) {
                Ok(message @ (Message::Resumed { .. } | Message::Failed { .. })) => {
                    return Ok(message);
                }
                Ok(other) => tracing::warn!("guest {name}: unexpected message {other:?}"),
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    /// On failure the guest runs in the successor, unless that is dead.
    fn return_guest(&mut self, name: &str) -> Result<()> {
        let spec = self
            .guests
            .get(name)
            .cloned()
            .with_context(|| format!("guest {name} is not in the plan"))?;
        let seconds = self.config.timeouts.guest_move;
        let machine = Arc::clone(&self.machine);
        let given_up = || dead(&*machine).is_some();
        let mut vm = self
            .hypervisor
            .prepare(&spec, &until(self.config.timeouts.guest_start, &given_up))?;
        let outcome = self.take_guest(&spec, vm.as_mut(), seconds);
        match &outcome {
            Ok(()) => self.note(name, |guest| {
                guest.resumed = 0;
                guest.moved = false;
            }),
            Err(_) => vm.quit()?,
        }
        outcome
    }

    fn take_guest(&mut self, spec: &Spec, vm: &mut dyn Vm, seconds: u64) -> Result<()> {
        let name = spec.name.clone();
        let machine = Arc::clone(&self.machine);
        let given_up = || dead(&*machine).is_some();
        self.ports.get(&*self.machine, spec.channel)?;
        self.tell(&Message::Return {
            name: name.clone(),
            seconds,
        })?;
        let port = self.ports.get(&*self.machine, spec.channel)?;
        match vm.receive(port, &until(seconds, &given_up)) {
            Ok(received) => {
                let (received, resumed) = (received.received, received.resumed);
                // The guest runs here. Should the successor not hear of it, its QEMU stays stopped until it is aborted.
                if let Err(error) = self.tell(&Message::Resumed {
                    name: name.clone(),
                    received,
                    resumed,
                }) {
                    tracing::warn!("guest {name}: {error:#}");
                    return Ok(());
                }
                let gone =
                    |message: &Message| matches!(message, Message::Gone { .. }).then_some(());
                if let Err(error) = self.expect_anyway(MESSAGE, gone) {
                    tracing::warn!("guest {name}: {error:#}");
                }
                Ok(())
            }
            Err(error) => {
                vm.quit()?;
                self.tell(&Message::Failed {
                    name,
                    reason: format!("{error:#}"),
                })?;
                Err(error)
            }
        }
    }

    /// As [`Self::expect`] while an abort is under way.
    fn expect_anyway<T>(
        &mut self,
        seconds: u64,
        wanted: impl Fn(&Message) -> Option<T>,
    ) -> Result<T> {
        let machine = Arc::clone(&self.machine);
        let given_up = || dead(&*machine).is_some();
        let until = until(seconds, &given_up);
        let link = self
            .link
            .as_mut()
            .context("there is no channel to the successor")?;
        loop {
            match link.receive(&until) {
                Ok(message) => {
                    if let Some(value) = wanted(&message) {
                        return Ok(value);
                    }
                }
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    fn entrust(&mut self) -> Result<()> {
        let (refresh, report): (Refresh, _) = {
            let inner = self.shared.lock();
            (
                inner.refresh.clone(),
                inner.report.clone().unwrap_or_default(),
            )
        };
        self.tell(&Message::Entrust {
            refresh: Box::new(refresh),
            report: Box::new(report),
            seconds: self.config.timeouts.retire,
        })?;
        self.expect(MESSAGE, |message| {
            matches!(message, Message::Entrusted).then_some(())
        })
    }
}

/// Why the successor is dead, if it is.
pub fn dead(machine: &dyn Machine) -> Option<String> {
    let status = machine.status().ok()?;
    match other_host(&status, machine.facts().slot) {
        (Some(HostState::Dead), reason) => Some(reason),
        _ => None,
    }
}

/// The hypercall's words for a resource.
fn grant(resource: Resource) -> (ResourceKind, u64, u64) {
    match resource {
        Resource::Cpu(apic) => (ResourceKind::Cpu, u64::from(apic.0), 0),
        Resource::Memory(range) => (ResourceKind::Memory, range.start(), range.len()),
        Resource::Function(address) => (ResourceKind::Pci, bdf(address), 0),
        Resource::Ports(ports) => {
            let count = u64::from(ports.last()) - u64::from(ports.first()) + 1;
            (ResourceKind::Ports, u64::from(ports.first()), count)
        }
        Resource::Pin(gsi) => (ResourceKind::Pin, u64::from(gsi.0), 0),
    }
}

fn bdf(address: PciAddress) -> u64 {
    u64::from(address.bus()) << 8 | u64::from(address.device()) << 3 | u64::from(address.function())
}

/// The longest part of the boot range that this host has removed itself: what was nobody's cannot be written.
fn removed_part(plan: &Plan) -> Option<MemRange> {
    let mut runs: Vec<MemRange> = Vec::new();
    for block in plan
        .blocks
        .iter()
        .filter(|block| plan.boot.contains(block.range))
    {
        match runs.last_mut() {
            Some(run) if run.end() == block.range.start() => {
                *run = MemRange::new(run.start(), block.range.end()).unwrap_or(*run);
            }
            _ => runs.push(block.range),
        }
    }
    runs.into_iter().max_by_key(|run| run.len())
}
