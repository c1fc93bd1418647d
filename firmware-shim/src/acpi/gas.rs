//! Generic address structure (ACPI 6.5, 5.2.3.2): a register somewhere.

use crate::bytes::{field, u8_at, u64_at};

/// Address space of memory.
pub const SPACE_SYSTEM_MEMORY: u8 = 0;
/// Address space of I/O ports.
pub const SPACE_SYSTEM_IO: u8 = 1;

/// Length in bytes.
pub(crate) const GAS_LEN: usize = 12;

/// A register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gas {
    /// [`SPACE_SYSTEM_MEMORY`], [`SPACE_SYSTEM_IO`] or another of the specification's.
    pub space: u8,
    /// Width in bits.
    pub bit_width: u8,
    /// Offset of the register in bits.
    pub bit_offset: u8,
    /// 0 undefined, 1 byte, 2 word, 3 dword, 4 qword.
    pub access_size: u8,
    /// Address in that space.
    pub address: u64,
}

impl Gas {
    /// The I/O register block that a 32-bit field of the FADT names: `None` if the port is 0.
    ///
    /// Width and access size are those that ACPICA derives itself (`acpi_tb_init_generic_address`), or it warns of a
    /// mismatch.
    #[must_use]
    pub fn from_legacy(port: u32, len: u8) -> Option<Self> {
        (port != 0).then_some(Self {
            space: SPACE_SYSTEM_IO,
            bit_width: if len > 31 { 255 } else { len * 8 },
            bit_offset: 0,
            access_size: 0,
            address: u64::from(port),
        })
    }

    /// The I/O port, if it is one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        if self.space == SPACE_SYSTEM_IO {
            u16::try_from(self.address).ok()
        } else {
            None
        }
    }

    /// The structure at `offset`, `None` if its address is 0, which is how tables say "not there".
    pub(crate) fn at(bytes: &[u8], offset: usize) -> Option<Self> {
        let raw: [u8; GAS_LEN] = field(bytes, offset);
        let address = u64_at(&raw, 4);
        (address != 0).then_some(Self {
            space: u8_at(&raw, 0),
            bit_width: u8_at(&raw, 1),
            bit_offset: u8_at(&raw, 2),
            access_size: u8_at(&raw, 3),
            address,
        })
    }

    pub(crate) fn encode(&self) -> [u8; GAS_LEN] {
        let [a, b, c, d, e, f, g, h] = self.address.to_le_bytes();
        [
            self.space,
            self.bit_width,
            self.bit_offset,
            self.access_size,
            a,
            b,
            c,
            d,
            e,
            f,
            g,
            h,
        ]
    }
}
