//! After the incumbent: this host was put in charge, or the incumbent died before it came to that.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::HostState;
use partitioner::{Action, MemRange, Refresh};

use super::{Successor, TAKE, incumbent_state};
use crate::channel::Message;
use crate::config::Timeouts;
use crate::deadline::Deadline;
use crate::error::Failure;
use crate::journal::Inheritance;
use crate::refresh::drive;
use crate::report::Report;

impl Successor {
    pub(super) fn accept(&self, refresh: Refresh, report: Report, seconds: u64) -> Result<()> {
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
    pub(super) fn inherit(&mut self) -> Result<()> {
        let (state, reason) = self
            .agent
            .other_host()
            .context("L0 does not say what became of the incumbent")?;
        let inheritance = self.agent.shared.lock().brief.inheritance.clone();
        let Some(Inheritance {
            refresh, mut report, ..
        }) = inheritance
        else {
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
        report.error_name = Some(Failure::RefreshIncumbentDied.name().to_owned());
        let mut inner = self.agent.shared.lock();
        inner.refresh = inherited;
        inner.running = Some(report.name.clone());
        inner.report = Some(report);
        Ok(())
    }

    /// Drives the state machine from the wait for the incumbent's end on, if this host was put in charge. Returns the
    /// incumbent's message if it goes on instead.
    pub(super) fn take_over(&mut self) -> Result<Option<Message>> {
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
            Action::LeaveNested(apic) => self.agent.leave_nested(*apic),
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
