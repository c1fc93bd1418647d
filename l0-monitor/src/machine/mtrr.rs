//! The memory types that the MTRRs give (SDM vol. 3A, 12.11), as found at boot. L0 never changes MTRRs.

use arrayvec::ArrayVec;
use locum_abi::PAGE_SIZE;

use crate::arch::msr;
use crate::arch::paging::page_of;

/// A memory type (SDM vol. 3A, table 12-2), in the encoding that MTRRs and EPT entries share.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// Uncacheable.
    Uncacheable = 0,
    /// Write combining.
    WriteCombining = 1,
    /// Write through.
    WriteThrough = 4,
    /// Write protected.
    WriteProtected = 5,
    /// Write back.
    WriteBack = 6,
}

impl MemoryType {
    /// From a field of an MTRR; reserved encodings count as uncacheable, the safe choice.
    pub(crate) const fn from_raw(raw: u8) -> Self {
        match raw {
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => Self::Uncacheable,
        }
    }
}

/// Variable ranges that L0 looks at; CPUs have about ten.
const MAX_VARIABLE: usize = 32;
/// MTRRCAP: fixed ranges supported.
const CAP_FIXED: u64 = 1 << 8;
/// DEF_TYPE: fixed ranges enabled.
const FIXED_ENABLED: u64 = 1 << 10;
/// DEF_TYPE: MTRRs enabled.
const ENABLED: u64 = 1 << 11;
/// PHYSMASK: the pair is valid.
const VALID: u64 = 1 << 11;
/// Beyond every address: "never".
const LAST_PAGE: u64 = page_of(u64::MAX);

/// First byte that fixed ranges do not cover.
const FIXED_END: u64 = 0x10_0000;

/// The MTRRs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mtrrs {
    def_type: u64,
    fixed: [u64; 11],
    variable: ArrayVec<(u64, u64), MAX_VARIABLE>,
    max_phys_bits: u8,
}

impl Mtrrs {
    /// None, or disabled: everything is uncacheable.
    pub(crate) const NONE: Self = Self {
        def_type: 0,
        fixed: [0; 11],
        variable: ArrayVec::new_const(),
        max_phys_bits: 36,
    };

    /// Reads them from the CPU that runs this. Without MTRRs everything is uncacheable.
    pub(crate) fn read(max_phys_bits: u8) -> Self {
        let mut mtrrs = Self {
            max_phys_bits,
            ..Self::NONE
        };
        let (Some(cap), Some(def_type)) = (msr::read_safe(msr::MTRR_CAP), msr::read_safe(msr::MTRR_DEF_TYPE)) else {
            return mtrrs;
        };
        mtrrs.def_type = def_type;
        if cap & CAP_FIXED == 0 {
            mtrrs.def_type &= !FIXED_ENABLED;
        } else {
            mtrrs.fixed = msr::MTRR_FIXED.map(|index| msr::read_safe(index).unwrap_or(0));
        }
        for pair in 0..(cap as u8).into() {
            let base = msr::read_safe(msr::MTRR_PHYS_BASE0 + 2 * pair).unwrap_or(0);
            let mask = msr::read_safe(msr::MTRR_PHYS_BASE0 + 2 * pair + 1).unwrap_or(0);
            if mask & VALID != 0 && mtrrs.variable.try_push((base, mask)).is_err() {
                break;
            }
        }
        mtrrs
    }

    /// Memory type at a physical address, and the first address above it where another may begin (a multiple of 4 KiB).
    pub(crate) fn lookup(&self, address: u64) -> (MemoryType, u64) {
        let top = 1u64 << self.max_phys_bits.clamp(32, 52);
        if self.def_type & ENABLED == 0 {
            return (MemoryType::Uncacheable, top.max(address.saturating_add(PAGE_SIZE)));
        }
        if address < FIXED_END && self.def_type & FIXED_ENABLED != 0 {
            return self.fixed(address);
        }
        let mut end = top.max(address.saturating_add(PAGE_SIZE));
        if address < FIXED_END {
            end = FIXED_END;
        }
        let mut found: Option<MemoryType> = None;
        for &(base, mask) in &self.variable {
            let (start, range_end) = variable_run(base, mask, top, address);
            match start {
                Hit::Inside => {
                    let kind = MemoryType::from_raw(base as u8);
                    found = Some(found.map_or(kind, |other| combine(kind, other)));
                    end = end.min(range_end);
                }
                Hit::Outside => end = end.min(range_end),
            }
        }
        let kind = found.unwrap_or(MemoryType::from_raw(self.def_type as u8));
        (kind, end)
    }

    fn fixed(&self, address: u64) -> (MemoryType, u64) {
        let (first, start, shift) = match address {
            0..0x8_0000 => (0, 0, 16),
            0x8_0000..0xc_0000 => (8, 0x8_0000, 14),
            _ => (24, 0xc_0000, 12),
        };
        let step = (address - start) >> shift;
        let index = first + step as usize;
        let register = self.fixed.get(index / 8).copied().unwrap_or(0);
        let raw = (register >> (index % 8 * 8)) as u8;
        (MemoryType::from_raw(raw), start + ((step + 1) << shift))
    }
}

enum Hit {
    Inside,
    Outside,
}

/// Whether a variable range covers `address`, and where that may change next. Masks need not be contiguous; the next
/// change is then at the next step of the mask's lowest bit.
fn variable_run(base: u64, mask: u64, top: u64, address: u64) -> (Hit, u64) {
    let mask = page_of(mask) & (top - 1);
    let base = page_of(base) & mask;
    if mask == 0 {
        return (Hit::Inside, LAST_PAGE);
    }
    let step = mask & mask.wrapping_neg();
    let contiguous = mask == top - step;
    let next_step = (address & !(step - 1)).saturating_add(step);
    if address & mask == base {
        (Hit::Inside, next_step)
    } else if contiguous {
        let next = if address < base { base } else { LAST_PAGE };
        (Hit::Outside, next)
    } else {
        (Hit::Outside, next_step)
    }
}

/// Type where two variable ranges overlap (SDM vol. 3A, 12.11.4.1): uncacheable wins, write through wins over write
/// back, the rest is undefined, for which uncacheable is safe.
fn combine(a: MemoryType, b: MemoryType) -> MemoryType {
    use MemoryType::{Uncacheable, WriteBack, WriteThrough};
    match (a, b) {
        _ if a == b => a,
        (WriteBack, WriteThrough) | (WriteThrough, WriteBack) => WriteThrough,
        _ => Uncacheable,
    }
}

#[cfg(test)]
mod published;

#[cfg(test)]
mod tests {
    use super::*;
    use MemoryType::{Uncacheable, WriteBack, WriteProtected, WriteThrough};

    const GIB: u64 = 1 << 30;

    /// As a PC's firmware sets them up: WB by default, UC from 3 to 4 GiB, VGA UC, ROM WP.
    fn pc() -> Mtrrs {
        let mut fixed = [0x0606_0606_0606_0606; 11];
        fixed[2] = 0;
        fixed[7] = 0x0505_0505_0505_0505;
        Mtrrs {
            def_type: ENABLED | FIXED_ENABLED | 6,
            fixed,
            variable: [(3 * GIB, 0xff_c000_0000 | VALID)].into_iter().collect(),
            max_phys_bits: 40,
        }
    }

    /// The one type of a whole range.
    fn uniform(mtrrs: &Mtrrs, range: core::ops::Range<u64>) -> Option<MemoryType> {
        let (kind, mut at) = mtrrs.lookup(range.start);
        while at < range.end {
            let (here, end) = mtrrs.lookup(at);
            if here != kind {
                return None;
            }
            at = end;
        }
        Some(kind)
    }

    #[test]
    fn fixed_ranges_rule_the_first_mib() {
        let m = pc();
        assert_eq!(m.lookup(0x1234), (WriteBack, 0x1_0000));
        assert_eq!(m.lookup(0x9_ffff), (WriteBack, 0xa_0000));
        assert_eq!(m.lookup(0xa_0000), (Uncacheable, 0xa_4000));
        assert_eq!(m.lookup(0xe_0000), (WriteProtected, 0xe_1000));
        assert_eq!(uniform(&m, 0xa_0000..0xc_0000), Some(Uncacheable));
        assert_eq!(uniform(&m, 0x9_0000..0xb_0000), None);
    }

    #[test]
    fn variable_ranges_and_the_default_rule_the_rest() {
        let m = pc();
        assert_eq!(m.lookup(0x10_0000), (WriteBack, 3 * GIB));
        assert_eq!(m.lookup(3 * GIB), (Uncacheable, 4 * GIB));
        assert_eq!(m.lookup(4 * GIB), (WriteBack, 1 << 40));
        assert_eq!(uniform(&m, 2 * GIB..3 * GIB), Some(WriteBack));
        assert_eq!(uniform(&m, 2 * GIB..4 * GIB), None);
    }

    #[test]
    fn overlaps_and_gaps() {
        let mut m = pc();
        m.def_type = ENABLED;
        m.variable = [
            (6, 0xff_8000_0000 | VALID),
            (GIB | 4, 0xff_c000_0000 | VALID),
            (0x100_0000, 0xff_ff00_0000 | VALID),
        ]
        .into_iter()
        .collect();
        assert_eq!(m.lookup(0x1_0000), (WriteBack, 0x10_0000));
        assert_eq!(m.lookup(0x10_0000), (WriteBack, 0x100_0000));
        assert_eq!(m.lookup(0x100_0000), (Uncacheable, 0x200_0000));
        assert_eq!(m.lookup(0x200_0000), (WriteBack, GIB));
        assert_eq!(m.lookup(GIB), (WriteThrough, 2 * GIB));
        assert_eq!(m.lookup(2 * GIB), (Uncacheable, 1 << 40));
    }

    #[test]
    fn disabled_means_uncacheable() {
        assert_eq!(Mtrrs::NONE.lookup(GIB), (Uncacheable, 1 << 36));
    }
}
