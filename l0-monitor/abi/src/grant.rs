//! What one host gives to the other, with the arguments of [`crate::Op::Grant`] that say it.

use crate::raw::from_raw;
use crate::{Errno, PAGE_SIZE};

/// End of the physical address space that is accounted for (MAXPHYADDR is 52 at most, SDM vol. 3A, 4.1.4).
pub const ADDRESS_SPACE_END: u64 = 1 << 52;

/// Interrupt pins (GSIs) below this can be given. Those from here on stay with the host that reigns.
pub const GRANTABLE_PINS: u32 = 1024;

/// How many PCI functions can be the host's that does not reign.
pub const GRANTABLE_FUNCTIONS: usize = 64;

/// What kind of resource a [`Grant`] gives: RDI of the call. `b` and `c` are RSI and RDX.
#[repr(u64)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// A parked CPU. `b`: APIC id, `c`: 0.
    Cpu = 0,
    /// Memory or MMIO. `b`: first byte, `c`: bytes, both multiples of 4 KiB.
    Memory = 1,
    /// A PCI function. `b`: bus << 8 | device << 3 | function, `c`: 0.
    Pci = 2,
    /// I/O ports. `b`: first port, `c`: number.
    Ports = 3,
    /// An interrupt pin. `b`: GSI, `c`: 0.
    Pin = 4,
}

from_raw!(ResourceKind: u64 { Cpu, Memory, Pci, Ports, Pin });

/// A resource that changes its owner. Ranges are in order and not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// A parked CPU.
    Cpu {
        /// Its APIC id.
        apic_id: u32,
    },
    /// Memory or MMIO.
    Memory {
        /// First byte, 4 KiB aligned.
        start: u64,
        /// End, 4 KiB aligned, at most [`ADDRESS_SPACE_END`].
        end: u64,
    },
    /// A PCI function of segment 0.
    Pci {
        /// bus << 8 | device << 3 | function, as in requester ids (PCI Express base specification, 2.2.6.2).
        function: u16,
    },
    /// I/O ports.
    Ports {
        /// First.
        first: u16,
        /// Last.
        last: u16,
    },
    /// An IOAPIC pin.
    Pin {
        /// Global system interrupt (ACPI 6.5, 5.2.13).
        gsi: u32,
    },
}

impl Grant {
    /// Its kind.
    #[must_use]
    pub const fn kind(self) -> ResourceKind {
        match self {
            Self::Cpu { .. } => ResourceKind::Cpu,
            Self::Memory { .. } => ResourceKind::Memory,
            Self::Pci { .. } => ResourceKind::Pci,
            Self::Ports { .. } => ResourceKind::Ports,
            Self::Pin { .. } => ResourceKind::Pin,
        }
    }

    /// The arguments of the call.
    #[must_use]
    pub const fn encode(self) -> [u64; 3] {
        let (b, c) = match self {
            Self::Cpu { apic_id } => (apic_id as u64, 0),
            Self::Memory { start, end } => (start, end.wrapping_sub(start)),
            Self::Pci { function } => (function as u64, 0),
            Self::Ports { first, last } => (first as u64, (last as u64 + 1).wrapping_sub(first as u64)),
            Self::Pin { gsi } => (gsi as u64, 0),
        };
        [self.kind() as u64, b, c]
    }

    /// Checks the arguments of a call.
    ///
    /// # Errors
    /// [`Errno::Argument`]: no such kind, a range that is empty, not aligned or too long, or an argument that is reserved
    /// and not 0.
    pub fn decode([kind, b, c]: [u64; 3]) -> Result<Self, Errno> {
        let refused = Errno::Argument;
        let kind = ResourceKind::from_raw(kind).ok_or(refused)?;
        match kind {
            ResourceKind::Memory => {
                let end = b.checked_add(c).ok_or(refused)?;
                let aligned = (b | c) % PAGE_SIZE == 0;
                if c == 0 || !aligned || end > ADDRESS_SPACE_END {
                    return Err(refused);
                }
                Ok(Self::Memory { start: b, end })
            }
            ResourceKind::Ports => {
                let last = c.checked_sub(1).and_then(|rest| b.checked_add(rest)).ok_or(refused)?;
                Ok(Self::Ports {
                    first: narrow(b)?,
                    last: narrow(last)?,
                })
            }
            _ if c != 0 => Err(refused),
            ResourceKind::Cpu => Ok(Self::Cpu { apic_id: narrow(b)? }),
            ResourceKind::Pci => Ok(Self::Pci { function: narrow(b)? }),
            ResourceKind::Pin => Ok(Self::Pin { gsi: narrow(b)? }),
        }
    }
}

fn narrow<T: TryFrom<u64>>(value: u64) -> Result<T, Errno> {
    T::try_from(value).map_err(|_| Errno::Argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_checked() {
        let refused = Err(Errno::Argument);
        for [kind, b, c] in [
            [0, 0x1_0000_0000, 0],
            [0, 1, 1],
            [1, 0x1000, 0],
            [1, 0x1001, 0x1000],
            [1, 0x1000, 0x1001],
            [1, !0xfff, 0x2000],
            [1, ADDRESS_SPACE_END, 0x1000],
            [2, 0x1_0000, 0],
            [2, 0x10, 1],
            [3, 0x2f8, 0],
            [3, 0xffff, 2],
            [3, u64::MAX, 2],
            [4, 1 << 32, 0],
            [4, 9, 1],
            [9, 0, 0],
        ] {
            assert_eq!(Grant::decode([kind, b, c]), refused, "{kind} {b:#x} {c:#x}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for grant in [
            Grant::Cpu { apic_id: 3 },
            Grant::Memory {
                start: 0x4800_0000,
                end: ADDRESS_SPACE_END,
            },
            Grant::Pci { function: 0x18 },
            Grant::Ports { first: 0, last: 0xffff },
            Grant::Ports {
                first: 0x2f8,
                last: 0x2ff,
            },
            Grant::Pin { gsi: 11 },
        ] {
            assert_eq!(Grant::decode(grant.encode()), Ok(grant));
        }
        let ports = Grant::Ports {
            first: 0x2f8,
            last: 0x2ff,
        };
        assert_eq!(ports.encode(), [3, 0x2f8, 8]);
    }
}
