//! Which CPUs go.

use alloc::{collections::BTreeSet, format, vec::Vec};

use super::memory::Memory;
use crate::{Cpu, CpuNumber, CpuRequest, Inventory, NodeId, PlanError, Warning};

/// The CPUs that go, the boot CPU first.
pub fn choose(inventory: &Inventory, request: &CpuRequest) -> Result<Vec<Cpu>, PlanError> {
    let online = inventory.online_cpus().count();
    let mut could: Vec<&Cpu> = inventory
        .online_cpus()
        .filter(|cpu| cpu.number != CpuNumber(0))
        .collect();
    could.sort_by_key(|cpu| cpu.number);
    let asked = match request {
        CpuRequest::List(list) => list.len(),
        CpuRequest::Count(count) => *count,
    };
    if asked == 0 {
        return Err(PlanError::NoCpu);
    }
    let chosen: Vec<Cpu> = match request {
        CpuRequest::List(list) => {
            if let Some(cpu) = super::repeated(list) {
                return Err(PlanError::Duplicate(format!("{cpu}")));
            }
            list.iter()
                .map(|&number| named(inventory, number, &could).cloned())
                .collect::<Result<_, _>>()?
        }
        CpuRequest::Count(count) => could
            .iter()
            .skip(could.len().saturating_sub(*count))
            .map(|&cpu| cpu.clone())
            .collect(),
    };
    // CPU 0 always stays online, so this is what asking for too many comes to.
    if asked >= online || chosen.len() < asked {
        Err(PlanError::LastCpu { asked, online })
    } else {
        Ok(chosen)
    }
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
