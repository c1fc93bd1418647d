//! The plan of a refresh: what the successor gets before it boots, and what it reclaims once the incumbent is gone.

mod cpus;
mod devices;
mod memory;
mod retire;

use alloc::{format, string::String, vec::Vec};

pub use retire::Reclaim;

use crate::{
    Cpu, Generation, Gsi, Inventory, MemRange, MemoryBlock, Owner, Partition, PciFunction, PlanError, PortRange,
    Request, Resource, Slot, Transfer, Unreclaimed, Warning,
};

/// Who gets what. Made by [`plan()`], which has checked that it can be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    /// The incumbent's generation; the successor is of the next one.
    pub generation: Generation,
    /// CPUs that go to the successor. The first boots it.
    pub cpus: Vec<Cpu>,
    /// CPUs that the incumbent keeps running on: those that enter nested.
    pub kept_cpus: Vec<Cpu>,
    /// Memory blocks that the incumbent gives up, ascending.
    pub blocks: Vec<MemoryBlock>,
    /// Memory that nobody owned and the successor gets.
    pub unreclaimed: Vec<Unreclaimed>,
    /// All memory of the successor: blocks and unreclaimed, adjacent ones merged, ascending.
    pub memory: Vec<MemRange>,
    /// The one of `memory` that holds kernel, initramfs and tables.
    pub boot: MemRange,
    /// Bytes in `blocks` that Linux must first migrate.
    pub to_migrate: u64,
    /// PCI functions that go to the successor.
    pub functions: Vec<PciFunction>,
    /// Pages of their memory BARs, merged.
    pub mmio: Vec<MemRange>,
    /// I/O ports that go to the successor: I/O BARs and those asked for, merged.
    pub ports: Vec<PortRange>,
    /// IOAPIC pins that go to the successor.
    pub pins: Vec<Gsi>,
    /// Guests to hand over, in this order.
    pub guests: Vec<String>,
    /// What follows once the incumbent is gone.
    pub reclaim: Reclaim,
    /// What to beware of.
    pub warnings: Vec<Warning>,
}

impl Plan {
    /// Slot of the incumbent.
    #[must_use]
    pub const fn incumbent(&self) -> Slot {
        self.generation.slot()
    }

    /// Slot of the successor.
    #[must_use]
    pub const fn successor(&self) -> Slot {
        self.generation.slot().other()
    }

    /// Bytes of RAM that the successor boots with.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.memory.iter().map(|range| range.len()).sum()
    }

    /// Bytes that will be nobody's after the refresh; the refresh after it gives them to its successor.
    #[must_use]
    pub fn unreclaimed_bytes(&self) -> u64 {
        self.reclaim.unreclaimed.iter().map(|left| left.range.len()).sum()
    }

    /// The changes of owner before the successor boots, in order.
    #[must_use]
    pub fn grants(&self) -> Vec<Transfer> {
        let incumbent = Owner::Host(self.incumbent());
        let to = Owner::Host(self.successor());
        let own = self.blocks.iter().map(|block| Resource::Memory(block.range));
        let own = own.chain(self.mmio.iter().copied().map(Resource::Memory));
        let own = own.chain(
            self.functions
                .iter()
                .map(|function| Resource::Function(function.address)),
        );
        let own = own.chain(self.ports.iter().copied().map(Resource::Ports));
        let own = own.chain(self.pins.iter().copied().map(Resource::Pin));
        let own = own.chain(self.cpus.iter().map(|cpu| Resource::Cpu(cpu.apic)));
        let nobodys = self.unreclaimed.iter().map(|left| Resource::Memory(left.range));
        let nobodys = nobodys.map(|resource| Transfer {
            resource,
            from: Owner::Nobody,
            to,
        });
        nobodys
            .chain(own.map(|resource| Transfer {
                resource,
                from: incumbent,
                to,
            }))
            .collect()
    }
}

/// Chooses and checks what the successor gets. Equal inputs give equal plans.
///
/// # Errors
/// The first thing found that makes the request impossible on this machine.
pub fn plan(inventory: &Inventory, request: &Request) -> Result<Plan, PlanError> {
    let partition = check(inventory)?;
    if let Some(name) = repeated(&request.guests) {
        return Err(PlanError::Duplicate(format!("guest {name}")));
    }
    if !request.guests.is_empty() && inventory.pool.is_empty() {
        return Err(PlanError::NoPool);
    }
    let unread = inventory.unread_firmware.iter().cloned();
    let mut warnings: Vec<Warning> = unread.map(Warning::UnreadFirmware).collect();
    warnings.extend(devices::other_segments(inventory));
    let cpus = cpus::choose(inventory, request)?;
    let kept_cpus: Vec<Cpu> = inventory
        .online_cpus()
        .filter(|cpu| !cpus.contains(cpu))
        .cloned()
        .collect();
    let devices = devices::choose(inventory, request, &mut warnings)?;
    let memory = memory::choose(inventory, request, &cpus)?;
    memory::check_lost(inventory, &mut warnings);
    memory::check_low(inventory, &request.boot, &memory, &mut warnings);
    cpus::check_cores(&cpus, &kept_cpus, &mut warnings);
    cpus::check_nodes(inventory, &cpus, &kept_cpus, &memory, &mut warnings);
    if !request.guests.is_empty() {
        cpus::check_pool(inventory, &cpus, &mut warnings);
    }
    let reclaim = retire::reclaim(inventory, &kept_cpus, &memory, &devices);
    let plan = Plan {
        generation: inventory.generation,
        kept_cpus,
        cpus,
        to_migrate: memory.to_migrate(inventory.block_size),
        blocks: memory.blocks,
        unreclaimed: inventory.unreclaimed.clone(),
        memory: memory.ranges,
        boot: memory.boot,
        functions: devices.functions,
        mmio: devices.mmio,
        ports: devices.ports,
        pins: devices.pins,
        guests: request.guests.clone(),
        reclaim,
        warnings,
    };
    rehearse(&plan, partition)?;
    Ok(plan)
}

/// Refuses an inventory that contradicts itself, before anything is chosen from it.
fn check(inventory: &Inventory) -> Result<Partition, PlanError> {
    let size = inventory.block_size;
    if !size.is_power_of_two() {
        return Err(PlanError::Inconsistent(format!("a memory block of {size:#x} bytes")));
    }
    if let Some(block) = inventory
        .blocks
        .iter()
        .find(|b| !b.range.is_aligned(size) || b.range.len() != size)
    {
        return Err(PlanError::Inconsistent(format!(
            "memory block {} is not {size:#x} bytes, aligned",
            block.range
        )));
    }
    let twice = repeated(inventory.blocks.iter().map(|block| block.range)).map(|range| format!("memory block {range}"));
    let twice = twice.or_else(|| repeated(inventory.cpus.iter().map(|cpu| cpu.apic)).map(|apic| format!("{apic}")));
    let twice = twice.or_else(|| repeated(inventory.cpus.iter().map(|cpu| cpu.number)).map(|cpu| format!("{cpu}")));
    let twice = twice.or_else(|| repeated(inventory.functions.iter().map(|f| f.address)).map(|f| format!("{f}")));
    let twice = twice.or_else(|| repeated(inventory.pins.iter().map(|pin| pin.gsi)).map(|gsi| format!("{gsi}")));
    match twice {
        Some(what) => Err(PlanError::Inconsistent(format!("{what} is listed twice"))),
        None => Partition::of(inventory),
    }
}

/// Carries out every change of owner of the plan on paper: whatever collides does so here and not halfway.
fn rehearse(plan: &Plan, mut partition: Partition) -> Result<(), PlanError> {
    let grants = plan.grants();
    for &grant in &grants {
        partition
            .transfer(grant)
            .map_err(|error| PlanError::Inconsistent(format!("{error}")))?;
    }
    for claim in plan.claims(&partition) {
        partition
            .transfer(claim)
            .map_err(|error| PlanError::Inconsistent(format!("{error}")))?;
    }
    match partition.owned_by(Owner::Host(plan.incumbent())).first() {
        Some(left) => Err(PlanError::Inconsistent(format!(
            "{left} would stay with an incumbent that is gone"
        ))),
        None => Ok(()),
    }
}

/// Refuses what the firmware's code uses in both hosts: `resource`, on behalf of `asked`.
fn check_firmware(inventory: &Inventory, asked: Resource, resource: Resource) -> Result<(), PlanError> {
    match inventory.used_by_firmware(resource) {
        Some(region) => Err(PlanError::UsedByFirmware {
            resource: asked,
            region: region.name.clone(),
        }),
        None => Ok(()),
    }
}

/// The first item that occurs again.
fn repeated<T: PartialEq>(items: impl IntoIterator<Item = T>) -> Option<T> {
    let mut seen = Vec::new();
    for item in items {
        if seen.contains(&item) {
            return Some(item);
        }
        seen.push(item);
    }
    None
}
