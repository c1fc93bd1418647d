//! The successor's side: it answers the incumbent until that is gone, then takes over the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::{HostState, PoolState};
use partitioner::{Action, Loss, MemRange, Refresh, Role, State};

use super::{Agent, Ports, drive};
use crate::channel::message::{MessageError, There};
use crate::channel::port::PortError;
use crate::channel::{Link, Message, Versions};
use crate::config::Timeouts;
use crate::deadline::Deadline;
use crate::guest::{Hypervisor, Place, Received, Spec, Vm};
use crate::journal::Inheritance;
use crate::pool::crossing;
use crate::report::Report;
use crate::tsc;

/// For a message to get through.
const MESSAGE: Duration = Duration::from_secs(60);
/// Between two attempts to begin a conversation anew.
const AGAIN: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 200 });
/// Between two attempts to take an incumbent that hangs.
const TAKE: Duration = Duration::from_millis(500);

/// Asked whether the incumbent is gone.
type Gone<'a> = &'a (dyn Fn() -> bool + Sync);

/// A host that is to replace another.
pub struct Successor {
    agent: Agent,
    generation: u64,
    guests: BTreeMap<String, (Spec, Box<dyn Vm>)>,
    /// Those that run here for certain.
    arrived: BTreeSet<String>,
    /// Guests that another daemon of this host knew, and of which this one has not found out yet whether they are here.
    doubtful: Vec<Spec>,
    ports: Ports,
    /// None: the incumbent's agent has gone, and maybe come again.
    link: Option<Link>,
}

impl Successor {
    /// Of that generation. Guests that another daemon of this host has taken in are found again.
    pub fn new(agent: Agent, generation: u64) -> Self {
        let doubtful = agent.shared.lock().brief.guests.clone();
        Self {
            agent,
            generation,
            guests: BTreeMap::new(),
            arrived: BTreeSet::new(),
            doubtful,
            ports: Ports::default(),
            link: None,
        }
    }

    /// Serves the incumbent, then takes over.
    ///
    /// # Errors
    /// If the incumbent is gone before this host is in charge.
    pub fn serve(mut self) -> Result<()> {
        let agent = self.agent.clone();
        // Its CPUs came up nested.
        agent.notifiers_first();
        let gone = || incumbent_state(&agent) != Some(HostState::Running);
        // Another daemon of this host may have been put in charge.
        let mut returned = self.take_over()?;
        loop {
            if self.agent.shared.lock().refresh.role() == Role::Incumbent && returned.is_none() && self.reigns() {
                return Ok(());
            }
            let message = match returned.take() {
                Some(message) => message,
                None => match self.next(&Deadline::when(&gone)) {
                    Ok(message) => message,
                    Err(_) if gone() => {
                        self.inherit()?;
                        returned = self.take_over()?;
                        continue;
                    }
                    Err(error) => return Err(error).context("listening to the incumbent"),
                },
            };
            if let Message::Entrust {
                refresh,
                report,
                seconds,
            } = message
            {
                if let Err(error) = self.accept(*refresh, *report, seconds) {
                    tracing::warn!("{error:#}");
                    let reason = format!("{error:#}");
                    self.try_say(
                        &Message::Failed {
                            name: String::new(),
                            reason,
                        },
                        &gone,
                    );
                    continue;
                }
                // Not heard of: its agent asks again.
                self.try_say(&Message::Entrusted, &gone);
                returned = self.take_over()?;
            } else if let Err(error) = self.answer(message, &gone) {
                // Its guests wait for an answer still: there is no reason to stop.
                tracing::warn!("the incumbent's agent: {error:#}");
                self.forget();
            }
        }
    }

    /// Whether L0 says that this is the reigning host.
    fn reigns(&self) -> bool {
        let status = self.agent.machine.status();
        status.is_ok_and(|status| u64::from(status.generation) == self.generation)
    }

    /// The next message, in a new conversation if the last one broke off.
    fn next(&mut self, until: &Deadline<'_>) -> Result<Message, MessageError> {
        loop {
            if self.link.is_none()
                && let Err(error) = self.call(until)
            {
                tracing::debug!("saying hello to the incumbent: {error:#}");
                if until.given_up() {
                    return Err(PortError::GivenUp.into());
                }
                if until.passed() {
                    return Err(PortError::Timeout.into());
                }
                std::thread::sleep(AGAIN.min(until.left()));
                continue;
            }
            let Some(link) = &mut self.link else {
                continue;
            };
            match link.receive(until) {
                Ok(message) => return Ok(message),
                Err(error @ MessageError::Port(PortError::GivenUp | PortError::Timeout)) => return Err(error),
                Err(error) if until.given_up() => return Err(error),
                Err(error) => {
                    tracing::warn!("the incumbent's agent: {error}");
                    self.forget();
                    std::thread::sleep(AGAIN.min(until.left()));
                }
            }
        }
    }

    /// Begins a conversation.
    fn call(&mut self, until: &Deadline<'_>) -> Result<()> {
        let message = self.hello()?;
        let mut link = Link::new(self.agent.machine.channel(0)?);
        let limit = Deadline::after(MESSAGE.min(until.left()));
        let given_up = || until.given_up();
        link.send(&message, &limit.or_when(&given_up))?;
        self.link = Some(link);
        Ok(())
    }

    /// The conversation has broken off: what is in the guests' channels is of no use any more.
    fn forget(&mut self) {
        self.link = None;
        self.ports = Ports::default();
    }

    fn say(&mut self, message: &Message, gone: Gone<'_>) -> Result<(), MessageError> {
        match &mut self.link {
            Some(link) => link.send(message, &Deadline::after(MESSAGE).or_when(gone)),
            None => Err(PortError::Closed.into()),
        }
    }

    fn try_say(&mut self, message: &Message, gone: Gone<'_>) {
        if let Err(error) = self.say(message, gone) {
            tracing::warn!("the incumbent's agent: {error}");
            self.forget();
        }
    }

    /// Says what is so, or nothing: the incumbent runs a guest that is not told.
    fn hello(&mut self) -> Result<Message> {
        self.look_at_doubtful()?;
        let sys = self.agent.machine.sys();
        let online = sys.read("sys/devices/system/cpu/online")?;
        let kernel = sys.read("proc/sys/kernel/osrelease")?;
        let (hypervisor, arrived) = (&*self.agent.hypervisor, &self.arrived);
        let mut gone = Vec::new();
        let mut there = Vec::new();
        for (name, (spec, vm)) in &mut self.guests {
            let place = match vm.place() {
                Ok(place) => place,
                Err(error) => match hypervisor.find(spec) {
                    Ok(None) => {
                        tracing::warn!("guest {name}: its QEMU has ended here ({error:#})");
                        gone.push(name.clone());
                        continue;
                    }
                    Ok(Some(again)) => {
                        *vm = again;
                        vm.place()?
                    }
                    // It hangs, with the guest that has arrived in it.
                    Err(_) if arrived.contains(name) => Place::Running,
                    Err(_) => return Err(error.context(format!("guest {name}: its QEMU does not answer: end it"))),
                },
            };
            there.push(There {
                name: name.clone(),
                place,
            });
        }
        for name in gone {
            self.guests.remove(&name);
            self.arrived.remove(&name);
        }
        Ok(Message::Hello {
            generation: self.generation,
            kernel,
            cpus: crate::sysroot::parse_list(&online).map_or(0, |cpus| cpus.len()),
            versions: Versions::OURS,
            guests: Some(there),
            entrusted: self.agent.shared.lock().refresh.role() == Role::Successor
                && self.agent.shared.lock().refresh.state() != State::Idle,
        })
    }

    /// Finds out which guests that another daemon of this host knew are here.
    fn look_at_doubtful(&mut self) -> Result<()> {
        while let Some(spec) = self.doubtful.last() {
            let vm = arrived(&*self.agent.hypervisor, spec).with_context(|| format!("guest {}", spec.name))?;
            let known = self.doubtful.pop();
            if let (Some(mut vm), Some(spec)) = (vm, known) {
                if vm.place()? == Place::Running {
                    crossing::runs_here(&self.agent, &spec);
                }
                self.arrived.insert(spec.name.clone());
                self.guests.insert(spec.name.clone(), (spec, vm));
            }
        }
        Ok(())
    }

    fn answer(&mut self, message: Message, gone: Gone<'_>) -> Result<()> {
        match message {
            Message::Welcome {
                clock,
                guests,
                seconds,
                version: _,
                inheritance,
            } => {
                if let Err(error) = self.agent.machine.set_clock(&clock) {
                    tracing::warn!("{error:#}");
                }
                let inherits = inheritance.is_some();
                if let Some(inheritance) = inheritance {
                    self.agent.shared.lock().brief.inheritance = Some(*inheritance);
                }
                // Written down with the guests.
                self.prepare(guests, Duration::from_secs(seconds), gone)?;
                if inherits {
                    self.say(&Message::Heir, gone)?;
                }
                Ok(())
            }
            Message::Receive { name, seconds } => self.receive(name, Duration::from_secs(seconds), gone),
            Message::Return { name, seconds } => self.give_back(name, Duration::from_secs(seconds), gone),
            // What became of a guest that was on its way back when an agent died.
            Message::Resumed { name, .. } => self.let_go(name, gone),
            Message::Failed { name, .. } => match self.guests.get_mut(&name) {
                Some((_, vm)) => vm.resume(),
                None => Ok(()),
            },
            other => {
                tracing::warn!("unexpected message from the incumbent: {other:?}");
                Ok(())
            }
        }
    }

    /// Starts all QEMUs side by side, but for those that are there.
    fn prepare(&mut self, guests: Vec<Spec>, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let (there, guests): (Vec<_>, Vec<_>) = guests
            .into_iter()
            .partition(|spec| self.guests.contains_key(&spec.name));
        self.write_down(&guests);
        for spec in there {
            self.say(
                &Message::Prepared {
                    name: spec.name,
                    ticks: 0,
                },
                gone,
            )?;
        }
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
        // All are noted before anything is said: an incumbent that does not listen asks again.
        let mut messages = Vec::new();
        for (name, outcome) in prepared {
            messages.push(match outcome {
                Ok((spec, Ok(vm), ready)) => {
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
            });
        }
        for (spec, _) in self.guests.values() {
            self.ports.get(&*self.agent.machine, spec.channel)?;
        }
        for message in messages {
            self.say(&message, gone)?;
        }
        Ok(())
    }

    /// Notes whose QEMUs are here or about to be, so that another daemon finds them.
    fn write_down(&self, coming: &[Spec]) {
        let known = self.guests.values().map(|(spec, _)| spec);
        let known = known.chain(&self.doubtful).chain(coming);
        self.agent.shared.lock().brief.guests = known.cloned().collect();
        if let Err(error) = self.agent.write_down() {
            tracing::warn!("{error:#}");
        }
    }

    fn receive(&mut self, name: String, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let Some(channel) = self.guests.get(&name).map(|(spec, _)| spec.channel) else {
            let reason = "its QEMU was not started here".to_owned();
            return Ok(self.say(&Message::Failed { name, reason }, gone)?);
        };
        self.ports.get(&*self.agent.machine, channel)?;
        self.say(&Message::Receiving { name: name.clone() }, gone)?;
        let port = self.ports.get(&*self.agent.machine, channel)?;
        let Some((spec, vm)) = self.guests.get_mut(&name) else {
            bail!("guest {name} is gone");
        };
        // An agent that died before its first byte sends none: the guest runs there. After that, its own end is in the stream.
        let (taken, before) = (port.taken(), port.taken().load(Ordering::Relaxed));
        let link = self.link.as_ref();
        let over = || {
            let begun = taken.load(Ordering::Relaxed) != before;
            gone() || (!begun && link.is_none_or(Link::ended))
        };
        let message = match vm.receive(port, &Deadline::after(limit).or_when(&over)) {
            Ok(Received { received, resumed }) => {
                crossing::runs_here(&self.agent, spec);
                self.arrived.insert(name.clone());
                if let Some(inheritance) = &mut self.agent.shared.lock().brief.inheritance {
                    let guest = inheritance.report.guest(&name);
                    (guest.moved, guest.received, guest.resumed) = (true, received, resumed);
                }
                Message::Resumed {
                    name,
                    received,
                    resumed,
                }
            }
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
        let said = self.say(&message, gone);
        // The word first: the incumbent waits for it.
        if let Message::Resumed { name, .. } = &message
            && let Some((_, vm)) = self.guests.get_mut(name)
            && let Err(error) = vm.plain()
        {
            tracing::warn!("guest {name}: {error:#}");
        }
        Ok(said?)
    }

    /// Sends a guest back. Until the incumbent says what became of it, it stays stopped here.
    fn give_back(&mut self, name: String, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let Some((spec, vm)) = self.guests.get_mut(&name) else {
            // The incumbent's QEMU reads until its time is over, or until there is a new conversation, in which it hears of it.
            tracing::warn!("guest {name} is to go back, and has no QEMU here");
            self.forget();
            return Ok(());
        };
        self.arrived.remove(&name);
        let port = self.ports.get(&*self.agent.machine, spec.channel)?;
        if let Err(error) = crossing::mark(&*self.agent.machine, spec, PoolState::Crossing) {
            tracing::warn!("{error}");
        }
        if let Err(error) = vm.send(port, &Deadline::after(limit).or_when(gone)) {
            tracing::warn!("guest {name}: {error:#}");
        }
        loop {
            let link = self.link.as_mut().context("there is no channel to the incumbent")?;
            match link.receive(&Deadline::after(limit + MESSAGE).or_when(gone))? {
                Message::Resumed { .. } => return self.let_go(name, gone),
                Message::Failed { .. } => {
                    if let Some((spec, vm)) = self.guests.get_mut(&name) {
                        vm.resume()?;
                        crossing::runs_here(&self.agent, spec);
                    }
                    return Ok(());
                }
                other => tracing::warn!("guest {name}: unexpected message {other:?}"),
            }
        }
    }

    /// The guest runs in the incumbent.
    fn let_go(&mut self, name: String, gone: Gone<'_>) -> Result<()> {
        if let Some((_, mut vm)) = self.guests.remove(&name) {
            vm.quit()?;
        }
        Ok(self.say(&Message::Gone { name }, gone)?)
    }

    fn accept(&self, refresh: Refresh, report: Report, seconds: u64) -> Result<()> {
        let taken = Refresh::take_over(refresh)?;
        let before = {
            let mut inner = self.agent.shared.lock();
            let before = (inner.refresh.clone(), inner.running.clone(), inner.report.clone());
            inner.refresh = taken;
            inner.running = Some(report.name.clone());
            inner.report = Some(report);
            inner.brief.retire_seconds = Some(seconds);
            before
        };
        // Before the incumbent hears of it: from then on it only powers off.
        self.agent.write_down().inspect_err(|_| {
            let mut inner = self.agent.shared.lock();
            (inner.refresh, inner.running, inner.report) = before;
            inner.brief.retire_seconds = None;
        })
    }

    /// The incumbent has died before it put this host in charge: what it has told is enough to go on without it. Guests that
    /// run here live; those that had not arrived have died with it, for the memory that they ran in is theirs no more.
    fn inherit(&mut self) -> Result<()> {
        let (state, reason) = self
            .agent
            .other_host()
            .context("L0 does not say what became of the incumbent")?;
        let inheritance = self.agent.shared.lock().brief.inheritance.clone();
        let Some(Inheritance { refresh, report, .. }) = inheritance else {
            bail!(
                "the incumbent is gone before it told this host what to go on with: its guests and its part of the machine \
                 are lost until a reboot"
            )
        };
        let planned = refresh.plan().map(|plan| plan.guests.clone()).unwrap_or_default();
        let losses = planned.into_iter().filter_map(|name| self.loss_of(name)).collect();
        let reason = match state {
            HostState::Dead => format!("the incumbent died before it put this host in charge: {reason}"),
            HostState::Dumping => "the incumbent died before it put this host in charge: it panicked".to_owned(),
            _ => "the incumbent powered off before it put this host in charge".to_owned(),
        };
        tracing::warn!("{reason}");
        let inherited = Refresh::inherit(refresh, losses, reason)?;
        let mut inner = self.agent.shared.lock();
        inner.refresh = inherited;
        inner.running = Some(report.name.clone());
        inner.report = Some(report);
        Ok(())
    }

    /// What was lost of a guest with the incumbent. A QEMU that waits for it is ended. One that has stopped it is left as it is:
    /// if it was on its way back, nobody can tell any more whether it has run in the incumbent since, and then what is saved
    /// here does not fit its memory.
    fn loss_of(&mut self, name: String) -> Option<Loss> {
        let known = self.doubtful.iter().position(|spec| spec.name == name);
        let place = match known.map(|number| self.doubtful.swap_remove(number)) {
            Some(spec) => match arrived(&*self.agent.hypervisor, &spec) {
                Ok(None) => return Some(Loss::Left(name)),
                Ok(Some(mut vm)) => {
                    let place = vm.place();
                    self.guests.insert(name.clone(), (spec, vm));
                    place
                }
                Err(error) => Err(error),
            },
            None => match self.guests.get_mut(&name) {
                None => return Some(Loss::Left(name)),
                Some((_, vm)) => vm.place(),
            },
        };
        match place {
            Ok(Place::Running) => None,
            Ok(Place::Stopped) => Some(Loss::Stopped(name)),
            Ok(Place::Waiting) => {
                if let Some((_, mut vm)) = self.guests.remove(&name)
                    && let Err(error) = vm.quit()
                {
                    tracing::warn!("guest {name}: {error:#}");
                }
                Some(Loss::Left(name))
            }
            // Whatever it does, it is not touched.
            Err(error) => {
                tracing::warn!("guest {name}: {error:#}");
                None
            }
        }
    }

    /// Drives the state machine from the wait for the incumbent's end on, if this host was put in charge. Returns the
    /// incumbent's message if it goes on instead.
    fn take_over(&mut self) -> Result<Option<Message>> {
        let agent = self.agent.clone();
        let seconds = agent.shared.lock().brief.retire_seconds.unwrap_or_default();
        let mut returned = None;
        drive::drive(&agent, |action| {
            returned = match action {
                Action::AwaitIncumbentGone => self.await_gone(Duration::from_secs(seconds))?,
                Action::TakeIncumbent => self.take_incumbent()?,
                action => return self.perform(action),
            };
            if returned.is_some() {
                let reason = "the incumbent takes its guests back";
                agent.shared.lock().abort = Some(reason.to_owned());
                bail!(reason);
            }
            Ok(())
        })?;
        Ok(returned)
    }

    /// Waits for L0's word. A message means that the incumbent goes back instead.
    fn await_gone(&mut self, limit: Duration) -> Result<Option<Message>> {
        let until = Deadline::after(limit);
        match self.heed(&until) {
            Some(message) => Ok(Some(message)),
            // An incumbent whose kernel is shutting down has closed the channel; L0's word is still to come.
            None => self.await_word(&until).map(|()| None),
        }
    }

    /// Listens for an incumbent that goes back, until then or until it is gone. One whose agent was started anew is told
    /// how it stands.
    fn heed(&mut self, until: &Deadline<'_>) -> Option<Message> {
        let agent = self.agent.clone();
        let over = || incumbent_state(&agent) != Some(HostState::Running);
        loop {
            match self.next(&until.or_when(&over)) {
                Ok(Message::Entrust { .. }) => self.try_say(&Message::Entrusted, &over),
                Ok(message @ Message::Welcome { .. }) => {
                    if let Err(error) = self.answer(message, &over) {
                        tracing::warn!("the incumbent's agent: {error:#}");
                        self.forget();
                    }
                }
                Ok(message) => return Some(message),
                Err(_) => return None,
            }
        }
    }

    fn await_word(&self, until: &Deadline<'_>) -> Result<()> {
        let word = until.find(Duration::from_millis(20), || match incumbent_state(&self.agent) {
            Some(HostState::Retired) => Ok(Some(())),
            Some(HostState::Dead | HostState::Dumping) => bail!("the incumbent died before it could retire"),
            _ => Ok(None),
        });
        word?.context("the incumbent does not power off")
    }

    fn perform(&mut self, action: &Action) -> Result<()> {
        let machine = &*self.agent.machine;
        if self.agent.found(action)? == Some(true) {
            return Ok(());
        }
        match action {
            // L0 gave it all when the incumbent retired.
            Action::Transfer(_) => Ok(()),
            Action::AddMemory { range, online } => self.agent.add_memory(*range, self.node(*range), *online),
            Action::OnlineCpu(apic) => machine.online_cpu(self.agent.cpu_number(*apic)?),
            Action::AddPci(address) => machine.find_pci(*address),
            Action::LeaveNested(apic) => {
                machine.leave(self.agent.cpu_number(*apic)?)?;
                self.agent.notifiers_as_before();
                Ok(())
            }
            other => bail!("`{other}` is the incumbent's to do"),
        }
    }

    /// L0 lets the successor take the incumbent only once that is dead, or has said that no guest runs in it any more: a
    /// host that is merely slow may still run guests. So this waits as long as it takes; an operator can power the
    /// incumbent off meanwhile. A message means that it goes back after all.
    fn take_incumbent(&mut self) -> Result<Option<Message>> {
        let mut told = false;
        self.agent.await_dump(self.dump_limit());
        loop {
            // L0 gave it all when the incumbent retired, or when it was taken.
            if let Some(HostState::Retired | HostState::Absent) = incumbent_state(&self.agent) {
                return Ok(None);
            }
            match self.agent.machine.abort() {
                Ok(()) => return Ok(None),
                Err(error) if !told => {
                    told = true;
                    tracing::warn!("{error:#}; waiting for the incumbent to power off or die: `poweroff -f` there");
                }
                Err(_) => {}
            }
            let until = Deadline::after(TAKE);
            if let Some(message) = self.heed(&until) {
                return Ok(Some(message));
            }
            std::thread::sleep(until.left());
        }
    }

    /// How long a dump of the incumbent's may take.
    fn dump_limit(&self) -> Duration {
        let inner = self.agent.shared.lock();
        let told = inner
            .brief
            .inheritance
            .as_ref()
            .map(|inheritance| inheritance.dump_seconds);
        told.map_or(Timeouts::default().dump, Duration::from_secs)
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

/// The QEMU of a guest that has arrived. One that waits is ended: an earlier daemon may have fed it half a state.
fn arrived(hypervisor: &dyn Hypervisor, spec: &Spec) -> Result<Option<Box<dyn Vm>>> {
    let Some(mut vm) = hypervisor.find(spec)? else {
        return Ok(None);
    };
    Ok((vm.arrive()? != Place::Waiting).then_some(vm))
}

fn incumbent_state(agent: &Agent) -> Option<HostState> {
    agent.other_host().map(|(state, _)| state)
}
