//! What L0 needs of a CPU's VMX, for those who ask before it is there.

/// Bits that a capability MSR must have (SDM vol. 3D, appendix A), and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Number of the MSR.
    pub msr: u32,
    /// Bits that must be 1.
    pub bits: u64,
    /// What they stand for: "EPT and unrestricted guest".
    pub what: &'static str,
}

/// Controls that may be 1 are in the upper halves of their MSRs.
const fn allowed(bits: &[u32]) -> u64 {
    let mut all = 0;
    let mut rest = bits;
    while let [bit, after @ ..] = rest {
        all |= 1 << (32 + *bit);
        rest = after;
    }
    all
}

/// All that L0 cannot enter nested mode without, but for CPUID's VMX and IA32_FEATURE_CONTROL.
pub const NEEDS: [Need; 5] = [
    Need {
        msr: 0x480,
        bits: 1 << 55,
        what: "the TRUE control MSRs (IA32_VMX_BASIC)",
    },
    Need {
        msr: 0x48e,
        bits: allowed(&[25, 27, 28, 31]),
        what: "I/O and MSR bitmaps, monitor trap flag and secondary controls (primary controls)",
    },
    Need {
        msr: 0x48b,
        bits: allowed(&[1, 7]),
        what: "EPT and unrestricted guest (secondary controls)",
    },
    Need {
        msr: 0x48f,
        bits: allowed(&[2, 9, 20]),
        what: "saving of debug controls and IA32_EFER, 64-bit host (exit controls)",
    },
    Need {
        msr: 0x490,
        bits: allowed(&[2, 15]),
        what: "loading of debug controls and IA32_EFER (entry controls)",
    },
];
