//! QEMU processes, by slot and guest.

use anyhow::{Result, ensure};
use locum_abi::Slot;

use super::{VmState, World};
use crate::guest::frames::Frame;

impl World {
    /// A guest's QEMU is killed.
    pub fn kill_qemu(&self, slot: Slot, guest: &str) {
        let mut inner = self.lock();
        let key = (slot, guest.to_owned());
        inner.vms.remove(&key);
        inner.hung.remove(&key);
        inner.capable.remove(&key);
        inner.sent.remove(&key);
    }

    /// A guest's QEMU, if it has one, does not answer any more, until it is killed or [`Self::wake_qemus`].
    pub fn hang_qemu(&self, slot: Slot, guest: &str) {
        let mut inner = self.lock();
        let key = (slot, guest.to_owned());
        if inner.vms.contains_key(&key) {
            inner.hung.insert(key);
        }
    }

    /// A host's libvirt does not answer what became of a guest, until [`Self::wake_qemus`].
    pub fn hang_libvirt(&self, slot: Slot, guest: &str) {
        self.lock().hung.insert((slot, guest.to_owned()));
    }

    /// All QEMUs answer again.
    pub fn wake_qemus(&self) {
        self.lock().hung.clear();
    }

    /// What a QEMU that is gone, or hangs, answers: the time-out of the latter is over at once.
    pub(in crate::testing) fn answers(&self, key: &(Slot, String)) -> Result<()> {
        let inner = self.lock();
        ensure!(inner.vms.contains_key(key), "its QEMU is gone");
        ensure!(!inner.hung.contains(key), "its QEMU does not answer");
        Ok(())
    }

    /// Whether a guest has a QEMU in that host, whatever it does.
    pub fn has_qemu(&self, slot: Slot, guest: &str) -> bool {
        self.lock().vms.contains_key(&(slot, guest.to_owned()))
    }

    /// QEMUs with a running guest that would leave its RAM out of a stream.
    pub fn without_ram(&self) -> Vec<(Slot, String)> {
        let inner = self.lock();
        let running = inner.vms.iter().filter(|(_, state)| **state == VmState::Running);
        running
            .map(|(key, _)| key.clone())
            .filter(|key| inner.capable.contains(key))
            .collect()
    }

    /// What guests got that had come for them in the host that they left: in which slot, whose, and by network card.
    pub fn given(&self) -> Vec<(Slot, String, Vec<Vec<Frame>>)> {
        self.lock().given.clone()
    }

    /// Whether frames of a guest that runs wait for what has come for it elsewhere.
    pub fn holds_frames(&self) -> bool {
        !self.lock().holds.is_empty()
    }

    /// Slots in which the guest runs.
    pub fn runs_in(&self, guest: &str) -> Vec<Slot> {
        let inner = self.lock();
        let running = inner
            .vms
            .iter()
            .filter(|((_, name), state)| name == guest && **state == VmState::Running);
        running.map(|((slot, _), _)| *slot).collect()
    }
}
