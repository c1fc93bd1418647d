//! Words of the guest-state area (SDM vol. 3C, 26.4) that are no registers of the CPU, and segments as a VMCS has them.

use bitflags::bitflags;

bitflags! {
    /// Access rights of a segment (table 26-2). Those of a system segment have a type in place of the first four bits.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct AccessRights: u64 {
        /// Accessed.
        const ACCESSED = 1 << 0;
        /// Code: readable; data: writable.
        const READABLE_WRITABLE = 1 << 1;
        /// Code: conforming.
        const CONFORMING = 1 << 2;
        /// Code, not data.
        const CODE = 1 << 3;
        /// Code or data, not a system segment.
        const CODE_OR_DATA = 1 << 4;
        /// Descriptor privilege level.
        const DPL = 3 << 5;
        /// Present.
        const PRESENT = 1 << 7;
        /// 64-bit code.
        const LONG = 1 << 13;
        /// 32-bit operands.
        const DEFAULT_32 = 1 << 14;
        /// The limit counts pages.
        const GRANULARITY = 1 << 15;
        /// The register may not be used: a null selector was loaded.
        const UNUSABLE = 1 << 16;
        const _ = !0;

        /// An LDT (type 2; SDM vol. 3A, table 3-2).
        const LDT = 2 | Self::PRESENT.bits();
        /// A busy 64-bit TSS (type 11).
        const BUSY_TSS = 11 | Self::PRESENT.bits();
        /// Flat writable data at DPL 0.
        const DATA = Self::ACCESSED.bits()
            | Self::READABLE_WRITABLE.bits()
            | Self::CODE_OR_DATA.bits()
            | Self::PRESENT.bits()
            | Self::DEFAULT_32.bits()
            | Self::GRANULARITY.bits();
        /// 64-bit code at DPL 0.
        const CODE_64 = Self::ACCESSED.bits()
            | Self::READABLE_WRITABLE.bits()
            | Self::CODE.bits()
            | Self::CODE_OR_DATA.bits()
            | Self::PRESENT.bits()
            | Self::LONG.bits()
            | Self::GRANULARITY.bits();
    }

    /// Interruptibility state (26.4.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Interruptibility: u64 {
        /// Blocking by STI.
        const STI = 1 << 0;
        /// Blocking by MOV SS.
        const MOV_SS = 1 << 1;
        /// Blocking by NMI.
        const NMI = 1 << 3;
        const _ = !0;
    }

    /// Pending debug exceptions (26.4.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct PendingDebug: u64 {
        /// BS: a single-step trap.
        const SINGLE_STEP = 1 << 14;
        const _ = !0;
    }
}

impl AccessRights {
    /// Descriptor privilege level.
    pub(crate) const fn dpl(self) -> u8 {
        (self.intersection(Self::DPL).bits() >> 5) as u8
    }

    /// The same at the privilege level in the two lowest bits of `dpl`.
    pub(crate) const fn with_dpl(self, dpl: u16) -> Self {
        self.difference(Self::DPL)
            .union(Self::from_bits_retain((dpl as u64 & 3) << 5))
    }

    /// Whether code at such a segment runs in 64-bit mode at CPL 0, whatever called it.
    #[inline(always)]
    pub(crate) const fn is_64_bit_kernel(self) -> bool {
        let told = Self::LONG.union(Self::DPL).union(Self::CONFORMING);
        self.intersection(told).bits() == Self::LONG.bits()
    }
}

/// Activity state (26.4.2): active.
pub(crate) const ACTIVE: u64 = 0;
/// Activity state: HLT. INIT and NMIs end it.
pub(crate) const HALTED: u64 = 1;
/// Limit of a flat segment.
pub(crate) const FLAT_LIMIT: u64 = 0xffff_ffff;

/// Whether a selector is null (SDM vol. 3A, 3.4.2): its lowest two bits do not count.
pub(crate) const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_are_those_of_descriptors() {
        assert_eq!(AccessRights::CODE_64.bits(), 0xa09b);
        assert_eq!(AccessRights::DATA.bits(), 0xc093);
        assert_eq!(AccessRights::BUSY_TSS.bits(), 0x8b);
        let user = AccessRights::DATA.with_dpl(3);
        assert_eq!((user.bits(), user.dpl()), (0xc0f3, 3));
        assert!(AccessRights::CODE_64.is_64_bit_kernel());
        assert!(!AccessRights::CODE_64.with_dpl(3).is_64_bit_kernel());
        assert!(!(AccessRights::CODE_64 | AccessRights::CONFORMING).is_64_bit_kernel());
        assert!(!AccessRights::DATA.is_64_bit_kernel());
    }
}
