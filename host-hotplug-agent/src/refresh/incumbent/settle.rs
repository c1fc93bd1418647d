//! After an agent's death: the other one is found again, and a guest that was on its way is found and put to rest.
//!
//! A guest is where its QEMU says that it runs. Where this host's QEMU has stopped it, only the successor's agent knows
//! whether it arrived; or L0, which can stop the successor for certain, and all that runs in it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use locum_abi::HostState;
use partitioner::Action;

use super::talk::Silence;
use super::{Incumbent, Ports};
use crate::channel::message::There;
use crate::channel::{Link, Message};
use crate::deadline::Deadline;
use crate::guest::{Place, Spec, Vm, try_plain};
use crate::pool::crossing;

/// How long the successor's agent may take to notice that the channel was opened anew, at the first try.
const TRY: Duration = Duration::from_secs(10);
/// How long the channel stays closed between two tries, for the other agent to see its end.
const CLOSED: Duration = Duration::from_millis(if cfg!(test) { 10 } else { 500 });

/// For a libvirt to answer, and to end its migration.
const AT_REST: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// How often the successor's agent is told to resume a guest.
const RESUMES: usize = 3;

/// Where a guest turned out to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// In this host, and in no other.
    Here,
    /// In the successor, and this host's QEMU is gone.
    There,
}

/// How long an answer is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// To its limit, unless the operator wants to stop.
    UntilAborted,
    /// To its limit, whatever the operator wants.
    Endless,
}

/// What the successor's agent tells of its guests.
pub(super) struct Told {
    /// Those that have a QEMU there.
    pub(super) there: Vec<There>,
    /// Those whose QEMUs have ended there, and which may have run in them.
    pub(super) ended: Vec<String>,
}

/// What the successor's agent tells of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    /// Its QEMU there does that.
    At(Place),
    /// It may have run there, and its QEMU has ended.
    Ended,
    /// It has no QEMU there, and has not run there.
    Nothing,
}

impl Told {
    fn of(&self, name: &str) -> Word {
        match self.there.iter().find(|there| there.name == name) {
            Some(there) => Word::At(there.place),
            None if self.ended.iter().any(|ended| ended == name) => Word::Ended,
            None => Word::Nothing,
        }
    }
}

/// Why no agent of the successor was found.
enum Alone {
    /// Not in time.
    Silence(anyhow::Error),
    /// It is dead, or says what no further try changes.
    Over(anyhow::Error),
}

impl Incumbent {
    /// Makes sure that there is a channel to the successor's agent which both know to be new: `guests` are to be prepared
    /// there. Returns what QEMUs the successor has, if its agent tells.
    ///
    /// # Errors
    /// If it does not answer within `limit`, is dead, or the operator gives up.
    pub(super) fn connect(&mut self, limit: Duration, guests: &[Spec]) -> Result<Option<Told>> {
        match self.find_agent(limit, guests, Patience::UntilAborted) {
            Ok(there) => Ok(there),
            Err(Alone::Silence(error) | Alone::Over(error)) => Err(error),
        }
    }

    /// As [`Self::connect`], however long it takes and whatever the operator wants, as long as the successor lives: guests
    /// run in it.
    ///
    /// # Errors
    /// If it is dead, or says what no further try changes.
    pub(super) fn connect_patiently(&mut self, guests: &[Spec]) -> Result<Option<Told>> {
        let outcome = loop {
            match self.find_agent(TRY, guests, Patience::Endless) {
                Ok(there) => break Ok(there),
                Err(Alone::Over(error)) => break Err(error),
                Err(Alone::Silence(error)) => {
                    let what = "the successor's agent does not answer, and guests run there: see `systemctl status locum` \
                                in the successor";
                    if self.agent.awaits(Some(what)) {
                        tracing::warn!("{what} ({error:#})");
                    }
                }
            }
        };
        self.agent.awaits(None);
        outcome
    }

    /// Makes sure that there is a channel to the successor's agent: the last one may have broken off, or been another
    /// daemon's.
    ///
    /// # Errors
    /// As [`Self::connect`], or [`Self::connect_patiently`] where guests run there.
    pub(super) fn reach(&mut self, guests: &[Spec]) -> Result<()> {
        if self.link.is_some() {
            return Ok(());
        }
        if self.crossed() {
            self.connect_patiently(guests).map(drop)
        } else {
            self.connect(self.config.timeouts.guest_start + self.agent.limits.message, guests)
                .map(drop)
        }
    }

    /// The other agent may be in the middle of a message, or of waiting for one: so the channel is closed and opened until
    /// it says `Hello`, which is the first message of a new conversation.
    fn find_agent(&mut self, limit: Duration, guests: &[Spec], patience: Patience) -> Result<Option<Told>, Alone> {
        let end = Instant::now().checked_add(limit);
        loop {
            self.link = None;
            // What is left in the guests' channels is of an earlier attempt: opened anew, they are empty.
            self.ports = Ports::default();
            std::thread::sleep(CLOSED);
            let left = end.map_or(limit, |end| end.saturating_duration_since(Instant::now()));
            let error = match self.try_once(left.min(TRY), guests, patience) {
                Ok(there) => return Ok(there),
                Err(error) => error,
            };
            let aborted = patience == Patience::UntilAborted && self.agent.shared.aborting();
            if self.agent.other_state() != Some(HostState::Running) || aborted || !is_noise(&error) {
                return Err(Alone::Over(error));
            }
            if left.is_zero() {
                return Err(Alone::Silence(error));
            }
        }
    }

    fn try_once(&mut self, limit: Duration, guests: &[Spec], patience: Patience) -> Result<Option<Told>> {
        let link = Link::speaking(self.agent.speaks, self.agent.machine.channel(0)?);
        link.await_other_end(limit);
        self.link = Some(link);
        let there = self.greet(limit, patience)?;
        self.welcome(guests, patience)?;
        Ok(there)
    }

    /// What became of a guest that an earlier daemon was moving, `None` if that is to be done still: before anything else, for
    /// whoever turns back must know it.
    pub fn settle_pending(&mut self) -> Option<Result<()>> {
        let next = self.agent.shared.lock().refresh.next_action().cloned();
        match next {
            Some(Action::MoveGuest(name)) => match self.settle(&name, None) {
                Ok(Settled::There) => Some(Ok(())),
                Ok(Settled::Here) => None,
                Err(error) => Some(Err(error)),
            },
            Some(Action::ReturnGuest(name)) => {
                let spec = self.spec(&name).ok()?;
                let mut vm = self.agent.hypervisor.find(&spec).ok()??;
                (vm.place().ok()? == Place::Running).then(|| {
                    try_plain(vm.as_mut(), &name);
                    drop(vm);
                    // Its QEMU in the successor stays stopped, should this not be heard.
                    if let Err(error) = self.connect(TRY, &[]).and_then(|_| self.tell(&resumed(&name))) {
                        tracing::warn!("guest {name}: {error:#}");
                    }
                    self.unsure = None;
                    Ok(())
                })
            }
            _ => None,
        }
    }

    /// Finds out where a guest runs of which it is not known, nor whether all of it `has_gone`, if that is `None`. On success it
    /// runs, and only there; but one that libvirt has given up here may stand still in the successor, or have died with it.
    ///
    /// One of which all has gone may have run there. It does not go on here, unless the successor's agent says that it has not.
    ///
    /// # Errors
    /// If it cannot be found out, and then the guest stands still in this host; or if it runs here, and the successor is
    /// gone.
    pub(super) fn settle(&mut self, name: &str, has_gone: Option<bool>) -> Result<Settled> {
        let spec = self.spec(name)?;
        // One that does not answer may not be needed any more.
        let mut here = self.find_here(&spec);
        if let Ok(Some(vm)) = &mut here
            && vm.place()? == Place::Running
        {
            // It has never stopped, or QEMU has resumed it because its stream broke off.
            vm.plain()?;
            return Ok(Settled::Here);
        }
        // libvirt has given it up: then it is in the successor or nowhere, and to stop that would gain nothing.
        let given_up = spec.libvirt.is_some() && matches!(here, Ok(None));
        let gone = match (has_gone, &mut here) {
            (Some(gone), _) => gone,
            (None, Ok(Some(vm))) => vm.has_gone()?,
            (None, Ok(None)) => false,
            (None, Err(_)) => spec.libvirt.is_none(),
        };
        let there = self.ask(name, given_up || gone || self.crossed());
        if let Err(silence) = &there {
            // Nobody says where the guest runs. Stop the successor for certain; then it runs here only.
            self.take_back()
                .context("the successor must be stopped before the guest may run on")?;
            self.agent.shared.lock().lost = Some(format!("{silence:#}"));
        }
        if gone && matches!(there, Ok(Word::Ended) | Err(_)) {
            self.agent.shared.lock().brief.dead.insert(name.to_owned());
            let lost =
                anyhow!("all of guest {name} had gone to the successor, and may have run there: it stays stopped here");
            return Err(match there {
                Err(silence) => silence.context(lost),
                Ok(_) => lost.context("its QEMU there has ended"),
            });
        }
        let here = here.with_context(|| format!("guest {name}"))?;
        match (there, here) {
            (Ok(Word::At(Place::Running)), here) => {
                if let Some(mut vm) = here {
                    vm.discard()?;
                }
                self.note(name, |guest| guest.resumed = 1);
                Ok(Settled::There)
            }
            // All of it has come, and libvirt has given it up here.
            (Ok(Word::At(Place::Stopped)), None) => Ok(self.run_there(name)),
            // Its QEMU had stopped it, or the agent before it could go on.
            (Ok(Word::At(Place::Stopped)), Some(mut vm)) if gone => {
                vm.discard()?;
                Ok(self.run_there(name))
            }
            // With the successor. That is told as the loss of a guest that had crossed.
            (Err(_), None) if given_up => Ok(Settled::There),
            (there, Some(mut vm)) => {
                vm.resume()
                    .with_context(|| format!("guest {name} does not run on after a failed handover"))?;
                if !matches!(there?, Word::At(_)) {
                    // Its QEMU there was ended. The next attempt has one prepared.
                    self.missing = Some(name.to_owned());
                }
                Ok(Settled::Here)
            }
            (there, None) => {
                there?;
                bail!("guest {name} has a QEMU neither here nor in the successor")
            }
        }
    }

    /// What this host has of a guest. libvirt's may be in the midst of a migration still, which ends with the guest given up or
    /// resumed; or it does not answer, for it was started anew just now. Until it is known which, no guest that stands still
    /// in the successor may be let run, nor may that be stopped: so this waits as long as it lives, whatever the operator wants.
    fn find_here(&self, spec: &Spec) -> Result<Option<Box<dyn Vm>>> {
        if spec.libvirt.is_none() {
            return self.agent.hypervisor.find(spec);
        }
        let found = loop {
            let mut found = self.agent.hypervisor.find(spec);
            let at_rest = Deadline::after(AT_REST).comes_true(CLOSED, || {
                let at_rest = match &mut found {
                    Ok(Some(vm)) => vm.place().is_ok_and(|place| place != Place::Waiting),
                    Ok(None) => true,
                    Err(_) => false,
                };
                if !at_rest {
                    found = self.agent.hypervisor.find(spec);
                }
                at_rest
            });
            if at_rest || self.agent.other_state() != Some(HostState::Running) {
                break found;
            }
            let what = format!(
                "libvirt of this host does not say what became of guest {}, which may be in the successor: see \
                 `systemctl status libvirtd`",
                spec.name
            );
            if self.agent.awaits(Some(&what)) {
                tracing::warn!("{what}");
            }
        };
        self.agent.awaits(None);
        found
    }

    /// Has a guest run in the successor that has come there whole, stands still, and is nowhere else. An agent that dies may
    /// not have heard of it, so it is asked what came of it. Where the guest cannot run, it stands still all the same: that
    /// agent tries again when it reigns, and tells.
    fn run_there(&mut self, name: &str) -> Settled {
        for _ in 0..RESUMES {
            let word = Message::Failed {
                name: name.to_owned(),
                reason: "it is in no QEMU of the incumbent any more".to_owned(),
            };
            if let Err(error) = self.tell(&word) {
                tracing::warn!("guest {name}: {error:#}");
            }
            match self.ask(name, true) {
                Ok(Word::At(Place::Stopped)) => {}
                Ok(Word::At(Place::Running)) => {
                    self.note(name, |guest| guest.resumed = 1);
                    return Settled::There;
                }
                outcome => {
                    tracing::warn!("guest {name}, which had come to the successor: {outcome:?}");
                    if self.agent.other_state() != Some(HostState::Running) {
                        return Settled::There;
                    }
                }
            }
        }
        tracing::warn!("guest {name} stands still in the successor, and is nowhere else");
        Settled::There
    }

    /// What the successor does with a guest. If `patient`, this waits for its agent as long as it lives: guests run in it, or
    /// may.
    fn ask(&mut self, name: &str, patient: bool) -> Result<Word> {
        let limit = self.config.timeouts.guest_start + self.agent.limits.message;
        loop {
            let there = if patient {
                self.connect_patiently(&[])?
            } else {
                self.connect(limit, &[])?
            };
            match there {
                Some(told) => return Ok(told.of(name)),
                None if patient => {
                    // Its operator may install another there.
                    std::thread::sleep(TRY);
                }
                None => bail!("the successor's agent is older and does not tell which guests run there"),
            }
        }
    }

    /// Whether a guest runs in the successor for certain.
    pub(super) fn crossed(&self) -> bool {
        self.agent.shared.lock().refresh.has_crossed()
    }

    pub(super) fn spec(&self, name: &str) -> Result<Spec> {
        let spec = self.guests.get(name).cloned();
        spec.with_context(|| format!("guest {name} is not in the plan"))
    }

    /// Puts to rest a guest that was on its way back when an agent died. `true`: it runs here.
    pub(super) fn settle_return(&mut self, name: &str) -> Result<bool> {
        let spec = self.spec(name)?;
        let mut here = false;
        let mut whole = None;
        let found = self.agent.hypervisor.find(&spec)?;
        let may_have_run = found.is_none() && self.not_here.as_deref() != Some(name);
        if let Some(mut vm) = found {
            match vm.place()? {
                Place::Running => {
                    vm.plain()?;
                    here = true;
                }
                // All of it has come. Whether libvirt has given it up there is still to be asked.
                Place::Stopped if spec.libvirt.is_some() => whole = Some(vm),
                // The same, and stopped since.
                Place::Stopped if !vm.has_gone()? => {
                    vm.resume()?;
                    here = true;
                }
                Place::Stopped | Place::Waiting => vm.quit()?,
            }
        }
        let there = match self.connect_patiently(&[]) {
            Ok(told) => {
                let there = told.map(|told| told.there).unwrap_or_default();
                there.into_iter().find(|there| there.name == name)
            }
            // With the successor, its QEMU is gone as well.
            Err(error) if here => {
                tracing::warn!("guest {name}: {error:#}");
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        // All of it was sent back, and the QEMU that had it has ended: it may have run in that.
        let over = may_have_run && there.as_ref().is_some_and(|there| there.sent);
        let there = there.filter(|_| !over).map(|there| there.place);
        if let Some(vm) = whole {
            here = self.settle_whole(&spec, vm, there)?;
        }
        match (here, there) {
            (true, Some(Place::Stopped)) => self.tell(&resumed(name))?,
            (false, Some(Place::Stopped)) => self.tell(&Message::Failed {
                name: name.to_owned(),
                reason: "the incumbent's agent was started anew".to_owned(),
            })?,
            (true, Some(Place::Running)) => {
                bail!("guest {name} runs in both hosts: stop it in one, then `locum retry`")
            }
            (false, None) => {
                // Nothing brings it back, so nothing waits for it.
                self.agent.shared.lock().brief.dead.insert(name.to_owned());
                return Ok(true);
            }
            _ => {}
        }
        Ok(here)
    }

    /// A guest that came back whole and stands still goes on if the successor's libvirt has given it up. Else it is there, and
    /// may have run since.
    fn settle_whole(&self, spec: &Spec, mut vm: Box<dyn Vm>, there: Option<Place>) -> Result<bool> {
        match there {
            None | Some(Place::Waiting) => {
                vm.resume()?;
                crossing::runs_here(&self.agent, spec);
                Ok(true)
            }
            Some(Place::Running | Place::Stopped) => {
                vm.discard()?;
                Ok(false)
            }
        }
    }
}

/// The guest runs here.
fn resumed(name: &str) -> Message {
    Message::Resumed {
        name: name.to_owned(),
        received: 0,
        resumed: 1,
    }
}

/// Whether an error only says that the other agent did not know yet of the new conversation.
fn is_noise(error: &anyhow::Error) -> bool {
    // The channel's file: another process of this host may still have it open for a moment.
    error.downcast_ref::<Silence>().is_some() || error.downcast_ref::<std::io::Error>().is_some()
}
