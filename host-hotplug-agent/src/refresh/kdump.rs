//! A host that panics with a crash kernel loaded: L0 is to hear of it first, and its dump gets the time that it needs.
//!
//! Linux jumps to a crash kernel before it calls panic notifiers, of which the module's tells L0, unless
//! `crash_kexec_post_notifiers` is set (`panic()` in kernel/panic.c, `kexec_should_crash()` for an oops). So that is
//! switched on while CPUs of this host are nested, and afterwards it is as it was.

use std::time::Duration;

use locum_abi::{CpuMode, HostState};
use partitioner::Loss;

use super::Agent;
use crate::deadline::Deadline;
use crate::l0::view;

const NOTIFIERS_FIRST: &str = "sys/module/kernel/parameters/crash_kexec_post_notifiers";

impl Agent {
    /// Has Linux call panic notifiers before a crash kernel, from now on until [`Self::notifiers_as_before`].
    pub fn notifiers_first(&self) {
        let Some(now) = self.machine.sys().read_optional(NOTIFIERS_FIRST) else {
            // This kernel has no crash kernels.
            return;
        };
        let now = now == "Y";
        self.shared.lock().brief.notifiers_first.get_or_insert(now);
        if !now {
            self.set_notifiers_first(true);
        }
    }

    /// Once the last CPU of this host is native.
    pub fn notifiers_as_before(&self) {
        let before = self.shared.lock().brief.notifiers_first;
        if before != Some(false) || self.is_nested() {
            return;
        }
        self.set_notifiers_first(false);
    }

    fn set_notifiers_first(&self, on: bool) {
        let value = if on { "Y" } else { "N" };
        if let Err(error) = self.machine.sys().write(NOTIFIERS_FIRST, value) {
            tracing::warn!(
                "/{NOTIFIERS_FIRST} cannot be set to {value}: {error}; a crash dump may be taken for a living host"
            );
        }
    }

    /// Whether a CPU of this host is nested, or L0 does not say.
    pub(super) fn is_nested(&self) -> bool {
        let slot = self.machine.facts().slot;
        let nested = |status: Box<locum_abi::Status>| {
            let mut own = view::used(&status).iter().filter(|cpu| view::owner(cpu) == Some(slot));
            own.any(|cpu| cpu.mode == CpuMode::Nested as u32)
        };
        self.machine.status().map_or(true, nested)
    }

    /// Waits while the other host writes a dump, but no longer than this: then the dump is lost, and told.
    pub fn await_dump(&self, limit: Duration) {
        let dumps = || self.other_state() == Some(HostState::Dumping);
        if !dumps() {
            return;
        }
        let what = "the host that panicked writes a dump";
        tracing::warn!("{what}: waiting for its end, {} s at most", limit.as_secs());
        self.shared.lock().awaits = Some(what.to_owned());
        self.publish();
        let ended = Deadline::after(limit).comes_true(Duration::from_millis(100), || !dumps());
        let mut inner = self.shared.lock();
        inner.awaits = None;
        if !ended {
            tracing::warn!("the dump is cut off: it took longer than {} s", limit.as_secs());
            inner.refresh.note_loss(Loss::Dump);
        }
    }
}
