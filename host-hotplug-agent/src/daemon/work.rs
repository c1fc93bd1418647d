//! Requests carried out: one refresh at a time, in a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use locum_abi::CpuMode;
use partitioner::{ApicId, Event, Loss, Role, State};

use super::ipc::Question;
use crate::config::Timeouts;
use crate::deadline::Deadline;
use crate::error::{Failure, Refusal, Told, listed};
use crate::guest::Place;
use crate::guest::renew::Renewed;
use crate::journal::keep::{self, Kept};
use crate::journal::{Brief, Entry};
use crate::machine::TextKind;
use crate::pool::crossing;
use crate::refresh::give_back::{Lacks, give_back};
use crate::refresh::incumbent::Incumbent;
use crate::refresh::successor::Successor;
use crate::refresh::{Agent, Choice, Prepared, Wishes, drive, take_up};
use crate::report::Report;
use crate::status::DaemonStatus;
use crate::tsc;

/// Does what the daemon is asked for.
pub struct Worker {
    agent: Agent,
    config_dir: PathBuf,
}

impl Worker {
    /// For that agent, with configurations from there.
    pub fn new(agent: Agent, config_dir: PathBuf) -> Self {
        Self { agent, config_dir }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// A refusal.
    pub fn answer(self: &Arc<Self>, question: &Question) -> Result<DaemonStatus> {
        match question {
            Question::Status => {}
            Question::Refresh(name) => self.begin(name.as_str())?,
            Question::RefreshToKernel(version) => self.begin(Choice::Kernel(version))?,
            Question::RefreshWith {
                to,
                trust_storage,
                leave,
            } => self.begin_with(to.as_choice(), Wishes { trust_storage, leave })?,
            Question::Renew(name) => {
                let renewed = Some(self.renew(name)?);
                return Ok(DaemonStatus {
                    renewed,
                    ..self.agent.shared.status()
                });
            }
            Question::Abort => self.abort(false)?,
            Question::AbortByForce => self.abort(true)?,
            Question::Retry => {
                self.agent.shared.lock().retry = true;
                self.agent.shared.notify();
            }
        }
        Ok(self.agent.shared.status())
    }

    /// Checks everything, then starts a refresh.
    ///
    /// # Errors
    /// Why it was refused; nothing has changed then.
    pub fn begin<'c>(self: &Arc<Self>, choice: impl Into<Choice<'c>>) -> Result<()> {
        self.begin_with(choice.into(), Wishes::default())
    }

    /// As [`Self::begin`], with an operator's wishes. Guests that are to shut down are waited for.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn begin_with(self: &Arc<Self>, choice: Choice<'_>, wishes: Wishes<'_>) -> Result<()> {
        self.claim(choice.name())?;
        {
            let mut inner = self.agent.shared.lock();
            inner.refused = None;
            inner.lost = None;
        }
        self.agent.machine.busy(true);
        match self.accept(choice, wishes) {
            Ok(incumbent) => {
                let worker = self.clone();
                std::thread::spawn(move || worker.refresh(incumbent));
                Ok(())
            }
            Err(error) => {
                let told = Told::of(&error);
                self.agent.shared.lock().refused = Some(told.clone());
                self.agent.publish_progress();
                self.agent.machine.publish(TextKind::LastError, &told.text);
                self.agent.machine.busy(false);
                // Last, as in `conclude`.
                self.agent.shared.lock().running = None;
                Err(error)
            }
        }
    }

    /// Gives a guest the QEMU that is installed now. Meanwhile no refresh begins.
    fn renew(&self, name: &str) -> Result<Renewed> {
        self.claim(&format!("this host itself, with another QEMU for guest {name}"))?;
        self.agent.machine.busy(true);
        let outcome = self.renew_now(name);
        self.agent.machine.busy(false);
        let mut inner = self.agent.shared.lock();
        inner.running = None;
        inner.abort = None;
        outcome
    }

    fn renew_now(&self, name: &str) -> Result<Renewed> {
        let hypervisor = &self.agent.hypervisor;
        // One that was begun, and could not be ended for want of a QEMU that works.
        let unfinished = hypervisor.go_on_renewing();
        let here = hypervisor.guests_here()?;
        let Some(guest) = here.iter().find(|guest| guest.name == name) else {
            ensure!(unfinished.is_empty(), unfinished.join("; "));
            let known: Vec<_> = here.iter().map(|guest| guest.name.as_str()).collect();
            return Err(Refusal::NoGuestCalled {
                name: name.to_owned(),
                known: listed(&known),
            }
            .into());
        };
        let spec = hypervisor.inspect(guest, 1)?;
        let limits = Timeouts::default();
        let given_up = || self.agent.shared.aborting();
        let until = Deadline::after(limits.guest_start + limits.guest_move).or_when(&given_up);
        hypervisor.renew(&spec, &until).with_context(|| format!("guest {name}"))
    }

    /// Nothing else begins, until `running` is none again.
    fn claim(&self, what: &str) -> Result<(), Refusal> {
        let mut inner = self.agent.shared.lock();
        if let Some(running) = &inner.running {
            return Err(Refusal::Running(running.clone()));
        }
        if self.agent.has_other() {
            return Err(Refusal::Split);
        }
        inner.running = Some(what.to_owned());
        inner.abort = None;
        Ok(())
    }

    fn accept(&self, choice: Choice<'_>, wishes: Wishes<'_>) -> Result<Incumbent> {
        let (machine, hypervisor) = (&*self.agent.machine, &*self.agent.hypervisor);
        // A guest without a QEMU would be left behind.
        let unfinished = hypervisor.go_on_renewing();
        ensure!(unfinished.is_empty(), unfinished.join("; "));
        let unreclaimed = || self.agent.shared.lock().refresh.unreclaimed().to_vec();
        let mut prepared = Prepared::new(machine, hypervisor, &self.config_dir, choice, wishes, unreclaimed())?;
        // What a plan is refused for beyond the partitioner's rules: as `locum plan` does.
        prepared.plan(machine)?;
        if !prepared.leaving.is_empty() {
            let names: Vec<_> = prepared.leaving.iter().map(|other| other.name.as_str()).collect();
            let limit = prepared.config.timeouts.shutdown.as_secs();
            let what = format!("{} to shut down ({limit} s at most)", names.join(", "));
            self.agent.awaits(Some(&what));
            let shut_down = prepared.shut_down(machine, hypervisor, unreclaimed(), &|| self.agent.shared.aborting());
            self.agent.awaits(None);
            shut_down?;
            prepared
                .plan(machine)
                .context("guests that do not go over are shut down, and then")?;
        }
        crossing::enter(&*self.agent.machine, &prepared.guests)?;
        let status = self.agent.machine.status()?;
        let mut inner = self.agent.shared.lock();
        inner.refresh.plan_for(&prepared.inventory, &prepared.request)?;
        inner.refresh.apply(Event::Start)?;
        inner.before = inner.report.take().filter(|report| report.outcome == "done");
        inner.report = Some(Report {
            name: choice.name().to_owned(),
            from_generation: u64::from(status.generation),
            incumbent: self
                .agent
                .machine
                .sys()
                .read_optional("proc/sys/kernel/osrelease")
                .unwrap_or_default(),
            outcome: "running".to_owned(),
            start: tsc::now(),
            tsc_khz: self.agent.machine.facts().tsc_khz,
            ..Report::default()
        });
        drop(inner);
        Ok(Incumbent::new(self.agent.clone(), prepared))
    }

    fn refresh(&self, mut incumbent: Incumbent) {
        let driven = drive::drive(&self.agent, |action| incumbent.perform(action));
        self.conclude(driven.err().map(|error| Told::of(&error.into())));
    }

    /// Serves the incumbent, as the host of that generation, in a thread of its own.
    pub fn succeed(self: &Arc<Self>, generation: u64) {
        self.agent.shared.lock().succeeds = true;
        let worker = self.clone();
        std::thread::spawn(move || {
            let outcome = Successor::new(worker.agent.clone(), generation).serve();
            if let Err(error) = &outcome {
                tracing::error!("{error:#}");
            }
            worker.conclude(
                outcome
                    .err()
                    .map(|error| Told::of_failure(Failure::RefreshFailedSuccessor, &error)),
            );
        });
    }

    /// Goes on with what an earlier daemon of this host wrote down, in a thread of its own. What cannot be used is kept aside,
    /// and told.
    ///
    /// # Errors
    /// If L0 does not answer.
    pub fn take_up(self: &Arc<Self>) -> Result<()> {
        let agent = &self.agent;
        for problem in agent.hypervisor.go_on_renewing() {
            tracing::error!("{problem}");
        }
        crossing::mend(&*agent.machine);
        let own = agent.generation()?;
        let reigns = agent.reigns()?;
        match agent.journal.read(&agent.boot_id(), own) {
            Ok(Some(entry)) => self.go_on(entry, reigns),
            Ok(None) if reigns => self.tell_split("the machine is split, and no journal tells why"),
            Ok(None) => self.succeed(own),
            Err(bad) => {
                let path = agent.journal.path().display().to_string();
                let kept = match agent.journal.set_aside() {
                    Ok(aside) => format!("it is kept as {}", aside.display()),
                    Err(error) => format!("it stays there ({error})"),
                };
                let problem = format!("the journal {path} cannot be used: {bad}; {kept}");
                tracing::warn!("{problem}");
                if reigns {
                    self.tell_split(&problem);
                } else {
                    self.succeed(own);
                }
            }
        }
        Ok(())
    }

    fn go_on(self: &Arc<Self>, entry: Entry, reigns: bool) {
        let next = entry.refresh.next_action().map(ToString::to_string);
        let role = entry.refresh.role();
        let under_way = entry.refresh.state() != State::Idle;
        {
            let mut inner = self.agent.shared.lock();
            inner.refresh = entry.refresh;
            inner.report = entry.report.or(inner.report.take());
            inner.brief = entry.brief;
            inner.abort = entry.abort;
            inner.running = under_way.then_some(entry.name);
            if let (Some(report), true) = (&mut inner.report, under_way) {
                report.taken_up.push(next.clone().unwrap_or_else(|| "stuck".to_owned()));
            }
        }
        if under_way {
            tracing::info!(
                "a refresh is taken up at: {}",
                next.as_deref().unwrap_or("where it is stuck")
            );
            self.agent.machine.busy(true);
        }
        if role == Role::Successor || !reigns {
            let own = self.agent.generation().unwrap_or_default();
            return self.succeed(own);
        }
        if !under_way {
            return self.conclude(None);
        }
        let worker = self.clone();
        std::thread::spawn(move || {
            let reconciled = Incumbent::resume(worker.agent.clone()).and_then(|mut incumbent| {
                take_up::reconcile(&worker.agent, &mut incumbent)?;
                Ok(incumbent)
            });
            match reconciled {
                Ok(incumbent) => worker.refresh(incumbent),
                Err(error) => worker.conclude(Some(Told::of_failure(Failure::RefreshFailedTakeUp, &error))),
            }
        });
    }

    /// Says what an operator should know, if L0 and Linux show that a refresh was under way.
    fn tell_split(&self, problem: &str) {
        let text = match Lacks::of(&self.agent) {
            Ok(lacks) if lacks.nothing() => return,
            Ok(lacks) => format!("{problem}: {lacks}; `locum abort` gives everything back to this host"),
            Err(error) => format!("{problem}: {error:#}"),
        };
        tracing::warn!("{text}");
        self.agent.machine.publish(TextKind::LastError, &text);
        self.agent.shared.lock().refused = Some(Told::new(Failure::RefreshFailedTakeUp, text));
    }

    /// Asks the running refresh to go back; without one, gives back what L0 and Linux say that this host lacks.
    fn abort(&self, force: bool) -> Result<()> {
        let mut inner = self.agent.shared.lock();
        let Some(name) = inner.running.clone() else {
            drop(inner);
            return self.give_back(force);
        };
        if inner.refresh.role() == Role::Successor || inner.refresh.state() >= State::Retired {
            return Err(Refusal::TooLate(name).into());
        }
        inner.abort = Some("stopped by the operator".to_owned());
        drop(inner);
        self.agent.shared.notify();
        Ok(())
    }

    fn give_back(&self, force: bool) -> Result<()> {
        let agent = &self.agent;
        if !agent.reigns()? || Lacks::of(agent)?.nothing() {
            return Err(Refusal::NothingToAbort.into());
        }
        {
            let mut inner = agent.shared.lock();
            if let Some(running) = &inner.running {
                return Err(Refusal::Running(running.clone()).into());
            }
            inner.running = Some("the way back without a journal".to_owned());
        }
        agent.machine.busy(true);
        let outcome = give_back(agent, force);
        agent.machine.busy(false);
        {
            let mut inner = agent.shared.lock();
            inner.running = None;
            inner.refused = match &outcome {
                Ok(lost) if lost.is_empty() => None,
                Ok(lost) => {
                    let text = format!("not all was given back: {}", lost.join("; "));
                    Some(Told::new(Failure::RefreshFailedAbort, text))
                }
                Err(error) => Some(Told::of_failure(Failure::RefreshFailedAbort, error)),
            };
        }
        agent.publish();
        outcome.map(drop)
    }

    /// Leaves the CPUs that are nested though there is no other host any more: one that could not be left at its turn keeps those
    /// nested, too, that came online since. Tells which stay so; `None` if L0 does not say.
    fn leave_the_rest(&self) -> Option<Vec<Loss>> {
        let agent = &self.agent;
        if agent.has_other() {
            return None;
        }
        let nested = agent.cpus_in(CpuMode::Nested).ok()?;
        let stays = |apic: &ApicId| {
            let left = agent.leave_nested(*apic);
            left.inspect_err(|error| tracing::warn!("{apic}: {error:#}")).is_err()
        };
        Some(nested.into_iter().filter(stays).map(Loss::Nested).collect())
    }

    /// No guest of the refresh that has ended is left stopped here, or as only a handover wants it. Tells what could not be
    /// helped.
    fn look_after_guests(&self) -> Vec<String> {
        let (guests, dead, kept_stopped) = {
            let inner = self.agent.shared.lock();
            let stopped = |loss: &Loss| match loss {
                Loss::Stopped(name) => Some(name.clone()),
                _ => None,
            };
            let kept_stopped: Vec<_> = inner.refresh.losses().iter().filter_map(stopped).collect();
            (inner.brief.guests.clone(), inner.brief.dead.clone(), kept_stopped)
        };
        let mut unwell = Vec::new();
        for spec in guests {
            let name = &spec.name;
            if dead.contains(name) {
                let here = self.agent.hypervisor.find(&spec).is_ok_and(|vm| vm.is_some());
                let go_on = if spec.libvirt.is_some() {
                    "`virsh resume`"
                } else {
                    "`cont` at its QMP socket"
                };
                let remedy = if here {
                    format!(
                        "it may have run in the successor, and stands still here as it was before that: end its QEMU and start it \
                         anew, or have it go on by {go_on} if you know that it has not run"
                    )
                } else {
                    "its QEMU ended in the successor before it could come back: start it anew".to_owned()
                };
                unwell.push(format!("guest {name}: {remedy}"));
                continue;
            }
            let looked = self.agent.hypervisor.find(&spec).and_then(|vm| match vm {
                Some(mut vm) => match vm.place()? {
                    Place::Running => vm.plain(),
                    // It may have run in the host that died since: an operator decides.
                    Place::Stopped if kept_stopped.contains(name) => vm.plain(),
                    // Stopped by a handover that failed. With no other host there, it can run nowhere else.
                    Place::Stopped if !self.agent.has_other() => vm.resume(),
                    _ => Ok(()),
                },
                None => Ok(()),
            });
            if let Err(error) = looked {
                unwell.push(format!(
                    "guest {name}: its QEMU could not be looked after ({error:#}): until `cont` and `migrate-set-capabilities` \
                     (x-ignore-shared off) at its QMP socket, it may stand still, and to save or migrate it would lose its RAM"
                ));
            }
        }
        unwell
    }

    /// Writes down how it ended.
    fn conclude(&self, fault: Option<Told>) {
        crossing::mend(&*self.agent.machine);
        let unwell = self.look_after_guests();
        let nested = self.leave_the_rest();
        let exits = self.agent.exits();
        // A daemon may have died between the last CPU's leaving and this.
        self.agent.settings_as_before();
        let mut inner = self.agent.shared.lock();
        let last = inner.refresh.last_error().map(str::to_owned);
        let lost = inner.refresh.losses().iter();
        let lost = lost.filter(|loss| nested.is_none() || !matches!(loss, Loss::Nested(_)));
        let lost = lost.chain(nested.iter().flatten()).map(ToString::to_string);
        let losses = lost.chain(unwell).collect();
        let unreclaimed = inner.refresh.unreclaimed().to_vec();
        let generation = inner.refresh.generation().0;
        if let Some(report) = &mut inner.report {
            let replaced = generation != report.from_generation;
            match fault {
                Some(told) => (report.error, report.error_name) = (Some(told.text), told.name),
                None => {
                    report.error_name.take_if(|_| last.is_none());
                    report.error = last;
                }
            }
            report.outcome = match (replaced, &report.error) {
                (true, _) => "done".to_owned(),
                (false, Some(_)) => "aborted".to_owned(),
                (false, None) => "retired".to_owned(),
            };
            report.end = tsc::now();
            report.losses = losses;
            report.unreclaimed_bytes = unreclaimed.iter().map(|left| left.range.len()).sum();
            report.exits_at_end = exits;
        }
        let kept = Kept {
            generation,
            unreclaimed,
            report: inner.report.clone(),
        };
        drop(inner);
        if let Err(error) = keep::save(self.agent.machine.sys(), &kept) {
            tracing::warn!("{error:#}");
        }
        // Only now: until then, another daemon would conclude it.
        if let Err(error) = self.agent.journal.remove() {
            tracing::warn!("removing {}: {error}", self.agent.journal.path().display());
        }
        self.agent.publish();
        self.agent.machine.busy(false);
        // Last: whoever sees that nothing runs sees all of how it ended, and what begins next is not called idle by
        // this.
        let mut inner = self.agent.shared.lock();
        inner.running = None;
        inner.succeeds = false;
        inner.abort = None;
        inner.brief = Brief::default();
    }

    /// Whether this host reigns alone, and nothing of the refresh that made it is left to do.
    pub fn has_succeeded(&self) -> bool {
        let busy = {
            let inner = self.agent.shared.lock();
            inner.succeeds || inner.running.is_some()
        };
        !busy && self.agent.reigns().unwrap_or(false) && !self.agent.has_other()
    }
}
