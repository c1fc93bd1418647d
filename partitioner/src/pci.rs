//! PCI functions and what they occupy.

use alloc::{string::String, vec::Vec};
use core::{fmt, str::FromStr};

use crate::{Gsi, MemRange, PortRange};

/// Address of a PCI function. Written `SSSS:BB:DD.F` as in `/sys/bus/pci/devices`; the segment may be left out.
///
/// What Linux calls a domain is the segment of ACPI up to 0xffff. Above that are domains that Linux made up: those behind
/// Intel VMD (`drivers/pci/controller/vmd.c`), which it writes with as many digits as they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(into = "String", try_from = "String")
)]
pub struct PciAddress {
    segment: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The function at that place, or `None` if `device` is above 31 or `function` above 7.
    #[must_use]
    pub const fn new(segment: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self {
                segment,
                bus,
                device,
                function,
            })
        } else {
            None
        }
    }

    /// Segment group (ACPI `_SEG`), 0 on most machines; above 0xffff a domain of Linux's own.
    #[must_use]
    pub const fn segment(self) -> u32 {
        self.segment
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number, 0 to 31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number, 0 to 7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.segment, self.bus, self.device, self.function
        )
    }
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no PCI address: write SSSS:BB:DD.F in hexadecimal, as in `ls /sys/bus/pci/devices`")]
pub struct ParsePciAddressError(String);

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |digits: &str, most: usize| {
            let plain = (1..=most).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(digits, 16).ok()).flatten()
        };
        let parse = || {
            let (rest, function) = text.trim().rsplit_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (segment, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
            let byte = |digits, most| u8::try_from(hex(digits, most)?).ok();
            Self::new(hex(segment, 8)?, byte(bus, 2)?, byte(device, 2)?, byte(function, 1)?)
        };
        parse().ok_or_else(|| ParsePciAddressError(text.into()))
    }
}

crate::ids::text_conversions!(PciAddress, ParsePciAddressError);

/// What a base address register of a function decodes. Registers without an address are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum Bar {
    /// Memory, the expansion ROM included.
    Memory(MemRange),
    /// I/O ports.
    Ports(PortRange),
}

/// A PCI function that the incumbent sees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PciFunction {
    /// Where it is.
    pub address: PciAddress,
    /// Class code, 24 bits: base class, subclass, programming interface (`class` in sysfs).
    pub class: u32,
    /// Driver bound to it, if any.
    pub driver: Option<String>,
    /// Why it cannot go now, in a few words ("eth1 is up", "/dev/vda1 is mounted"). `None`: nobody uses it.
    pub busy: Option<String>,
    /// Whether it is a host, ISA, PCI or other bridge (base class 06): visible to both hosts, moved by a plan never.
    pub bridge: bool,
    /// What it decodes.
    pub bars: Vec<Bar>,
    /// IOAPIC pin of its INTx line; `None` if it has none or uses MSI only.
    pub gsi: Option<Gsi>,
    /// The function of segment 0 that it lies behind and follows, if it is in a domain that this one opens (Intel VMD).
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pub behind: Option<PciAddress>,
}

impl PciFunction {
    /// Whether L0 can give it to one host or the other: it knows the functions of segment 0 only.
    #[must_use]
    pub const fn movable(&self) -> bool {
        self.address.segment == 0
    }

    /// Pages that its memory BARs touch: what must be mapped for its owner and for nobody else.
    pub fn pages(&self) -> impl Iterator<Item = MemRange> {
        self.bars.iter().filter_map(|bar| match bar {
            Bar::Memory(range) => Some(range.to_pages()),
            Bar::Ports(_) => None,
        })
    }

    /// Ports that its I/O BARs decode.
    pub fn ports(&self) -> impl Iterator<Item = PortRange> {
        self.bars.iter().filter_map(|bar| match bar {
            Bar::Ports(range) => Some(*range),
            Bar::Memory(_) => None,
        })
    }
}

impl fmt::Display for PciFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.driver {
            Some(driver) => write!(f, "{} ({driver})", self.address),
            None => write!(f, "{}", self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn addresses_read_what_they_print() {
        let address = PciAddress::new(0, 0, 0x1f, 3).unwrap();
        assert_eq!(address.to_string(), "0000:00:1f.3");
        assert_eq!("0000:00:1f.3".parse(), Ok(address));
        assert_eq!("00:1f.3".parse(), Ok(address));
        assert_eq!("00000000:00:1f.3".parse(), Ok(address), "as tools of others write it");
        for segment in [1, 0xffff, 0x1_0000, 0x10_0003, 0x7fff_ffff, u32::MAX] {
            let behind = PciAddress::new(segment, 1, 0, 0).unwrap();
            assert_eq!(behind.to_string().parse(), Ok(behind));
        }
        assert_eq!(PciAddress::new(0x1_0000, 0, 0, 0).unwrap().to_string(), "10000:00:00.0");
        for bad in [
            "",
            "00:20.0",
            "00:1f.8",
            "1f.3",
            "0:0:0:0.0",
            "00:+1.0",
            "000000000:00:01.0",
            "100000000:00:01.0",
            "00:001.0",
            "eth0",
        ] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
