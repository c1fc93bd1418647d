//! Ports while two hosts run: those of the other partition, PCI configuration, power and reset.

use locum_abi::{PerSlot, Slot};

use super::owners::Owners;
use crate::arch::port::{KEYBOARD, RESET_CONTROL, RESET_CPU};
use crate::vmx::exit::IoAccess;

/// Address of a PCI configuration cycle (PCI local bus specification 3.0, 3.2.2.3.2).
pub(crate) const PCI_ADDRESS: u16 = 0xcf8;
/// First of the four ports of its data.
pub(crate) const PCI_DATA: u16 = 0xcfc;
const PCI_DATA_LAST: u16 = 0xcff;
/// Address: the cycle is one of configuration.
const PCI_ENABLED: u32 = 1 << 31;
/// SLP_EN in the upper byte of PM1 control (ACPI 6.5, table 4.18: bit 13).
const SLP_EN_UPPER: u8 = 1 << 5;

/// Ports that always exit while two hosts run; PM1 control registers come on top.
pub(crate) const FILTERED: [u16; 9] = [
    PCI_ADDRESS,
    RESET_CONTROL,
    0xcfa,
    0xcfb,
    0xcfc,
    0xcfd,
    0xcfe,
    0xcff,
    KEYBOARD,
];

/// How a host's port access ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// An IN gives this.
    Value(u32),
    /// An OUT is done, or dropped.
    Done,
    /// The host asked to power off or reset the machine. Nothing was written.
    Power,
}

/// What a host's port access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortRule {
    /// No device is asked.
    Answer(Verdict),
    /// The access is made.
    Direct,
    /// A cycle at this address of PCI configuration space is made, if the function is the host's `own` or may be read
    /// by all.
    Pci {
        /// Port 0xCF8 of the host.
        address: u32,
        /// The host owns the function.
        own: bool,
    },
    /// The port is the other host's.
    Denied,
}

/// Registers that two hosts can't share, and where the machine's power is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoFilter {
    /// 0xCF8 as each host left it.
    pub(crate) pci_address: PerSlot<u32>,
    /// PM1a and PM1b control ports, 0 if there is none.
    pub(crate) pm1: [u16; 2],
}

/// All ones, of an access of `size` bytes.
pub(crate) const fn ones(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}

/// An access that nobody answers.
pub(crate) const fn dropped(io: IoAccess) -> Verdict {
    if io.input {
        Verdict::Value(ones(io.size))
    } else {
        Verdict::Done
    }
}

impl IoFilter {
    /// Of a machine that is not known yet.
    pub(crate) const NONE: Self = Self {
        pci_address: PerSlot::new(0, 0),
        pm1: [0; 2],
    };

    /// The byte that has `at` in the bitmap of ports that always exit.
    pub(crate) fn filtered_byte(&self, at: u16) -> u8 {
        let pm1 = self.pm1.iter().filter(|port| **port != 0);
        let pm1 = pm1.flat_map(|port| [*port, port.wrapping_add(1)]);
        FILTERED
            .iter()
            .copied()
            .chain(pm1)
            .filter(|port| port >> 3 == at >> 3)
            .fold(0, |byte, port| byte | 1 << (port & 7))
    }

    /// Decides about an IN or OUT of the host in `slot`. `value` is what an OUT writes.
    pub(crate) fn rule(&mut self, owners: &Owners, slot: Slot, io: IoAccess, value: u32) -> PortRule {
        let value = value & ones(io.size);
        match io.port {
            PCI_ADDRESS if io.size == 4 => {
                let latch = &mut self.pci_address[slot];
                if io.input {
                    return PortRule::Answer(Verdict::Value(*latch));
                }
                *latch = value;
                PortRule::Answer(Verdict::Done)
            }
            PCI_DATA..=PCI_DATA_LAST => {
                let address = self.pci_address[slot];
                if address & PCI_ENABLED == 0 {
                    return PortRule::Answer(dropped(io));
                }
                let function = (address >> 8) as u16;
                PortRule::Pci {
                    address,
                    own: owners.pci(function) == slot,
                }
            }
            _ if !io.input && self.ends_the_machine(io, value) => PortRule::Answer(Verdict::Power),
            _ if ports(io).all(|port| owners.port(port) == slot) => PortRule::Direct,
            _ => PortRule::Denied,
        }
    }

    /// Whether one of the bytes that are written resets by the chipset or the 8042 (commands F0h to FEh, even: pulse
    /// the reset line), or is the upper byte of PM1 control with SLP_EN.
    fn ends_the_machine(&self, io: IoAccess, value: u32) -> bool {
        ports(io).zip(value.to_le_bytes()).any(|(port, byte)| match port {
            RESET_CONTROL => byte & RESET_CPU != 0,
            KEYBOARD => byte & 0xf1 == 0xf0,
            _ => {
                let upper = |pm1: u16| pm1 != 0 && port == pm1.wrapping_add(1);
                self.pm1.into_iter().any(upper) && byte & SLP_EN_UPPER != 0
            }
        })
    }
}

/// The ports of an access.
fn ports(io: IoAccess) -> impl Iterator<Item = u16> {
    (0..u16::from(io.size)).map(move |offset| io.port.wrapping_add(offset))
}

#[cfg(test)]
mod tests {
    use super::super::owners::Resource;
    use super::*;

    fn filter() -> IoFilter {
        IoFilter {
            pm1: [0xb004, 0],
            ..IoFilter::NONE
        }
    }

    fn io(port: u16, size: u8, input: bool) -> IoAccess {
        IoAccess {
            port,
            size,
            input,
            string: false,
        }
    }

    #[test]
    fn what_always_exits() {
        let filter = filter();
        assert_eq!(filter.filtered_byte(0xcf8), 0xff);
        assert_eq!(filter.filtered_byte(KEYBOARD), 1 << 4);
        assert_eq!(filter.filtered_byte(0xb004), 0x30);
        assert_eq!(filter.filtered_byte(0), 0, "port 0 is not PM1b");
    }

    #[test]
    fn power_and_reset_are_caught_however_they_are_written() {
        let owners = Owners::new();
        let rule = |port, size, value| filter().rule(&owners, Slot::Even, io(port, size, false), value);
        let power = PortRule::Answer(Verdict::Power);
        for (port, size, value) in [
            (0xcf9, 1, 6),
            (0x64, 1, 0xfe),
            (0x64, 1, 0xf0),
            (0xb004, 2, 0x2000),
            (0xb004, 4, 0x2000),
            (0xb005, 1, 0x20),
            (0xcf8, 2, 0x0600),
            (0xb003, 4, 0x20_0000),
        ] {
            assert_eq!(rule(port, size, value), power, "{port:#x} {value:#x}");
        }
        for (port, size, value) in [
            (0xcf9, 1, 2),
            (0x64, 1, 0xff),
            (0x64, 1, 0xd1),
            (0xb004, 1, 0x20),
            (0xb004, 2, 0x1c01),
        ] {
            assert_eq!(rule(port, size, value), PortRule::Direct, "{port:#x} {value:#x}");
        }
    }

    #[test]
    fn configuration_goes_by_each_hosts_own_address() {
        let mut owners = Owners::new();
        owners.give(Resource::Pci(0x18), Slot::Even).unwrap();
        let mut filter = filter();
        let mut rule = |slot, port, input, value| filter.rule(&owners, slot, io(port, 4, input), value);
        rule(Slot::Even, PCI_ADDRESS, false, 0x8000_1804);
        rule(Slot::Odd, PCI_ADDRESS, false, 0x8000_1000);
        let latch = rule(Slot::Even, PCI_ADDRESS, true, 0);
        assert_eq!(latch, PortRule::Answer(Verdict::Value(0x8000_1804)));
        let pci = |address, own| PortRule::Pci { address, own };
        assert_eq!(rule(Slot::Even, PCI_DATA, true, 0), pci(0x8000_1804, false));
        assert_eq!(rule(Slot::Odd, PCI_DATA, true, 0), pci(0x8000_1000, false));
        rule(Slot::Odd, PCI_ADDRESS, false, 0x8000_1804);
        assert_eq!(rule(Slot::Odd, PCI_DATA, true, 0), pci(0x8000_1804, true));
        rule(Slot::Odd, PCI_ADDRESS, false, 0x1804);
        let nobody = rule(Slot::Odd, PCI_DATA, true, 0);
        assert_eq!(nobody, PortRule::Answer(Verdict::Value(!0)), "no configuration cycle");
    }

    #[test]
    fn the_other_hosts_ports_are_denied() {
        let mut owners = Owners::new();
        owners.give(Resource::Ports(0x2f8, 0x2ff), Slot::Even).unwrap();
        let rule = |slot| filter().rule(&owners, slot, io(0x2f8, 1, false), 0x41);
        assert_eq!(rule(Slot::Odd), PortRule::Direct);
        assert_eq!(rule(Slot::Even), PortRule::Denied);
        for (port, size) in [(0x2f6, 4), (0x2fe, 4)] {
            for slot in Slot::ALL {
                let wide = filter().rule(&owners, slot, io(port, size, true), 0);
                assert_eq!(wide, PortRule::Denied, "{port:#x} is half of each");
            }
        }
    }
}
