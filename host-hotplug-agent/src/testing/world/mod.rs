//! A machine with L0 and two hosts, in memory: what the module and L0 would do, and the rules that they would enforce.

mod channels;
mod deaths;
mod domains;
mod qemus;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use locum_abi::{CpuStatus, Grant, PerSlot, PoolExtent, PoolState, Slot, Status, Will};
use partitioner::MemRange;

pub use deaths::Death;
pub use domains::{Key, Leaving};
pub use steps::Blow;

use super::l0::FakeRegion;
use super::machine::FakeMachine;
use super::torn::Torn;
use super::tree::Tree;
use crate::channel::Versions;
use crate::guest::frames::Frame;
use crate::l0::view;
use crate::machine::TextKind;
use crate::pool::Extents;
use crate::pool::table::{Table, words};
use crate::refresh::Limits;
use steps::Fault;

/// The slot of the host that is there from the start.
pub const INCUMBENT: Slot = Slot::Even;
/// The slot of the one that is to replace it.
pub const SUCCESSOR: Slot = Slot::Odd;

/// How a started successor behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Boots, and its agent serves.
    Boots,
    /// Never says anything.
    Hangs,
    /// Triple fault at once.
    TripleFaults,
    /// Comes up with one CPU only.
    LacksCpu,
}

/// Entries of the pool's table.
const TABLE: usize = 4;

/// What a QEMU process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// Waits for a guest's state.
    Waiting,
    /// The guest runs.
    Running,
    /// The guest's state was sent. Or all of it has come, and libvirt was asked not to let it run.
    Stopped,
}

/// Whose bytes are in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nobody's: it was cleared.
    Zeroes,
    /// Of the host in that slot.
    Of(Slot),
}

/// The machine.
pub struct World {
    /// L0's shared region.
    pub region: FakeRegion,
    /// The pool's table.
    pub extents: Extents,
    pub(super) behaviour: Behaviour,
    inner: Mutex<Inner>,
}

pub(super) struct Inner {
    /// QEMU processes by slot and guest.
    pub vms: BTreeMap<(Slot, String), VmState>,
    /// Those that do not answer.
    pub hung: BTreeSet<(Slot, String)>,
    /// Guests whose disk does not answer.
    pub diskless: BTreeSet<String>,
    /// What becomes of the bytes of a guest's state.
    pub torn: Option<Torn>,
    /// Hosts whose kernel has no memory for what it is asked for next.
    pub short: BTreeSet<Slot>,
    /// Guests are domains of a libvirt.
    pub libvirts: bool,
    /// How long the agents wait for each other.
    pub limits: Limits,
    /// What agents speak, where it is not all.
    pub speaks: BTreeMap<Slot, Versions>,
    /// Those that would leave a guest's RAM out of a stream.
    pub capable: BTreeSet<(Slot, String)>,
    /// QEMUs that have sent all of their guests.
    pub sent: BTreeSet<(Slot, String)>,
    /// What is there of a guest that has run in the other host since: it must not go on.
    pub stale: BTreeSet<(Slot, String)>,
    /// Guests that get nothing of their network until they are given what had come for them elsewhere.
    pub holds: BTreeSet<(Slot, String)>,
    /// What guests got that had come for them in the host that they left.
    pub given: Vec<(Slot, String, Vec<Vec<Frame>>)>,
    /// Bits of the CPUs' CR4 that L0 does not know.
    pub unknown_cr4: u64,
    /// What the incumbent gave.
    pub granted: Vec<Grant>,
    /// Memory blocks taken off the incumbent's Linux.
    pub removed: BTreeSet<u64>,
    /// Where something was written.
    pub written: BTreeSet<u64>,
    /// Whose bytes are in a memory block, by its start. Those that are not listed: the incumbent's.
    pub held: BTreeMap<u64, Held>,
    /// Memory that was cleared.
    pub wiped: Vec<MemRange>,
    /// What a host could read of another one's.
    pub leaks: Vec<String>,
    /// Guests of the incumbent's with RAM of its own.
    pub plain: BTreeSet<String>,
    /// One of the incumbent's that is started when a successor is.
    pub late: Option<String>,
    /// What is found of every guest's storage that the successor may not have.
    pub local_disk: Option<String>,
    /// Steps that were shown before the journal had them.
    pub unwritten: Vec<String>,
    /// Ends of each channel that nobody has opened.
    pub ends: Vec<PerSlot<Option<UnixStream>>>,
    /// The successor's files, once it was started.
    pub successor: Option<Arc<Tree>>,
    /// The successor as a machine, once it was started.
    pub successor_machine: Option<Arc<FakeMachine>>,
    /// The successor is dead.
    pub dead: bool,
    /// What the incumbent said of its end.
    pub will: Will,
    /// L0 is of a release that knows no wills.
    pub knows_no_wills: bool,
    /// The incumbent hangs once it is told to power off.
    pub hangs_in_power_off: bool,
    /// A crash kernel is loaded in the incumbent.
    pub dumps: bool,
    /// How the incumbent died, if it did.
    death: Option<Death>,
    /// How many successors were started: threads of those before the last one do nothing any more.
    pub successors: usize,
    /// Channels that a host had open already.
    opened: BTreeSet<(usize, Slot)>,
    faults: Vec<Fault>,
    /// How many more steps a host's daemon takes until it is killed.
    kills: BTreeMap<Slot, usize>,
    /// Before which step a host's daemon is killed, and how many of it come before.
    kills_before: BTreeMap<Slot, (&'static str, usize)>,
    /// How many more steps the incumbent's daemon takes until the whole host dies.
    dies: Option<usize>,
    /// Before which step of its daemon it dies, and how many of it come before.
    dies_before: Option<(&'static str, usize)>,
    /// Steps of each host's daemon so far.
    steps: BTreeMap<Slot, Vec<String>>,
    /// What befalls, before which step of a host's daemon.
    blows: BTreeMap<Slot, (usize, Blow)>,
    /// Before which step it did.
    struck: BTreeMap<Slot, String>,
    /// While something is to befall: another end of every channel, to interfere with. As long as there is one, nobody sees
    /// that the other side has closed its own.
    wires: Vec<UnixStream>,
    /// By host: each has a `/sys/kernel/locum` of its own.
    shown: BTreeMap<(Slot, &'static str), String>,
}

impl Inner {
    /// Whether something is to befall.
    pub(super) fn has_plans(&self) -> bool {
        !self.blows.is_empty() || self.torn.is_some()
    }

    /// Memory of a host becomes another's: noted if bytes of the other one are still in it.
    pub fn passes(&mut self, block: u64, to: Slot) {
        let held = self.held.insert(block, Held::Of(to)).unwrap_or(Held::Of(INCUMBENT));
        if held == Held::Of(to.other()) {
            self.leaks.push(format!(
                "the host in slot {to:?} has block {block:#x} as {held:?} left it"
            ));
        }
    }
}

impl World {
    /// With generation 0 on all four CPUs.
    pub fn new(behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            region: FakeRegion::new(4),
            extents: Table::new(Arc::new(words(TABLE)), size_of::<PoolExtent>(), TABLE),
            behaviour,
            inner: Mutex::new(Inner {
                vms: BTreeMap::new(),
                hung: BTreeSet::new(),
                diskless: BTreeSet::new(),
                torn: None,
                short: BTreeSet::new(),
                libvirts: false,
                limits: Limits::default(),
                speaks: BTreeMap::new(),
                capable: BTreeSet::new(),
                sent: BTreeSet::new(),
                stale: BTreeSet::new(),
                holds: BTreeSet::new(),
                given: Vec::new(),
                unknown_cr4: 0,
                granted: Vec::new(),
                removed: BTreeSet::new(),
                written: BTreeSet::new(),
                held: BTreeMap::new(),
                wiped: Vec::new(),
                leaks: Vec::new(),
                late: None,
                local_disk: None,
                plain: BTreeSet::new(),
                unwritten: Vec::new(),
                ends: Vec::new(),
                successor: None,
                successor_machine: None,
                dead: false,
                will: Will::Pass,
                knows_no_wills: false,
                hangs_in_power_off: false,
                dumps: false,
                death: None,
                successors: 0,
                opened: BTreeSet::new(),
                faults: Vec::new(),
                kills: BTreeMap::new(),
                kills_before: BTreeMap::new(),
                dies: None,
                dies_before: None,
                steps: BTreeMap::new(),
                blows: BTreeMap::new(),
                struck: BTreeMap::new(),
                wires: Vec::new(),
                shown: BTreeMap::new(),
            }),
        })
    }

    /// Its end, with the test: daemons that still run are killed at their next step, and what holds the world by what it
    /// holds lets it go. Else its hosts' files would outlive the test.
    pub fn end(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.dead = true;
        inner.kills = [INCUMBENT, SUCCESSOR].map(|slot| (slot, usize::MAX)).into();
        let machine = inner.successor_machine.take();
        let files = inner.successor.take();
        let blows = std::mem::take(&mut inner.blows);
        inner.wires.clear();
        inner.ends.clear();
        drop(inner);
        drop((machine, files, blows));
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The successor's files, once it was started.
    pub fn successor(&self) -> Option<Arc<Tree>> {
        self.lock().successor.clone()
    }

    /// The successor, once it was started.
    pub fn successor_machine(&self) -> Option<Arc<FakeMachine>> {
        self.lock().successor_machine.clone()
    }

    /// Linux uses something of the CPUs that L0 does not know.
    pub fn use_cr4(&self, bits: u64) {
        self.lock().unknown_cr4 = bits;
    }

    /// What a file in the incumbent's `/sys/kernel/locum` shows.
    pub fn shown(&self, kind: TextKind) -> String {
        self.lock()
            .shown
            .get(&(INCUMBENT, key(kind)))
            .cloned()
            .unwrap_or_default()
    }

    /// What a host could read of another one's memory, but for what was handed over.
    pub fn leaks(&self) -> Vec<String> {
        self.lock().leaks.clone()
    }

    /// The incumbent has a guest with that name, whose RAM is not in the pool.
    pub fn has_plain_guest(&self, name: &str) {
        self.lock().plain.insert(name.to_owned());
    }

    /// The incumbent gets a guest with that name as soon as there is a successor; with none, it ends.
    pub fn has_late_guest(&self, name: Option<&str>) {
        self.lock().late = name.map(str::to_owned);
    }

    /// Guests of the incumbent's whose RAM is not in the pool.
    pub fn plain_guests(&self) -> Vec<String> {
        self.lock().plain.iter().cloned().collect()
    }

    /// Every guest has a disk of which that is found.
    pub fn has_local_disks(&self, problem: &str) {
        self.lock().local_disk = Some(problem.to_owned());
    }

    /// Steps that the incumbent showed before its journal had them.
    pub fn unwritten(&self) -> Vec<String> {
        self.lock().unwritten.clone()
    }

    /// Hosts that have the guests' RAM, as the pool's table says.
    pub fn extents_in(&self) -> Vec<Slot> {
        let entries = self.extents.entries().unwrap();
        let used = entries.iter().filter(|entry| entry.state == PoolState::Used);
        used.map(|entry| entry.word.slot()).collect()
    }

    /// Whether that memory was cleared, in one piece.
    pub fn cleared(&self, range: MemRange) -> bool {
        self.lock().wiped.contains(&range)
    }

    /// Shows a text in `/sys/kernel/locum`.
    pub(super) fn show(&self, slot: Slot, kind: TextKind, text: &str) {
        self.lock().shown.insert((slot, key(kind)), text.to_owned());
    }
}

/// The CPUs of the host in that slot.
pub(super) fn owned_by(status: &mut Status, slot: Slot) -> impl Iterator<Item = &mut CpuStatus> {
    status.cpus[..4]
        .iter_mut()
        .filter(move |cpu| view::owner(cpu) == Some(slot))
}

fn key(kind: TextKind) -> &'static str {
    match kind {
        TextKind::State => "state",
        TextKind::Progress => "progress",
        TextKind::LastError => "last_error",
    }
}
