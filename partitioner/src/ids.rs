//! Names of CPUs, nodes, interrupts, generations and slots: one type each, so that none is taken for another.

use core::fmt;

pub use locum_abi::Slot;

/// Local APIC id of a CPU: its name for L0, the same under every host. Below 255 (xAPIC mode).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct ApicId(pub u32);

/// Linux's number of a CPU (`/sys/devices/system/cpu/cpuN`). Differs from host to host: each counts its own first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct CpuNumber(pub u32);

/// Linux's number of a NUMA node (`/sys/devices/system/node/nodeN`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct NodeId(pub u32);

/// Global system interrupt: the number of an IOAPIC pin across all IOAPICs (ACPI 6.5, 5.2.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Gsi(pub u32);

/// Number of a reigning host: 0 at boot, one more with each refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }

    /// Which of the two places for a host it has.
    #[must_use]
    pub const fn slot(self) -> Slot {
        if self.0.is_multiple_of(2) {
            Slot::Even
        } else {
            Slot::Odd
        }
    }
}

impl fmt::Display for ApicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "APIC {}", self.0)
    }
}

impl fmt::Display for CpuNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {}", self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

impl fmt::Display for Gsi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IOAPIC pin (GSI) {}", self.0)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {}", self.0)
    }
}

/// With the feature `serde`, a type is stored as the text that it prints and reads.
macro_rules! text_conversions {
    ($type:ty, $error:ty) => {
        impl From<$type> for alloc::string::String {
            fn from(value: $type) -> Self {
                alloc::string::ToString::to_string(&value)
            }
        }

        impl TryFrom<alloc::string::String> for $type {
            type Error = $error;

            fn try_from(text: alloc::string::String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}
pub(crate) use text_conversions;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_alternate() {
        let first = Generation(0);
        assert_eq!(first.slot(), Slot::Even);
        assert_eq!(first.next().slot(), Slot::Odd);
        assert_eq!(Generation(u64::MAX).next(), Generation(0), "no overflow, parity kept");
    }
}
