//! What the firmware's AML uses, by class, and where it says that PCI interrupts go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use partitioner::{PciAddress, PciFunction};

use super::check::{Check, Verdict};
use crate::acpi::aml::{self, Listing, Region, Routing, Space, Wire};
use crate::inventory::firmware::Ground;
use crate::inventory::pci;
use crate::sysroot::SysRoot;

/// Offset of the interrupt pin in configuration space (PCI local bus specification 3.0, 6.2.4).
const INTERRUPT_PIN: usize = 0x3d;

/// Checks of the tables' AML. None of them can be missing: what is not known is said.
pub fn checks(sys: &SysRoot) -> Vec<Check> {
    let listing = aml::list(sys);
    let functions = pci::functions(sys).unwrap_or_default();
    let ground = Ground::read(sys, &functions);
    let mut checks = regions(&listing.regions, &ground);
    if !listing.routing.is_empty() {
        checks.push(routing(sys, &listing.routing, &functions));
    }
    checks.extend(unread(&listing));
    checks
}

fn regions(regions: &[Region], ground: &Ground) -> Vec<Check> {
    let mut classes: BTreeMap<Space, Vec<&Region>> = BTreeMap::new();
    for region in regions {
        classes.entry(region.space).or_default().push(region);
    }
    let check = |(space, regions): (Space, Vec<&Region>)| {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        let mut details = Vec::new();
        for region in &regions {
            let standing = ground.judge(region).to_string();
            let last = region.start.saturating_add(region.length.max(1) - 1);
            details.push(format!("{region}: {:#x}-{last:#x}, {standing}", region.start));
            *counts.entry(standing).or_default() += 1;
        }
        let counts: Vec<String> = counts
            .iter()
            .map(|(standing, count)| format!("{count} {standing}"))
            .collect();
        let found = format!("{}: {}", amount(regions.len(), "region"), counts.join(", "));
        Check {
            details,
            ..Check::ok(name(space), found)
        }
    };
    classes.into_iter().map(check).collect()
}

fn routing(sys: &SysRoot, tables: &[Routing], functions: &[PciFunction]) -> Check {
    let (mut gsis, mut links, mut lines) = (BTreeSet::new(), BTreeSet::new(), 0);
    let mut details = Vec::new();
    for table in tables {
        let bus = bus_below(sys, &table.bridge, functions);
        for route in &table.routes {
            let wire = match &route.wire {
                Wire::Gsi(gsi) => {
                    gsis.insert(*gsi);
                    format!("interrupt {gsi}")
                }
                Wire::Link(link) => {
                    links.insert(link.as_str());
                    format!("link {link}")
                }
            };
            lines += 1;
            let on_device = |function: &&PciFunction| {
                let address = function.address;
                Some((address.segment(), address.bus())) == bus
                    && address.device() == route.device
                    && pin(sys, address) == Some(route.pin)
            };
            let users = functions.iter().filter(on_device);
            let letter = char::from(b'A' + route.pin.saturating_sub(1));
            details.extend(users.map(|function| format!("{function} INT{letter}: {wire}")));
        }
    }
    let gsis: Vec<String> = gsis.iter().map(u32::to_string).collect();
    let links: Vec<&str> = links.into_iter().collect();
    let mut found = format!("{} of {}", amount(lines, "pin"), amount(tables.len(), "bus"));
    if !gsis.is_empty() {
        found.push_str(&format!(", to interrupts {}", gsis.join(", ")));
    }
    if !links.is_empty() {
        found.push_str(&format!(", to links {}", links.join(", ")));
    }
    Check {
        details,
        ..Check::ok("AML _PRT", found)
    }
}

/// Segment and bus below a bridge, by the bridge's name in the namespace.
fn bus_below(sys: &SysRoot, bridge: &str, functions: &[PciFunction]) -> Option<(u32, u8)> {
    for name in sys.list("sys/devices").unwrap_or_default() {
        let Some((segment, bus)) = name.strip_prefix("pci").and_then(|name| name.split_once(':')) else {
            continue;
        };
        if sys
            .read_optional(format!("sys/devices/{name}/firmware_node/path"))
            .as_deref()
            == Some(bridge)
        {
            return Some((
                u32::from_str_radix(segment, 16).ok()?,
                u8::from_str_radix(bus, 16).ok()?,
            ));
        }
    }
    let named = |function: &&PciFunction| pci::acpi_path(sys, function.address).as_deref() == Some(bridge);
    let address = functions.iter().find(named)?.address;
    let bus = sys
        .read_number(format!("{}/secondary_bus_number", pci::dir(address)))
        .ok()?;
    Some((address.segment(), u8::try_from(bus).ok()?))
}

/// The function's interrupt pin, 1 to 4.
fn pin(sys: &SysRoot, address: PciAddress) -> Option<u8> {
    let config = fs::read(sys.path(pci::dir(address)).join("config")).ok()?;
    config.get(INTERRUPT_PIN).copied().filter(|pin| (1..=4).contains(pin))
}

fn unread(listing: &Listing) -> Option<Check> {
    (!listing.unread.is_empty()).then(|| {
        Check::bad(
            "AML",
            Verdict::Advice,
            format!("not known in whole: {}", listing.unread.join("; ")),
            "nothing is wrong with the machine. Before you move devices or ports, see in the source of these tables \
             (`iasl -d`) that they use none of them; as root, if the tables could not be opened",
        )
    })
}

fn amount(count: usize, noun: &str) -> String {
    match (count, noun.ends_with('s')) {
        (1, _) => format!("1 {noun}"),
        (count, true) => format!("{count} {noun}es"),
        (count, false) => format!("{count} {noun}s"),
    }
}

fn name(space: Space) -> &'static str {
    match space {
        Space::SystemMemory => "AML SystemMemory",
        Space::SystemIo => "AML SystemIO",
        Space::PciConfig => "AML PCI_Config",
        Space::EmbeddedControl => "AML EmbeddedControl",
        Space::SmBus => "AML SMBus",
        Space::SystemCmos => "AML SystemCMOS",
        Space::PciBarTarget => "AML PciBarTarget",
        Space::Ipmi => "AML IPMI",
        Space::GeneralPurposeIo => "AML GeneralPurposeIO",
        Space::GenericSerialBus => "AML GenericSerialBus",
        Space::Pcc => "AML PCC",
        Space::Oem(_) => "AML OEM space",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tree::Tree;

    fn check<'c>(checks: &'c [Check], name: &str) -> &'c Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn regions_are_told_by_class_and_pins_by_function() {
        let tree = Tree::with_nic_of_firmware();
        let mut config = [0; 64];
        config[INTERRUPT_PIN] = 1;
        for device in ["0000:00:02.0", "0000:00:03.0"] {
            tree.put(format!("sys/bus/pci/devices/{device}/config"), config);
        }
        let checks = checks(&tree.sys());
        assert!(checks.iter().all(|check| check.verdict == Verdict::Ok), "{checks:#?}");
        let memory = check(&checks, "AML SystemMemory");
        assert_eq!(
            memory.found,
            "5 regions: 1 at a computed address, not known, 1 filtered (IOAPICs), 1 one host's, \
             1 shared (ACPI memory), 1 shared (the HPET, to be read)"
        );
        let own = r"\_SB_.PCI0.NIC4.NREG of DSDT: 0xc0040000-0xc00400ff, one host's";
        assert!(memory.details.iter().any(|line| line == own), "{:#?}", memory.details);
        assert_eq!(
            check(&checks, "AML PCI_Config").found,
            "2 regions: 1 one host's, 1 shared (bridges, to be read)"
        );
        assert_eq!(
            check(&checks, "AML EmbeddedControl").found,
            "1 region: 1 by way of a driver"
        );
        let routing = check(&checks, "AML _PRT");
        assert_eq!(routing.found, "3 pins of 1 bus, to interrupts 9, 11, 17");
        assert_eq!(
            routing.details,
            [
                "0000:00:02.0 (e1000) INTA: interrupt 9",
                "0000:00:03.0 (e1000) INTA: interrupt 11"
            ]
        );
        let text = format!("{routing:#}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert_eq!(routing.to_string().lines().count(), 1);
    }

    #[test]
    fn the_bus_below_a_bridge_is_found() {
        let tree = Tree::lab();
        tree.function("0000:00:1c.0", "0x060400", 0, None, "");
        let dir = "sys/bus/pci/devices/0000:00:1c.0";
        tree.put(format!("{dir}/firmware_node/path"), "\\_SB_.PCI0.RP01\n");
        tree.put(format!("{dir}/secondary_bus_number"), "5\n");
        let functions = pci::functions(&tree.sys()).unwrap();
        assert_eq!(bus_below(&tree.sys(), r"\_SB_.PCI0.RP01", &functions), Some((0, 5)));
        assert_eq!(bus_below(&tree.sys(), r"\_SB_.PCI0", &functions), Some((0, 0)));
        assert_eq!(bus_below(&tree.sys(), r"\_SB_.PCI9", &functions), None);
    }

    #[test]
    fn tables_that_cannot_be_read_are_one_advice() {
        let tree = Tree::lab();
        tree.put("sys/firmware/acpi/tables/SSDT1", [0x10; 40]);
        tree.put("sys/firmware/acpi/tables/SSDT2", "SSDT");
        let checks = checks(&tree.sys());
        assert!(super::super::fit(&checks));
        let advice = check(&checks, "AML");
        assert_eq!(advice.verdict, Verdict::Advice);
        for name in ["SSDT1: ", "SSDT2: "] {
            assert!(advice.found.contains(name), "{advice}");
        }
    }
}
