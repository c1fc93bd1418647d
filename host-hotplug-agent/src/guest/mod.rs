//! Guests: QEMU processes, driven over QMP.

pub mod argv;
pub mod bound;
pub mod discover;
pub mod frames;
pub mod here;
pub mod keyval;
pub mod libvirt;
mod orphan;
pub mod others;
pub mod pool;
pub mod process;
pub mod qemu;
pub mod qmp;
pub mod renew;
mod running;
pub mod storage;
pub mod there;
mod tied;
pub mod users;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use partitioner::MemRange;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use self::frames::Frame;
use self::others::Other;
use self::renew::Renewed;
use self::storage::Disk;
use crate::channel::Port;
use crate::config;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::tsc;

/// What the other host needs to know to run a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// QMP socket of its QEMU, on either host.
    pub qmp: PathBuf,
    /// Command line that starts its QEMU, waiting for the state.
    pub command: Vec<String>,
    /// Where QEMU's output goes.
    pub output: PathBuf,
    /// Number of its channel.
    pub channel: usize,
    /// Devices with its RAM. An older agent tells none.
    #[serde(default)]
    pub ram: Vec<Ram>,
    /// UUID that its QEMU tells, if any.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Its domain's name, if libvirt has it on either host. An older agent knows of none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<String>,
    /// Release of the QEMU that it runs in, major and minor. Not told to the other agent.
    #[serde(skip)]
    pub release: Option<(u32, u32)>,
    /// Process of its QEMU here. Not told to the other agent.
    #[serde(skip)]
    pub pid: Option<Pid>,
    /// What of its disks the successor may not have. Not told to the other agent.
    #[serde(skip)]
    pub disks: Vec<Disk>,
    /// libvirt's networks that its domain is on. Not told to the other agent.
    #[serde(skip)]
    pub networks: Vec<String>,
    /// What libvirt has its QEMU confined by (AppArmor, SELinux), as libvirt calls it. Not told to the other agent.
    #[serde(skip)]
    pub confined: Option<String>,
}

/// A device with RAM of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ram {
    /// How its QEMU names it, in the command line too.
    pub file: PathBuf,
    /// Physical address of its memory.
    pub at: u64,
    /// Where in it the RAM begins. An older agent does not tell.
    #[serde(default)]
    pub offset: u64,
    /// Bytes; 0 if it is not known, or the device is not in one piece.
    #[serde(default)]
    pub size: u64,
}

impl Ram {
    /// The physical memory, if it is known.
    pub fn range(&self) -> Option<MemRange> {
        MemRange::with_len(self.at.checked_add(self.offset)?, self.size)
    }
}

/// What the sending side saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// TSC when QEMU was told to migrate.
    pub begun: u64,
    /// TSC when the guest had stopped.
    pub stopped: u64,
    /// TSC when all was in the channel.
    pub saved: u64,
    /// Bytes in the channel.
    pub state_bytes: u64,
    /// Bytes of pool RAM among them.
    pub ram_bytes_copied: u64,
}

/// What the receiving side saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// TSC when all had been read from the channel.
    pub received: u64,
    /// TSC when the guest had been resumed.
    pub resumed: u64,
}

/// What a QEMU does with its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It waits for the guest's state.
    Waiting,
    /// The guest runs in it.
    Running,
    /// The guest is stopped: its state may have gone elsewhere.
    Stopped,
}

/// A QEMU, either with a running guest or waiting for one.
pub trait Vm: Send {
    /// Stops the guest and sends its state. On success the guest is stopped, and nothing but [`Vm::resume`] or
    /// [`Vm::quit`] may follow.
    ///
    /// # Errors
    /// Why not; the guest may be stopped, [`Vm::resume`] makes sure that it runs.
    fn send(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Sent>;

    /// Reads the state and runs the guest.
    ///
    /// # Errors
    /// Why not; the guest does not run here.
    fn receive(&mut self, port: &mut Port, until: &Deadline<'_>) -> Result<Received>;

    /// Before a [`Vm::send`]: what comes for the guest here waits for [`Vm::late_frames`], or until the guest runs on here.
    fn keep_frames(&mut self) {}

    /// Before a [`Vm::receive`]: what comes for the guest here waits until [`Vm::give_frames`], or for a moment once it runs.
    fn hold_frames(&mut self) {}

    /// After a [`Vm::send`], once the guest runs in the other host: what has come for it here since [`Vm::keep_frames`], for each
    /// of its network cards.
    fn late_frames(&mut self) -> Vec<Vec<Frame>> {
        Vec::new()
    }

    /// Gives the guest, which runs here, what has come for it in the other host.
    ///
    /// # Errors
    /// Why it does not get it.
    fn give_frames(&mut self, _frames: &[Vec<Frame>]) -> Result<()> {
        Ok(())
    }

    /// Makes the guest run on after a [`Vm::send`], whether that failed or not. Only if it runs nowhere else.
    ///
    /// # Errors
    /// If QEMU refuses.
    fn resume(&mut self) -> Result<()>;

    /// What it does with its guest.
    ///
    /// # Errors
    /// If QEMU does not say.
    fn place(&mut self) -> Result<Place>;

    /// Brings to an end what an earlier daemon had begun with a QEMU that waits for a guest's state. If the state has arrived,
    /// the guest runs here afterwards, but for one of libvirt's, which stands still; if not, it never will, and the QEMU is gone.
    ///
    /// # Errors
    /// If QEMU does not obey: then it is not known.
    fn arrive(&mut self) -> Result<Place>;

    /// Whether all of the guest was sent: then it may run in the other host, or have run there and ended, and what is here of it
    /// is of before that.
    ///
    /// # Errors
    /// If QEMU does not say.
    fn has_gone(&mut self) -> Result<bool>;

    /// After a [`Vm::receive`] that failed: whether the guest runs here all the same. If not, it has not run, and its QEMU is
    /// gone.
    ///
    /// # Errors
    /// If the QEMU cannot be ended, or if what it has of the guest may be all there is.
    fn has_come(&mut self) -> Result<bool> {
        self.quit().map(|()| false)
    }

    /// Leaves nothing switched on that a handover wanted: an ordinary migration of the guest, or saving it, is to take its RAM
    /// along. Done by [`Vm::resume`] and [`Vm::arrive`] where the guest runs.
    ///
    /// # Errors
    /// If QEMU refuses.
    fn plain(&mut self) -> Result<()>;

    /// Ends the QEMU, by force if need be; done when its process is gone.
    ///
    /// # Errors
    /// If the process cannot be ended, or if what it has of the guest may be all there is.
    fn quit(&mut self) -> Result<()>;

    /// As [`Vm::quit`], of a guest that is known to run in the other host: what is here of it is worth nothing.
    ///
    /// # Errors
    /// If the process cannot be ended.
    fn discard(&mut self) -> Result<()> {
        self.quit()
    }
}

/// [`Vm::plain`], where the guest's crossing matters more.
pub fn try_plain(vm: &mut dyn Vm, name: &str) {
    if let Err(error) = vm.plain() {
        tracing::warn!("guest {name}: {error:#}");
    }
}

/// A [`Vm::receive`] that failed though the guest runs here has not. After one that did, the guest has not run here, and its QEMU
/// is gone.
///
/// # Errors
/// As [`Vm::has_come`]: then it is not known.
pub fn whether_it_came(vm: &mut dyn Vm, received: Result<Received>) -> Result<Result<Received>> {
    let Err(error) = received else {
        return Ok(received);
    };
    if !vm.has_come().with_context(|| format!("{error:#}"))? {
        return Ok(Err(error));
    }
    tracing::warn!("the guest has come, but: {error:#}");
    let now = tsc::now();
    Ok(Ok(Received {
        received: now,
        resumed: now,
    }))
}

/// What runs guests on this host.
pub trait Hypervisor: Send + Sync {
    /// Looks at a running guest and says how to start its QEMU on the other host.
    ///
    /// # Errors
    /// [`Refusal::NoGuest`], [`Refusal::GuestNotRunning`], [`Refusal::NotInPool`], [`Refusal::OneStart`] or
    /// [`Refusal::TemporaryDisk`].
    fn inspect(&self, guest: &config::Guest, channel: usize) -> Result<Spec, Refusal>;

    /// Takes hold of a running guest.
    ///
    /// # Errors
    /// If its QEMU does not answer.
    fn attach(&self, spec: &Spec) -> Result<Box<dyn Vm>>;

    /// Takes hold of whatever QEMU of the guest there is on this host; `None` if nobody listens at its socket. One that an
    /// earlier daemon had started and that has not opened its socket yet is ended.
    ///
    /// # Errors
    /// If somebody does, and does not answer.
    fn find(&self, spec: &Spec) -> Result<Option<Box<dyn Vm>>>;

    /// Starts a QEMU that waits for the guest's state.
    ///
    /// # Errors
    /// If it does not come up in time.
    fn prepare(&self, spec: &Spec, until: &Deadline<'_>) -> Result<Box<dyn Vm>>;

    /// Replaces the QEMU of a guest that runs by the one that is installed now, with the same command line.
    ///
    /// # Errors
    /// Why not. The guest runs on in its QEMU, unless the error says otherwise.
    fn renew(&self, spec: &Spec, _until: &Deadline<'_>) -> Result<Renewed> {
        bail!("guest {} cannot get another QEMU here", spec.name)
    }

    /// Ends what a daemon that is no more had begun with [`Self::renew`]. Returns what could not be ended, in words.
    fn go_on_renewing(&self) -> Vec<String> {
        Vec::new()
    }

    /// Every virtual machine of this host but those that go over.
    fn others(&self, going: &[Spec]) -> Vec<Other>;

    /// Has one of them shut down, and waits until it has.
    ///
    /// # Errors
    /// Why it does not.
    fn shut_down(&self, other: &Other, until: &Deadline<'_>) -> Result<()>;

    /// The guests that run on this host, as a configuration would name them.
    ///
    /// # Errors
    /// [`Refusal::PoolUser`] or [`Refusal::NoSocket`].
    fn guests_here(&self) -> Result<Vec<config::Guest>, Refusal>;

    /// Processes of this host that could write to guests' RAM, in words; `None` if there is none.
    fn users(&self) -> Option<String>;
}
