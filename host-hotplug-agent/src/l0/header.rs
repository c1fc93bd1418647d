//! L0's header: is there an L0, and does it speak our revision?

use firmware_shim::PhysMem;
use locum_abi::{Header, MAGIC, REVISION};

use super::memory::copy;
use crate::error::Refusal;

/// The header at physical address `at`, checked.
///
/// # Errors
/// [`Refusal::NoL0`] or [`Refusal::AbiRevision`].
pub fn read(memory: &dyn PhysMem, at: u64) -> Result<Header, Refusal> {
    let header: Header = copy(memory, at).map_err(|_| Refusal::NoL0)?;
    check(&header)?;
    Ok(header)
}

fn check(header: &Header) -> Result<(), Refusal> {
    if header.magic != MAGIC {
        return Err(Refusal::NoL0);
    }
    if header.revision != REVISION {
        return Err(Refusal::AbiRevision {
            found: header.revision,
            expected: REVISION,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use firmware_shim::Pieces;

    fn bytes(magic: u64, revision: u32) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<Header>()];
        bytes[..8].copy_from_slice(&magic.to_le_bytes());
        bytes[8..12].copy_from_slice(&revision.to_le_bytes());
        bytes
    }

    #[test]
    fn only_our_revision_is_accepted() {
        let at = 0x80_0000;
        let read = |bytes: &[u8]| super::read(&Pieces(&[(at, bytes)]), at);
        assert!(read(&bytes(MAGIC, REVISION)).is_ok());
        assert!(matches!(read(&bytes(0, REVISION)), Err(Refusal::NoL0)));
        let error = read(&bytes(MAGIC, REVISION + 1)).unwrap_err();
        assert!(matches!(error, Refusal::AbiRevision { .. }));
        assert!(error.to_string().contains("revision"), "{error}");
        assert!(matches!(super::read(&Pieces(&[]), at), Err(Refusal::NoL0)));
    }
}
