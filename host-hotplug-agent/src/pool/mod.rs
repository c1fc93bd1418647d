//! The pool: which guest's RAM lies where.
//!
//! The table is in L0's shared region, so it outlives hosts and agents ([`table`] has the rules). RAM is cleared when it
//! goes from free to used, and at no other time: not when a QEMU ends, whose guest may have crossed, and not because of what
//! a QEMU's command line says.

pub mod crossing;
pub mod mapped;
pub mod seen;
pub mod table;
pub mod up;

use std::fs::{self, File, OpenOptions};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use locum_abi::Slot;
use locum_abi::pool::{POOL_GRAIN, PoolState};
use partitioner::MemRange;
use rustix::fs::FlockOperation;
use serde::Serialize;

use crate::deadline::Deadline;
use crate::guest::pool::{Part, Pool};
use crate::sysroot::SysRoot;
use seen::Seen;
use table::{ClaimError, Entry, Extent, Table, Uuid, Words};

/// The table as this program sees it.
pub type Extents = Table<Arc<dyn Words>>;

/// Who holds it changes the table on behalf of this host.
const LOCK: &str = "run/locum/pool.lock";
/// Between two looks whether another program is done.
const LOOK: Duration = Duration::from_millis(20);
/// How often a place is chosen anew that the other host took meanwhile.
const TRIES: usize = 16;

impl<W: Words + ?Sized> Words for Arc<W> {
    fn load(&self, index: usize) -> u64 {
        (**self).load(index)
    }

    fn store(&self, index: usize, value: u64) {
        (**self).store(index, value);
    }

    fn swap_if(&self, index: usize, from: u64, to: u64) -> bool {
        (**self).swap_if(index, from, to)
    }

    fn fence(&self) {
        (**self).fence();
    }
}

/// The pool of one host.
pub struct Keeper<'a> {
    sys: &'a SysRoot,
    parts: Vec<Part>,
    extents: &'a Extents,
    slot: Slot,
    /// Whether there is another host, or may be.
    beside_another: bool,
    /// None: another program of this host changes the table.
    lock: Option<File>,
}

/// An extent as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// The guest's name.
    pub guest: String,
    /// The guest's UUID.
    pub uuid: Uuid,
    /// `used`, `crossing`, or what is being done.
    pub state: &'static str,
    /// Slot of the host that has the guest.
    pub slot: u32,
    /// NUMA node.
    pub node: Option<u32>,
    /// Physical address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// The device of this host that has it.
    pub device: Option<String>,
    /// Where in the device it begins, for QEMU's `offset=`.
    pub offset: Option<u64>,
}

impl View {
    /// How QEMU is told.
    pub fn backend(&self) -> Option<String> {
        let (device, offset) = (self.device.as_ref()?, self.offset?);
        let size = self.end - self.start;
        Some(format!(
            "-object memory-backend-file,id=ram,mem-path={device},share=on,align=2M,size={size},offset={offset}"
        ))
    }
}

/// What is wanted of the pool.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The guest.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// NUMA node. None: whichever has room.
    pub node: Option<u32>,
    /// The guest's UUID. None: one is made.
    pub uuid: Option<Uuid>,
}

/// The lock's file; `None` if another program has it.
fn lock(sys: &SysRoot) -> Result<Option<File>> {
    let path = sys.path(LOCK);
    let context = || format!("opening {}", path.display());
    fs::create_dir_all(sys.path("run/locum")).with_context(context)?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(context)?;
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
    Ok(locked.then_some(file))
}

impl<'a> Keeper<'a> {
    /// Of the host in `slot`. What programs that are no more had begun is brought to an end first.
    ///
    /// # Errors
    /// If the lock's file cannot be made.
    pub fn new(sys: &'a SysRoot, pool: &Pool, extents: &'a Extents, slot: Slot, beside_another: bool) -> Result<Self> {
        let keeper = Self {
            sys,
            parts: pool.parts(sys),
            extents,
            slot,
            beside_another,
            lock: lock(sys)?,
        };
        keeper.mend();
        Ok(keeper)
    }

    /// Waits until no other program of this host changes the table: two guests may be started at once.
    ///
    /// # Errors
    /// If the lock's file cannot be made.
    pub fn alone(mut self, until: &Deadline<'_>) -> Result<Self> {
        if self.lock.is_none() {
            self.lock = until.find(LOOK, || lock(self.sys))?;
        }
        Ok(self)
    }

    fn mend(&self) {
        let gone = |slot: Slot| slot != self.slot && !self.beside_another;
        let dead = |slot: Slot| gone(slot) || (slot == self.slot && self.lock.is_some());
        for mended in self.extents.mend(self.slot, dead, gone) {
            let name = mended.name.as_deref().unwrap_or("of no name");
            let from = mended.from.map_or("damaged", table::word);
            tracing::info!("pool: extent of guest {name}: {from} -> {}", table::word(mended.to));
        }
    }

    fn seen(&self) -> Vec<Seen> {
        seen::look(self.sys, &self.parts)
    }

    fn locked(&self) -> Result<()> {
        ensure!(
            self.lock.is_some(),
            "another `locum` of this host is changing the pool's table: try again when it is done"
        );
        Ok(())
    }

    fn entries(&self) -> Result<Vec<Entry>> {
        self.extents.entries().map_err(|why| ClaimError::from(why).into())
    }

    /// All extents.
    ///
    /// # Errors
    /// If the table is damaged.
    pub fn list(&self) -> Result<Vec<View>> {
        Ok(self.entries()?.iter().map(|entry| self.view(entry)).collect())
    }

    fn view(&self, entry: &Entry) -> View {
        let range = entry.extent.range;
        let part = self.part(range);
        View {
            guest: entry.extent.name.clone(),
            uuid: entry.extent.uuid,
            state: table::word(entry.state),
            slot: entry.word.slot().raw(),
            node: entry.extent.node,
            start: range.start(),
            end: range.end(),
            device: part.map(|part| part.file.display().to_string()),
            offset: part.map(|part| part.offset + (range.start() - part.range.start())),
        }
    }

    /// What is free, by address.
    ///
    /// # Errors
    /// If the table is damaged.
    pub fn free_ranges(&self) -> Result<Vec<MemRange>> {
        self.gaps(None)
    }

    /// Enters what processes of this host map and no entry has. Returns what cannot be entered, for it overlaps.
    ///
    /// # Errors
    /// If the table is damaged or full.
    pub fn enter_seen(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let all = self.seen();
        for seen in &all {
            for range in &seen.ranges {
                if let Some(problem) = self.enter_one(seen, *range, &all)? {
                    problems.push(problem);
                }
            }
        }
        Ok(problems)
    }

    fn enter_one(&self, seen: &Seen, range: MemRange, all: &[Seen]) -> Result<Option<String>> {
        let start = range.start() / POOL_GRAIN * POOL_GRAIN;
        let Some(range) = MemRange::new(start, range.end().next_multiple_of(POOL_GRAIN)) else {
            return Ok(None);
        };
        let entries = self.entries()?;
        let known = entries.iter().any(|entry| entry.extent.range.contains(range));
        if known {
            return Ok(None);
        }
        let mut overlapping = entries.iter().filter(|entry| entry.extent.range.overlaps(range));
        let Some(other) = overlapping.find(|entry| !self.is_stale(entry, all)) else {
            self.enter(range, &seen.name, seen.uuid, all)?;
            return Ok(None);
        };
        Ok(Some(format!(
            "process {} ({}) maps {range} of the pool, and {} of it is guest {}'s: stop one of them",
            seen.pid, seen.name, other.extent.range, other.extent.name
        )))
    }

    /// Whether an entry is of a guest that was only seen, and is not any more: at most one process of this host has some of
    /// it, the one that is asked about.
    fn is_stale(&self, entry: &Entry, all: &[Seen]) -> bool {
        let uses = |seen: &&Seen| seen.ranges.iter().any(|range| range.overlaps(entry.extent.range));
        entry.extent.seen
            && entry.state == PoolState::Used
            && entry.word.slot() == self.slot
            && all.iter().filter(uses).count() <= 1
    }

    /// Enters a range that a guest of this host has in use. It is not cleared.
    ///
    /// # Errors
    /// [`ClaimError`].
    fn enter(&self, range: MemRange, name: &str, uuid: Uuid, all: &[Seen]) -> Result<Entry, ClaimError> {
        for entry in self.extents.entries()? {
            if entry.extent.range.overlaps(range) && self.is_stale(&entry, all) {
                tracing::info!(
                    "pool: guest {} is not at {} any more",
                    entry.extent.name,
                    entry.extent.range
                );
                self.extents.settle(&entry, PoolState::Empty, self.slot);
            }
        }
        let extent = Extent {
            range,
            uuid,
            node: self.node(range),
            name: name.to_owned(),
            seen: true,
        };
        let claimed = self.extents.claim(&extent, self.slot)?;
        let used = self.extents.settle(&claimed, PoolState::Used, self.slot);
        used.ok_or(ClaimError::Contended)
    }

    fn node(&self, range: MemRange) -> Option<u32> {
        let part = self.parts.iter().find(|part| part.range.overlaps(range));
        part.and_then(|part| part.node)
    }

    /// Takes a piece of the pool for a guest, and clears it.
    ///
    /// # Errors
    /// If there is no such piece: how much is free is told. Or if it is in doubt what is free.
    pub fn alloc(&self, wanted: &Wanted) -> Result<View> {
        self.locked()?;
        let problems = self.enter_seen()?;
        ensure!(
            problems.is_empty(),
            "it is not certain what of the pool is free: {}",
            problems.join("; ")
        );
        let uuid = match wanted.uuid {
            Some(uuid) => uuid,
            None => self.random_uuid()?,
        };
        let known = self.entries()?;
        if let Some(known) = known
            .iter()
            .find(|known| known.extent.name == wanted.name || known.extent.uuid == uuid)
        {
            bail!(
                "guest {} (UUID {}) has {} of the pool already: use that, or free it first with `locum pool free {}`",
                known.extent.name,
                known.extent.uuid,
                known.extent.range,
                known.extent.name
            );
        }
        let size = wanted
            .size
            .checked_next_multiple_of(POOL_GRAIN)
            .filter(|size| *size > 0);
        let size = size.context("a guest's RAM has at least one byte, and fewer than 2^64")?;
        for _ in 0..TRIES {
            let gaps = self.gaps(wanted.node)?;
            let range = table::place(&gaps, size).with_context(|| self.no_room(&gaps, size, wanted.node))?;
            let extent = Extent {
                range,
                uuid,
                node: self.node(range),
                name: wanted.name.clone(),
                seen: false,
            };
            match self.extents.claim(&extent, self.slot) {
                Ok(claimed) => return self.clear(&claimed),
                Err(ClaimError::Taken(_) | ClaimError::Contended) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(ClaimError::Contended.into())
    }

    /// What a guest whose QEMU is about to start has, and whether it is on its way here from the other host. A guest that is
    /// not gets a piece that is cleared, even if it had one before.
    ///
    /// # Errors
    /// As [`Self::alloc`], or if the guest is in the other host, or in a process of this one.
    pub fn for_start(&self, wanted: &Wanted) -> Result<(View, bool)> {
        let uuid = wanted.uuid.context("the guest has no UUID")?;
        let entries = self.entries()?;
        let Some(entry) = entries.iter().find(|entry| entry.extent.uuid == uuid) else {
            return Ok((self.alloc(wanted)?, false));
        };
        let (range, here) = (entry.extent.range, entry.word.slot() == self.slot);
        match (entry.state, here) {
            (PoolState::Crossing, false) => {
                ensure!(
                    range.len() >= wanted.size,
                    "guest {} comes with {range}, which is less than it has here",
                    wanted.name
                );
                Ok((self.view(entry), true))
            }
            // One that ended without anybody's notice.
            (PoolState::Used, true) => {
                self.free(&uuid.to_string())?;
                Ok((self.alloc(wanted)?, false))
            }
            (state, here) => {
                let host = if here { "this" } else { "the other" };
                bail!(
                    "guest {} has {range} of the pool already, which is {} by {host} host: it cannot start here",
                    wanted.name,
                    table::word(state)
                )
            }
        }
    }

    /// What a guest has that goes on in another QEMU of this host.
    ///
    /// # Errors
    /// If it has too little, or the other host has it.
    pub fn kept(&self, wanted: &Wanted) -> Result<View> {
        let entries = self.entries()?;
        let his = |entry: &&Entry| {
            Some(entry.extent.uuid) == wanted.uuid
                && entry.state == PoolState::Used
                && entry.word.slot() == self.slot
                && entry.extent.range.len() >= wanted.size
        };
        let entry = entries.iter().find(his);
        let entry = entry.with_context(|| format!("guest {} has not the RAM that it had", wanted.name))?;
        Ok(self.view(entry))
    }

    fn clear(&self, claimed: &Entry) -> Result<View> {
        let view = self.view(claimed);
        let (Some(part), Some(offset)) = (self.part(claimed.extent.range), view.offset) else {
            bail!("no device of this host has {}", claimed.extent.range);
        };
        let below = part.file.strip_prefix("/").unwrap_or(&part.file);
        let cleared = mapped::clear(&self.sys.path(below), offset, claimed.extent.range.len());
        if let Err(error) = cleared {
            self.extents.settle(claimed, PoolState::Empty, self.slot);
            return Err(error).with_context(|| {
                format!(
                    "clearing {} of the pool (byte {offset} and on in {}), so the guest gets none of it",
                    claimed.extent.range,
                    part.file.display()
                )
            });
        }
        let used = self.extents.settle(claimed, PoolState::Used, self.slot);
        used.map(|used| self.view(&used)).context(ClaimError::Contended)
    }

    fn part(&self, range: MemRange) -> Option<&Part> {
        self.parts.iter().find(|part| part.range.contains(range))
    }

    fn gaps(&self, node: Option<u32>) -> Result<Vec<MemRange>> {
        let entries = self.entries()?;
        let parts = self.parts.iter().filter(|part| node.is_none() || part.node == node);
        let parts: Vec<MemRange> = parts.map(|part| part.range).collect();
        Ok(table::free(&parts, &entries))
    }

    fn no_room(&self, gaps: &[MemRange], size: u64, node: Option<u32>) -> String {
        let mib = |bytes: u64| bytes >> 20;
        let at = node.map(|node| format!(" on node {node}")).unwrap_or_default();
        if self.parts.is_empty() {
            return "no device of this host has the pool: make it a device first (README, step 3)".to_owned();
        }
        let free: u64 = gaps.iter().map(|gap| gap.len()).sum();
        let largest = gaps.iter().max_by_key(|gap| gap.len());
        let Some(largest) = largest else {
            return format!("the pool is full{at}: free an extent of a guest that is no more (`locum pool`)");
        };
        let why = if free >= size { "fragmented" } else { "too full" };
        format!(
            "the pool is {why}{at}: {} MiB are wanted in one piece, {} MiB are free in {} pieces, the largest has {} MiB \
             ({largest}); free an extent of a guest that is no more, or take less",
            mib(size),
            mib(free),
            gaps.len(),
            mib(largest.len())
        )
    }

    fn random_uuid(&self) -> Result<Uuid> {
        let text = self.sys.read("proc/sys/kernel/random/uuid")?;
        Uuid::parse(&text).with_context(|| format!("`{text}` of the kernel is no UUID"))
    }

    /// Gives up what a guest has, by its name, its UUID, or `#N` of a damaged entry. The bytes stay until somebody takes them.
    ///
    /// # Errors
    /// If there is no such guest, or it may run: then nothing changes.
    pub fn free(&self, name: &str) -> Result<Vec<View>> {
        self.locked()?;
        if let Some(index) = name.strip_prefix('#').and_then(|number| number.parse().ok()) {
            ensure!(
                self.extents.clear_damaged(index, self.slot),
                "entry {index} of the pool's table is not damaged: name its guest (`locum pool`)"
            );
            return Ok(Vec::new());
        }
        let entries = self.entries()?;
        let uuid = Uuid::parse(name).filter(|uuid| uuid.is_known());
        let his = |entry: &&Entry| entry.extent.name == name || Some(entry.extent.uuid) == uuid;
        let his: Vec<&Entry> = entries.iter().filter(his).collect();
        if his.is_empty() {
            let known: Vec<&str> = entries.iter().map(|entry| entry.extent.name.as_str()).collect();
            bail!(
                "no guest {name} has a piece of the pool; these have: {}",
                known.join(", ")
            );
        }
        let seen = self.seen();
        for entry in &his {
            let (range, state) = (entry.extent.range, entry.state);
            ensure!(
                state == PoolState::Used,
                "{range} of guest {name} is {}: wait until that is over",
                table::word(state)
            );
            ensure!(
                entry.word.slot() == self.slot,
                "guest {name} is in the other host: free its piece of the pool there"
            );
            if let Some(user) = seen
                .iter()
                .find(|seen| seen.ranges.iter().any(|used| used.overlaps(range)))
            {
                bail!(
                    "process {} ({}) has {range} of guest {name} in use: stop the guest first",
                    user.pid,
                    user.name
                );
            }
        }
        let mut freed = Vec::new();
        for entry in his {
            let empty = self.extents.settle(entry, PoolState::Empty, self.slot);
            ensure!(empty.is_some(), "{}", ClaimError::Contended);
            freed.push(self.view(entry));
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests;
