//! Guests in the successor: received, sent back, found again. A guest never runs in both hosts: whoever has sent one waits
//! for the other's word.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::PoolState;
use partitioner::Loss;

use super::{Gone, Successor};
use crate::channel::message::FRAMES;
use crate::channel::{Link, Message};
use crate::deadline::Deadline;
use crate::guest::frames::Frame;
use crate::guest::{Hypervisor, Place, Received, Spec, Vm, try_plain, whether_it_came};
use crate::pool::crossing;
use crate::tsc;

impl Successor {
    /// Finds out which guests that another daemon of this host knew are here.
    pub(super) fn look_at_doubtful(&mut self) -> Result<()> {
        if self.doubtful.is_empty() {
            return Ok(());
        }
        while let Some(spec) = self.doubtful.last() {
            let found = arrived(&*self.agent.hypervisor, spec).with_context(|| format!("guest {}", spec.name))?;
            let Some(spec) = self.doubtful.pop() else {
                break;
            };
            match found {
                Arrived::Yes(mut vm) => {
                    if vm.place()? == Place::Running {
                        crossing::runs_here(&self.agent, &spec);
                        self.arrived.insert(spec.name.clone());
                    }
                    self.guests.insert(spec.name.clone(), (spec, vm));
                }
                Arrived::No => {}
                Arrived::MayHave => {
                    self.ended.insert(spec.name.clone(), spec);
                }
            }
        }
        // A QEMU that was ended as it waited would else be taken for one that had ended by itself.
        self.write_down(&[]);
        Ok(())
    }

    /// Starts all QEMUs side by side, but for those that are there.
    pub(super) fn prepare(&mut self, guests: Vec<Spec>, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let (there, guests): (Vec<_>, Vec<_>) = guests
            .into_iter()
            .partition(|spec| self.guests.contains_key(&spec.name));
        // The incumbent has it, or it would not be told of again.
        guests.iter().for_each(|spec| drop(self.ended.remove(&spec.name)));
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
        let known = known.chain(&self.doubtful).chain(self.ended.values()).chain(coming);
        self.agent.shared.lock().brief.guests = known.cloned().collect();
        if let Err(error) = self.agent.write_down() {
            tracing::warn!("{error:#}");
        }
    }

    pub(super) fn receive(&mut self, name: String, limit: Duration, gone: Gone<'_>) -> Result<()> {
        let Some(channel) = self.guests.get(&name).map(|(spec, _)| spec.channel) else {
            let reason = "its QEMU was not started here".to_owned();
            return Ok(self.say(&Message::Failed { name, reason }, gone)?);
        };
        self.ports.get(&*self.agent.machine, channel)?;
        self.say(&Message::Receiving { name: name.clone() }, gone)?;
        let told = self.link.as_ref().is_some_and(|link| link.version() >= FRAMES);
        let port = self.ports.get(&*self.agent.machine, channel)?;
        let Some((spec, vm)) = self.guests.get_mut(&name) else {
            bail!("guest {name} is gone");
        };
        if told {
            vm.hold_frames();
        }
        let received = {
            // Then the guest runs there.
            let abandoned = Link::abandoned(self.link.as_ref(), port);
            let received = vm.receive(port, &Deadline::after(limit).or_when(&|| gone() || abandoned()));
            whether_it_came(vm.as_mut(), received)
        };
        let received = match received {
            Ok(received) => received,
            // One that stays has come whole: then a new conversation tells the incumbent so.
            Err(error) => {
                self.doubtful.extend(self.guests.remove(&name).map(|(spec, _)| spec));
                return Err(error);
            }
        };
        let message = match received {
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
                // Its process is gone: the incumbent's may go on.
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
        {
            try_plain(vm.as_mut(), name);
        }
        Ok(said?)
    }

    /// Gives a guest what its network had for it in the incumbent; without it, the guest's peers send it again.
    pub(super) fn give_frames(&mut self, name: &str, frames: &[Vec<Frame>]) {
        let Some((_, vm)) = self.guests.get_mut(name) else {
            tracing::warn!("guest {name} gets frames, and has no QEMU here");
            return;
        };
        if let Err(error) = vm.give_frames(frames) {
            tracing::warn!("guest {name} does not get what its network had for it in the incumbent: {error:#}");
        }
    }

    /// Sends a guest back. Until the incumbent says what became of it, it stays stopped here.
    pub(super) fn give_back(&mut self, name: String, limit: Duration, gone: Gone<'_>) -> Result<()> {
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
        let patience = limit + self.message();
        loop {
            let link = self.link.as_mut().context("there is no channel to the incumbent")?;
            match link.receive(&Deadline::after(patience).or_when(gone))? {
                Message::Resumed { .. } => return self.let_go(name, gone),
                Message::Failed { .. } => return self.run_on(&name),
                other => tracing::warn!("guest {name}: unexpected message {other:?}"),
            }
        }
    }

    /// The guest is not in the incumbent, and goes on here.
    pub(super) fn run_on(&mut self, name: &str) -> Result<()> {
        let Some((spec, vm)) = self.guests.get_mut(name) else {
            return Ok(());
        };
        vm.resume()?;
        crossing::runs_here(&self.agent, spec);
        self.arrived.insert(name.to_owned());
        Ok(())
    }

    /// The guest runs in the incumbent.
    pub(super) fn let_go(&mut self, name: String, gone: Gone<'_>) -> Result<()> {
        if let Some((_, mut vm)) = self.guests.remove(&name) {
            vm.discard()?;
        }
        Ok(self.say(&Message::Gone { name }, gone)?)
    }

    /// What was lost of a guest with the incumbent. A QEMU that waits for it is ended. One that has stopped it is left as it is:
    /// if it was on its way back, nobody can tell any more whether it has run in the incumbent since, and then what is saved
    /// here does not fit its memory.
    pub(super) fn loss_of(&mut self, name: String) -> Option<Loss> {
        let known = self.doubtful.iter().position(|spec| spec.name == name);
        let place = match known.map(|number| self.doubtful.swap_remove(number)) {
            Some(spec) => match arrived(&*self.agent.hypervisor, &spec) {
                Ok(Arrived::No | Arrived::MayHave) => return Some(Loss::Left(name)),
                Ok(Arrived::Yes(mut vm)) => {
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
}

/// Whether a guest has come that another daemon of this host knew.
enum Arrived {
    /// In this QEMU.
    Yes(Box<dyn Vm>),
    /// It has not run here.
    No,
    /// Its QEMU has ended, and nobody knows whether the guest had run in it.
    MayHave,
}

/// Whether it has. A QEMU that waits is ended: an earlier daemon may have fed it half a state.
fn arrived(hypervisor: &dyn Hypervisor, spec: &Spec) -> Result<Arrived> {
    let Some(mut vm) = hypervisor.find(spec)? else {
        return Ok(Arrived::MayHave);
    };
    Ok(match vm.arrive()? {
        Place::Waiting => Arrived::No,
        Place::Running | Place::Stopped => Arrived::Yes(vm),
    })
}
