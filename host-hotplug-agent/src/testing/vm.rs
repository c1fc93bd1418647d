//! Guests of the fake world. A guest that would run in two hosts fails the test.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use locum_abi::Slot;
use rustix::process::Pid;

use super::domain::FakeDomain;
use super::torn::captured;
use super::world::{INCUMBENT, VmState, World};
use crate::channel::{Port, stream};
use crate::config;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::guest::frames::Frame;
use crate::guest::others::{By, Other};
use crate::guest::storage::Disk;
use crate::guest::{Hypervisor, Place, Ram, Received, Sent, Spec, Vm};
use crate::tsc;

/// A guest's, beside its RAM.
pub(super) const STATE: &[u8] = b"state of a guest";

/// QEMU on one host.
pub struct FakeHypervisor {
    world: Arc<World>,
    slot: Slot,
}

impl FakeHypervisor {
    /// On the host in `slot`.
    pub fn new(world: &Arc<World>, slot: Slot) -> Self {
        Self {
            world: world.clone(),
            slot,
        }
    }

    /// Starts a guest.
    pub fn boot(&self, name: &str) {
        let mut inner = self.world.lock();
        inner.stale.retain(|(_, known)| known != name);
        inner.vms.insert((self.slot, name.to_owned()), VmState::Running);
    }

    fn vm(&self, name: &str) -> Box<dyn Vm> {
        let key = (self.slot, name.to_owned());
        if self.world.has_libvirt() {
            return Box::new(FakeDomain::new(&self.world, key));
        }
        Box::new(FakeVm {
            world: self.world.clone(),
            key,
            kept: false,
        })
    }

    fn disks(&self) -> Vec<Disk> {
        let problem = self.world.lock().local_disk.clone();
        let disk = |problem| Disk {
            problem,
            read_only: None,
        };
        problem.map(disk).into_iter().collect()
    }

    /// Name of the guest's domain.
    fn domain(&self, name: &str) -> Option<String> {
        self.world.has_libvirt().then(|| name.to_owned())
    }
}

impl Hypervisor for FakeHypervisor {
    fn inspect(&self, guest: &config::Guest, channel: usize) -> Result<Spec, Refusal> {
        let state = self.world.lock().vms.get(&(self.slot, guest.name.clone())).copied();
        match state {
            Some(VmState::Running) => Ok(Spec {
                name: guest.name.clone(),
                qmp: guest.qmp.clone(),
                command: vec!["qemu".to_owned()],
                channel,
                ram: vec![Ram {
                    file: PathBuf::from("/dev/dax0.0"),
                    at: 0x6800_0000,
                    offset: if guest.name == "one" { 0 } else { 64 << 20 },
                    size: 64 << 20,
                }],
                libvirt: self.domain(&guest.name),
                disks: self.disks(),
                ..Spec::default()
            }),
            _ => Err(Refusal::NoGuest {
                guest: guest.name.clone(),
                path: guest.qmp.clone(),
                problem: "no such file".to_owned(),
            }),
        }
    }

    fn find(&self, spec: &Spec) -> Result<Option<Box<dyn Vm>>> {
        self.world.step(self.slot, "find");
        let key = (self.slot, spec.name.clone());
        let (there, hangs) = {
            let inner = self.world.lock();
            (inner.vms.contains_key(&key), inner.hung.contains(&key))
        };
        ensure!(!hangs, "its QEMU does not answer");
        Ok(there.then(|| self.vm(&spec.name)))
    }

    fn attach(&self, spec: &Spec) -> Result<Box<dyn Vm>> {
        self.world.fault(self.slot, "attach")?;
        self.world.answers(&(self.slot, spec.name.clone()))?;
        Ok(self.vm(&spec.name))
    }

    fn prepare(&self, spec: &Spec, _until: &Deadline<'_>) -> Result<Box<dyn Vm>> {
        self.world.fault(self.slot, "prepare")?;
        self.world.disk_of(&spec.name)?;
        let key = (self.slot, spec.name.clone());
        if self.world.has_libvirt() {
            let there = self.world.lock().vms.contains_key(&key);
            ensure!(!there, "libvirt has domain {} here already", spec.name);
            return Ok(self.vm(&spec.name));
        }
        let before = self.world.lock().vms.insert(key, VmState::Waiting);
        self.world.lock().capable.insert((self.slot, spec.name.clone()));
        assert_eq!(before, None, "a second QEMU for {} in slot {:?}", spec.name, self.slot);
        Ok(self.vm(&spec.name))
    }

    fn guests_here(&self) -> Result<Vec<config::Guest>, Refusal> {
        let libvirts = self.world.has_libvirt();
        let inner = self.world.lock();
        let here = inner.vms.keys().filter(|(slot, _)| *slot == self.slot);
        let guest = |name: &String| config::Guest {
            name: name.clone(),
            qmp: PathBuf::from(format!("/run/{name}.qmp")),
            libvirt: libvirts.then(|| name.clone()),
            command: Vec::new(),
            channel: None,
            trust_storage: false,
        };
        Ok(here.map(|(_, name)| guest(name)).collect())
    }

    fn others(&self, going: &[Spec]) -> Vec<Other> {
        let inner = self.world.lock();
        let plain = inner
            .plain
            .iter()
            .chain(inner.late.iter().filter(|_| inner.successors > 0))
            .filter(|_| self.slot == INCUMBENT)
            .map(|name| (name, false));
        let here = inner
            .vms
            .keys()
            .filter(|(slot, _)| *slot == self.slot)
            .map(|(_, name)| (name, true));
        let others = here
            .chain(plain)
            .filter(|(name, _)| going.iter().all(|spec| spec.name != **name));
        let other = |(name, in_pool): (&String, bool)| Other {
            name: name.clone(),
            pid: Pid::INIT,
            in_pool,
            by: By::Qmp(PathBuf::from(format!("/run/{name}.qmp"))),
        };
        others.map(other).collect()
    }

    fn shut_down(&self, other: &Other, _until: &Deadline<'_>) -> Result<()> {
        self.world.fault(self.slot, "shut_down")?;
        let mut inner = self.world.lock();
        inner.plain.remove(&other.name);
        inner.vms.remove(&(self.slot, other.name.clone()));
        Ok(())
    }

    fn users(&self) -> Option<String> {
        let inner = self.world.lock();
        let here = inner.vms.keys().filter(|(slot, _)| *slot == self.slot);
        let names: Vec<&str> = here.map(|(_, name)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

struct FakeVm {
    world: Arc<World>,
    key: (Slot, String),
    /// Whether frames wait for it.
    kept: bool,
}

impl FakeVm {
    fn alive(&self) -> Result<()> {
        self.world.answers(&self.key)
    }

    fn become_(&self, state: VmState) {
        let mut inner = self.world.lock();
        if state == VmState::Running {
            let elsewhere = inner.vms.iter().find(|((slot, name), state)| {
                *name == self.key.1 && *slot != self.key.0 && **state == VmState::Running
            });
            assert!(elsewhere.is_none(), "guest {} would run in two hosts", self.key.1);
            if inner.stale.contains(&self.key) {
                let (slot, name) = &self.key;
                let leak =
                    format!("guest {name} would go on in slot {slot:?} as it was before it ran in the other host");
                inner.leaks.push(leak);
            }
            inner.stale.insert((self.key.0.other(), self.key.1.clone()));
        }
        inner.vms.insert(self.key.clone(), state);
    }
}

impl Vm for FakeVm {
    fn send(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Sent> {
        if let Err(error) = self.world.fault(self.key.0, "send") {
            stream::abandon(port, until);
            return Err(error);
        }
        // QEMU writes out what the disk has still to get before it lets go of it.
        self.world
            .disk_of(&self.key.1)
            .inspect_err(|_| stream::abandon(port, until))?;
        self.world.lock().capable.insert(self.key.clone());
        self.world.step(self.key.0, "capable");
        self.alive().inspect_err(|_| stream::abandon(port, until))?;
        self.world.lock().sent.remove(&self.key);
        let begun = tsc::now();
        let (mut inside, end) = UnixStream::pair()?;
        inside.write_all(STATE)?;
        drop(inside);
        self.become_(VmState::Stopped);
        self.world.step(self.key.0, "stopped");
        let stopped = tsc::now();
        let state_bytes = match self.world.torn(self.key.0) {
            None => stream::send(end, port, until)?,
            Some(torn) => {
                let mut sent = 0;
                let whole = captured(
                    |mut port| {
                        sent = stream::send(end, &mut port, until)?;
                        Ok(())
                    },
                    until,
                )?;
                torn.send(&self.world, &whole, port, until)?;
                sent
            }
        };
        self.world.lock().sent.insert(self.key.clone());
        self.world.step(self.key.0, "sent");
        Ok(Sent {
            begun,
            stopped,
            saved: tsc::now(),
            state_bytes,
            ram_bytes_copied: 0,
        })
    }

    fn receive(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Received> {
        let (mut inside, end) = UnixStream::pair()?;
        let outcome = stream::receive(port, end, until);
        let mut state = Vec::new();
        inside.read_to_end(&mut state)?;
        if state != STATE {
            // Never half a state; but what follows the last byte of it is not the guest's.
            outcome?;
            bail!("QEMU does not accept {} bytes of state", state.len());
        }
        self.world.step(self.key.0, "received");
        let received = tsc::now();
        if self.world.fault(self.key.0, "die_in_receive").is_err() {
            self.world.kill_successor();
        }
        self.world.fault(self.key.0, "receive")?;
        self.world.disk_of(&self.key.1)?;
        self.alive()?;
        self.world.lock().stale.remove(&self.key);
        self.become_(VmState::Running);
        self.world.step(self.key.0, "running");
        Ok(Received {
            received,
            resumed: tsc::now(),
        })
    }

    fn keep_frames(&mut self) {
        self.kept = true;
    }

    fn hold_frames(&mut self) {
        self.world.lock().holds.insert(self.key.clone());
    }

    fn late_frames(&mut self) -> Vec<Vec<Frame>> {
        assert!(self.kept, "QEMU has had them");
        let running = self.world.runs_in(&self.key.1);
        assert!(!running.contains(&self.key.0), "it would get them itself");
        self.world.step(self.key.0, "late");
        vec![vec![Frame(self.key.1.as_bytes().to_vec())], Vec::new()]
    }

    fn give_frames(&mut self, frames: &[Vec<Frame>]) -> Result<()> {
        self.world.fault(self.key.0, "give_frames")?;
        let given = (self.key.0, self.key.1.clone(), frames.to_vec());
        let mut inner = self.world.lock();
        assert!(inner.holds.remove(&self.key), "it had its own before");
        inner.given.push(given);
        Ok(())
    }

    fn has_gone(&mut self) -> Result<bool> {
        self.alive()?;
        Ok(self.world.lock().sent.contains(&self.key))
    }

    fn plain(&mut self) -> Result<()> {
        self.world.step(self.key.0, "plain");
        self.alive()?;
        self.world.lock().capable.remove(&self.key);
        Ok(())
    }

    fn place(&mut self) -> Result<Place> {
        self.alive()?;
        let inner = self.world.lock();
        Ok(match inner.vms.get(&self.key) {
            Some(VmState::Waiting) => Place::Waiting,
            Some(VmState::Running) => Place::Running,
            Some(VmState::Stopped) => Place::Stopped,
            None => bail!("its QEMU is gone"),
        })
    }

    fn arrive(&mut self) -> Result<Place> {
        let place = self.place()?;
        match place {
            Place::Waiting => self.quit()?,
            Place::Running => self.plain()?,
            Place::Stopped => {}
        }
        Ok(place)
    }

    fn resume(&mut self) -> Result<()> {
        self.world.step(self.key.0, "resume");
        self.world.disk_of(&self.key.1)?;
        self.alive()?;
        self.become_(VmState::Running);
        self.plain()
    }

    fn quit(&mut self) -> Result<()> {
        self.world.step(self.key.0, "quit");
        // By force, if it hangs.
        let mut inner = self.world.lock();
        inner.vms.remove(&self.key);
        inner.hung.remove(&self.key);
        inner.capable.remove(&self.key);
        inner.sent.remove(&self.key);
        Ok(())
    }
}
