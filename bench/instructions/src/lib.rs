//! The instructions that exit for a host, or may: one table for everybody who tries them.
//!
//! The lab executes it in a host's user space and in its kernel, native and nested (`lab-guest instructions`); L0's tests
//! execute it on the model of a CPU (`l0-monitor/src/nested/instruction_tests.rs`). What is known of an instruction,
//! [`Case::native`], is held against both.
#![no_std]

mod table;

pub use table::TABLE;

/// Where the code lies that is tried, in bytes: a page below 4 GiB, so that code of both widths reaches it.
pub const PAGE: u64 = 0x1000_0000;
/// What memory operands name, in the page.
pub const DATA: u64 = 0x400;

/// An instruction.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name, without a space.
    pub name: &'static str,
    /// Its bytes, the same in both modes.
    pub code: &'static [u8],
    /// RAX, RCX, RDX.
    pub registers: [u64; 3],
    /// Registers whose values differ from one time to the next.
    pub varies: &'static [&'static str],
    /// A kernel survives it, and can be tried with it.
    pub in_kernel: bool,
    /// What comes of it on any CPU in VMX operation without a current VMCS, where that is known.
    pub native: Option<Native>,
}

/// What comes of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The next instruction follows.
    Passes,
    /// #UD.
    InvalidOpcode,
    /// #GP.
    GeneralProtection,
}

/// What comes of an instruction in VMX root operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Native {
    /// At CPL 0.
    pub kernel: Outcome,
    /// At CPL 3.
    pub user: Outcome,
    /// It is #UD in compatibility mode, at any CPL.
    pub only_64_bit: bool,
}

impl Native {
    /// At this privilege level and width of code.
    #[must_use]
    pub const fn at(self, cpl: u8, compatibility: bool) -> Outcome {
        if compatibility && self.only_64_bit {
            Outcome::InvalidOpcode
        } else if cpl == 0 {
            self.kernel
        } else {
            self.user
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_tell_the_cases_apart() {
        let names: BTreeSet<_> = TABLE.iter().map(|case| case.name).collect();
        assert_eq!(names.len(), TABLE.len());
        assert!(TABLE.iter().all(|case| !case.name.contains(' ')));
        // In 16 bytes there is room for what comes before an instruction, and for an INT3 behind it.
        assert!(TABLE.iter().all(|case| (1..=12).contains(&case.code.len())));
    }

    #[test]
    fn compatibility_mode_comes_before_privilege() {
        let native = Native {
            kernel: Outcome::Passes,
            user: Outcome::GeneralProtection,
            only_64_bit: true,
        };
        assert_eq!(native.at(0, false), Outcome::Passes);
        assert_eq!(native.at(3, false), Outcome::GeneralProtection);
        assert_eq!(native.at(3, true), Outcome::InvalidOpcode);
    }
}
