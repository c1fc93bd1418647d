//! What the self-test writes: a line per CPU with what it passed, and the costs over all CPUs, in the format of the
//! benchmarks' `costs.toml`.

use core::fmt;

use arrayvec::ArrayVec;

/// What is tried, in this order.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// The CPU has all that L0 needs, and the firmware allows it.
    Vmx,
    /// VMXON, VMCLEAR, VMPTRLD.
    Vmxon,
    /// A guest is launched and exits, is resumed and exits.
    Guest,
    /// The guest's VMREAD finds what was written to the shadow VMCS, and the other way round, with VMCLEAR between.
    ShadowCleared,
    /// The same without VMCLEAR, as L0 does it.
    Shadow,
    /// An NMI that came in VMX root is held, and exits at the next VM entry.
    NmiHeld,
    /// A page taken out of the EPT is gone after INVEPT, and back when it was given back.
    Ept,
    /// The guest has indirect branches tracked as the MSRs say that L0 leaves alone, while L0 has CR4.CET clear.
    Cet,
    /// An INIT that comes while the guest runs exits.
    Init,
    /// An INIT that came in VMX root is held, and exits at the next VM entry.
    InitHeld,
}

/// How many checks there are.
const CHECKS: usize = 10;

impl Check {
    const ALL: [Self; CHECKS] = [
        Self::Vmx,
        Self::Vmxon,
        Self::Guest,
        Self::ShadowCleared,
        Self::Shadow,
        Self::NmiHeld,
        Self::Ept,
        Self::Cet,
        Self::Init,
        Self::InitHeld,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Vmxon => "vmxon",
            Self::Guest => "guest",
            Self::ShadowCleared => "shadow-cleared",
            Self::Shadow => "shadow",
            Self::NmiHeld => "nmi",
            Self::Ept => "ept",
            Self::Cet => "cet",
            Self::Init => "init",
            Self::InitHeld => "init-held",
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was not come to, since one before it failed.
    #[default]
    NotTried,
    /// As it should.
    Passed,
    /// The CPU has no such thing, and L0 does without.
    Absent,
    /// Otherwise; the word says how: an exit reason, RFLAGS after an instruction, or a value that was not expected.
    Failed(u64),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTried => f.write_str("-"),
            Self::Passed => f.write_str("ok"),
            Self::Absent => f.write_str("absent"),
            Self::Failed(how) => write!(f, "FAILED({how:#x})"),
        }
    }
}

/// What is timed.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// A VM exit and the entry after it.
    Transition,
    /// VMPTRLD, of one of two VMCSs in turn.
    Vmptrld,
    /// VMREAD.
    Vmread,
    /// VMWRITE.
    Vmwrite,
    /// VMCLEAR and the VMPTRLD that loads the VMCS again.
    Vmclear,
    /// INVEPT of one context.
    Invept,
    /// Indirect branch predictor barrier.
    Ibpb,
    /// CPUID, in VMX root.
    Cpuid,
}

/// How many costs there are.
const COSTS: usize = 8;

impl Cost {
    const ALL: [Self; COSTS] = [
        Self::Transition,
        Self::Vmptrld,
        Self::Vmread,
        Self::Vmwrite,
        Self::Vmclear,
        Self::Invept,
        Self::Ibpb,
        Self::Cpuid,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Transition => "transition",
            Self::Vmptrld => "vmptrld",
            Self::Vmread => "vmread",
            Self::Vmwrite => "vmwrite",
            Self::Vmclear => "vmclear",
            Self::Invept => "invept",
            Self::Ibpb => "ibpb",
            Self::Cpuid => "cpuid",
        }
    }
}

/// What was found on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tried {
    outcomes: [Outcome; CHECKS],
    /// In tenths of a tick of the TSC.
    costs: [Option<u64>; COSTS],
}

impl Tried {
    /// Before a CPU tries itself.
    pub(super) const NOTHING: Self = Self {
        outcomes: [Outcome::NotTried; CHECKS],
        costs: [None; COSTS],
    };

    /// Notes how a check ended; true if it passed.
    pub(super) const fn note(&mut self, check: Check, outcome: Outcome) -> bool {
        self.outcomes[check as usize] = outcome;
        matches!(outcome, Outcome::Passed)
    }

    /// Notes a cost, in tenths of a tick.
    pub(super) const fn cost(&mut self, cost: Cost, tenths: u64) {
        self.costs[cost as usize] = Some(tenths);
    }

    fn good(&self) -> bool {
        let good = |outcome: &Outcome| matches!(outcome, Outcome::Passed | Outcome::Absent);
        self.outcomes.iter().all(good)
    }
}

struct Line<'a>(&'a Tried);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (check, outcome) in Check::ALL.iter().zip(self.0.outcomes) {
            write!(f, " {} {outcome}", check.name())?;
        }
        Ok(())
    }
}

struct Tenths(u64);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0 / 10, self.0 % 10)
    }
}

/// Writes the table, line by line: `cpus` are the APIC ids of all that L0 manages, with what was found there. True if
/// nothing has failed.
pub(crate) fn write<'a>(
    cpus: impl Iterator<Item = (u32, Option<&'a Tried>)> + Clone,
    mut line: impl FnMut(fmt::Arguments<'_>),
) -> bool {
    let (mut count, mut failed) = (0, 0);
    for (apic_id, tried) in cpus.clone() {
        match tried {
            Some(tried) => line(format_args!("selftest: APIC id {apic_id}:{}", Line(tried))),
            None => line(format_args!(
                "selftest: APIC id {apic_id}: it did not start, or did not come back"
            )),
        }
        count += 1;
        failed += u32::from(!tried.is_some_and(Tried::good));
    }
    for cost in Cost::ALL {
        write_cost(cpus.clone(), cost, &mut line);
    }
    if failed == 0 {
        line(format_args!("selftest: ended: passed on {count} CPUs"));
    } else {
        line(format_args!("selftest: ended: FAILED on {failed} of {count} CPUs"));
    }
    failed == 0
}

fn write_cost<'a>(
    cpus: impl Iterator<Item = (u32, Option<&'a Tried>)>,
    cost: Cost,
    line: &mut impl FnMut(fmt::Arguments<'_>),
) {
    let of = |(_, tried): (u32, Option<&Tried>)| tried?.costs[cost as usize];
    let mut all: ArrayVec<u64, { locum_abi::MAX_CPUS }> = cpus.filter_map(of).collect();
    all.sort_unstable();
    let (Some(&low), Some(&mid), Some(&high)) = (all.first(), all.get(all.len() / 2), all.last()) else {
        return;
    };
    line(format_args!("[{}]", cost.name()));
    line(format_args!("unit = \"ticks of the TSC\""));
    for (name, value) in [("low", low), ("mid", mid), ("high", high)] {
        line(format_args!("{name} = {}", Tenths(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::{String, ToString};
    use std::vec::Vec;

    fn lines(first: Tried) -> (bool, Vec<String>) {
        let mut all = [first, passed(), passed()];
        for (tried, transition) in all.iter_mut().zip([12_345, 20_000, 9_000]) {
            tried.cost(Cost::Transition, transition);
        }
        let mut lines = Vec::new();
        let cpus = [4, 9, 11].into_iter().zip(all.iter().map(Some));
        let good = write(cpus, |line| lines.push(line.to_string()));
        (good, lines)
    }

    fn passed() -> Tried {
        let mut tried = Tried::default();
        for check in Check::ALL {
            assert!(tried.note(check, Outcome::Passed));
        }
        tried
    }

    #[test]
    fn every_check_and_cost_has_its_place() {
        for (i, check) in Check::ALL.iter().enumerate() {
            assert_eq!(*check as usize, i);
        }
        for (i, cost) in Cost::ALL.iter().enumerate() {
            assert_eq!(*cost as usize, i);
        }
    }

    #[test]
    fn one_that_failed_is_told_and_counts() {
        let mut bad = passed();
        bad.note(Check::Shadow, Outcome::Absent);
        assert!(lines(bad).0, "L0 does without");
        bad.note(Check::Ept, Outcome::Failed(0x12));
        let (good, lines) = lines(bad);
        assert!(!good);
        assert!(
            lines[0].contains("shadow-cleared ok shadow absent nmi ok ept FAILED(0x12) cet ok init ok"),
            "{}",
            lines[0]
        );
        assert_eq!(lines.last().unwrap(), "selftest: ended: FAILED on 1 of 3 CPUs");
    }

    #[test]
    fn what_was_not_come_to_is_no_pass() {
        assert!(!lines(Tried::default()).0);
        let mut told = Vec::new();
        assert!(!write([(3, None)].into_iter(), |line| told.push(line.to_string())));
        assert!(told[0].contains("APIC id 3: it did not start"));
    }

    #[test]
    fn costs_are_as_the_model_reads_them() {
        let (_, lines) = lines(passed());
        let at = lines.iter().position(|line| line == "[transition]").unwrap();
        assert_eq!(lines[at + 2..at + 5], ["low = 900.0", "mid = 1234.5", "high = 2000.0"]);
        assert!(!lines.iter().any(|line| line == "[ibpb]"), "not measured");
    }
}
