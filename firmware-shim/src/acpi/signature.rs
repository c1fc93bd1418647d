//! Names of tables.

use core::fmt;

/// A table's four-character name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 4]);

impl Signature {
    /// Root table with 32-bit pointers.
    pub const RSDT: Self = Self(*b"RSDT");
    /// Root table with 64-bit pointers.
    pub const XSDT: Self = Self(*b"XSDT");
    /// Fixed ACPI description table; its signature differs from its name.
    pub const FADT: Self = Self(*b"FACP");
    /// Multiple APIC description table; its signature differs from its name.
    pub const MADT: Self = Self(*b"APIC");
    /// Differentiated system description table (AML).
    pub const DSDT: Self = Self(*b"DSDT");
    /// Secondary system description table (AML).
    pub const SSDT: Self = Self(*b"SSDT");
    /// PCI Express memory-mapped configuration space.
    pub const MCFG: Self = Self(*b"MCFG");
    /// DMA remapping units (VT-d).
    pub const DMAR: Self = Self(*b"DMAR");
    /// NUMA affinity.
    pub const SRAT: Self = Self(*b"SRAT");
    /// NUMA distances.
    pub const SLIT: Self = Self(*b"SLIT");
    /// Sources of hardware errors that the firmware reports.
    pub const HEST: Self = Self(*b"HEST");
    /// Hardware errors of before the machine's boot.
    pub const BERT: Self = Self(*b"BERT");
    /// The machine's management processor (IPMI 2.0, appendix C3).
    pub const SPMI: Self = Self(*b"SPMI");
    /// Ours: where to find L0.
    pub const LOCM: Self = Self(*b"LOCM");
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
