//! The successor's side: it answers the incumbent until that is gone, then takes over the machine.
//!
//! The guests that come and go back are in [`guests`], what follows the incumbent's end in [`take_over`].

mod guests;
mod take_over;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use locum_abi::HostState;
use partitioner::{Role, State};

use super::{Agent, Ports};
use crate::channel::link::MessageError;
use crate::channel::message::There;
use crate::channel::port::PortError;
use crate::channel::{Link, Message};
use crate::deadline::Deadline;
use crate::guest::{Place, Spec, Vm};

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
    /// Those whose QEMUs have ended, and which may have run in them.
    ended: BTreeMap<String, Spec>,
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
            ended: BTreeMap::new(),
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
        // Its CPUs came up nested, but this daemon may not be the first.
        if agent.is_nested() {
            agent.settings_while_nested();
        }
        let gone = || incumbent_state(&agent) != Some(HostState::Running);
        // Another daemon of this host may have been put in charge.
        let mut returned = self.take_over()?;
        loop {
            if self.agent.shared.lock().refresh.role() == Role::Incumbent
                && returned.is_none()
                && self.agent.reigns().unwrap_or(false)
            {
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
        let message = self.hello();
        self.tell(message.as_ref().err());
        let message = message?;
        let mut link = Link::speaking(self.agent.speaks, self.agent.machine.channel(0)?);
        let limit = Deadline::after(self.message().min(until.left()));
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

    /// For a message to get through: longer than the incumbent waits, which decides what becomes of the guests.
    fn message(&self) -> Duration {
        2 * self.agent.limits.message
    }

    fn say(&mut self, message: &Message, gone: Gone<'_>) -> Result<(), MessageError> {
        let until = Deadline::after(self.message());
        match &mut self.link {
            Some(link) => link.send(message, &until.or_when(gone)),
            None => Err(PortError::Closed.into()),
        }
    }

    fn try_say(&mut self, message: &Message, gone: Gone<'_>) {
        if let Err(error) = self.say(message, gone) {
            tracing::warn!("the incumbent's agent: {error}");
            self.forget();
        }
    }

    /// Why nothing is said: the incumbent's operator is told to look here.
    fn tell(&self, mute: Option<&anyhow::Error>) {
        let why = mute.map(|error| format!("{error:#}"));
        if let (true, Some(why)) = (self.agent.awaits(why.as_deref()), why) {
            tracing::warn!("the incumbent is told nothing: {why}");
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
                // libvirt has no QEMU of it any more.
                Ok(Place::Waiting) if arrived.contains(name) => {
                    tracing::warn!("guest {name}: its QEMU has ended here");
                    gone.push(name.clone());
                    continue;
                }
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
                sent: place == Place::Stopped && vm.has_gone()?,
            });
        }
        for name in gone {
            let known = self.guests.remove(&name);
            if let (Some((spec, _)), true) = (known, self.arrived.remove(&name)) {
                self.ended.insert(name, spec);
            }
        }
        Ok(Message::Hello {
            generation: self.generation,
            kernel,
            cpus: crate::sysroot::parse_list(&online).map_or(0, |cpus| cpus.len()),
            versions: self.agent.speaks,
            guests: Some(there),
            ended: self.ended.keys().cloned().collect(),
            entrusted: self.agent.shared.lock().refresh.role() == Role::Successor
                && self.agent.shared.lock().refresh.state() != State::Idle,
        })
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
            Message::Late { name, frames } => {
                self.give_frames(&name, &frames);
                Ok(())
            }
            Message::Return { name, seconds } => self.give_back(name, Duration::from_secs(seconds), gone),
            // What became of a guest that was on its way back when an agent died.
            Message::Resumed { name, .. } => self.let_go(name, gone),
            Message::Failed { name, .. } => self.run_on(&name),
            other => {
                tracing::warn!("unexpected message from the incumbent: {other:?}");
                Ok(())
            }
        }
    }
}

fn incumbent_state(agent: &Agent) -> Option<HostState> {
    agent.other_host().map(|(state, _)| state)
}
