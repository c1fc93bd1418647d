//! What becomes of the incumbent's resources once it is gone.

use alloc::vec::Vec;

use rangemap::RangeSet;

use super::{Plan, devices::Devices, memory::Memory};
use crate::{
    ApicId, BlockState, Cpu, Inventory, MemRange, MemoryBlock, NodeId, Owner, Partition, PciAddress, Resource,
    Transfer, Unreclaimed,
};

/// What the successor adds to itself by hotplug, and what it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Reclaim {
    /// Memory blocks to add, ascending.
    pub blocks: Vec<MemoryBlock>,
    /// CPUs to bring online.
    pub cpus: Vec<ApicId>,
    /// PCI functions to find by a rescan. Bridges are visible already, other segments too, and what lies behind a
    /// function comes with its driver.
    pub functions: Vec<PciAddress>,
    /// Memory that becomes nobody's: it lies in blocks with holes, and Linux adds whole blocks only.
    pub unreclaimed: Vec<Unreclaimed>,
}

pub fn reclaim(inventory: &Inventory, kept: &[Cpu], memory: &Memory, devices: &Devices) -> Reclaim {
    let mut left = inventory.own_ram();
    let mut blocks = Vec::new();
    for block in &inventory.blocks {
        let whole = left.gaps(&block.range.range()).next().is_none();
        if whole {
            left.remove(block.range.range());
        }
        if whole && !memory.blocks.contains(block) {
            blocks.push(block.clone());
        }
    }
    blocks.sort_by_key(|block| block.range);
    let moved = |address| devices.functions.iter().any(|function| function.address == address);
    let functions = inventory
        .functions
        .iter()
        .filter(|function| function.movable() && !function.bridge && !moved(function.address));
    Reclaim {
        blocks,
        cpus: kept.iter().map(|cpu| cpu.apic).collect(),
        functions: functions.map(|function| function.address).collect(),
        unreclaimed: by_node(inventory, &left),
    }
}

/// Tells the node of each piece by the block that it lies in.
fn by_node(inventory: &Inventory, left: &RangeSet<u64>) -> Vec<Unreclaimed> {
    let mut pieces = Vec::new();
    let mut rest = left.clone();
    for block in &inventory.blocks {
        let within = left
            .overlapping(block.range.range())
            .filter_map(|range| MemRange::new(range.start.max(block.range.start()), range.end.min(block.range.end())));
        for range in within {
            pieces.push(Unreclaimed {
                range,
                node: block.node,
            });
            rest.remove(range.range());
        }
    }
    // RAM that is in no block: Linux keeps it reserved, and nobody knows its node.
    let rest = rest.iter().filter_map(MemRange::from_range);
    pieces.extend(rest.map(|range| Unreclaimed { range, node: NodeId(0) }));
    pieces.sort_by_key(|left| left.range);
    pieces
}

impl Plan {
    /// The changes of owner once the incumbent is gone: all that it has in `partition`, to the successor or to nobody.
    #[must_use]
    pub fn claims(&self, partition: &Partition) -> Vec<Transfer> {
        let from = Owner::Host(self.incumbent());
        let to = Owner::Host(self.successor());
        let mut claims = Vec::new();
        for resource in partition.owned_by(from) {
            let Resource::Memory(range) = resource else {
                claims.push(Transfer { resource, from, to });
                continue;
            };
            let nobodys: RangeSet<u64> = self.reclaim.unreclaimed.iter().map(|left| left.range.range()).collect();
            let within = nobodys
                .overlapping(range.range())
                .map(|r| r.start.max(range.start())..r.end.min(range.end()));
            let gaps: Vec<_> = nobodys.gaps(&range.range()).map(|gap| (gap, to)).collect();
            let pieces = within.map(|piece| (piece, Owner::Nobody)).chain(gaps);
            claims.extend(pieces.filter_map(|(piece, to)| {
                Some(Transfer {
                    resource: Resource::Memory(MemRange::from_range(&piece)?),
                    from,
                    to,
                })
            }));
        }
        claims
    }
}

impl MemoryBlock {
    /// Whether Linux uses it.
    #[must_use]
    pub fn is_online(&self) -> bool {
        self.state == BlockState::Online
    }
}
