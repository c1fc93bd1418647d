//! The actions that lead from each state to the next.

use alloc::vec::Vec;

use super::Action;
use crate::{Partition, Plan};

/// Planned -> Offloaded. Memory first: it fails most, and disturbs least. PCI functions last: they are missed at once.
pub fn offload(plan: &Plan) -> Vec<Action> {
    let memory = plan.blocks.iter();
    let memory = memory.map(|block| Action::RemoveMemory {
        range: block.range,
        online: block.is_online(),
    });
    let cpus = plan.cpus.iter().map(|cpu| Action::OfflineCpu(cpu.apic));
    let functions = plan
        .functions
        .iter()
        .map(|function| Action::RemovePci(function.address));
    memory.chain(cpus).chain(functions).collect()
}

/// Offloaded -> Nested. The image is loaded while the incumbent still reaches that memory.
pub fn enter(plan: &Plan) -> Vec<Action> {
    let enter = plan.kept_cpus.iter().map(|cpu| Action::EnterNested(cpu.apic));
    [Action::LoadSuccessor].into_iter().chain(enter).collect()
}

/// Nested -> SuccessorUp.
pub fn boot(plan: &Plan) -> Vec<Action> {
    let grants = plan.grants().into_iter().map(Action::Transfer);
    grants.chain([Action::StartSuccessor, Action::AwaitSuccessor]).collect()
}

/// SuccessorUp -> Handover.
pub fn hand_over(plan: &Plan) -> Vec<Action> {
    plan.guests.iter().cloned().map(Action::MoveGuest).collect()
}

/// Retired -> Dormant. The successor is alone, and what it runs on becomes native before it takes the rest: its guests wait for
/// none of that, and CPUs that L0 starts for it then are native at once.
pub fn leave(plan: &Plan, partition: &Partition) -> Vec<Action> {
    let claims = plan.claims(partition).into_iter().map(Action::Transfer);
    let own = plan.cpus.iter().map(|cpu| Action::LeaveNested(cpu.apic));
    claims.chain(own).collect()
}

/// Dormant -> Idle. Memory before CPUs: starting those takes some.
pub fn reclaim(plan: &Plan) -> Vec<Action> {
    let reclaim = &plan.reclaim;
    let memory = reclaim.blocks.iter();
    let memory = memory.map(|block| Action::AddMemory {
        range: block.range,
        online: block.is_online(),
    });
    let cpus = reclaim.cpus.iter().copied().map(Action::OnlineCpu);
    let functions = reclaim.functions.iter().copied().map(Action::AddPci);
    memory.chain(cpus).chain(functions).collect()
}

/// How many actions the incumbent's side has.
pub fn incumbent_total(plan: &Plan) -> usize {
    let entrust_and_power_off = 2;
    offload(plan).len() + enter(plan).len() + boot(plan).len() + hand_over(plan).len() + entrust_and_power_off
}

/// How many actions the successor's side has.
pub fn successor_total(plan: &Plan, partition: &Partition) -> usize {
    let await_or_take = 1;
    await_or_take + leave(plan, partition).len() + reclaim(plan).len()
}
