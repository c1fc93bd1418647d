//! How hosts of the world end.

use locum_abi::{HostState, StopReason, Will};

use super::{INCUMBENT, SUCCESSOR, VmState, World};

/// The end of the incumbent.
#[derive(Clone, Debug)]
pub struct Death {
    /// Before which step of its daemon.
    pub step: String,
    /// The machine was reset, with whatever ran on it.
    pub reset: bool,
    /// A successor ran.
    pub beside: bool,
    /// Guests that ran in the successor then.
    pub crossed: Vec<String>,
}

impl World {
    /// The successor dies now, unless it is the machine's only host.
    pub fn kill_successor(&self) {
        let mut beside = false;
        self.region.update(|status| {
            beside = status.hosts[INCUMBENT].state == HostState::Running as u32;
            if !beside {
                return;
            }
            status.hosts[SUCCESSOR].state = HostState::Dead as u32;
            status.hosts[SUCCESSOR].reason = StopReason::TripleFault as u32;
            status.hosts[SUCCESSOR].detail[0] = 0xdead;
        });
        if beside {
            self.stop_successor();
        }
    }

    /// It ends, with its guests and channels.
    pub(in crate::testing) fn stop_successor(&self) {
        let mut inner = self.lock();
        inner.dead = true;
        inner.vms.retain(|(slot, _), _| *slot == INCUMBENT);
        inner.hung.retain(|(slot, _)| *slot == INCUMBENT);
        inner.capable.retain(|(slot, _)| *slot == INCUMBENT);
        inner.sent.retain(|(slot, _)| *slot == INCUMBENT);
    }

    /// L0 is of a release that knows no wills.
    pub fn forget_wills(&self) {
        self.lock().knows_no_wills = true;
    }

    /// The incumbent will hang when it is told to power off.
    pub fn hang_in_power_off(&self) {
        self.lock().hangs_in_power_off = true;
    }

    /// The incumbent has a crash kernel: if it dies, it writes a dump first.
    pub fn load_crash_kernel(&self) {
        self.lock().dumps = true;
    }

    /// What the incumbent said of its end.
    pub fn will(&self) -> Will {
        self.lock().will
    }

    /// Lets the whole incumbent die after so many steps of its daemon.
    pub fn kill_incumbent(&self, after: usize) {
        self.lock().dies = Some(after);
    }

    /// Lets it die before a step of that name, of which there have been `count`.
    pub fn kill_incumbent_before(&self, step: &'static str, count: usize) {
        self.lock().dies_before = Some((step, count));
    }

    /// The machine is reset: its last host has ended.
    pub(in crate::testing) fn reset(&self, step: &str) {
        self.end_daemon(INCUMBENT);
        let mut inner = self.lock();
        inner.vms.clear();
        inner.dead = true;
        inner.death = Some(Death {
            step: step.to_owned(),
            reset: true,
            beside: false,
            crossed: Vec::new(),
        });
    }

    /// How the incumbent died, if it did.
    pub fn death(&self) -> Option<Death> {
        self.lock().death.clone()
    }

    /// The incumbent ends at this step, with all that runs in it: what L0 does then.
    pub(super) fn incumbent_dies(&self, step: &str) {
        let (will, dumps) = {
            let inner = self.lock();
            (inner.will, inner.dumps)
        };
        let mut heir = false;
        let mut beside = false;
        let mut alive = false;
        self.region.update(|status| {
            alive = status.hosts[INCUMBENT].state == HostState::Running as u32;
            if !alive {
                return;
            }
            beside = status.hosts[SUCCESSOR].state == HostState::Running as u32;
            heir = beside && will != Will::Reset;
            let state = if dumps { HostState::Dumping } else { HostState::Dead };
            status.hosts[INCUMBENT].state = state as u32;
            status.hosts[INCUMBENT].reason = StopReason::PoweredOff as u32;
        });
        if !alive {
            // It had retired.
            return;
        }
        let mut inner = self.lock();
        let running = inner
            .vms
            .iter()
            .filter(|((slot, _), state)| *slot == SUCCESSOR && **state == VmState::Running);
        let crossed = running.map(|((_, name), _)| name.clone()).collect();
        inner.vms.retain(|(slot, _), _| heir && *slot == SUCCESSOR);
        inner.dead |= !heir;
        inner.death = Some(Death {
            step: step.to_owned(),
            reset: !heir,
            beside,
            crossed,
        });
    }
}
