//! Who owns what, and the one place where an owner changes. Pure.

use locum_abi::header::MAX_CPUS;
use locum_abi::{Errno, ResourceKind};

use super::memory::{Kind, Map};

/// PCI functions that can belong to the host that does not reign.
const PCI_CAPACITY: usize = 64;
/// IOAPIC pins (GSIs) accounted for.
pub const PINS: usize = 256;

/// A resource, with the arguments of [`locum_abi::Op::Grant`] checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// CPU by index.
    Cpu(usize),
    /// Memory or MMIO, `start..end`, page aligned.
    Memory(u64, u64),
    /// PCI function: bus, device, function as in requester ids.
    Pci(u16),
    /// Ports, `first..=last`.
    Ports(u16, u16),
    /// GSI.
    Pin(u8),
}

impl Resource {
    /// Checks raw arguments; `cpu` finds a CPU's index by its APIC id.
    ///
    /// # Errors
    /// [`Errno::Argument`].
    pub fn new(kind: u64, b: u64, c: u64, cpu: impl Fn(u32) -> Option<usize>) -> Result<Self, Errno> {
        let bad = Errno::Argument;
        match ResourceKind::from_raw(kind).ok_or(bad)? {
            ResourceKind::Cpu => Ok(Self::Cpu(cpu(u32::try_from(b).map_err(|_| bad)?).ok_or(bad)?)),
            ResourceKind::Memory => {
                let end = b.checked_add(c).ok_or(bad)?;
                if c == 0 || (b | c) & 0xfff != 0 || end > super::memory::END {
                    return Err(bad);
                }
                Ok(Self::Memory(b, end))
            }
            ResourceKind::Pci if c == 0 => Ok(Self::Pci(u16::try_from(b).map_err(|_| bad)?)),
            ResourceKind::Ports => {
                let last = b.checked_add(c).and_then(|e| e.checked_sub(1)).ok_or(bad)?;
                if c == 0 {
                    return Err(bad);
                }
                Ok(Self::Ports(
                    u16::try_from(b).map_err(|_| bad)?,
                    u16::try_from(last).map_err(|_| bad)?,
                ))
            }
            ResourceKind::Pin if c == 0 => Ok(Self::Pin(u8::try_from(b).map_err(|_| bad)?)),
            _ => Err(bad),
        }
    }
}

/// The owners.
#[derive(Debug)]
pub struct Owners {
    /// Memory.
    pub memory: Map,
    /// The host that owns what is not listed for the other.
    reigning: usize,
    cpus: [u8; MAX_CPUS],
    /// One bit a port: set if it belongs to the host that does not reign.
    ports: [u8; 8192],
    pins: [u8; PINS],
    pci: [u16; PCI_CAPACITY],
    pci_len: usize,
}

impl Owners {
    /// Everything belongs to the host in slot 0.
    pub const fn new() -> Self {
        Self {
            memory: Map::new(),
            reigning: 0,
            cpus: [0; MAX_CPUS],
            ports: [0; 8192],
            pins: [0; PINS],
            pci: [0; PCI_CAPACITY],
            pci_len: 0,
        }
    }

    /// Slot of the reigning host.
    pub const fn reigning(&self) -> usize {
        self.reigning
    }

    /// Owner of a CPU.
    pub fn cpu(&self, index: usize) -> Option<usize> {
        self.cpus.get(index).map(|s| usize::from(*s))
    }

    /// Owner of a port.
    pub fn port(&self, port: u16) -> usize {
        let other = self
            .ports
            .get(usize::from(port >> 3))
            .is_some_and(|b| b >> (port & 7) & 1 != 0);
        if other { 1 - self.reigning } else { self.reigning }
    }

    /// Owner of a pin.
    pub fn pin(&self, gsi: u32) -> Option<usize> {
        self.pins.get(gsi as usize).map(|s| usize::from(*s))
    }

    /// Owner of a PCI function.
    pub fn pci(&self, function: u16) -> usize {
        let other = self
            .pci
            .get(..self.pci_len)
            .is_some_and(|list| list.contains(&function));
        if other { 1 - self.reigning } else { self.reigning }
    }

    /// PCI functions of the host that does not reign.
    pub fn other_functions(&self) -> &[u16] {
        self.pci.get(..self.pci_len).unwrap_or(&[])
    }

    /// Changes the owner of one resource from `from` to the other slot: the only way a single resource moves.
    ///
    /// # Errors
    /// [`Errno::NotOwner`] if any of it is not `from`'s; [`Errno::NoSpace`] if a list is full. Nothing changed then.
    pub fn give(&mut self, resource: Resource, from: usize) -> Result<(), Errno> {
        let to = 1 - from;
        match resource {
            Resource::Cpu(index) => {
                let owner = self.cpus.get_mut(index).ok_or(Errno::Argument)?;
                if usize::from(*owner) != from {
                    return Err(Errno::NotOwner);
                }
                *owner = to as u8;
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
                if from == self.reigning {
                    *self.pci.get_mut(self.pci_len).ok_or(Errno::NoSpace)? = function;
                    self.pci_len += 1;
                } else if let Some(i) = self.pci.iter().take(self.pci_len).position(|f| *f == function) {
                    self.pci_len -= 1;
                    self.pci.swap(i, self.pci_len);
                }
            }
            Resource::Ports(first, last) => {
                if (first..=last).any(|p| self.port(p) != from) {
                    return Err(Errno::NotOwner);
                }
                for port in first..=last {
                    if let Some(byte) = self.ports.get_mut(usize::from(port >> 3)) {
                        *byte ^= 1 << (port & 7);
                    }
                }
            }
            Resource::Pin(gsi) => {
                let owner = self.pins.get_mut(usize::from(gsi)).ok_or(Errno::Argument)?;
                if usize::from(*owner) != from {
                    return Err(Errno::NotOwner);
                }
                *owner = to as u8;
            }
        }
        Ok(())
    }

    /// The host in `to` owns everything: the other retired or was aborted.
    pub fn give_all(&mut self, to: usize) {
        self.memory.transfer(1 - to, to);
        self.cpus = [to as u8; MAX_CPUS];
        self.pins = [to as u8; PINS];
        self.ports = [0; 8192];
        self.pci_len = 0;
        self.reigning = to;
    }

    /// One byte of the I/O bitmaps for the host in `slot`: a set bit makes the access exit.
    pub fn io_bitmap_byte(&self, slot: usize, index: usize) -> u8 {
        let byte = self.ports.get(index).copied().unwrap_or(0xff);
        if slot == self.reigning { byte } else { !byte }
    }
}

impl Default for Owners {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(apic: u32) -> Option<usize> {
        (apic < 4).then_some(apic as usize)
    }

    #[test]
    fn arguments_are_checked() {
        let bad = Err(Errno::Argument);
        assert_eq!(Resource::new(0, 4, 0, cpu), bad, "no such CPU");
        assert_eq!(Resource::new(1, 0x1000, 0, cpu), bad);
        assert_eq!(Resource::new(1, 0x1001, 0x1000, cpu), bad);
        assert_eq!(Resource::new(1, !0xfff, 0x2000, cpu), bad);
        assert_eq!(Resource::new(2, 0x1_0000, 0, cpu), bad);
        assert_eq!(Resource::new(2, 0x10, 1, cpu), bad, "reserved argument");
        assert_eq!(Resource::new(3, 0xffff, 2, cpu), bad);
        assert_eq!(Resource::new(3, u64::MAX, 2, cpu), bad);
        assert_eq!(Resource::new(9, 0, 0, cpu), bad);
        assert_eq!(Resource::new(3, 0x2f8, 8, cpu), Ok(Resource::Ports(0x2f8, 0x2ff)));
    }

    #[test]
    fn a_thing_is_given_once() {
        let mut o = Owners::new();
        for r in [
            Resource::Cpu(3),
            Resource::Memory(0x4800_0000, 0x6800_0000),
            Resource::Pci(0x18),
            Resource::Ports(0x2f8, 0x2ff),
            Resource::Pin(11),
        ] {
            assert_eq!(o.give(r, 1), Err(Errno::NotOwner));
            assert_eq!(o.give(r, 0), Ok(()));
            assert_eq!(o.give(r, 0), Err(Errno::NotOwner));
        }
        assert_eq!(
            (o.cpu(3), o.cpu(0), o.pin(11), o.pin(9)),
            (Some(1), Some(0), Some(1), Some(0))
        );
        assert_eq!((o.pci(0x18), o.pci(0x10), o.port(0x2f8), o.port(0x3f8)), (1, 0, 1, 0));
        let byte = |slot, port: usize| o.io_bitmap_byte(slot, port / 8);
        assert_eq!((byte(0, 0x2f8), byte(0, 0x3f8)), (0xff, 0));
        assert_eq!((byte(1, 0x2f8), byte(1, 0x3f8)), (0, 0xff));
        o.give_all(1);
        assert_eq!((o.reigning(), o.cpu(0), o.port(0x3f8), o.pci(0x10)), (1, Some(1), 1, 1));
        assert_eq!(o.memory.at(0), (Kind::Host(1), super::super::memory::END));
        o.give(Resource::Pci(0x10), 1).unwrap();
        assert_eq!(o.pci(0x10), 0);
    }
}
