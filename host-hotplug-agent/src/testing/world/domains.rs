//! What each host's libvirt does with its domains, by itself: its daemon is not the agent, and goes on when that is killed.
//!
//! A domain in the midst of a migration is [`VmState::Waiting`] on either side: it is not yet known who will have it. One of
//! which all has come is [`VmState::Stopped`].

use std::sync::{Arc, MutexGuard, PoisonError};

use anyhow::{Result, ensure};
use locum_abi::Slot;

use super::{INCUMBENT, Inner, VmState, World};

/// A domain of a host.
pub type Key = (Slot, String);

/// A migration as the libvirt sees it that sends the guest. If it ends before that has given the guest up, the guest goes on
/// where it was.
pub struct Leaving {
    world: Arc<World>,
    key: Key,
    /// What the guest did before.
    before: VmState,
    /// Of which successor it is.
    number: usize,
}

/// A migration as the libvirt sees it to which the guest comes. If it ends before all has come, nothing is left.
pub struct Coming {
    world: Arc<World>,
    key: Key,
    number: usize,
}

impl World {
    /// From now on all guests are domains of the hosts' libvirts.
    pub fn managed_by_libvirt(&self) {
        self.lock().libvirts = true;
    }

    /// Whether they are.
    pub fn has_libvirt(&self) -> bool {
        self.lock().libvirts
    }

    /// As [`Self::lock`], for what is done while a test fails, too.
    fn locked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's own libvirt stops it, to send it.
    ///
    /// # Errors
    /// If it has no such guest.
    pub fn domain_leaves(self: &Arc<Self>, key: &Key) -> Result<Leaving> {
        let mut inner = self.lock();
        let before = inner.vms.get(key).copied();
        ensure!(
            matches!(before, Some(VmState::Running | VmState::Stopped)),
            "libvirt has no domain {} to send: {before:?}",
            key.1
        );
        inner.vms.insert(key.clone(), VmState::Waiting);
        Ok(Leaving {
            world: self.clone(),
            key: key.clone(),
            before: before.unwrap_or(VmState::Running),
            number: inner.successors,
        })
    }

    /// The other host's libvirt makes a QEMU for a guest that is to come.
    ///
    /// # Errors
    /// If it has one.
    pub fn domain_comes(self: &Arc<Self>, key: &Key) -> Result<Coming> {
        let mut inner = self.lock();
        ensure!(key.0 == INCUMBENT || !inner.dead, "a dead host does nothing");
        ensure!(!inner.vms.contains_key(key), "libvirt has domain {} already", key.1);
        inner.vms.insert(key.clone(), VmState::Waiting);
        inner.capable.insert(key.clone());
        Ok(Coming {
            world: self.clone(),
            key: key.clone(),
            number: inner.successors,
        })
    }

    /// Libvirt is told to let a domain run.
    ///
    /// # Errors
    /// If it is not there, or in the midst of a migration.
    pub fn domain_runs(&self, key: &Key) -> Result<()> {
        let mut inner = self.lock();
        let state = inner.vms.get(key).copied();
        ensure!(
            matches!(state, Some(VmState::Running | VmState::Stopped)),
            "libvirt cannot resume domain {}: {state:?}",
            key.1
        );
        let twice = inner.run_domain(key);
        drop(inner);
        assert!(!twice, "guest {} would run in two hosts", key.1);
        Ok(())
    }
}

impl Inner {
    /// Returns whether the guest would run in two hosts: that fails the test, at the latest at its end.
    fn run_domain(&mut self, key: &Key) -> bool {
        let other = (key.0.other(), key.1.clone());
        let twice = self.vms.get(&other) == Some(&VmState::Running);
        if twice {
            self.leaks.push(format!("guest {} would run in two hosts", key.1));
        }
        self.vms.insert(key.clone(), VmState::Running);
        twice
    }

    fn remove_domain(&mut self, key: &Key) {
        self.vms.remove(key);
        self.capable.remove(key);
    }

    /// Whether a domain is in the midst of that migration still: a successor that is gone may have had one of that name, too.
    fn migrates(&self, key: &Key, number: usize) -> bool {
        let same_host = key.0 == INCUMBENT || self.successors == number;
        same_host && self.vms.get(key) == Some(&VmState::Waiting)
    }
}

impl Leaving {
    /// The other libvirt has said that it has the guest whole: this one gives it up.
    ///
    /// # Errors
    /// If it has it no more, for its host has died.
    pub fn give_up(self) -> Result<()> {
        let mut inner = self.world.lock();
        ensure!(inner.migrates(&self.key, self.number), "the guest's host has died");
        inner.remove_domain(&self.key);
        Ok(())
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let mut inner = self.world.locked();
        let other = (self.key.0.other(), self.key.1.clone());
        if inner.migrates(&other, self.number) {
            inner.remove_domain(&other);
        }
        if !inner.migrates(&self.key, self.number) {
            return;
        }
        match self.before {
            VmState::Running => {
                inner.run_domain(&self.key);
            }
            before => {
                inner.vms.insert(self.key.clone(), before);
            }
        }
    }
}

impl Coming {
    /// All of the guest has come. It is stopped.
    ///
    /// # Errors
    /// If the other libvirt has ended it meanwhile.
    pub fn complete(self) -> Result<()> {
        let mut inner = self.world.lock();
        ensure!(inner.migrates(&self.key, self.number), "libvirt has given the guest up");
        inner.vms.insert(self.key.clone(), VmState::Stopped);
        Ok(())
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        let mut inner = self.world.locked();
        if inner.migrates(&self.key, self.number) {
            inner.remove_domain(&self.key);
        }
    }
}
