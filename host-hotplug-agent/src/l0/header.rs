//! L0's header: is there an L0, and of which family? It may be of an earlier or of a later release than this program.

use firmware_shim::PhysMem;
use locum_abi::{HEADER_MIN, Header, Layout};

use super::memory::copy_part;
use crate::error::Refusal;

/// The header at physical address `at`, checked: what L0 has of it, and zeroes for what it does not have.
///
/// # Errors
/// [`Refusal::NoL0`], [`Refusal::L0Family`] or [`Refusal::DamagedL0`].
pub fn read(memory: &dyn PhysMem, at: u64) -> Result<Header, Refusal> {
    let read = |bytes| copy_part::<Header>(memory, at, bytes).map_err(|_| Refusal::NoL0);
    // What every header has tells how long this one is.
    let least = HEADER_MIN as usize;
    let known = (read(least)?.size as usize).clamp(least, size_of::<Header>());
    let header = read(known)?;
    Layout::of(&header)?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::l0::{FIRST_HEADER, FakeRegion};
    use firmware_shim::Pieces;
    use locum_abi::{FAMILY, MAGIC};

    const AT: u64 = 0x80_0000;

    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header, Refusal> {
        let mut bytes = FIRST_HEADER.to_vec();
        change(&mut bytes);
        read(&Pieces(&[(AT, &bytes)]), AT)
    }

    #[test]
    fn only_another_family_and_what_is_no_header_are_refused() {
        assert!(changed(|_| {}).is_ok());
        let error = changed(|bytes| bytes[8..12].copy_from_slice(&(FAMILY + 1).to_le_bytes())).unwrap_err();
        assert!(matches!(error, Refusal::L0Family { .. }));
        assert!(error.to_string().contains("family"), "{error}");
        let no_magic = changed(|bytes| bytes[..8].copy_from_slice(&(MAGIC + 1).to_le_bytes()));
        assert!(matches!(no_magic, Err(Refusal::NoL0)));
        let short = changed(|bytes| bytes[12..16].copy_from_slice(&100_u32.to_le_bytes()));
        assert!(matches!(short, Err(Refusal::DamagedL0("header"))));
        assert!(matches!(read(&Pieces(&[]), AT), Err(Refusal::NoL0)));
    }

    #[test]
    fn what_is_beyond_a_short_header_is_not_read() {
        let header = changed(|bytes| {
            bytes[12..16].copy_from_slice(&HEADER_MIN.to_le_bytes());
            bytes[HEADER_MIN as usize..].fill(0xff);
        });
        let header = header.unwrap();
        assert_eq!(
            (header.features, header.cpu_status_size, header.reserved),
            (0, 0, [0; 2])
        );
        assert_eq!(header.pm1b_cnt, 0xb104);
    }

    #[test]
    fn a_longer_header_with_unknown_features_is_read() {
        let header = changed(|bytes| {
            bytes.resize(2048, 0);
            bytes[12..16].copy_from_slice(&2048_u32.to_le_bytes());
            bytes[HEADER_MIN as usize..][..8].fill(0xff);
        });
        assert_eq!(header.unwrap().features, !0);
        let own = FakeRegion::new(2);
        assert_eq!(read(&own, AT).unwrap().size as usize, size_of::<Header>());
    }
}
