//! Guests given to the successor, and taken back. A guest never runs in both hosts, and whenever it is not known where
//! it runs, the successor is stopped first.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use locum_abi::{HostState, PoolState};

use super::settle::{Patience, Settled};
use super::{Incumbent, Ports};
use crate::channel::message::FRAMES;
use crate::channel::{Link, Message};
use crate::deadline::Deadline;
use crate::guest::{Place, Spec, Vm, try_plain, whether_it_came};
use crate::pool::crossing;
use crate::report::GuestReport;

/// How often a guest is asked back, before an operator is needed.
const RETURNS: usize = 3;

impl Incumbent {
    pub(super) fn note(&self, name: &str, change: impl FnOnce(&mut GuestReport)) {
        if let Some(report) = &mut self.agent.shared.lock().report {
            let guest = report.guest(name);
            change(guest);
            guest.conclude();
        }
    }

    /// On failure the guest runs here, and nowhere else.
    pub(super) fn move_guest(&mut self, name: &str) -> Result<()> {
        let outcome = self.try_move(name);
        if outcome.is_err()
            && let Ok(spec) = self.spec(name)
        {
            crossing::runs_here(&self.agent, &spec);
        }
        outcome
    }

    fn try_move(&mut self, name: &str) -> Result<()> {
        let spec = self.spec(name)?;
        let missing = self.missing.take_if(|missing| missing == name).is_some();
        if missing && self.link.is_some() {
            self.welcome(std::slice::from_ref(&spec), Patience::UntilAborted)?;
        }
        self.reach(std::slice::from_ref(&spec))?;
        let limit = self.config.timeouts.guest_move;
        let mut vm = self.agent.hypervisor.attach(&spec)?;
        // Before the other side reads: an agent that died has left the mark of its end in it.
        self.ports.get(&*self.agent.machine, spec.channel)?;
        self.tell(&Message::Receive {
            name: name.to_owned(),
            seconds: limit.as_secs(),
        })?;
        let receiving = |message: &Message| match message {
            Message::Receiving { .. } => Some(Ok(())),
            Message::Failed { reason, .. } => Some(Err(anyhow!("{reason}"))),
            _ => None,
        };
        self.expect(self.agent.limits.message, receiving)??;
        let agent = self.agent.clone();
        let given_up = || agent.other_died().is_some();
        let told = self.link.as_ref().is_some_and(|link| link.version() >= FRAMES);
        let port = self.ports.get(&*self.agent.machine, spec.channel)?;
        crossing::mark(&*agent.machine, &spec, PoolState::Crossing)?;
        if told {
            vm.keep_frames();
        }
        let sent = vm.send(port, &Deadline::after(limit).or_when(&given_up));
        // The operator must wait for the word: until then it is not known where the guest runs.
        let verdict = self.insist(limit + self.agent.limits.verdict, |message| match message {
            Message::Resumed { .. } | Message::Failed { .. } => Some(message.clone()),
            _ => None,
        });
        match (sent, verdict) {
            (Ok(sent), Ok(Message::Resumed { received, resumed, .. })) => {
                self.note(name, |guest| {
                    guest.begun = sent.begun;
                    guest.stopped = sent.stopped;
                    guest.saved = sent.saved;
                    guest.state_bytes = sent.state_bytes;
                    guest.ram_bytes_copied = sent.ram_bytes_copied;
                    guest.received = received;
                    guest.resumed = resumed;
                });
                self.send_late_frames(name, vm.as_mut());
                vm.discard()
            }
            // It runs there: whatever went wrong here came after the last byte.
            (Err(error), Ok(Message::Resumed { .. })) => {
                tracing::warn!("guest {name} runs in the successor, but: {error:#}");
                self.note(name, |guest| guest.resumed = 1);
                self.send_late_frames(name, vm.as_mut());
                vm.discard()
            }
            (sent, Ok(Message::Failed { reason, .. })) => {
                vm.resume()
                    .with_context(|| format!("guest {name} does not run on after a failed handover"))?;
                match sent {
                    Ok(_) => bail!("the successor's QEMU refused the state: {reason}"),
                    Err(error) => Err(error.context(reason)),
                }
            }
            (_, Ok(other)) => bail!("unexpected answer {other:?}"),
            (_, Err(silence)) => {
                // Its agent died, or it did. The QEMU answers one connection at a time.
                let gone = vm.has_gone().ok();
                drop(vm);
                match self.settle(name, gone)? {
                    Settled::There => Ok(()),
                    Settled::Here => Err(silence),
                }
            }
        }
    }

    /// What the guest's network had for it while it crossed goes after it. The other agent is told where that is nothing, too: what
    /// comes there waits for it.
    fn send_late_frames(&mut self, name: &str, vm: &mut dyn Vm) {
        if self.link.as_ref().is_none_or(|link| link.version() < FRAMES) {
            return;
        }
        let frames = vm.late_frames();
        let count: usize = frames.iter().map(Vec::len).sum();
        tracing::debug!("guest {name}: {count} frames that came while it crossed go after it");
        self.note(name, |guest| guest.late_frames = count as u64);
        let late = Message::Late {
            name: name.to_owned(),
            frames,
        };
        if let Err(error) = self.tell(&late) {
            tracing::warn!("guest {name}: {error:#}");
        }
    }

    /// On failure the guest runs in the successor, unless that is dead.
    pub(super) fn return_guest(&mut self, name: &str) -> Result<()> {
        let mut outcome = self.try_return(name);
        for _ in 1..RETURNS {
            let Err(error) = &outcome else {
                break;
            };
            if self.agent.other_state() != Some(HostState::Running) {
                break;
            }
            tracing::warn!("guest {name}: {error:#}");
            outcome = self.try_return(name);
        }
        match outcome {
            Ok(()) => self.note(name, |guest| {
                guest.resumed = 0;
                guest.moved = false;
            }),
            Err(_) if self.agent.other_state() != Some(HostState::Running) => self.leave_stopped(name),
            Err(_) => {}
        }
        outcome
    }

    /// The successor has died with the guest, or all of it had come and libvirt left it stopped here. Then nobody can tell
    /// whether it has run there since, and it is not let run.
    fn leave_stopped(&self, name: &str) {
        let libvirts = self.spec(name).ok().filter(|spec| spec.libvirt.is_some());
        let found = libvirts.map_or(Ok(None), |spec| self.agent.hypervisor.find(&spec));
        if let Ok(Some(mut vm)) = found
            && matches!(vm.place(), Ok(Place::Stopped))
        {
            self.agent.shared.lock().brief.dead.insert(name.to_owned());
        }
    }

    /// After a failure it is not known how far the successor's agent has come, so the next attempt begins a new
    /// conversation.
    fn try_return(&mut self, name: &str) -> Result<()> {
        let here = if self.unsure.as_deref() == Some(name) {
            self.settle_return(name)
        } else {
            self.reach(&[]).map(|()| false)
        };
        let outcome = here.and_then(|here| if here { Ok(()) } else { self.fetch_guest(name) });
        self.unsure = None;
        if outcome.is_err() {
            self.unsure = Some(name.to_owned());
            self.link = None;
            self.ports = Ports::default();
        }
        outcome
    }

    fn fetch_guest(&mut self, name: &str) -> Result<()> {
        let spec = self.spec(name)?;
        let limit = self.config.timeouts.guest_move;
        let agent = self.agent.clone();
        let given_up = || agent.other_died().is_some();
        self.not_here = Some(name.to_owned());
        let mut vm = self.agent.hypervisor.prepare(
            &spec,
            &Deadline::after(self.config.timeouts.guest_start).or_when(&given_up),
        )?;
        let outcome = self.take_guest(&spec, vm.as_mut(), limit);
        if outcome.is_err() {
            vm.quit()?;
        }
        outcome
    }

    pub(super) fn take_guest(&mut self, spec: &Spec, vm: &mut dyn Vm, limit: Duration) -> Result<()> {
        let name = spec.name.clone();
        let agent = self.agent.clone();
        let given_up = || agent.other_died().is_some();
        self.ports.get(&*self.agent.machine, spec.channel)?;
        self.tell(&Message::Return {
            name: name.clone(),
            seconds: limit.as_secs(),
        })?;
        let port = self.ports.get(&*self.agent.machine, spec.channel)?;
        self.not_here = None;
        let received = {
            let abandoned = Link::abandoned(self.link.as_ref(), port);
            vm.receive(port, &Deadline::after(limit).or_when(&|| given_up() || abandoned()))
        };
        match whether_it_came(vm, received)? {
            Ok(received) => {
                let (received, resumed) = (received.received, received.resumed);
                crossing::runs_here(&agent, spec);
                try_plain(vm, &name);
                // The guest runs here. Should the successor not hear of it, its QEMU stays stopped until it is aborted.
                if let Err(error) = self.tell(&Message::Resumed {
                    name: name.clone(),
                    received,
                    resumed,
                }) {
                    tracing::warn!("guest {name}: {error:#}");
                    return Ok(());
                }
                let gone = |message: &Message| matches!(message, Message::Gone { .. }).then_some(());
                if let Err(error) = self.insist(self.agent.limits.message, gone) {
                    tracing::warn!("guest {name}: {error:#}");
                }
                Ok(())
            }
            Err(error) => {
                self.not_here = Some(name.clone());
                self.tell(&Message::Failed {
                    name,
                    reason: format!("{error:#}"),
                })?;
                Err(error)
            }
        }
    }
}
