//! The successor's side: it answers the incumbent until that is gone, then takes over the machine.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::HostState;
use partitioner::{Action, MemRange, Refresh, Role};

use super::{Agent, Ports, drive};
use crate::channel::message::MessageError;
use crate::channel::port::PortError;
use crate::channel::{Link, Message, Versions};
use crate::deadline::Deadline;
use crate::guest::{Spec, Vm};
use crate::report::Report;
use crate::tsc;

/// For a message to get through.
const MESSAGE: Duration = Duration::from_secs(60);

/// Asked whether the incumbent is gone.
type Gone<'a> = &'a (dyn Fn() -> bool + Sync);

/// A host that is to replace another.
pub struct Successor {
    agent: Agent,
    generation: u64,
    guests: BTreeMap<String, (Spec, Box<dyn Vm>)>,
    ports: Ports,
}

impl Successor {
    /// Of that generation.
    pub fn new(agent: Agent, generation: u64) -> Self {
        Self {
            agent,
            generation,
            guests: BTreeMap::new(),
            ports: Ports::default(),
        }
    }

    /// Serves the incumbent, then takes over.
    ///
    /// # Errors
    /// If the channel fails before this host is in charge.
    pub fn serve(mut self) -> Result<()> {
        let mut link = Link::new(self.agent.machine.channel(0)?);
        let agent = self.agent.clone();
        let gone = || incumbent_state(&agent) != Some(HostState::Running);
        let message = self.hello()?;
        say(&mut link, &message, &gone).context("saying hello to the incumbent")?;
        let mut returned = None;
        loop {
            let message = match returned.take().map_or_else(|| link.receive(&Deadline::when(&gone)), Ok) {
                Ok(message) => message,
                Err(MessageError::Port(PortError::GivenUp | PortError::Closed)) if gone() => {
                    bail!(
                        "the incumbent is gone before it put this host in charge: its guests and its part of the \
                         machine are lost until a reboot"
                    )
                }
                Err(error) => return Err(error).context("listening to the incumbent"),
            };
            if let Message::Entrust {
                refresh,
                report,
                seconds,
            } = message
            {
                self.accept(*refresh, *report)?;
                say(&mut link, &Message::Entrusted, &gone)?;
                returned = self.take_over(&mut link, Duration::from_secs(seconds))?;
                if self.agent.shared.lock().refresh.role() == Role::Incumbent {
                    return Ok(());
                }
            } else {
                self.answer(&mut link, message, &gone)?;
            }
        }
    }

    fn hello(&self) -> Result<Message> {
        let sys = self.agent.machine.sys();
        let online = sys.read("sys/devices/system/cpu/online")?;
        Ok(Message::Hello {
            generation: self.generation,
            kernel: sys.read("proc/sys/kernel/osrelease")?,
            cpus: crate::sysroot::parse_list(&online).map_or(0, |cpus| cpus.len()),
            versions: Versions::OURS,
        })
    }

    fn answer(&mut self, link: &mut Link, message: Message, gone: Gone<'_>) -> Result<()> {
        match message {
            Message::Welcome {
                clock,
                guests,
                seconds,
                version: _,
            } => {
                if let Err(error) = clock.set() {
                    tracing::warn!("{error:#}");
                }
                self.prepare(link, guests, Duration::from_secs(seconds), gone)
            }
            Message::Receive { name, seconds } => self.receive(link, name, Duration::from_secs(seconds), gone),
            Message::Return { name, seconds } => self.give_back(link, name, Duration::from_secs(seconds), gone),
            other => {
                tracing::warn!("unexpected message from the incumbent: {other:?}");
                Ok(())
            }
        }
    }

    /// Starts all QEMUs side by side.
    fn prepare(&mut self, link: &mut Link, guests: Vec<Spec>, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let hypervisor = &*self.agent.hypervisor;
        let start = tsc::now();
        let prepared: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = guests
                .into_iter()
                .map(|spec| {
                    let name = spec.name.clone();
                    let thread = scope.spawn(move || {
                        let vm = hypervisor.prepare(&spec, &Deadline::after(limit).or_when(gone));
                        (spec, vm, tsc::now())
                    });
                    (name, thread)
                })
                .collect();
            threads
                .into_iter()
                .map(|(name, thread)| (name, thread.join()))
                .collect()
        });
        for (name, outcome) in prepared {
            let message = match outcome {
                Ok((spec, Ok(vm), ready)) => {
                    self.ports.get(&*self.agent.machine, spec.channel)?;
                    self.guests.insert(name.clone(), (spec, vm));
                    Message::Prepared {
                        name,
                        ticks: ready.saturating_sub(start),
                    }
                }
                Ok((_, Err(error), _)) => Message::Failed {
                    name,
                    reason: format!("{error:#}"),
                },
                Err(_) => Message::Failed {
                    name,
                    reason: "the thread that starts it panicked".to_owned(),
                },
            };
            say(link, &message, gone)?;
        }
        Ok(())
    }

    fn receive(&mut self, link: &mut Link, name: String, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let Some((spec, vm)) = self.guests.get_mut(&name) else {
            let reason = "its QEMU was not started here".to_owned();
            return Ok(say(link, &Message::Failed { name, reason }, gone)?);
        };
        let port = self.ports.get(&*self.agent.machine, spec.channel)?;
        say(link, &Message::Receiving { name: name.clone() }, gone)?;
        let message = match vm.receive(port, &Deadline::after(limit).or_when(gone)) {
            Ok(received) => Message::Resumed {
                name,
                received: received.received,
                resumed: received.resumed,
            },
            Err(error) => {
                // Only when its process is gone may the incumbent's go on.
                vm.quit()?;
                self.guests.remove(&name);
                Message::Failed {
                    name,
                    reason: format!("{error:#}"),
                }
            }
        };
        Ok(say(link, &message, gone)?)
    }

    fn give_back(&mut self, link: &mut Link, name: String, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let (spec, mut vm) = self
            .guests
            .remove(&name)
            .with_context(|| format!("guest {name} does not run here"))?;
        let port = self.ports.get(&*self.agent.machine, spec.channel)?;
        if let Err(error) = vm.send(port, &Deadline::after(limit).or_when(gone)) {
            tracing::warn!("guest {name}: {error:#}");
        }
        loop {
            match link.receive(&Deadline::after(limit + MESSAGE).or_when(gone)) {
                Ok(Message::Resumed { .. }) => {
                    vm.quit()?;
                    return Ok(say(link, &Message::Gone { name }, gone)?);
                }
                Ok(Message::Failed { .. }) => {
                    vm.resume()?;
                    self.guests.insert(name, (spec, vm));
                    return Ok(());
                }
                Ok(other) => tracing::warn!("guest {name}: unexpected message {other:?}"),
                // Not known where it runs: it stays stopped here, the incumbent decides.
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn accept(&self, refresh: Refresh, report: Report) -> Result<()> {
        let taken = Refresh::take_over(refresh)?;
        let mut inner = self.agent.shared.lock();
        inner.refresh = taken;
        inner.running = Some(report.name.clone());
        inner.report = Some(report);
        Ok(())
    }

    /// Drives the state machine from the wait for the incumbent's end on. Returns the incumbent's message if it goes on
    /// instead.
    fn take_over(&mut self, link: &mut Link, limit: Duration) -> Result<Option<Message>> {
        let agent = self.agent.clone();
        let mut returned = None;
        drive::drive(&agent, |action| match action {
            Action::AwaitIncumbentGone => {
                returned = self.await_gone(link, limit)?;
                if returned.is_some() {
                    let reason = "the incumbent takes its guests back";
                    agent.shared.lock().abort = Some(reason.to_owned());
                    bail!(reason);
                }
                Ok(())
            }
            action => self.perform(action),
        })?;
        Ok(returned)
    }

    /// Waits for L0's word. A message means that the incumbent goes back instead.
    fn await_gone(&mut self, link: &mut Link, limit: Duration) -> Result<Option<Message>> {
        let over = || incumbent_state(&self.agent) != Some(HostState::Running);
        let until = Deadline::after(limit);
        match link.receive(&until.or_when(&over)) {
            Ok(message) => Ok(Some(message)),
            // An incumbent whose kernel is shutting down has closed the channel; L0's word is still to come.
            Err(_) => self.await_word(&until).map(|()| None),
        }
    }

    fn await_word(&self, until: &Deadline<'_>) -> Result<()> {
        let word = until.find(Duration::from_millis(20), || match incumbent_state(&self.agent) {
            Some(HostState::Retired) => Ok(Some(())),
            Some(HostState::Dead) => bail!("the incumbent died before it could retire"),
            _ => Ok(None),
        });
        word?.context("the incumbent does not power off")
    }

    fn perform(&mut self, action: &Action) -> Result<()> {
        let machine = &*self.agent.machine;
        match action {
            // L0 gave it all when the incumbent retired.
            Action::Transfer(_) => Ok(()),
            Action::AddMemory { range, online } => machine.add_memory(*range, self.node(*range), *online),
            Action::OnlineCpu(apic) => machine.online_cpu(self.agent.cpu_number(*apic)?),
            Action::AddPci(address) => machine.find_pci(*address),
            Action::LeaveNested(apic) => machine.leave(self.agent.cpu_number(*apic)?),
            Action::TakeIncumbent => self.take_incumbent(),
            other => bail!("`{other}` is the incumbent's to do"),
        }
    }

    /// L0 lets the successor take the incumbent only once that is dead: a host that is merely slow may still run
    /// guests. So this waits as long as it takes; an operator can power the incumbent off meanwhile.
    fn take_incumbent(&self) -> Result<()> {
        let mut told = false;
        loop {
            if incumbent_state(&self.agent) == Some(HostState::Retired) {
                return Ok(());
            }
            match self.agent.machine.abort() {
                Ok(()) => return Ok(()),
                Err(error) if !told => {
                    told = true;
                    tracing::warn!("{error:#}; waiting for the incumbent to power off or die: `poweroff -f` there");
                }
                Err(_) => {}
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn node(&self, range: MemRange) -> u32 {
        let inner = self.agent.shared.lock();
        let blocks = inner
            .refresh
            .plan()
            .map(|plan| plan.reclaim.blocks.as_slice())
            .unwrap_or_default();
        blocks
            .iter()
            .find(|block| block.range == range)
            .map_or(0, |block| block.node.0)
    }
}

/// Tells the incumbent, as long as it is there.
fn say(link: &mut Link, message: &Message, gone: Gone<'_>) -> Result<(), MessageError> {
    link.send(message, &Deadline::after(MESSAGE).or_when(gone))
}

fn incumbent_state(agent: &Agent) -> Option<HostState> {
    agent.other_host().map(|(state, _)| state)
}
