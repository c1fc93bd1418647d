//! What the firmware's AML uses, judged: may both hosts go on to use it while two run?
//!
//! Both run the machine's AML. L0 shares some places between them and filters others, access by access (its
//! `partition`); any other place is one host's, and gives the other all ones.

use std::fmt;

use partitioner::{FirmwareRegion, MemRange, PciAddress, PciFunction, PortRange, Resource};

use super::{memmap, pci};
use crate::acpi::aml::{Region, Space};
use crate::acpi::{Interrupts, Platform};
use crate::sysroot::SysRoot;

/// Memory that is the same for both hosts on every PC.
const SHARED: [(u64, u64, &str); 4] = [
    (0x9_f000, 0xa_0000, "the BIOS area, to be read"),
    (0xc_0000, 0x10_0000, "the BIOS area, to be read"),
    (0xfed0_0000, 0xfed0_1000, "the HPET, to be read"),
    (0xfee0_0000, 0xfee0_1000, "local APICs"),
];
/// Ports that L0 filters on every PC.
const FILTERED: [(u16, u16, &str); 2] = [
    (0x64, 0x64, "the keyboard controller's command port"),
    (0xcf8, 0xcff, "PCI configuration and reset ports"),
];
/// Below this no registers lie in memory but those in [`SHARED`]. An address here was computed from what the interpreter
/// did not read: zero, and what was added to it.
const COMPUTED_BELOW: u64 = 16 << 20;
/// Where CMOS memory is reached.
const CMOS: (u16, u16) = (0x70, 0x71);
/// Bytes of configuration space of a function in memory.
const ECAM_FUNCTION: u64 = 4096;

/// How a region stands while two hosts run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Both hosts use it.
    Shared(&'static str),
    /// L0 decides about each access.
    Filtered(&'static str),
    /// It belongs to one host, so nothing of it may move.
    Owned(Vec<Resource>),
    /// A driver of the host stands before it, or nothing is there.
    Indirect(&'static str),
    /// Where it lies is not known.
    Computed,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared(what) => write!(f, "shared ({what})"),
            Self::Filtered(what) => write!(f, "filtered ({what})"),
            Self::Owned(_) => write!(f, "one host's"),
            Self::Indirect(what) => write!(f, "{what}"),
            Self::Computed => write!(f, "at a computed address, not known"),
        }
    }
}

/// What regions are held against.
#[derive(Clone, Debug, Default)]
pub struct Ground {
    shared: Vec<(MemRange, &'static str)>,
    filtered: Vec<(MemRange, &'static str)>,
    ports: Vec<(PortRange, &'static str)>,
    /// Windows of PCI configuration space of segment 0, from bus 0 on.
    ecam: Vec<MemRange>,
    /// Name in the namespace, address, whether a bridge.
    functions: Vec<(Option<String>, PciAddress, bool)>,
}

impl Ground {
    /// Reads what there is to read; what is missing makes a place one host's.
    pub fn read(sys: &SysRoot, functions: &[PciFunction]) -> Self {
        let range = |&(start, end, what): &(u64, u64, _)| Some((MemRange::new(start, end)?, what));
        let ports = |&(first, last, what): &(u16, u16, _)| Some((PortRange::new(first, last)?, what));
        let mut ground = Self {
            shared: SHARED.iter().filter_map(range).collect(),
            ports: FILTERED.iter().filter_map(ports).collect(),
            ..Self::default()
        };
        for (start, length, kind) in memmap::ranges(sys).unwrap_or_default() {
            if matches!(kind, memmap::ACPI_TABLES | memmap::ACPI_NVS) {
                let memory = MemRange::with_len(start, length);
                ground.shared.extend(memory.map(|memory| (memory, "ACPI memory")));
            }
        }
        for address in Interrupts::read(sys).unwrap_or_default().addresses {
            let page = MemRange::with_len(address, 1).map(MemRange::to_pages);
            ground.filtered.extend(page.map(|page| (page, "IOAPICs")));
        }
        let platform = Platform::read(sys).unwrap_or_default();
        for port in platform.pm1_control {
            let register = PortRange::new(port, port.saturating_add(1));
            ground.ports.extend(register.map(|register| (register, "PM1 control")));
        }
        ground.ecam = platform.ecam;
        ground.functions = functions
            .iter()
            .map(|function| (pci::acpi_path(sys, function.address), function.address, function.bridge))
            .collect();
        ground
    }

    /// How `region` stands.
    pub fn judge(&self, region: &Region) -> Standing {
        match region.space {
            Space::SystemMemory => match MemRange::with_len(region.start, region.length.max(1)) {
                Some(range) => self.memory(range),
                None => Standing::Computed,
            },
            Space::SystemIo if region.start == 0 => Standing::Computed,
            Space::SystemIo => {
                let last = region.start.saturating_add(region.length.max(1) - 1);
                let range = u16::try_from(region.start).ok().zip(u16::try_from(last).ok());
                match range.and_then(|(first, last)| PortRange::new(first, last)) {
                    Some(ports) => self.port_range(ports),
                    None => Standing::Computed,
                }
            }
            Space::SystemCmos => match PortRange::new(CMOS.0, CMOS.1) {
                Some(ports) => self.port_range(ports),
                None => Standing::Computed,
            },
            Space::PciConfig | Space::PciBarTarget => self.function(region.device.as_deref()),
            _ => Standing::Indirect("by way of a driver"),
        }
    }

    /// The regions that must stay with the host that has them.
    pub fn staying(&self, regions: &[Region]) -> Vec<FirmwareRegion> {
        let mut staying = Vec::new();
        for region in regions {
            if let Standing::Owned(resources) = self.judge(region) {
                staying.extend(resources.into_iter().map(|resource| FirmwareRegion {
                    resource,
                    name: region.to_string(),
                }));
            }
        }
        staying
    }

    fn memory(&self, range: MemRange) -> Standing {
        let within = |places: &[(MemRange, &'static str)]| {
            let place = places.iter().find(|(place, _)| place.contains(range));
            place.map(|(_, what)| *what)
        };
        if let Some(what) = within(&self.shared) {
            return Standing::Shared(what);
        }
        if let Some(what) = within(&self.filtered) {
            return Standing::Filtered(what);
        }
        if range.start() < COMPUTED_BELOW {
            return Standing::Computed;
        }
        match self.ecam.iter().find(|window| window.contains(range)) {
            Some(window) => self.configuration_space(*window, range),
            None => Standing::Owned(vec![Resource::Memory(range)]),
        }
    }

    /// A region in memory that is configuration space of functions.
    fn configuration_space(&self, window: MemRange, range: MemRange) -> Standing {
        let mut own = Vec::new();
        for &(_, address, bridge) in &self.functions {
            let index =
                u64::from(address.bus()) << 8 | u64::from(address.device()) << 3 | u64::from(address.function());
            let page = MemRange::with_len(window.start() + index * ECAM_FUNCTION, ECAM_FUNCTION);
            if !bridge && address.segment() == 0 && page.is_some_and(|page| page.overlaps(range)) {
                own.push(Resource::Function(address));
            }
        }
        match own.is_empty() {
            true => Standing::Shared("bridges, to be read"),
            false => Standing::Owned(own),
        }
    }

    fn port_range(&self, ports: PortRange) -> Standing {
        let place = self.ports.iter().find(|(place, _)| place.contains(ports));
        match place {
            Some((_, what)) => Standing::Filtered(what),
            None => Standing::Owned(vec![Resource::Ports(ports)]),
        }
    }

    fn function(&self, device: Option<&str>) -> Standing {
        let named = self
            .functions
            .iter()
            .find(|(path, ..)| path.as_deref() == device && device.is_some());
        match named {
            Some((_, _, true)) => Standing::Shared("bridges, to be read"),
            Some((_, address, false)) => Standing::Owned(vec![Resource::Function(*address)]),
            None => Standing::Indirect("host bridges and devices that are not there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::aml;
    use crate::testing::tree::Tree;

    fn region(space: Space, start: u64, length: u64, device: Option<&str>) -> Region {
        Region {
            table: "DSDT".to_owned(),
            path: r"\REGN".to_owned(),
            device: device.map(str::to_owned),
            space,
            start,
            length,
        }
    }

    fn ground() -> Ground {
        let tree = Tree::with_nic_of_firmware();
        Ground::read(&tree.sys(), &pci::functions(&tree.sys()).unwrap())
    }

    #[test]
    fn what_the_design_shares_or_filters_passes() {
        let ground = ground();
        for (start, length, label) in [
            (0x7fff_8000, 0x100, "shared (ACPI memory)"),
            (0xf_0000, 0x1_0000, "shared (the BIOS area, to be read)"),
            (0xfed0_0000, 0x400, "shared (the HPET, to be read)"),
            (0xfee0_0000, 0x400, "shared (local APICs)"),
            (0xfec0_0000, 0x20, "filtered (IOAPICs)"),
            (0, 0x2000, "at a computed address, not known"),
            (0xef_2778, 4, "at a computed address, not known"),
            (u64::MAX, 2, "at a computed address, not known"),
            (0x4800_0000, 1, "one host's"),
            (0xfed0_0ff0, 0x20, "one host's"),
            (0xe000_0000, 0x100, "shared (bridges, to be read)"),
            (0xe002_0000, 0x100, "one host's"),
        ] {
            let standing = ground.judge(&region(Space::SystemMemory, start, length, None));
            assert_eq!(standing.to_string(), label, "{start:#x}");
        }
        for (start, length, label) in [
            (0xcf8, 8, "filtered (PCI configuration and reset ports)"),
            (0xcf9, 1, "filtered (PCI configuration and reset ports)"),
            (0x64, 1, "filtered (the keyboard controller's command port)"),
            (0x404, 2, "filtered (PM1 control)"),
            (0x60, 5, "one host's"),
            (0x400, 0x80, "one host's"),
            (0xfff0, 0x20, "at a computed address, not known"),
        ] {
            let standing = ground.judge(&region(Space::SystemIo, start, length, None));
            assert_eq!(standing.to_string(), label, "{start:#x}");
        }
        for (space, device, label) in [
            (
                Space::PciConfig,
                Some(r"\_SB_.PCI0.LPCB"),
                "shared (bridges, to be read)",
            ),
            (Space::PciConfig, Some(r"\_SB_.PCI0.NIC4"), "one host's"),
            (Space::PciBarTarget, Some(r"\_SB_.PCI0.NIC4"), "one host's"),
            (
                Space::PciConfig,
                Some(r"\_SB_.PCI0"),
                "host bridges and devices that are not there",
            ),
            (Space::PciConfig, None, "host bridges and devices that are not there"),
            (Space::EmbeddedControl, None, "by way of a driver"),
            (Space::SystemCmos, None, "one host's"),
        ] {
            let standing = ground.judge(&region(space, 0x40, 4, device));
            assert_eq!(standing.to_string(), label, "{space:?} {device:?}");
        }
    }

    #[test]
    fn what_must_stay_is_named_with_its_table() {
        let tree = Tree::with_nic_of_firmware();
        let staying = ground().staying(&aml::list(&tree.sys()).regions);
        let named = |resource| staying.iter().find(|region| region.resource == resource);
        let nic = Resource::Function("0000:00:04.0".parse().unwrap());
        assert_eq!(named(nic).unwrap().name, r"\_SB_.PCI0.NIC4.NCFG of DSDT");
        let registers = Resource::Memory(MemRange::new(0xc004_0000, 0xc004_0100).unwrap());
        assert_eq!(named(registers).unwrap().name, r"\_SB_.PCI0.NIC4.NREG of DSDT");
        let memory = staying
            .iter()
            .filter(|region| matches!(region.resource, Resource::Memory(_)));
        assert_eq!(memory.count(), 1, "{staying:#?}");
    }
}
