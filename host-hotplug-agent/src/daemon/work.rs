//! Requests carried out: one refresh at a time, in a thread of its own.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use partitioner::{Event, Role, State};

use super::ipc::Question;
use super::keep::{self, Kept};
use crate::error::Refusal;
use crate::machine::TextKind;
use crate::refresh::incumbent::Incumbent;
use crate::refresh::successor::Successor;
use crate::refresh::{Agent, Prepared, drive};
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
            Question::Refresh(name) => self.begin(name)?,
            Question::Abort => self.abort()?,
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
    pub fn begin(self: &Arc<Self>, name: &str) -> Result<()> {
        {
            let mut inner = self.agent.shared.lock();
            if let Some(running) = &inner.running {
                return Err(Refusal::Running(running.clone()).into());
            }
            inner.running = Some(name.to_owned());
            inner.refused = None;
            inner.abort = None;
            inner.lost = None;
        }
        self.agent.machine.busy(true);
        match self.accept(name) {
            Ok(incumbent) => {
                let worker = self.clone();
                std::thread::spawn(move || worker.refresh(incumbent));
                Ok(())
            }
            Err(error) => {
                self.agent.shared.lock().refused = Some(format!("{error:#}"));
                self.agent.machine.publish(TextKind::LastError, &format!("{error:#}"));
                self.agent.machine.busy(false);
                // Last, as in `conclude`.
                self.agent.shared.lock().running = None;
                Err(error)
            }
        }
    }

    fn accept(&self, name: &str) -> Result<Incumbent> {
        let unreclaimed = self.agent.shared.lock().refresh.unreclaimed().to_vec();
        let prepared = Prepared::new(
            &*self.agent.machine,
            &*self.agent.hypervisor,
            &self.config_dir,
            name,
            unreclaimed,
        )?;
        // What a plan is refused for beyond the partitioner's rules: as `locum plan` does.
        prepared.plan(&*self.agent.machine)?;
        let status = self.agent.machine.status()?;
        let mut inner = self.agent.shared.lock();
        inner.refresh.plan_for(&prepared.inventory, &prepared.request)?;
        inner.refresh.apply(Event::Start)?;
        inner.report = Some(Report {
            name: name.to_owned(),
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
        self.conclude(driven.err().map(|error| error.to_string()));
    }

    /// Serves the incumbent, as the host of that generation, in a thread of its own.
    pub fn succeed(self: &Arc<Self>, generation: u64) {
        let worker = self.clone();
        std::thread::spawn(move || {
            let outcome = Successor::new(worker.agent.clone(), generation).serve();
            if let Err(error) = &outcome {
                tracing::error!("{error:#}");
            }
            worker.conclude(outcome.err().map(|error| format!("{error:#}")));
        });
    }

    /// Asks the running refresh to go back.
    fn abort(&self) -> Result<()> {
        let mut inner = self.agent.shared.lock();
        let Some(name) = inner.running.clone() else {
            return Err(Refusal::NothingToAbort.into());
        };
        if inner.refresh.role() == Role::Successor || inner.refresh.state() >= State::Retired {
            return Err(Refusal::TooLate(name).into());
        }
        inner.abort = Some("stopped by the operator".to_owned());
        drop(inner);
        self.agent.shared.notify();
        Ok(())
    }

    /// Writes down how it ended.
    fn conclude(&self, fault: Option<String>) {
        let exits = self.agent.exits();
        let mut inner = self.agent.shared.lock();
        let error = fault.or_else(|| inner.refresh.last_error().map(str::to_owned));
        let losses = inner.refresh.losses().iter().map(ToString::to_string).collect();
        let unreclaimed = inner.refresh.unreclaimed().to_vec();
        let generation = inner.refresh.generation().0;
        if let Some(report) = &mut inner.report {
            let replaced = generation != report.from_generation;
            report.outcome = match (replaced, &error) {
                (true, _) => "done".to_owned(),
                (false, Some(_)) => "aborted".to_owned(),
                (false, None) => "retired".to_owned(),
            };
            report.error = error;
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
        self.agent.publish();
        self.agent.machine.busy(false);
        // Last: whoever sees that nothing runs sees all of how it ended, and what begins next is not called idle by
        // this.
        let mut inner = self.agent.shared.lock();
        inner.running = None;
        inner.abort = None;
    }
}
