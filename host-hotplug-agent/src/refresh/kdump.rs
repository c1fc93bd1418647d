//! A host that panics with a crash kernel loaded: its dump gets the time that it needs. That L0 hears of it first is a matter
//! of [`super::settings`].

use std::time::Duration;

use locum_abi::HostState;
use partitioner::Loss;

use super::Agent;
use crate::deadline::Deadline;

impl Agent {
    /// Waits while the other host writes a dump, but no longer than this: then the dump is lost, and told.
    pub fn await_dump(&self, limit: Duration) {
        let dumps = || self.other_state() == Some(HostState::Dumping);
        if !dumps() {
            return;
        }
        let what = "the host that panicked writes a dump";
        tracing::warn!("{what}: waiting for its end, {} s at most", limit.as_secs());
        self.awaits(Some(what));
        let ended = Deadline::after(limit).comes_true(Duration::from_millis(100), || !dumps());
        self.awaits(None);
        if !ended {
            tracing::warn!("the dump is cut off: it took longer than {} s", limit.as_secs());
            self.shared.lock().refresh.note_loss(Loss::Dump);
        }
    }
}
