//! Who owns what. A resource has one owner, and changes it in [`Partition::transfer`] only.

use alloc::{collections::BTreeMap, vec::Vec};
use core::fmt;

use rangemap::{RangeInclusiveMap, RangeMap};

use crate::{ApicId, Gsi, Inventory, MemRange, PciAddress, PlanError, PortRange, Slot};

/// The owner of a resource. Incumbent and successor are told by their slots, so that nothing need be renamed when
/// the one becomes the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Owner {
    /// The host in that slot.
    Host(Slot),
    /// The pool: guest RAM, mapped by both hosts.
    Pool,
    /// L0, and what never moves.
    Monitor,
    /// Nobody: memory that the last refresh could not reclaim. Serves a successor as boot memory.
    Nobody,
}

/// Something that has an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Resource {
    /// A CPU.
    Cpu(ApicId),
    /// Physical addresses: RAM, or the pages of a memory BAR.
    Memory(MemRange),
    /// Configuration space of a PCI function.
    Function(PciAddress),
    /// I/O ports.
    Ports(PortRange),
    /// An IOAPIC pin.
    Pin(Gsi),
}

/// A change of owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Transfer {
    /// What.
    pub resource: Resource,
    /// Who has it.
    pub from: Owner,
    /// Who gets it.
    pub to: Owner,
}

impl Transfer {
    /// The transfer that undoes this one.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            resource: self.resource,
            from: self.to,
            to: self.from,
        }
    }
}

/// Why a resource stays where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// It does not belong to the one who gives it, or not all of it.
    #[error("{resource} does not belong to {from} alone: read the inventory anew and plan again")]
    NotOwned {
        /// What.
        resource: Resource,
        /// Who was said to have it.
        from: Owner,
    },
    /// From or to the pool, from or to L0, or to the one who has it.
    #[error("{} cannot go from {} to {}: only memory goes to or from nobody, nothing to or from the pool and L0",
        .0.resource, .0.from, .0.to)]
    Forbidden(Transfer),
}

/// The owner of every resource of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Partition {
    cpus: BTreeMap<ApicId, Owner>,
    memory: RangeMap<u64, Owner>,
    functions: BTreeMap<PciAddress, Owner>,
    ports: RangeInclusiveMap<u16, Owner>,
    pins: BTreeMap<Gsi, Owner>,
}

impl Partition {
    /// The partition while one host has the machine: all that it sees is its own.
    ///
    /// # Errors
    /// [`PlanError::Conflict`] if two owners claim the same memory.
    pub fn of(inventory: &Inventory) -> Result<Self, PlanError> {
        let host = Owner::Host(inventory.generation.slot());
        let mut memory = RangeMap::new();
        let mut claim =
            |range: MemRange, owner: Owner| match memory.overlapping(range.range()).find(|&(_, &other)| other != owner)
            {
                Some((_, &other)) => Err(PlanError::Conflict { range, owner, other }),
                None => {
                    memory.insert(range.range(), owner);
                    Ok(())
                }
            };
        for &range in &inventory.never_moves {
            claim(range, Owner::Monitor)?;
        }
        for &range in &inventory.pool {
            claim(range, Owner::Pool)?;
        }
        for left in &inventory.unreclaimed {
            claim(left.range, Owner::Nobody)?;
        }
        for range in inventory.own_ram().iter().filter_map(MemRange::from_range) {
            claim(range, host)?;
        }
        for page in inventory.functions.iter().flat_map(|function| function.pages()) {
            claim(page, host)?;
        }
        let mut ports = RangeInclusiveMap::new();
        ports.insert(PortRange::ALL.range(), host);
        Ok(Self {
            cpus: inventory.cpus.iter().map(|cpu| (cpu.apic, host)).collect(),
            memory,
            functions: inventory
                .functions
                .iter()
                .filter(|function| function.movable())
                .map(|function| (function.address, host))
                .collect(),
            ports,
            pins: inventory.pins.iter().map(|pin| (pin.gsi, host)).collect(),
        })
    }

    /// Who owns all of `resource`; `None` if it is unknown or has several owners.
    #[must_use]
    pub fn owner(&self, resource: Resource) -> Option<Owner> {
        match resource {
            Resource::Cpu(apic) => self.cpus.get(&apic).copied(),
            Resource::Function(address) => self.functions.get(&address).copied(),
            Resource::Pin(gsi) => self.pins.get(&gsi).copied(),
            // Ranges of one owner are coalesced, so a range with one owner lies within one entry.
            Resource::Memory(range) => {
                let (entry, &owner) = self.memory.get_key_value(&range.start())?;
                (range.end() <= entry.end).then_some(owner)
            }
            Resource::Ports(range) => {
                let (entry, &owner) = self.ports.get_key_value(&range.first())?;
                (range.last() <= *entry.end()).then_some(owner)
            }
        }
    }

    /// Gives `resource` to another owner: the one place where ownership changes.
    ///
    /// # Errors
    /// Nothing changes if the giver does not own all of it, or if it may not go there.
    pub fn transfer(&mut self, transfer: Transfer) -> Result<(), TransferError> {
        let Transfer { resource, from, to } = transfer;
        let allowed = match (from, to) {
            (Owner::Host(a), Owner::Host(b)) => a != b,
            (Owner::Host(_), Owner::Nobody) | (Owner::Nobody, Owner::Host(_)) => {
                matches!(resource, Resource::Memory(_))
            }
            _ => false,
        };
        if !allowed {
            return Err(TransferError::Forbidden(transfer));
        }
        if self.owner(resource) != Some(from) {
            return Err(TransferError::NotOwned { resource, from });
        }
        match resource {
            Resource::Cpu(apic) => drop(self.cpus.insert(apic, to)),
            Resource::Function(address) => drop(self.functions.insert(address, to)),
            Resource::Pin(gsi) => drop(self.pins.insert(gsi, to)),
            Resource::Memory(range) => self.memory.insert(range.range(), to),
            Resource::Ports(range) => self.ports.insert(range.range(), to),
        }
        Ok(())
    }

    /// All that `owner` has; ranges are as long as can be.
    #[must_use]
    pub fn owned_by(&self, owner: Owner) -> Vec<Resource> {
        fn mine<K: Copy>(map: &BTreeMap<K, Owner>, owner: Owner) -> impl Iterator<Item = K> {
            map.iter().filter(move |&(_, &o)| o == owner).map(|(&key, _)| key)
        }
        let memory = self.memory.iter().filter(|&(_, &o)| o == owner);
        let ports = self.ports.iter().filter(|&(_, &o)| o == owner);
        mine(&self.cpus, owner)
            .map(Resource::Cpu)
            .chain(memory.filter_map(|(range, _)| MemRange::from_range(range).map(Resource::Memory)))
            .chain(mine(&self.functions, owner).map(Resource::Function))
            .chain(ports.filter_map(|(range, _)| PortRange::new(*range.start(), *range.end()).map(Resource::Ports)))
            .chain(mine(&self.pins, owner).map(Resource::Pin))
            .collect()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host(Slot::Even) => "the host of even generation",
            Self::Host(Slot::Odd) => "the host of odd generation",
            Self::Pool => "the pool",
            Self::Monitor => "L0",
            Self::Nobody => "nobody",
        })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(apic) => write!(f, "the CPU with {apic}"),
            Self::Memory(range) => write!(f, "memory {range}"),
            Self::Function(address) => write!(f, "PCI function {address}"),
            Self::Ports(range) => write!(f, "I/O ports {range}"),
            Self::Pin(gsi) => write!(f, "{gsi}"),
        }
    }
}
