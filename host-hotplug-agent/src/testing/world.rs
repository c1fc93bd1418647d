//! A machine with L0 and two hosts, in memory: what the module and L0 would do, and the rules that they would enforce.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, bail, ensure};
use locum_abi::{
    CHANNEL_COUNT, CpuStatus, Grant, HostState, PerSlot, PoolExtent, PoolState, Slot, Status, StopReason, Will,
};
use partitioner::MemRange;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::l0::FakeRegion;
use super::machine::FakeMachine;
use super::torn::Torn;
use super::tree::Tree;
use crate::l0::{memory, view};
use crate::machine::TextKind;
use crate::pool::Extents;
use crate::pool::table::{Table, words};
use crate::refresh::Limits;

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
    /// The guest's state was sent.
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
    /// How long the agents wait for each other.
    pub limits: Limits,
    /// Those that would leave a guest's RAM out of a stream.
    pub capable: BTreeSet<(Slot, String)>,
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
    fn has_plans(&self) -> bool {
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

/// What befalls the world between two steps of a daemon.
pub type Blow = Arc<dyn Fn() + Send + Sync>;

/// An operation that fails.
struct Fault {
    slot: Slot,
    operation: &'static str,
    spared: usize,
    times: usize,
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
                limits: Limits::default(),
                capable: BTreeSet::new(),
                unknown_cr4: 0,
                granted: Vec::new(),
                removed: BTreeSet::new(),
                written: BTreeSet::new(),
                held: BTreeMap::new(),
                wiped: Vec::new(),
                leaks: Vec::new(),
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

    /// Lets an operation of a host fail, the next `times` times.
    pub fn fail(&self, slot: Slot, operation: &'static str, times: usize) {
        self.fail_after(slot, operation, 0, times);
    }

    /// Nothing fails any more.
    pub fn mend(&self) {
        let mut inner = self.lock();
        inner.faults.clear();
        inner.short.clear();
    }

    /// As [`Self::fail`], but the first `spared` times it works.
    pub fn fail_after(&self, slot: Slot, operation: &'static str, spared: usize, times: usize) {
        self.lock().faults.push(Fault {
            slot,
            operation,
            spared,
            times,
        });
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

    /// Slots in which the guest runs.
    pub fn runs_in(&self, guest: &str) -> Vec<Slot> {
        let inner = self.lock();
        let running = inner
            .vms
            .iter()
            .filter(|((_, name), state)| name == guest && **state == VmState::Running);
        running.map(|((slot, _), _)| *slot).collect()
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
    pub(super) fn stop_successor(&self) {
        let mut inner = self.lock();
        inner.dead = true;
        inner.vms.retain(|(slot, _), _| *slot == INCUMBENT);
        inner.hung.retain(|(slot, _)| *slot == INCUMBENT);
        inner.capable.retain(|(slot, _)| *slot == INCUMBENT);
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
    pub(super) fn reset(&self, step: &str) {
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
    fn incumbent_dies(&self, step: &str) {
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

    /// Kills a host's daemon after so many steps of its: nothing that it would do comes to pass any more.
    pub fn kill_daemon(&self, slot: Slot, after: usize) {
        self.lock().kills.insert(slot, after);
    }

    /// A host's daemon has ended with its host.
    pub(super) fn end_daemon(&self, slot: Slot) {
        self.lock().kills.insert(slot, usize::MAX);
    }

    /// A host begins with a daemon of its own, whatever became of that of the host that was in its slot before.
    pub(super) fn begin_daemon(&self, slot: Slot) {
        let mut inner = self.lock();
        if inner.kills.get(&slot) == Some(&usize::MAX) {
            inner.kills.remove(&slot);
        }
    }

    /// Kills a host's daemon before a step of that name, of which there have been `count`.
    pub fn kill_daemon_before(&self, slot: Slot, step: &'static str, count: usize) {
        self.lock().kills_before.insert(slot, (step, count));
    }

    /// How many steps of that name a host's daemons have come to.
    pub fn steps(&self, slot: Slot, step: &str) -> usize {
        let inner = self.lock();
        let steps = inner.steps.get(&slot).into_iter().flatten();
        steps.filter(|known| *known == step).count()
    }

    /// The step before which a host's daemon was killed, if it was.
    pub fn killed(&self, slot: Slot) -> Option<String> {
        let inner = self.lock();
        let killed = inner.kills.get(&slot) == Some(&usize::MAX);
        killed.then(|| {
            inner
                .steps
                .get(&slot)
                .and_then(|steps| steps.last().cloned())
                .unwrap_or_default()
        })
    }

    /// Something befalls the world once, before a step of that host's daemon, of which `after` come before.
    pub fn strike(&self, slot: Slot, after: usize, blow: Blow) {
        self.lock().blows.insert(slot, (after, blow));
    }

    /// Before which step it befell, if it did.
    pub fn struck(&self, slot: Slot) -> Option<String> {
        self.lock().struck.get(&slot).cloned()
    }

    /// A guest's QEMU is killed.
    pub fn kill_qemu(&self, slot: Slot, guest: &str) {
        let mut inner = self.lock();
        let key = (slot, guest.to_owned());
        inner.vms.remove(&key);
        inner.hung.remove(&key);
        inner.capable.remove(&key);
    }

    /// A guest's QEMU, if it has one, does not answer any more, until it is killed or [`Self::wake_qemus`].
    pub fn hang_qemu(&self, slot: Slot, guest: &str) {
        let mut inner = self.lock();
        let key = (slot, guest.to_owned());
        if inner.vms.contains_key(&key) {
            inner.hung.insert(key);
        }
    }

    /// All QEMUs answer again.
    pub fn wake_qemus(&self) {
        self.lock().hung.clear();
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

    /// All channels that are open break off.
    pub fn cut_channels(&self) {
        for wire in std::mem::take(&mut self.lock().wires) {
            let _ = wire.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Nothing is to befall the channels any more.
    pub(super) fn drop_wires(&self) {
        self.lock().wires.clear();
    }

    /// Another daemon of the host may live, if the host does.
    pub fn revive_daemon(&self, slot: Slot) {
        let host = memory::host(&self.region, &self.region.header(), slot).unwrap();
        if host.state != HostState::Running as u32 && host.state != HostState::Retired as u32 {
            return;
        }
        let mut inner = self.lock();
        inner.kills.remove(&slot);
        inner.kills_before.remove(&slot);
    }

    /// A step of a host's daemon, before it takes effect: where a daemon can be killed.
    pub(super) fn step(&self, slot: Slot, what: &str) {
        let mut inner = self.lock();
        let blow = match inner.blows.remove(&slot) {
            Some((0, blow)) => {
                inner.struck.insert(slot, what.to_owned());
                Some(blow)
            }
            Some((left, blow)) => {
                inner.blows.insert(slot, (left - 1, blow));
                None
            }
            None => None,
        };
        if let Some(blow) = blow {
            drop(inner);
            blow();
            inner = self.lock();
            inner.wires.clear();
        }
        let steps = inner.steps.entry(slot).or_default();
        steps.push(what.to_owned());
        let so_far = steps.iter().filter(|known| *known == what).count();
        if inner
            .kills_before
            .get(&slot)
            .is_some_and(|(step, count)| *step == what && so_far == count + 1)
        {
            inner.kills.insert(slot, 0);
        }
        let mut host_dies = false;
        if slot == INCUMBENT && inner.death.is_none() {
            let before = inner.dies_before;
            host_dies = before.is_some_and(|(step, count)| step == what && so_far == count + 1);
            match &mut inner.dies {
                Some(0) => host_dies = true,
                Some(left) => *left -= 1,
                None => {}
            }
        }
        if host_dies {
            inner.kills.insert(INCUMBENT, usize::MAX);
            drop(inner);
            self.incumbent_dies(what);
            inner = self.lock();
        }
        let dies = match inner.kills.get_mut(&slot) {
            // The rest of it: its threads go on for a moment in this process, and do nothing.
            Some(&mut usize::MAX) => true,
            Some(0) => {
                inner.kills.insert(slot, usize::MAX);
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        drop(inner);
        if dies {
            // Not a panic to be told: the thread ends, and closes what it had open.
            std::panic::resume_unwind(Box::new("killed"));
        }
    }

    /// An end of a channel. Who opens one that it had open before begins a new conversation: the other side sees the end
    /// of the old one.
    pub(super) fn open(&self, number: usize, slot: Slot) -> Result<UnixStream> {
        let mut inner = self.lock();
        let Some(ends) = inner.ends.get_mut(number) else {
            bail!("no channel {number}");
        };
        // If the other host has closed it meanwhile, its next one is at the other end of a new pair.
        if let Some(mut end) = ends[slot].take().filter(|end| !hung_up(end)) {
            // Opened anew, a channel is empty; but who said hello meanwhile does not say it again.
            if number != 0 && !inner.opened.insert((number, slot)) {
                let mut stale = [0; 4096];
                while matches!(end.read(&mut stale), Ok(1..)) {}
            }
            return Ok(end);
        }
        let (left, right) = channel();
        let wires = [left.try_clone()?, right.try_clone()?];
        ends[slot.other()] = Some(right);
        if inner.has_plans() {
            inner.wires.extend(wires);
        }
        Ok(left)
    }

    /// New channels, for a successor that starts.
    pub(super) fn clear_channels(&self) {
        let pairs: Vec<_> = (0..CHANNEL_COUNT).map(|_| channel()).collect();
        let mut inner = self.lock();
        inner.wires.clear();
        if inner.has_plans() {
            let ends = pairs.iter().flat_map(|(left, right)| [left, right]);
            inner.wires = ends.map(|end| end.try_clone().unwrap()).collect();
        }
        inner.opened.clear();
        inner.ends = pairs
            .into_iter()
            .map(|(left, right)| PerSlot::new(Some(left), Some(right)))
            .collect();
    }

    /// Shows a text in `/sys/kernel/locum`.
    pub(super) fn show(&self, slot: Slot, kind: TextKind, text: &str) {
        self.lock().shown.insert((slot, key(kind)), text.to_owned());
    }

    /// Fails if the test wants it.
    pub(super) fn fault(&self, slot: Slot, operation: &str) -> Result<()> {
        self.step(slot, operation);
        let mut inner = self.lock();
        ensure!(slot == INCUMBENT || !inner.dead, "a dead host does nothing");
        // That one is a test's, no kernel is asked for it.
        let asks = operation != "die_in_receive";
        ensure!(
            !(asks && inner.short.remove(&slot)),
            "{operation}: Cannot allocate memory"
        );
        for fault in &mut inner.faults {
            if fault.slot != slot || fault.operation != operation {
                continue;
            }
            if fault.spared > 0 {
                fault.spared -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                bail!("{operation} fails, as the test wants it");
            }
        }
        Ok(())
    }
}

/// The CPUs of the host in that slot.
pub(super) fn owned_by(status: &mut Status, slot: Slot) -> impl Iterator<Item = &mut CpuStatus> {
    status.cpus[..4]
        .iter_mut()
        .filter(move |cpu| view::owner(cpu) == Some(slot))
}

fn hung_up(end: &UnixStream) -> bool {
    let mut fds = [PollFd::new(end, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap();
    fds[0].revents().contains(PollFlags::HUP)
}

fn channel() -> (UnixStream, UnixStream) {
    let (left, right) = UnixStream::pair().unwrap();
    left.set_nonblocking(true).unwrap();
    right.set_nonblocking(true).unwrap();
    (left, right)
}

fn key(kind: TextKind) -> &'static str {
    match kind {
        TextKind::State => "state",
        TextKind::Progress => "progress",
        TextKind::LastError => "last_error",
    }
}
