//! Which PCI functions, I/O ports and IOAPIC pins go.

use alloc::{collections::BTreeSet, format, string::ToString, vec::Vec};

use locum_abi::{GRANTABLE_FUNCTIONS, GRANTABLE_PINS};
use rangemap::{RangeInclusiveSet, RangeSet};

use super::check_firmware;
use crate::{Gsi, Inventory, MemRange, PciFunction, PlanError, PortRange, Request, Resource, Warning};

/// Above it Linux numbers domains that no firmware knows (`drivers/pci/controller/vmd.c`).
const LAST_SEGMENT: u32 = 0xffff;

/// The chosen devices.
pub struct Devices {
    /// PCI functions that go.
    pub functions: Vec<PciFunction>,
    /// Pages of their memory BARs.
    pub mmio: Vec<MemRange>,
    /// I/O ports that go.
    pub ports: Vec<PortRange>,
    /// IOAPIC pins that go.
    pub pins: Vec<Gsi>,
}

/// Chooses and checks the devices of the successor.
pub fn choose(inventory: &Inventory, request: &Request, warnings: &mut Vec<Warning>) -> Result<Devices, PlanError> {
    if let Some(address) = super::repeated(&request.functions) {
        return Err(PlanError::Duplicate(format!("PCI function {address}")));
    }
    if request.functions.len() > GRANTABLE_FUNCTIONS {
        return Err(PlanError::ManyFunctions(request.functions.len()));
    }
    let mut functions = Vec::new();
    for &address in &request.functions {
        let Some(function) = inventory.functions.iter().find(|function| function.address == address) else {
            return Err(PlanError::UnknownFunction(address));
        };
        if !function.movable() {
            return Err(PlanError::OtherSegment {
                address,
                behind: function.behind,
            });
        }
        if function.bridge {
            return Err(PlanError::Bridge(address));
        }
        if let Some(why) = &function.busy {
            return Err(PlanError::Busy {
                address,
                why: why.clone(),
            });
        }
        let itself = Resource::Function(address);
        let ports = function.ports().map(Resource::Ports);
        for resource in [itself]
            .into_iter()
            .chain(function.pages().map(Resource::Memory))
            .chain(ports)
        {
            check_firmware(inventory, itself, resource)?;
        }
        functions.push(function.clone());
    }
    for &ports in &request.ports {
        check_firmware(inventory, Resource::Ports(ports), Resource::Ports(ports))?;
    }
    let staying: Vec<&PciFunction> = inventory
        .functions
        .iter()
        .filter(|function| !goes(request, function))
        .collect();
    Ok(Devices {
        mmio: mmio(&functions, &staying)?,
        ports: ports(inventory, request, &functions, &staying)?,
        pins: pins(inventory, request, &functions, &staying, warnings)?,
        functions,
    })
}

/// Warns of functions that the firmware put where L0 filters nothing. What lies behind a VMD is out of reach without that.
pub fn other_segments(inventory: &Inventory) -> Option<Warning> {
    let own = |function: &&PciFunction| !function.bridge && function.address.segment() <= LAST_SEGMENT;
    let first = inventory.immovable().find(own)?.address;
    let count = inventory.immovable().filter(own).count();
    Some(Warning::OtherSegments { first, count })
}

/// Whether the function goes to the successor: asked for, or behind one that is.
fn goes(request: &Request, function: &PciFunction) -> bool {
    let asked = |address| request.functions.contains(&address);
    asked(function.address) || function.behind.is_some_and(asked)
}

fn mmio(functions: &[PciFunction], staying: &[&PciFunction]) -> Result<Vec<MemRange>, PlanError> {
    let mut set = RangeSet::new();
    for function in functions {
        for page in function.pages() {
            // A bridge decodes windows, not registers; the agent leaves those out of its BARs.
            if let Some(other) = staying
                .iter()
                .find(|other| other.pages().any(|theirs| theirs.overlaps(page)))
            {
                return Err(PlanError::SharedPage {
                    address: function.address,
                    other: other.address,
                    page,
                });
            }
            set.insert(page.range());
        }
    }
    Ok(set.iter().filter_map(MemRange::from_range).collect())
}

fn ports(
    inventory: &Inventory,
    request: &Request,
    functions: &[PciFunction],
    staying: &[&PciFunction],
) -> Result<Vec<PortRange>, PlanError> {
    let bars = functions.iter().flat_map(PciFunction::ports);
    let mut set = RangeInclusiveSet::new();
    for ports in bars.chain(request.ports.iter().copied()) {
        let kept = inventory.staying_ports.iter().find(|kept| kept.ports.overlaps(ports));
        let bar = staying
            .iter()
            .find(|other| other.ports().any(|theirs| theirs.overlaps(ports)));
        if let Some(user) = kept
            .map(|kept| kept.user.clone())
            .or_else(|| bar.map(|other| other.to_string()))
        {
            return Err(PlanError::PortsInUse { ports, user });
        }
        set.insert(ports.range());
    }
    Ok(set
        .iter()
        .filter_map(|range| PortRange::new(*range.start(), *range.end()))
        .collect())
}

fn pins(
    inventory: &Inventory,
    request: &Request,
    functions: &[PciFunction],
    staying: &[&PciFunction],
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Gsi>, PlanError> {
    let lines = functions
        .iter()
        .filter_map(|function| Some((function.gsi?, function.to_string())));
    let asked = request.pins.iter().map(|&gsi| (gsi, "the request".to_string()));
    let mut set = BTreeSet::new();
    for (gsi, wanted) in lines.chain(asked) {
        let Some(pin) = inventory.pins.iter().find(|pin| pin.gsi == gsi) else {
            return Err(PlanError::UnknownPin(gsi));
        };
        if gsi.0 >= GRANTABLE_PINS {
            return Err(PlanError::HighPin { gsi, wanted });
        }
        // A level-triggered line that stays asserted by one host's device would never end for the other's.
        let on_line = || staying.iter().filter(|other| other.gsi == Some(gsi));
        let driven = on_line()
            .find(|other| other.driver.is_some())
            .map(|other| other.to_string());
        if let Some(other) = pin.users.first().cloned().or(driven) {
            return Err(PlanError::SharedPin { gsi, wanted, other });
        }
        if set.insert(gsi) {
            // A bridge without a driver may name a pin, but is never given one later.
            let idle = on_line().filter(|other| !other.bridge);
            warnings.extend(idle.map(|other| Warning::IdleFunctionLosesPin {
                address: other.address,
                gsi,
            }));
        }
    }
    Ok(set.into_iter().collect())
}
