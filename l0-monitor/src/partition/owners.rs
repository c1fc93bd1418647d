//! Who owns what, and the one place where an owner changes. Pure.

use arrayvec::ArrayVec;
use firmware_shim::acpi::EcamRegion;
use locum_abi::{Errno, GRANTABLE_FUNCTIONS, GRANTABLE_PINS, Grant, MAX_CPUS, PAGE_SIZE, Slot};

use crate::id::{CpuIndex, PerCpu};
use crate::machine::MAX_ECAM;

use super::memory::{Kind, Map};

/// I/O ports.
const PORTS: usize = 0x1_0000;
/// IOAPIC pins (GSIs) accounted for.
const PINS: usize = GRANTABLE_PINS as usize;
/// Pins that one IOAPIC can have (82093AA datasheet, 3.2.2: eight bits).
pub(crate) const IOAPIC_PINS: usize = 256;

/// A [`Grant`] of something that is there: its CPU is one of L0's, its pin one of those that are accounted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    /// CPU.
    Cpu(CpuIndex),
    /// Memory or MMIO, `start..end`, page aligned.
    Memory(u64, u64),
    /// PCI function: bus, device, function as in requester ids.
    Pci(u16),
    /// Ports, `first..=last`.
    Ports(u16, u16),
    /// GSI.
    Pin(u16),
}

impl Resource {
    /// The resource that `grant` names; `cpu` finds a CPU by its APIC id.
    ///
    /// # Errors
    /// [`Errno::Argument`] if it is not there.
    pub(crate) fn new(grant: Grant, cpu: impl FnOnce(u32) -> Option<CpuIndex>) -> Result<Self, Errno> {
        Ok(match grant {
            Grant::Cpu { apic_id } => Self::Cpu(cpu(apic_id).ok_or(Errno::Argument)?),
            Grant::Memory { start, end } => Self::Memory(start, end),
            Grant::Pci { function } => Self::Pci(function),
            Grant::Ports { first, last } => Self::Ports(first, last),
            Grant::Pin { gsi } => match u16::try_from(gsi) {
                Ok(gsi) if usize::from(gsi) < PINS => Self::Pin(gsi),
                _ => return Err(Errno::Argument),
            },
        })
    }
}

/// The owners.
#[derive(Debug)]
pub(crate) struct Owners {
    /// Memory.
    pub(crate) memory: Map,
    /// The host that owns what is not listed for the other.
    reigning: Slot,
    cpus: PerCpu<Slot>,
    /// One bit a port: set if it belongs to the host that does not reign.
    ports: [u8; PORTS / 8],
    pins: [Slot; PINS],
    /// Functions of the host that does not reign.
    pci: ArrayVec<u16, GRANTABLE_FUNCTIONS>,
    /// Windows of PCI Express configuration space, in which each function has a page. A page goes with its function;
    /// those of bridges stay with the reigning host.
    pub(crate) ecam: ArrayVec<EcamRegion, MAX_ECAM>,
}

impl Owners {
    /// Everything belongs to the host in the even slot.
    pub(crate) const fn new() -> Self {
        Self {
            memory: Map::new(),
            reigning: Slot::Even,
            cpus: PerCpu([Slot::Even; MAX_CPUS]),
            ports: [0; PORTS / 8],
            pins: [Slot::Even; PINS],
            pci: ArrayVec::new_const(),
            ecam: ArrayVec::new_const(),
        }
    }

    /// Slot of the reigning host.
    pub(crate) const fn reigning(&self) -> Slot {
        self.reigning
    }

    /// Owner of a CPU.
    pub(crate) fn cpu(&self, cpu: CpuIndex) -> Slot {
        self.cpus[cpu]
    }

    /// Owner of a port.
    pub(crate) fn port(&self, port: u16) -> Slot {
        let other = self.ports[usize::from(port >> 3)] >> (port & 7) & 1 != 0;
        if other { self.reigning.other() } else { self.reigning }
    }

    /// Owner of a pin. One that cannot be given is the reigning host's.
    pub(crate) fn pin(&self, gsi: u32) -> Slot {
        self.pins.get(gsi as usize).copied().unwrap_or(self.reigning)
    }

    /// Pins from `gsi_base` on that the host in `slot` owns; bit n of the words is pin n.
    pub(crate) fn pins_of(&self, gsi_base: u32, slot: Slot) -> [u64; IOAPIC_PINS / 64] {
        let mut pins = [0; IOAPIC_PINS / 64];
        for pin in (0..IOAPIC_PINS).filter(|pin| self.pin(gsi_base.saturating_add(*pin as u32)) == slot) {
            pins[pin / 64] |= 1 << (pin % 64);
        }
        pins
    }

    /// Owner of a PCI function.
    pub(crate) fn pci(&self, function: u16) -> Slot {
        if self.pci.contains(&function) {
            self.reigning.other()
        } else {
            self.reigning
        }
    }

    /// The page of a function's configuration space, if it has one. Functions that hosts can own are of segment 0.
    pub(crate) fn ecam_page(&self, function: u16) -> Option<(u64, u64)> {
        let windows = self.ecam.iter().filter(|window| window.segment == 0);
        let page = windows.filter_map(|window| window.page_of(function)).next()?;
        Some((page, page.checked_add(PAGE_SIZE)?))
    }

    /// PCI functions of the host that does not reign.
    pub(crate) fn other_functions(&self) -> &[u16] {
        &self.pci
    }

    /// Changes the owner of one resource from `from` to the other slot: the only way a single resource moves.
    ///
    /// # Errors
    /// [`Errno::NotOwner`] if any of it is not `from`'s; [`Errno::NoSpace`] if a list is full. Nothing changed then.
    pub(crate) fn give(&mut self, resource: Resource, from: Slot) -> Result<(), Errno> {
        let to = from.other();
        match resource {
            Resource::Cpu(cpu) => {
                let owner = &mut self.cpus[cpu];
                if *owner != from {
                    return Err(Errno::NotOwner);
                }
                *owner = to;
            }
            Resource::Memory(start, end) => {
                if !self.memory.all(start, end, |kind| kind == Kind::Host(from)) {
                    return Err(Errno::NotOwner);
                }
                self.memory
                    .set(start, end, Kind::Host(to))
                    .map_err(|_| Errno::NoSpace)?;
            }
            Resource::Pci(function) => {
                if self.pci(function) != from {
                    return Err(Errno::NotOwner);
                }
                let page = self.ecam_page(function);
                let full = from == self.reigning && self.pci.is_full();
                if full || (page.is_some() && !self.memory.has_room_for(1)) {
                    return Err(Errno::NoSpace);
                }
                if let Some((start, end)) = page {
                    self.give(Resource::Memory(start, end), from)?;
                }
                if from == self.reigning {
                    self.pci.try_push(function).map_err(|_| Errno::NoSpace)?;
                } else {
                    self.pci.retain(|other| *other != function);
                }
            }
            Resource::Ports(first, last) => {
                if (first..=last).any(|p| self.port(p) != from) {
                    return Err(Errno::NotOwner);
                }
                for port in first..=last {
                    self.ports[usize::from(port >> 3)] ^= 1 << (port & 7);
                }
            }
            Resource::Pin(gsi) => {
                let owner = self.pins.get_mut(usize::from(gsi)).ok_or(Errno::Argument)?;
                if *owner != from {
                    return Err(Errno::NotOwner);
                }
                *owner = to;
            }
        }
        Ok(())
    }

    /// The host in `to` owns everything: the other retired or was aborted.
    pub(crate) fn give_all(&mut self, to: Slot) {
        self.memory.transfer(to.other(), to);
        self.cpus = PerCpu([to; MAX_CPUS]);
        self.pins = [to; PINS];
        self.ports = [0; PORTS / 8];
        self.pci.clear();
        self.reigning = to;
    }

    /// The byte of the I/O bitmaps that has `port`, for the host in `slot`: a set bit makes the access exit.
    pub(crate) fn io_bitmap_byte(&self, slot: Slot, port: u16) -> u8 {
        let byte = self.ports[usize::from(port >> 3)];
        if slot == self.reigning { byte } else { !byte }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVEN: Slot = Slot::Even;
    const ODD: Slot = Slot::Odd;

    fn cpu(number: usize) -> CpuIndex {
        CpuIndex::new(number).unwrap()
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let bad = Err(Errno::Argument);
        assert_eq!(Resource::new(Grant::Cpu { apic_id: 4 }, |_| None), bad);
        assert_eq!(Resource::new(Grant::Pin { gsi: 1024 }, |_| None), bad);
        let found = Resource::new(Grant::Cpu { apic_id: 4 }, |id| CpuIndex::new(id as usize / 2));
        assert_eq!(found, Ok(Resource::Cpu(cpu(2))));
    }

    #[test]
    fn a_thing_is_given_once() {
        let mut o = Owners::new();
        for r in [
            Resource::Cpu(cpu(3)),
            Resource::Memory(0x4800_0000, 0x6800_0000),
            Resource::Pci(0x18),
            Resource::Ports(0x2f8, 0x2ff),
            Resource::Pin(11),
        ] {
            assert_eq!(o.give(r, ODD), Err(Errno::NotOwner));
            assert_eq!(o.give(r, EVEN), Ok(()));
            assert_eq!(o.give(r, EVEN), Err(Errno::NotOwner));
        }
        assert_eq!(
            (o.cpu(cpu(3)), o.cpu(cpu(0)), o.pin(11), o.pin(9), o.pin(1024)),
            (ODD, EVEN, ODD, EVEN, EVEN)
        );
        assert_eq!(
            (o.pci(0x18), o.pci(0x10), o.port(0x2f8), o.port(0x3f8)),
            (ODD, EVEN, ODD, EVEN)
        );
        let byte = |slot, port| o.io_bitmap_byte(slot, port);
        assert_eq!((byte(EVEN, 0x2f8), byte(EVEN, 0x3f8)), (0xff, 0));
        assert_eq!((byte(ODD, 0x2f8), byte(ODD, 0x3f8)), (0, 0xff));
        o.give_all(ODD);
        assert_eq!(
            (o.reigning(), o.cpu(cpu(0)), o.port(0x3f8), o.pci(0x10), o.pin(9)),
            (ODD, ODD, ODD, ODD, ODD)
        );
        assert_eq!(
            (o.pin(1024), o.pins_of(1008, ODD)),
            (ODD, [!0; 4]),
            "pins that cannot be given"
        );
        assert_eq!(o.memory.at(0), (Kind::Host(ODD), super::super::memory::END));
        o.give(Resource::Pci(0x10), ODD).unwrap();
        assert_eq!(o.pci(0x10), EVEN);
    }

    #[test]
    fn a_functions_configuration_page_goes_with_it() {
        let mut o = Owners::new();
        let window = |base, segment, first_bus, last_bus| EcamRegion {
            base,
            segment,
            first_bus,
            last_bus,
        };
        o.ecam.push(window(0x7000_0000, 1, 0, 255));
        o.ecam.push(window(0x8000_0000, 0, 1, 63));
        assert_eq!(o.give(Resource::Pci(0x0218), EVEN), Ok(()));
        let page = 0x8021_8000;
        assert_eq!(o.memory.at(page), (Kind::Host(ODD), page + PAGE_SIZE));
        assert_eq!(
            (o.memory.at(page - 1).0, o.memory.at(0x7021_8000).0),
            (Kind::Host(EVEN), Kind::Host(EVEN))
        );
        // No page: bus 0 is not decoded there.
        assert_eq!((o.ecam_page(0x18), o.give(Resource::Pci(0x18), EVEN)), (None, Ok(())));
        assert_eq!(o.give(Resource::Pci(0x0218), ODD), Ok(()));
        assert_eq!(o.memory.at(page).0, Kind::Host(EVEN));
        // A page that was given away by itself: the function stays, too.
        o.give(Resource::Memory(page, page + PAGE_SIZE), EVEN).unwrap();
        assert_eq!(o.give(Resource::Pci(0x0218), EVEN), Err(Errno::NotOwner));
        assert_eq!(o.pci(0x0218), EVEN);
    }
}
