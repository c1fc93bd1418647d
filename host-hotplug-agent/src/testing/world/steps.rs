//! Steps of the daemons, and what befalls before one: a blow, a failure, their end.

use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use locum_abi::{HostState, Slot};

use super::{INCUMBENT, World};
use crate::l0::memory;

/// What befalls the world between two steps of a daemon.
pub type Blow = Arc<dyn Fn() + Send + Sync>;

/// An operation that fails.
pub(super) struct Fault {
    slot: Slot,
    operation: &'static str,
    spared: usize,
    times: usize,
}
impl World {
    /// Kills a host's daemon after so many steps of its: nothing that it would do comes to pass any more.
    pub fn kill_daemon(&self, slot: Slot, after: usize) {
        self.lock().kills.insert(slot, after);
    }

    /// A host's daemon has ended with its host.
    pub(in crate::testing) fn end_daemon(&self, slot: Slot) {
        self.lock().kills.insert(slot, usize::MAX);
    }

    /// A host begins with a daemon of its own, whatever became of that of the host that was in its slot before.
    pub(in crate::testing) fn begin_daemon(&self, slot: Slot) {
        let mut inner = self.lock();
        if inner.kills.get(&slot) == Some(&usize::MAX) {
            inner.kills.remove(&slot);
        }
    }

    /// Kills a host's daemon before a step of that name, of which there have been `count`.
    pub fn kill_daemon_before(&self, slot: Slot, step: &'static str, count: usize) {
        self.lock().kills_before.insert(slot, (step, count));
    }

    /// How many steps of that name a host's daemons have come to.
    pub fn steps(&self, slot: Slot, step: &str) -> usize {
        let inner = self.lock();
        let steps = inner.steps.get(&slot).into_iter().flatten();
        steps.filter(|known| *known == step).count()
    }

    /// The step before which a host's daemon was killed, if it was.
    pub fn killed(&self, slot: Slot) -> Option<String> {
        let inner = self.lock();
        let killed = inner.kills.get(&slot) == Some(&usize::MAX);
        killed.then(|| {
            inner
                .steps
                .get(&slot)
                .and_then(|steps| steps.last().cloned())
                .unwrap_or_default()
        })
    }

    /// Something befalls the world once, before a step of that host's daemon, of which `after` come before.
    pub fn strike(&self, slot: Slot, after: usize, blow: Blow) {
        self.lock().blows.insert(slot, (after, blow));
    }

    /// Before which step it befell, if it did.
    pub fn struck(&self, slot: Slot) -> Option<String> {
        self.lock().struck.get(&slot).cloned()
    }

    /// Another daemon of the host may live, if the host does.
    pub fn revive_daemon(&self, slot: Slot) {
        let host = memory::host(&self.region, &self.region.header(), slot).unwrap();
        if host.state != HostState::Running as u32 && host.state != HostState::Retired as u32 {
            return;
        }
        let mut inner = self.lock();
        inner.kills.remove(&slot);
        inner.kills_before.remove(&slot);
    }

    /// A step of a host's daemon, before it takes effect: where a daemon can be killed.
    pub(in crate::testing) fn step(&self, slot: Slot, what: &str) {
        let mut inner = self.lock();
        let blow = match inner.blows.remove(&slot) {
            Some((0, blow)) => {
                inner.struck.insert(slot, what.to_owned());
                Some(blow)
            }
            Some((left, blow)) => {
                inner.blows.insert(slot, (left - 1, blow));
                None
            }
            None => None,
        };
        if let Some(blow) = blow {
            drop(inner);
            blow();
            inner = self.lock();
            inner.wires.clear();
        }
        let steps = inner.steps.entry(slot).or_default();
        steps.push(what.to_owned());
        let so_far = steps.iter().filter(|known| *known == what).count();
        if inner
            .kills_before
            .get(&slot)
            .is_some_and(|(step, count)| *step == what && so_far == count + 1)
        {
            inner.kills.insert(slot, 0);
        }
        let mut host_dies = false;
        if slot == INCUMBENT && inner.death.is_none() {
            let before = inner.dies_before;
            host_dies = before.is_some_and(|(step, count)| step == what && so_far == count + 1);
            match &mut inner.dies {
                Some(0) => host_dies = true,
                Some(left) => *left -= 1,
                None => {}
            }
        }
        if host_dies {
            inner.kills.insert(INCUMBENT, usize::MAX);
            drop(inner);
            self.incumbent_dies(what);
            inner = self.lock();
        }
        let dies = match inner.kills.get_mut(&slot) {
            // The rest of it: its threads go on for a moment in this process, and do nothing.
            Some(&mut usize::MAX) => true,
            Some(0) => {
                inner.kills.insert(slot, usize::MAX);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        drop(inner);
        if dies {
            // Not a panic to be told: the thread ends, and closes what it had open.
            std::panic::resume_unwind(Box::new("killed"));
        }
    }

    /// Lets an operation of a host fail, the next `times` times.
    pub fn fail(&self, slot: Slot, operation: &'static str, times: usize) {
        self.fail_after(slot, operation, 0, times);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        let mut inner = self.lock();
        inner.faults.clear();
        inner.short.clear();
    }

    /// As [`Self::fail`], but the first `spared` times it works.
    pub fn fail_after(&self, slot: Slot, operation: &'static str, spared: usize, times: usize) {
        self.lock().faults.push(Fault {
            slot,
            operation,
            spared,
            times,
        });
    }

    /// Fails if the test wants it.
    pub(in crate::testing) fn fault(&self, slot: Slot, operation: &str) -> Result<()> {
        self.step(slot, operation);
        let mut inner = self.lock();
        ensure!(slot == INCUMBENT || !inner.dead, "a dead host does nothing");
        // That one is a test's, no kernel is asked for it.
        let asks = operation != "die_in_receive";
        ensure!(
            !(asks && inner.short.remove(&slot)),
            "{operation}: Cannot allocate memory"
        );
        for fault in &mut inner.faults {
            if fault.slot != slot || fault.operation != operation {
                continue;
            }
            if fault.spared > 0 {
                fault.spared -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                bail!("{operation} fails, as the test wants it");
            }
        }
        Ok(())
    }
}
