//! Physical memory at boot, when all of it is L0's.
#![expect(unsafe_code, reason = "physical memory is reached by address")]

use core::arch::asm;
use core::ops::Range;

use firmware_shim::{OutOfRange, PhysMem};

/// End of what the page tables of the entry map.
pub(crate) const MAPPED: u64 = 4 << 30;

/// Physical memory below 4 GiB as the firmware's tables are read from it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity(());

impl Identity {
    /// # Safety
    /// The low 4 GiB are mapped one to one.
    pub(crate) const unsafe fn new() -> Self {
        Self(())
    }
}

impl PhysMem for Identity {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let len = buf.len();
        match addr.checked_add(len as u64) {
            // SAFETY: `buf` is writable; the source is mapped, see `new`.
            Some(end) if end <= MAPPED => unsafe { move_bytes(buf.as_mut_ptr() as u64, addr, len as u64) },
            _ => return Err(OutOfRange { addr, len }),
        }
        Ok(())
    }
}

/// Copies bytes between physical addresses, also when the ranges overlap. In assembly, because 0 is an address here.
///
/// # Safety
/// Both ranges are mapped one to one; nothing that Rust knows of lies in the destination but what the caller may write.
pub(crate) unsafe fn move_bytes(to: u64, from: u64, len: u64) {
    // SAFETY: the caller answers for both ranges. The direction flag is clear again afterwards, as the ABI wants it.
    unsafe {
        if to <= from || to >= from.saturating_add(len) {
            asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _, inout("rcx") len => _, options(nostack));
        } else {
            asm!(
                "std", "rep movsb", "cld",
                inout("rdi") to + len - 1 => _, inout("rsi") from + len - 1 => _, inout("rcx") len => _,
                options(nostack),
            );
        }
    }
}

/// Fills memory with zeroes.
///
/// # Safety
/// As for the destination of [`move_bytes`].
pub(crate) unsafe fn clear(at: u64, len: u64) {
    // SAFETY: the caller's word.
    unsafe {
        asm!("rep stosb", inout("rdi") at => _, inout("rcx") len => _, in("al") 0_u8, options(nostack));
    }
}

/// The bytes of a range.
///
/// # Safety
/// The range is mapped one to one, not empty, does not begin at 0, and nobody writes to it during `'a`.
pub(crate) unsafe fn bytes<'a>(range: &Range<u64>) -> &'a [u8] {
    // SAFETY: the caller's word.
    unsafe { core::slice::from_raw_parts(range.start as *const u8, (range.end - range.start) as usize) }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn moves_overlapping_ranges_both_ways() {
        let mut data: std::vec::Vec<u8> = (0..100).collect();
        let base = data.as_mut_ptr() as u64;
        // SAFETY: inside the vector, which is not otherwise used meanwhile.
        unsafe { move_bytes(base + 10, base, 50) };
        assert_eq!(&data[10..60], (0..50).collect::<std::vec::Vec<u8>>());
        let mut data: std::vec::Vec<u8> = (0..100).collect();
        let base = data.as_mut_ptr() as u64;
        // SAFETY: as above.
        unsafe { move_bytes(base, base + 10, 50) };
        assert_eq!(&data[..50], (10..60).collect::<std::vec::Vec<u8>>());
    }
}
