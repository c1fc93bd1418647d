//! The incumbent's side of the conversation with the successor's agent.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use partitioner::Refresh;

use super::{Incumbent, MESSAGE, VERDICT};
use crate::channel::message::MessageError;
use crate::channel::port::PortError;
use crate::channel::{Link, Message};
use crate::clock::Clock;
use crate::deadline::Deadline;

impl Incumbent {
    /// Why a wait ended, in place of the channel's error.
    pub(super) fn explain(&self, error: MessageError) -> anyhow::Error {
        if let Some(reason) = self.agent.other_died() {
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
                Err(error) => return Err(self.explain(error)),
            }
        }
    }

    pub(super) fn tell(&mut self, message: &Message) -> Result<()> {
        let agent = self.agent.clone();
        let given_up = || agent.other_died().is_some();
        let link = self.link.as_mut().context("there is no channel to the successor")?;
        link.send(message, &Deadline::after(MESSAGE).or_when(&given_up))
            .map_err(|error| self.explain(error))
    }

    pub(super) fn await_successor(&mut self) -> Result<()> {
        self.link = Some(Link::new(self.agent.machine.channel(0)?));
        let hello = |message: &Message| match message {
            Message::Hello {
                generation,
                kernel,
                cpus,
                versions: _,
            } => Some((*generation, kernel.clone(), *cpus)),
            _ => None,
        };
        let limit = self.config.timeouts.boot;
        let (generation, kernel, cpus) = self.expect(limit, hello).map_err(|error| {
            if self.agent.other_died().is_some() {
                error
            } else {
                error.context(format!(
                    "no word from the successor's agent within {} s; see its console",
                    limit.as_secs()
                ))
            }
        })?;
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
        let clock = Clock::now(self.agent.machine.facts().tsc_khz);
        let version = self
            .link
            .as_ref()
            .context("there is no channel to the successor")?
            .version();
        self.tell(&Message::Welcome {
            version,
            clock,
            guests: self.order.clone(),
            seconds: self.config.timeouts.guest_start.as_secs(),
        })?;
        for _ in 0..self.order.len() {
            let answer = |message: &Message| match message {
                Message::Prepared { name, ticks } => Some(Ok((name.clone(), *ticks))),
                Message::Failed { name, reason } => Some(Err(anyhow!("guest {name}: {reason}"))),
                _ => None,
            };
            let (name, ticks) = self.expect(self.config.timeouts.guest_start + VERDICT, answer)??;
            self.note(&name, |guest| guest.prepare_ticks = ticks);
        }
        Ok(())
    }

    pub(super) fn entrust(&mut self) -> Result<()> {
        let (refresh, report): (Refresh, _) = {
            let inner = self.agent.shared.lock();
            (inner.refresh.to_send(), inner.report.clone().unwrap_or_default())
        };
        self.tell(&Message::Entrust {
            refresh: Box::new(refresh),
            report: Box::new(report),
            seconds: self.config.timeouts.retire.as_secs(),
        })?;
        self.expect(MESSAGE, |message| matches!(message, Message::Entrusted).then_some(()))
    }
}
