//! The way back without a journal: everything that this host lacks is found from what L0 and Linux say, and given back.
//!
//! Only before a guest has gone over is that without loss; so a successor that runs is asked first.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use locum_abi::{CpuMode, HostState};
use partitioner::{ApicId, MemRange};

use super::Agent;
use crate::channel::{Link, Message};
use crate::deadline::Deadline;
use crate::evidence::{self, Dead};
use crate::guest::Place;
use crate::inventory::{memmap, memory};
use crate::journal::keep;
use crate::l0::view;

/// For the successor's agent to say which guests run there.
const ASK: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });
/// For its first word, in one of the attempts.
const TRY: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
/// Linux is to find the node of added memory itself (`memory_add_physaddr_to_nid`).
const ANY_NODE: u32 = u32::MAX;

/// What this host lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    /// L0 has another host, or a partition for one.
    pub other: Option<HostState>,
    /// CPUs on which L0 runs.
    pub nested: Vec<ApicId>,
    /// CPUs of this host that are parked.
    pub parked: Vec<ApicId>,
    /// Memory blocks that the module took off Linux, and that are not given.
    pub memory: Vec<MemRange>,
    /// Whether this host has not ended the refresh by which it came.
    pub unfinished: bool,
}

impl Lacks {
    /// What L0 and Linux say.
    ///
    /// # Errors
    /// If they cannot be asked.
    pub fn of(agent: &Agent) -> Result<Self> {
        let status = agent.machine.status()?;
        Ok(Self {
            other: agent.other_state().filter(|&state| view::is_there(state)),
            nested: agent.cpus_in(CpuMode::Nested)?,
            parked: agent.cpus_in(CpuMode::Parked)?,
            memory: removed(agent)?,
            unfinished: status.generation > 0
                && agent.reigns()?
                && !keep::has_ended_one(agent.machine.sys(), status.generation),
        })
    }

    /// Whether nothing of this tells of a refresh. An administrator may have taken CPUs offline.
    pub fn nothing(&self) -> bool {
        let untaken = self.unfinished && !self.parked.is_empty();
        self.other.is_none() && self.nested.is_empty() && self.memory.is_empty() && !untaken
    }
}

impl std::fmt::Display for Lacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let other = match self.other {
            Some(HostState::Preparing) => "a successor has been prepared",
            Some(HostState::Running) => "a successor runs",
            Some(_) => "a dead successor has not been cleared away",
            None => "there is no successor",
        };
        write!(
            f,
            "{other}, {} CPUs are nested, {} parked, {} memory blocks off Linux",
            self.nested.len(),
            self.parked.len(),
            self.memory.len()
        )
    }
}

/// Blocks that Linux has not got, and that the module has taken from it.
fn removed(agent: &Agent) -> Result<Vec<MemRange>> {
    let sys = agent.machine.sys();
    let size = memory::block_size(sys)?;
    let there = memory::blocks(sys)?;
    let map = memmap::ranges(sys)?;
    let end = map.iter().map(|(start, len, _)| start.saturating_add(*len)).max();
    let mut removed = Vec::new();
    for number in 0..end.unwrap_or(0).div_ceil(size) {
        let block = number
            .checked_mul(size)
            .and_then(|start| MemRange::with_len(start, size));
        let Some(block) = block.filter(|block| !there.iter().any(|known| known.range == *block)) else {
            continue;
        };
        if agent.machine.is_removed(block)? {
            removed.push(block);
        }
    }
    Ok(removed)
}

/// Gives everything back to this host, and tells what did not come. By `force`, a successor is stopped whatever runs there.
///
/// # Errors
/// If guests run in the successor, or may; nothing has changed then. Or if L0 does not take the machine back.
pub fn give_back(agent: &Agent, force: bool) -> Result<Vec<String>> {
    let machine = &*agent.machine;
    let lacks = Lacks::of(agent)?;
    tracing::info!("giving back without a journal: {lacks}");
    if lacks.other == Some(HostState::Running) && !force {
        ask(agent)?;
    }
    if lacks.other.is_some() {
        machine.abort()?;
    }
    let mut lost = Vec::new();
    let mut tried = |what: String, outcome: Result<()>| {
        if let Err(error) = outcome {
            tracing::warn!("{what}: {error:#}");
            lost.push(format!("{what}: {error:#}"));
        }
    };
    let started = lacks.other.is_some_and(view::was_started);
    let lacks = Lacks::of(agent)?;
    let saved = evidence::save(
        machine,
        &Dead {
            name: "unknown",
            why: "the operator gave everything back, without a journal",
            memory: &lacks.memory,
            started,
            keep_image: false,
        },
    );
    saved.iter().for_each(|saved| tracing::info!("{saved}"));
    for apic in &lacks.nested {
        let left = agent.cpu_number(*apic).and_then(|number| machine.leave(number));
        tried(format!("leaving nested on the CPU with {apic}"), left);
    }
    tried("looking for PCI functions".to_owned(), machine.rescan_pci());
    for apic in &lacks.parked {
        let online = agent.cpu_number(*apic).and_then(|number| machine.online_cpu(number));
        tried(format!("bringing the CPU with {apic} online"), online);
    }
    for block in &lacks.memory {
        let added = agent.add_memory(*block, ANY_NODE, true);
        tried(format!("adding memory {block}"), added);
    }
    agent.settings_as_before();
    Ok(lost)
}

/// Whether it is certain that no guest runs in the successor.
fn ask(agent: &Agent) -> Result<()> {
    let died = || agent.other_state() != Some(HostState::Running);
    let until = Deadline::after(ASK).or_when(&died);
    let guests = loop {
        match hello(agent, &until) {
            Ok(guests) => break guests,
            Err(_) if died() => return Ok(()),
            Err(error) if until.passed() => {
                return Err(error).with_context(|| {
                    format!(
                        "whether guests run in the successor is not known, for its agent does not answer within {} s: try \
                         again when it does, or stop it with whatever runs there by `locum abort --force`",
                        ASK.as_secs()
                    )
                });
            }
            Err(error) => tracing::debug!("{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(500).min(until.left()));
    };
    let running = guests.map(|guests| {
        let running = guests.into_iter().filter(|there| there.place != Place::Waiting);
        running.map(|there| there.name).collect::<Vec<_>>()
    });
    match running {
        Some(running) if running.is_empty() => Ok(()),
        Some(running) => bail!(
            "guests run in the successor ({}), and without the journal they cannot be taken back: shut them down there first, \
             or lose them by `locum abort --force`",
            running.join(", ")
        ),
        None => bail!(
            "the successor's agent is older and does not tell which guests run there: look there, then `locum abort --force`"
        ),
    }
}

/// The guests with a QEMU in the successor, as its agent says in its first word.
fn hello(agent: &Agent, until: &Deadline<'_>) -> Result<Option<Vec<crate::channel::message::There>>> {
    let mut link = Link::speaking(agent.speaks, agent.machine.channel(0)?);
    let given_up = || until.given_up();
    let limit = Deadline::after(TRY.min(until.left()));
    link.await_other_end(limit.left());
    loop {
        if let Message::Hello { guests, .. } = link.receive(&limit.or_when(&given_up))? {
            return Ok(guests);
        }
    }
}
