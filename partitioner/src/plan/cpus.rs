//! Which CPUs go.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    format,
    vec::Vec,
};
use core::cmp::Reverse;

use super::memory::Memory;
use crate::{Cpu, CpuNumber, CpuRequest, Inventory, MemoryRequest, NodeId, PlanError, Request, Warning};

/// The CPUs that go, the boot CPU first.
pub fn choose(inventory: &Inventory, request: &Request) -> Result<Vec<Cpu>, PlanError> {
    let online = inventory.online_cpus().count();
    let mut could: Vec<&Cpu> = inventory
        .online_cpus()
        .filter(|cpu| cpu.number != CpuNumber(0))
        .collect();
    could.sort_by_key(|cpu| cpu.number);
    let asked = match &request.cpus {
        CpuRequest::List(list) => list.len(),
        CpuRequest::Count(count) => *count,
    };
    if asked == 0 {
        return Err(PlanError::NoCpu);
    }
    let chosen: Vec<Cpu> = match &request.cpus {
        CpuRequest::List(list) => {
            if let Some(cpu) = super::repeated(list) {
                return Err(PlanError::Duplicate(format!("{cpu}")));
            }
            list.iter()
                .map(|&number| named(inventory, number, &could).cloned())
                .collect::<Result<_, _>>()?
        }
        CpuRequest::Count(count) if *count <= could.len() => count_of(inventory, &request.memory, &could, *count),
        CpuRequest::Count(_) => Vec::new(),
    };
    // CPU 0 always stays online, so this is what asking for too many comes to.
    if asked >= online || chosen.len() < asked {
        Err(PlanError::LastCpu { asked, online })
    } else {
        Ok(chosen)
    }
}

/// A node's CPUs that could go, by core.
struct Node<'a> {
    id: NodeId,
    /// Cores that could go wholly, the one with the highest number first.
    whole: Vec<Vec<&'a Cpu>>,
    /// The others' threads, the highest number first.
    rest: Vec<&'a Cpu>,
}

impl<'a> Node<'a> {
    fn of(id: NodeId, inventory: &Inventory, could: &[&'a Cpu]) -> Self {
        let mut cores: BTreeMap<CpuNumber, Vec<&Cpu>> = BTreeMap::new();
        for cpu in could.iter().filter(|cpu| cpu.node == id) {
            cores.entry(cpu.core()).or_default().push(cpu);
        }
        let threads = |core| inventory.online_cpus().filter(|cpu| cpu.core() == core).count();
        let (mut whole, mut rest) = (Vec::new(), Vec::new());
        for (core, cpus) in cores.into_iter().rev() {
            if cpus.len() == threads(core) {
                whole.push(cpus);
            } else {
                rest.extend(cpus);
            }
        }
        Self { id, whole, rest }
    }

    /// Adds up to `count` of its CPUs to `chosen`: whole cores as long as they fit.
    fn take(&self, count: usize, chosen: &mut Vec<&'a Cpu>) {
        let end = chosen.len() + count;
        let mut passed = Vec::new();
        for core in &self.whole {
            if chosen.len() + core.len() <= end {
                chosen.extend(core);
            } else {
                passed.extend(core.iter().rev().copied());
            }
        }
        // A core that CPU 0 is of is split in any case, once one of its threads goes.
        chosen.extend(self.rest.iter().chain(&passed).take(end - chosen.len()));
    }
}

/// `count` CPUs of one node if one has so many, that with whole cores, memory and pool first; else of several.
fn count_of(inventory: &Inventory, memory: &MemoryRequest, could: &[&Cpu], count: usize) -> Vec<Cpu> {
    let ids: BTreeSet<NodeId> = could.iter().map(|cpu| cpu.node).collect();
    let mut nodes: Vec<Node<'_>> = ids.into_iter().map(|id| Node::of(id, inventory, could)).collect();
    nodes.sort_by_cached_key(|node| {
        let mut alone = Vec::new();
        node.take(count, &mut alone);
        let goes: BTreeSet<CpuNumber> = alone.iter().map(|cpu| cpu.number).collect();
        let shared = |cpu: &Cpu| {
            let mut core = inventory.online_cpus().filter(|other| other.core() == cpu.core());
            core.any(|other| !goes.contains(&other.number))
        };
        let whole = !alone.iter().any(|cpu| shared(cpu));
        let room = super::memory::has_on_node(inventory, memory, node.id);
        let pool = inventory.pool_nodes.contains(&node.id);
        Reverse((alone.len(), whole, room, pool, node.id))
    });
    let mut chosen = Vec::new();
    for node in &nodes {
        node.take(count - chosen.len(), &mut chosen);
    }
    chosen.sort_by_key(|cpu| cpu.number);
    chosen.into_iter().cloned().collect()
}

fn named<'a>(inventory: &'a Inventory, number: CpuNumber, could: &[&Cpu]) -> Result<&'a Cpu, PlanError> {
    if number == CpuNumber(0) {
        return Err(PlanError::CpuZero);
    }
    match inventory.cpus.iter().find(|cpu| cpu.number == number) {
        None => Err(PlanError::UnknownCpu {
            cpu: number,
            could: could.iter().map(|cpu| cpu.number).collect(),
        }),
        Some(cpu) if !cpu.online => Err(PlanError::OfflineCpu(number)),
        Some(cpu) => Ok(cpu),
    }
}

/// Warns of cores whose threads would run two hosts.
pub fn check_cores(cpus: &[Cpu], kept: &[Cpu], warnings: &mut Vec<Warning>) {
    let mut cores = BTreeSet::new();
    for cpu in cpus {
        let Some(other) = kept.iter().find(|other| other.core() == cpu.core()) else {
            continue;
        };
        if cores.insert(cpu.core()) {
            warnings.push(Warning::SplitCore {
                goes: cpu.number,
                stays: other.number,
            });
        }
    }
}

/// Warns of a pool that is local to none of the successor's CPUs.
pub fn check_pool(inventory: &Inventory, cpus: &[Cpu], warnings: &mut Vec<Warning>) {
    let pool = &inventory.pool_nodes;
    if !pool.is_empty() && !cpus.iter().any(|cpu| pool.contains(&cpu.node)) {
        warnings.push(Warning::PoolFarAway { pool: pool.clone() });
    }
}

/// Warns of nodes on which a host has CPUs and no memory.
pub fn check_nodes(inv: &Inventory, cpus: &[Cpu], kept: &[Cpu], memory: &Memory, warnings: &mut Vec<Warning>) {
    let nodes = |cpus: &[Cpu]| cpus.iter().map(|cpu| cpu.node).collect::<BTreeSet<NodeId>>();
    let successor = |node| {
        memory.blocks.iter().any(|block| block.node == node) || inv.unreclaimed.iter().any(|left| left.node == node)
    };
    let incumbent = |node| {
        inv.blocks
            .iter()
            .any(|block| block.node == node && !memory.blocks.contains(block))
    };
    let without = nodes(cpus).into_iter().filter(|&node| !successor(node));
    warnings.extend(without.map(Warning::SuccessorNodeWithoutMemory));
    let without = nodes(kept).into_iter().filter(|&node| !incumbent(node));
    warnings.extend(without.map(Warning::IncumbentNodeWithoutMemory));
}
