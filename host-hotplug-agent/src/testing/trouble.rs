//! What may befall the world beside deaths: disks that go, memory that is short, bytes that get lost.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use locum_abi::Slot;

use super::torn::Torn;
use super::world::World;
use crate::channel::Versions;
use crate::refresh::Limits;

impl World {
    /// The guest's disk does not answer any more, from neither host: until then no QEMU can run the guest anew.
    pub fn take_disk(&self, guest: &str) {
        self.lock().diskless.insert(guest.to_owned());
    }

    /// All disks answer again.
    pub fn bring_disks(&self) {
        self.lock().diskless = BTreeSet::new();
    }

    pub(super) fn disk_of(&self, guest: &str) -> Result<()> {
        let gone = self.lock().diskless.contains(guest);
        ensure!(!gone, "the disk of guest {guest} does not answer");
        Ok(())
    }

    /// The next thing that a host's kernel is asked for fails for want of memory.
    pub fn run_short(&self, slot: Slot) {
        self.lock().short.insert(slot);
    }

    /// The next guest's state that a host sends does not arrive as it was sent, once `spared` have.
    pub fn tear(&self, torn: Torn) {
        self.lock().torn = Some(torn);
    }

    /// What becomes of the state that a host is about to send.
    pub(super) fn torn(&self, slot: Slot) -> Option<Torn> {
        let mut inner = self.lock();
        let torn = inner.torn.as_mut().filter(|torn| torn.slot == slot)?;
        if torn.spared > 0 {
            torn.spared -= 1;
            return None;
        }
        inner.torn.take()
    }

    /// Whether that has come to pass.
    pub fn has_torn(&self) -> bool {
        self.lock().torn.is_none()
    }

    /// From now on agents that begin wait for each other as long as this.
    pub fn limit(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    pub(super) fn limits(&self) -> Limits {
        self.lock().limits
    }

    /// Agents that begin in that slot speak the protocol up to that version only.
    pub fn speaks_up_to(&self, slot: Slot, max: u16) {
        self.lock().speaks.insert(slot, Versions { max, ..Versions::OURS });
    }

    pub(super) fn speaks(&self, slot: Slot) -> Versions {
        self.lock().speaks.get(&slot).copied().unwrap_or(Versions::OURS)
    }
}
