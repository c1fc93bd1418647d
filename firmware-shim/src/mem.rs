//! The caller's window on physical memory.

/// A read went outside the memory that the caller can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "physical memory {addr:#x}+{len:#x} cannot be read; the table that points there is damaged, or that range is not mapped"
)]
pub struct OutOfRange {
    /// First byte of the read.
    pub addr: u64,
    /// Length of the read in bytes.
    pub len: usize,
}

/// Reads of physical memory, supplied by the caller: identity-mapped memory in L0, a file or a map in user space.
pub trait PhysMem {
    /// Fills `buf` from physical address `addr`, wholly or not at all.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte of the range cannot be read.
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange>;
}

/// Physical memory given as pieces: each a base address and its bytes.
///
/// A read must lie within one piece.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<'a>(pub &'a [(u64, &'a [u8])]);

impl PhysMem for Pieces<'_> {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let found = self.0.iter().find_map(|&(base, bytes)| {
            let start = usize::try_from(addr.checked_sub(base)?).ok()?;
            bytes.get(start..start.checked_add(buf.len())?)
        });
        match found {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(OutOfRange { addr, len: buf.len() }),
        }
    }
}
