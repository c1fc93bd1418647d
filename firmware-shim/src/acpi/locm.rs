//! `LOCM`: the table by which a host's module finds L0.
//!
//! | offset | length | field |
//! | --- | --- | --- |
//! | 0 | 36 | common header, revision 1 |
//! | 36 | 8 | physical address of L0's header page |
//! | 44 | 4 | revision of the ABI |
//! | 48 | 4 | reserved, zero |

use super::error::AcpiError;
use super::header::{SDT_HEADER_LEN, SdtHeader};
use super::signature::Signature;
use super::sink::Sink;
use crate::bytes::{u32_at, u64_at};
use crate::mem::PhysMem;

/// Length of the table in bytes.
pub const LOCM_LEN: usize = SDT_HEADER_LEN + 16;

/// Contents of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locm {
    /// Physical address of L0's header page.
    pub header_page: u64,
    /// Revision of the ABI.
    pub abi_revision: u32,
}

impl Locm {
    /// Reads and verifies the table at `addr`.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged.
    pub fn read<M: PhysMem + ?Sized>(mem: &M, addr: u64) -> Result<Self, AcpiError> {
        SdtHeader::read_named(mem, addr, Signature::LOCM, LOCM_LEN)?;
        let mut raw = [0; LOCM_LEN];
        mem.read(addr, &mut raw)?;
        Ok(Self {
            header_page: u64_at(&raw, 36),
            abi_revision: u32_at(&raw, 44),
        })
    }

    pub(crate) fn write(&self, out: &mut Sink<'_>) {
        let table = out.open(&SdtHeader {
            signature: Signature::LOCM,
            length: 0,
            revision: 1,
            oem_id: *b"LOCUM ",
            oem_table_id: *b"LOCUML0 ",
            oem_revision: self.abi_revision,
            creator_id: [0; 4],
            creator_revision: 0,
        });
        out.u64(self.header_page);
        out.u32(self.abi_revision);
        out.u32(0);
        out.close(table);
    }
}
