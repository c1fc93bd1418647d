//! Translation of a host's linear address, for the memory operands of VMX instructions (SDM vol. 3A, 4.5).
//!
//! Guest-physical is host-physical, so a walk reads the host's page tables where they are. Every address met on the
//! way is an allegation: only bytes that the host may touch are read.

use locum_abi::PAGE_SIZE;
use x86_64::structures::idt::PageFaultErrorCode;
use x86_64::structures::paging::PageTableFlags;

use crate::arch::paging;
use crate::vmx::Hardware;

/// Bytes of a table entry, and of a word that is read or written.
const WORD: u64 = 8;

/// Whether L0 may touch that many bytes at a physical address for the host.
pub(crate) type MayTouch<'a> = &'a dyn Fn(u64, u64) -> bool;

/// Why there is no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Not present: the host gets #PF, error code as given.
    Page(PageFaultErrorCode),
    /// The tables or the page lie outside the host's partition.
    Outside,
    /// Not canonical.
    NonCanonical,
}

/// Paging of the host as far as a supervisor access by 64-bit code needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paging {
    /// CR3.
    pub(crate) cr3: u64,
    /// CR4.LA57: five levels.
    pub(crate) five_levels: bool,
}

impl Paging {
    /// Translates one address; `write` only for the error code and the R/W bit (CR0.WP is taken as set).
    ///
    /// # Errors
    /// See [`Fault`].
    pub(crate) fn translate(
        self,
        hw: &mut impl Hardware,
        may_touch: MayTouch<'_>,
        linear: u64,
        write: bool,
    ) -> Result<u64, Fault> {
        let levels = if self.five_levels { 5 } else { 4 };
        let unused = 64 - paging::shift(levels + 1);
        if ((linear as i64) << unused >> unused) as u64 != linear {
            return Err(Fault::NonCanonical);
        }
        let mut code = PageFaultErrorCode::empty();
        code.set(PageFaultErrorCode::CAUSED_BY_WRITE, write);
        let mut table = self.cr3 & paging::ADDRESS;
        let mut level = levels;
        loop {
            let shift = paging::shift(level);
            let place = table + ((linear >> shift) % paging::ENTRIES as u64 * WORD);
            if !may_touch(place, WORD) {
                return Err(Fault::Outside);
            }
            let entry = hw.read_phys(place, 8);
            let flags = PageTableFlags::from_bits_retain(entry);
            if !flags.contains(PageTableFlags::PRESENT) {
                return Err(Fault::Page(code));
            }
            if write && !flags.contains(PageTableFlags::WRITABLE) {
                return Err(Fault::Page(code | PageFaultErrorCode::PROTECTION_VIOLATION));
            }
            if level == 1 || (flags.contains(PageTableFlags::HUGE_PAGE) && level <= 3) {
                let mask = (1_u64 << shift) - 1;
                return Ok(entry & paging::ADDRESS & !mask | linear & mask);
            }
            table = entry & paging::ADDRESS;
            level -= 1;
        }
    }
}

/// Reads `N` little-endian words of 64 bits at a linear address; they may cross a page.
///
/// # Errors
/// See [`Fault`].
pub(crate) fn read_words<const N: usize>(
    hw: &mut impl Hardware,
    may_touch: MayTouch<'_>,
    paging: Paging,
    linear: u64,
) -> Result<[u64; N], Fault> {
    let mut words = [0_u64; N];
    for (i, word) in words.iter_mut().enumerate() {
        let at = linear.wrapping_add(8 * i as u64);
        if at % PAGE_SIZE <= PAGE_SIZE - WORD {
            let phys = paging.translate(hw, may_touch, at, false)?;
            if !may_touch(phys, 8) {
                return Err(Fault::Outside);
            }
            *word = hw.read_phys(phys, 8);
        } else {
            for byte in 0..8 {
                let phys = paging.translate(hw, may_touch, at.wrapping_add(byte), false)?;
                if !may_touch(phys, 1) {
                    return Err(Fault::Outside);
                }
                *word |= hw.read_phys(phys, 1) << (8 * byte);
            }
        }
    }
    Ok(words)
}

/// Writes a 64-bit word at a linear address; it may cross a page.
///
/// # Errors
/// See [`Fault`]; nothing is written then.
pub(crate) fn write_word(
    hw: &mut impl Hardware,
    may_touch: MayTouch<'_>,
    paging: Paging,
    linear: u64,
    value: u64,
) -> Result<(), Fault> {
    let mut phys = [0_u64; 8];
    for (byte, place) in phys.iter_mut().enumerate() {
        *place = paging.translate(hw, may_touch, linear.wrapping_add(byte as u64), true)?;
        if !may_touch(*place, 1) {
            return Err(Fault::Outside);
        }
    }
    for (byte, place) in phys.iter().enumerate() {
        hw.write_phys(*place, 1, value >> (8 * byte) & 0xff);
    }
    Ok(())
}
