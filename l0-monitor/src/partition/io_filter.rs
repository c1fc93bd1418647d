//! Ports while two hosts run: those of the other partition, PCI configuration, power and reset.

use locum_abi::{Event, PerSlot, Slot};

use super::owners::Owners;
use crate::vmx::Hardware;
use crate::vmx::exit::IoAccess;

const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
const RESET_CONTROL: u16 = 0xcf9;
const KEYBOARD: u16 = 0x64;
/// Pulse the reset line (8042 command).
const KEYBOARD_RESET: u32 = 0xfe;
/// SLP_EN in PM1 control (ACPI 6.5, table 4.18).
const SLP_EN: u32 = 1 << 13;

/// Ports that always exit while two hosts run; PM1 control registers come on top.
pub const FILTERED: [u16; 9] = [0xcf8, 0xcf9, 0xcfa, 0xcfb, 0xcfc, 0xcfd, 0xcfe, 0xcff, KEYBOARD];

/// What a host's port access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// An IN gives this.
    Value(u32),
    /// An OUT is done, or dropped.
    Done,
    /// The host asked to power off or reset the machine. Nothing was written.
    Power,
}

/// Latches that two hosts can't share.
#[derive(Clone, Copy, Debug, Default)]
pub struct IoFilter {
    /// 0xCF8 as each host left it.
    pub pci_address: PerSlot<u32>,
    /// PM1a and PM1b control ports, 0 if there is none.
    pub pm1: [u16; 2],
}

const fn ones(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}

impl IoFilter {
    /// One byte of the bitmap of ports that always exit.
    pub fn filtered_byte(&self, index: usize) -> u8 {
        let pm1 = self.pm1.iter().filter(|port| **port != 0);
        let pm1 = pm1.flat_map(|port| [*port, port.wrapping_add(1)]);
        FILTERED
            .iter()
            .copied()
            .chain(pm1)
            .filter(|port| usize::from(port >> 3) == index)
            .fold(0, |byte, port| byte | 1 << (port & 7))
    }

    /// Serves an IN or OUT (not a string instruction) of the host in `slot`. `value` is what an OUT writes.
    pub fn access(&mut self, hw: &mut impl Hardware, owners: &Owners, slot: Slot, io: IoAccess, value: u32) -> Verdict {
        let value = value & ones(io.size);
        match io.port {
            PCI_ADDRESS if io.size == 4 => {
                let latch = &mut self.pci_address[slot];
                if io.input {
                    return Verdict::Value(*latch);
                }
                *latch = value;
                Verdict::Done
            }
            PCI_DATA..=0xcff => self.pci_data(hw, owners, slot, io, value),
            RESET_CONTROL if !io.input && value & 4 != 0 => Verdict::Power,
            KEYBOARD if !io.input && value & 0xf0 == KEYBOARD_RESET & 0xf0 && value & 1 == 0 => Verdict::Power,
            port if !io.input && self.powers_off(port, io.size, value) => Verdict::Power,
            port if owners.port(port) == slot => Self::direct(hw, io, value),
            port => {
                hw.trace(Event::PortDenied {
                    port,
                    size: io.size,
                    write: (!io.input).then_some(value),
                });
                if io.input {
                    Verdict::Value(ones(io.size))
                } else {
                    Verdict::Done
                }
            }
        }
    }

    /// SLP_EN in PM1 control, written whole or by its upper byte.
    fn powers_off(&self, port: u16, size: u8, value: u32) -> bool {
        self.pm1.iter().filter(|pm1| **pm1 != 0).any(|pm1| {
            (port == *pm1 && size > 1 && value & SLP_EN != 0)
                || (port == pm1.wrapping_add(1) && value & (SLP_EN >> 8) != 0)
        })
    }

    fn direct(hw: &mut impl Hardware, io: IoAccess, value: u32) -> Verdict {
        if io.input {
            return Verdict::Value(hw.port_in(io.port, io.size));
        }
        hw.port_out(io.port, io.size, value);
        Verdict::Done
    }

    /// A configuration cycle. Both hosts may read bridges (class 06h: host, ISA, PM): AML looks there for the
    /// interrupt routers. Everything else of the other partition reads as all ones.
    fn pci_data(&self, hw: &mut impl Hardware, owners: &Owners, slot: Slot, io: IoAccess, value: u32) -> Verdict {
        let address = self.pci_address[slot];
        if address >> 31 == 0 {
            return if io.input {
                Verdict::Value(ones(io.size))
            } else {
                Verdict::Done
            };
        }
        let own = owners.pci((address >> 8) as u16) == slot;
        if !own {
            hw.port_out(PCI_ADDRESS, 4, address & !0xff | 8);
            let class = hw.port_in(PCI_DATA + 3, 1);
            if class != 6 || !io.input {
                let offset = (io.port - PCI_DATA) as u8;
                hw.trace(Event::PciDenied {
                    address,
                    offset,
                    write: (!io.input).then_some(value),
                });
                return if io.input {
                    Verdict::Value(ones(io.size))
                } else {
                    Verdict::Done
                };
            }
        }
        hw.port_out(PCI_ADDRESS, 4, address);
        Self::direct(hw, io, value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_always_exits() {
        let filter = IoFilter {
            pm1: [0xb004, 0],
            ..IoFilter::default()
        };
        assert_eq!(filter.filtered_byte(0xcf8 / 8), 0xff);
        assert_eq!(filter.filtered_byte(KEYBOARD as usize / 8), 1 << 4);
        assert_eq!(filter.filtered_byte(0xb004 / 8), 0x30);
        assert_eq!(filter.filtered_byte(0), 0, "port 0 is not PM1b");
    }
}
