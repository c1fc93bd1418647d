//! Guests of the fake world that libvirt owns, as [`crate::guest::libvirt::DomainVm`] drives them. What their libvirts do by
//! themselves is in the world.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::vm::STATE;
use super::world::{Key, Leaving, VmState, World};
use crate::channel::Port;
use crate::channel::stream::{self, StreamError};
use crate::deadline::Deadline;
use crate::guest::{Place, Received, Sent, Vm};
use crate::tsc;

/// What the libvirts say to each other once the state has crossed, each in a byte.
mod word {
    /// All of it has come.
    pub const WHOLE: u8 = b'w';
    /// It is not accepted.
    pub const REFUSED: u8 = b'r';
    /// It is given up where it was: it may run.
    pub const DONE: u8 = b'd';
    /// It goes on where it was.
    pub const KEPT: u8 = b'k';
}

/// For a libvirt to end what it is in the midst of.
const REST: Duration = Duration::from_secs(60);

/// A domain, whether libvirt has a QEMU of it or not.
pub(super) struct FakeDomain {
    world: Arc<World>,
    key: Key,
    /// What is here of the guest is nothing worth: it goes on in the other host.
    void: bool,
}

impl FakeDomain {
    pub(super) fn new(world: &Arc<World>, key: Key) -> Self {
        Self {
            world: world.clone(),
            key,
            void: false,
        }
    }

    fn step(&self, what: &str) {
        self.world.step(self.key.0, what);
    }

    fn state(&self) -> Result<Option<VmState>> {
        let inner = self.world.lock();
        ensure!(!inner.hung.contains(&self.key), "libvirt does not answer");
        Ok(inner.vms.get(&self.key).copied())
    }

    /// Once its libvirt has ended a migration that was cut off.
    fn at_rest(&self) -> Result<Place> {
        let place = Deadline::after(REST).find(Duration::from_millis(2), || {
            anyhow::Ok(match self.state()? {
                Some(VmState::Running) => Some(Place::Running),
                Some(VmState::Stopped) => Some(Place::Stopped),
                Some(VmState::Waiting) => None,
                None => Some(Place::Waiting),
            })
        })?;
        place.context("libvirt does not end its migration")
    }

    fn begins(&self) -> Result<Leaving> {
        self.world.fault(self.key.0, "send")?;
        self.world.disk_of(&self.key.1)?;
        self.world.answers(&self.key)?;
        self.world.lock().capable.insert(self.key.clone());
        self.step("capable");
        self.world.domain_leaves(&self.key)
    }

    /// The other libvirt's word, upon which this one gives the guest up; after that, this one's.
    fn gives_up(&self, leaving: Leaving, port: &mut Port, until: &Deadline<'_>) -> Result<()> {
        let mut said = [0];
        port.read_exact(&mut said, until)?;
        if said != [word::WHOLE] {
            drop(leaving);
            port.write_all(&[word::KEPT], until)?;
            bail!("the other libvirt does not accept the guest");
        }
        leaving.give_up()?;
        self.step("confirmed");
        Ok(port.write_all(&[word::DONE], until)?)
    }

    /// The guest's state, and nothing of half a one.
    fn reads(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Vec<u8>> {
        let (mut inside, end) = UnixStream::pair()?;
        let outcome = stream::receive(port, end, until);
        self.void = matches!(outcome, Err(StreamError::Abandoned));
        outcome?;
        let mut state = Vec::new();
        inside.read_to_end(&mut state)?;
        Ok(state)
    }

    fn accepts(&self, state: &[u8]) -> Result<()> {
        self.world.fault(self.key.0, "receive")?;
        self.world.disk_of(&self.key.1)?;
        ensure!(state == STATE, "QEMU does not accept {} bytes of state", state.len());
        Ok(())
    }

    /// The last word of whoever has sent the guest.
    fn is_told(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<()> {
        let mut said = [0];
        port.read_exact(&mut said, until)?;
        self.void = said == [word::KEPT];
        ensure!(said == [word::DONE], "libvirt of the other host did not send the guest");
        Ok(())
    }
}

impl Vm for FakeDomain {
    fn send(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Sent> {
        let begun = tsc::now();
        let leaving = self.begins().inspect_err(|_| stream::abandon(port, until))?;
        self.step("stopped");
        let stopped = tsc::now();
        let (mut inside, end) = UnixStream::pair()?;
        inside.write_all(STATE)?;
        drop(inside);
        let state_bytes = stream::send(end, port, until)?;
        self.step("sent");
        self.gives_up(leaving, port, until)?;
        Ok(Sent {
            begun,
            stopped,
            saved: tsc::now(),
            state_bytes,
            ram_bytes_copied: 0,
        })
    }

    fn receive(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Received> {
        let coming = self.world.domain_comes(&self.key);
        let state = self.reads(port, until)?;
        self.step("received");
        let received = tsc::now();
        let whole = coming.and_then(|coming| {
            self.accepts(&state)?;
            coming.complete()
        });
        if let Err(error) = whole {
            port.write_all(&[word::REFUSED], until)?;
            return self.is_told(port, until).and(Err(error));
        }
        self.step("whole");
        port.write_all(&[word::WHOLE], until)?;
        self.is_told(port, until)?;
        self.step("told");
        self.world.disk_of(&self.key.1)?;
        self.world.domain_runs(&self.key)?;
        self.step("running");
        Ok(Received {
            received,
            resumed: tsc::now(),
        })
    }

    fn resume(&mut self) -> Result<()> {
        self.step("resume");
        self.world.disk_of(&self.key.1)?;
        // libvirt does so itself once its migration has failed.
        self.at_rest()?;
        self.world.domain_runs(&self.key)?;
        self.plain()
    }

    fn place(&mut self) -> Result<Place> {
        Ok(match self.state()? {
            Some(VmState::Running) => Place::Running,
            Some(VmState::Stopped) => Place::Stopped,
            Some(VmState::Waiting) | None => Place::Waiting,
        })
    }

    fn arrive(&mut self) -> Result<Place> {
        let place = self.at_rest()?;
        if place == Place::Running {
            self.plain()?;
        }
        Ok(place)
    }

    fn has_gone(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn plain(&mut self) -> Result<()> {
        self.step("plain");
        self.world.answers(&self.key)?;
        self.world.lock().capable.remove(&self.key);
        Ok(())
    }

    fn quit(&mut self) -> Result<()> {
        self.step("quit");
        let mut inner = self.world.lock();
        let whole = inner.vms.get(&self.key) == Some(&VmState::Stopped);
        ensure!(
            !whole || self.void,
            "domain {} has come here whole, and may be nowhere else",
            self.key.1
        );
        inner.vms.remove(&self.key);
        inner.hung.remove(&self.key);
        inner.capable.remove(&self.key);
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        self.void = true;
        self.quit()
    }
}
