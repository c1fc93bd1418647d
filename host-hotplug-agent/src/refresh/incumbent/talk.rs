//! The incumbent's side of the conversation with the successor's agent.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use locum_abi::{HostState, Will};
use partitioner::Refresh;

use super::Incumbent;
use super::settle::{Patience, Told};
use crate::channel::link::MessageError;
use crate::channel::message::HEIRS;
use crate::channel::port::PortError;
use crate::channel::{Link, Message};
use crate::clock::Clock;
use crate::deadline::Deadline;
use crate::error::listed;
use crate::guest::Spec;
use crate::journal::Inheritance;

/// Between two looks for guests that are to end.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });

/// The conversation is over, and a new one may be begun.
#[derive(Debug, thiserror::Error)]
pub(super) enum Silence {
    /// No word.
    #[error("the successor did not answer in time")]
    Timeout,
    /// The channel was closed, or what came through it made no sense.
    #[error("{0}")]
    Broken(String),
}

impl Incumbent {
    /// Why a wait ended, in place of the channel's error.
    pub(super) fn explain(&self, error: MessageError) -> anyhow::Error {
        if let Some(reason) = self.agent.other_died() {
            return anyhow!("the successor died: {reason}");
        }
        match error {
            MessageError::Port(PortError::GivenUp) => anyhow!("stopped by the operator"),
            error @ (MessageError::NothingInCommon(_) | MessageError::NotUnderstood { .. }) => error.into(),
            MessageError::Port(PortError::Timeout) => Silence::Timeout.into(),
            error => Silence::Broken(error.to_string()).into(),
        }
    }

    /// Waits for a message for which `wanted` gives a value; others are out of turn. Ends early if the successor dies,
    /// or the operator wants to stop.
    pub(super) fn expect<T>(&mut self, limit: Duration, wanted: impl Fn(&Message) -> Option<T>) -> Result<T> {
        let shared = self.agent.shared.clone();
        self.listen(limit, &|| shared.aborting(), wanted)
    }

    /// As [`Self::expect`], whatever the operator wants: something depends on the answer.
    pub(super) fn insist<T>(&mut self, limit: Duration, wanted: impl Fn(&Message) -> Option<T>) -> Result<T> {
        self.listen(limit, &|| false, wanted)
    }

    fn hear<T>(&mut self, limit: Duration, patience: Patience, wanted: impl Fn(&Message) -> Option<T>) -> Result<T> {
        match patience {
            Patience::UntilAborted => self.expect(limit, wanted),
            Patience::Endless => self.insist(limit, wanted),
        }
    }

    fn listen<T>(
        &mut self,
        limit: Duration,
        stop: &(dyn Fn() -> bool + Sync),
        wanted: impl Fn(&Message) -> Option<T>,
    ) -> Result<T> {
        let agent = self.agent.clone();
        let given_up = || stop() || agent.other_died().is_some();
        let until = Deadline::after(limit).or_when(&given_up);
        let link = self.link.as_mut().context("there is no channel to the successor")?;
        loop {
            match link.receive(&until) {
                Ok(message) => match wanted(&message) {
                    Some(value) => return Ok(value),
                    None => tracing::warn!("unexpected message from the successor: {message:?}"),
                },
                Err(error) => {
                    // The next action begins a new conversation.
                    self.link = None;
                    return Err(self.explain(error));
                }
            }
        }
    }

    pub(super) fn tell(&mut self, message: &Message) -> Result<()> {
        let agent = self.agent.clone();
        let given_up = || agent.other_died().is_some();
        let link = self.link.as_mut().context("there is no channel to the successor")?;
        match link.send(message, &Deadline::after(agent.limits.message).or_when(&given_up)) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.link = None;
                Err(self.explain(error))
            }
        }
    }

    pub(super) fn await_successor(&mut self) -> Result<()> {
        let limit = self.config.timeouts.boot;
        let guests = self.order.clone();
        let outcome = if self.resumed {
            self.connect(limit, &guests).map(drop)
        } else {
            self.link = Some(Link::speaking(self.agent.speaks, self.agent.machine.channel(0)?));
            let greeted = self.greet(limit, Patience::UntilAborted).map(drop);
            greeted.and_then(|()| self.welcome(&guests, Patience::UntilAborted))
        };
        let broken = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(Silence::Broken(_)));
        let outcome = match outcome {
            // Its agent died and comes again.
            Err(error) if broken(&error) && self.agent.other_state() == Some(HostState::Running) => {
                tracing::warn!("{error:#}");
                self.connect(limit, &guests).map(drop)
            }
            outcome => outcome,
        };
        // Whatever comes next may find that agent in the middle of something.
        self.resumed = true;
        outcome
    }

    /// Waits for the successor's first word, and tells what QEMUs it has, if it says so.
    pub(super) fn greet(&mut self, limit: Duration, patience: Patience) -> Result<Option<Told>> {
        let hello = |message: &Message| match message {
            Message::Hello { .. } => Some(message.clone()),
            _ => None,
        };
        let hello = self.hear(limit, patience, hello).map_err(|error| {
            if self.agent.other_died().is_some() {
                error
            } else {
                error.context(format!(
                    "no word from the successor's agent within {} s; see its console",
                    limit.as_secs()
                ))
            }
        })?;
        let Message::Hello {
            generation,
            kernel,
            cpus,
            guests,
            ended,
            entrusted,
            versions: _,
        } = hello
        else {
            bail!("unexpected answer {hello:?}");
        };
        let (expected, planned) = self.plan(|plan| (plan.generation.next().0, plan.cpus.len()))?;
        if generation != expected {
            bail!("a host of generation {generation} answered, generation {expected} was started");
        }
        if cpus != planned {
            bail!("the successor came up with {cpus} of {planned} CPUs; see its console");
        }
        if let Some(report) = &mut self.agent.shared.lock().report {
            report.successor = kernel;
        }
        self.entrusted = entrusted;
        Ok(guests.map(|there| Told { there, ended }))
    }

    /// Tells the successor the time, and has it prepare QEMUs for those guests that have none there.
    pub(super) fn welcome(&mut self, guests: &[Spec], patience: Patience) -> Result<()> {
        let clock = Clock::now(self.agent.machine.facts().tsc_khz);
        let version = self
            .link
            .as_ref()
            .context("there is no channel to the successor")?
            .version();
        let inherits = version >= HEIRS;
        let inheritance = inherits.then(|| {
            let inner = self.agent.shared.lock();
            Box::new(Inheritance {
                refresh: inner.refresh.to_send(),
                report: inner.report.clone().unwrap_or_default(),
                dump_seconds: self.config.timeouts.dump.as_secs(),
            })
        });
        self.tell(&Message::Welcome {
            version,
            clock,
            guests: guests.to_vec(),
            seconds: self.config.timeouts.guest_start.as_secs(),
            inheritance,
        })?;
        for _ in guests {
            let answer = |message: &Message| match message {
                Message::Prepared { name, ticks } => Some(Ok((name.clone(), *ticks))),
                Message::Failed { name, reason } => Some(Err(anyhow!("guest {name}: {reason}"))),
                _ => None,
            };
            let (name, ticks) = self.hear(
                self.config.timeouts.guest_start + self.agent.limits.verdict,
                patience,
                answer,
            )??;
            self.note(&name, |guest| guest.prepare_ticks = ticks);
        }
        if inherits {
            let heir = |message: &Message| matches!(message, Message::Heir).then_some(());
            self.hear(self.agent.limits.message, patience, heir)?;
        }
        // From here on guests may run there: this host's death must not be theirs. One that is older does not take the
        // machine over, but its guests live.
        self.agent.machine.will(Will::Pass).map(drop)
    }

    /// Waits until no guest is in this host, which is about to end: one may have been started since those that go were looked at.
    fn await_last_guest(&self) -> Result<()> {
        let agent = &self.agent;
        let limit = self.config.timeouts.shutdown;
        let given_up = || agent.shared.aborting() || agent.other_died().is_some();
        let until = Deadline::after(limit).or_when(&given_up);
        let mut names = String::new();
        let none = until.find(LOOK, || {
            let others = agent.hypervisor.others(&[]);
            let now = listed(&others.iter().map(|other| other.name.as_str()).collect::<Vec<_>>());
            if !others.is_empty() {
                agent.awaits(Some(&format!("{now}, started since the refresh began, to shut down")));
            }
            names = now;
            anyhow::Ok(others.is_empty().then_some(()))
        });
        agent.awaits(None);
        match none? {
            Some(()) => Ok(()),
            None if given_up() => bail!("given up while a guest was to shut down ({names})"),
            None => bail!(
                "{names}: started since the refresh began, and would end with this host, unasked; it did not shut down within {} s. \
                 Shut it down, or let it go over, and begin again",
                limit.as_secs()
            ),
        }
    }

    pub(super) fn entrust(&mut self) -> Result<()> {
        self.reach(&[])?;
        if self.entrusted {
            // An agent before this one has heard nothing of it.
            return Ok(());
        }
        self.await_last_guest()?;
        let (refresh, report): (Refresh, _) = {
            let inner = self.agent.shared.lock();
            (inner.refresh.to_send(), inner.report.clone().unwrap_or_default())
        };
        self.tell(&Message::Entrust {
            refresh: Box::new(refresh),
            report: Box::new(report),
            seconds: self.config.timeouts.retire.as_secs(),
        })?;
        self.expect(self.agent.limits.message, |message| match message {
            Message::Entrusted => Some(Ok(())),
            Message::Failed { reason, .. } => Some(Err(anyhow!("the successor cannot take charge: {reason}"))),
            _ => None,
        })?
    }
}
