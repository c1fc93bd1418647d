//! What counted events would cost on silicon: pure arithmetic on published figures.
//!
//! The emulator counts instructions and exits, and charges an exit like any instruction. The model says
//!
//! ```text
//! cycles = instructions / IPC                           (and, where the host is nested, a share more for its page
//! walks)
//!        + transitions * (cost of a VM exit and entry)
//!        + L0 exits    * (its VMPTRLDs, VMREADs and VMWRITEs * their costs)
//!        + guest exits * (cost of a branch predictor barrier)    (where the host is nested)
//! ```
//!
//! L0's arguments take the barriers away, or add VMCLEARs ([`Way`]).
//!
//! where `transitions` are the guest's exits if the host runs natively, and L0's exits if there is an L0 that takes
//! them. What is done natively, too (KVM's own VMREADs, the guest's page walks), is in every set-up alike and left out.
//! Every cost has a range; an overhead's range is the least and the most that any combination of the costs gives.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The table that the repository holds.
const TABLE: &str = include_str!("../../costs.toml");

/// A figure of the table.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cost {
    /// What it is the cost of.
    pub what: String,
    /// Its unit.
    pub unit: String,
    /// The least that is plausible.
    pub low: f64,
    /// What the middle of a bar uses.
    pub mid: f64,
    /// The most.
    pub high: f64,
    /// Where it comes from.
    pub source: String,
    /// Whether it was read there when the table was written; else it is as remembered.
    pub seen: bool,
}

/// The table of costs.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Costs {
    /// Instructions per cycle.
    pub ipc: Cost,
    /// A VM exit and the entry after it.
    pub transition: Cost,
    /// A VMPTRLD.
    pub vmptrld: Cost,
    /// A VMREAD.
    pub vmread: Cost,
    /// A VMWRITE.
    pub vmwrite: Cost,
    /// A branch predictor barrier.
    pub ibpb: Cost,
    /// A VMCLEAR of the shadow VMCS.
    pub vmclear: Cost,
    /// Percent of all cycles for the nested host's page walks.
    pub host_paging: Cost,
    /// VMPTRLDs of L0 for an exit that it takes.
    pub vmptrld_per_exit: Cost,
    /// VMREADs of L0 for an exit that it takes.
    pub vmread_per_exit: Cost,
    /// VMWRITEs of L0 for an exit that it takes.
    pub vmwrite_per_exit: Cost,
    /// VMCLEARs of L0 for an exit that it takes, where it clears the shadow VMCS.
    pub vmclear_per_exit: Cost,
}

/// How the monitor below a nested host was told to go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it does by itself.
    Default,
    /// Without branch predictor barriers: L0's `ibpb=off`.
    NoBarriers,
    /// With the shadow VMCS cleared at each use: L0's `shadowing=cleared`.
    Cleared,
}

/// What was counted for one operation.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Counted {
    /// Instructions of everybody.
    pub instructions: f64,
    /// Exits of the guest.
    pub guest_exits: f64,
    /// Exits that a monitor below the host took, the guest's among them; 0 where the host runs natively.
    pub l0_exits: f64,
}

/// Percent more than the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Overhead {
    /// The least that any combination of costs gives.
    pub low: f64,
    /// With the costs in the middle.
    pub mid: f64,
    /// The most.
    pub high: f64,
}

/// Where the middle of an overhead sits: percent of the baseline's cycles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Parts {
    /// More instructions.
    pub instructions: f64,
    /// More VM exits and entries.
    pub transitions: f64,
    /// VMPTRLDs.
    pub vmptrld: f64,
    /// VMREADs.
    pub vmread: f64,
    /// VMWRITEs.
    pub vmwrite: f64,
    /// Page walks through EPT.
    pub paging: f64,
    /// Branch predictor barriers.
    pub ibpb: f64,
}

/// One value for each figure of the table, in the order of [`Costs::all`].
type Point = [f64; FIGURES];
const FIGURES: usize = 12;

impl Costs {
    /// The repository's table.
    ///
    /// # Errors
    /// It is malformed.
    pub(crate) fn table() -> Result<Self> {
        Self::parse(TABLE)
    }

    /// Reads a table.
    ///
    /// # Errors
    /// It is no such table, a figure is missing or unknown, has no source, or its range is not in order.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let costs: Self = toml::from_str(text).context("the table of costs")?;
        for cost in costs.all() {
            ensure!(
                0.0 <= cost.low && cost.low <= cost.mid && cost.mid <= cost.high,
                "{:?}: expected 0 <= low <= mid <= high",
                cost.what
            );
            ensure!(!cost.source.trim().is_empty(), "{:?} has no source", cost.what);
        }
        ensure!(costs.ipc.low > 0.0, "no instruction in a cycle");
        Ok(costs)
    }

    /// All figures.
    #[must_use]
    pub(crate) fn all(&self) -> [&Cost; FIGURES] {
        [
            &self.ipc,
            &self.transition,
            &self.vmptrld,
            &self.vmread,
            &self.vmwrite,
            &self.host_paging,
            &self.vmptrld_per_exit,
            &self.vmread_per_exit,
            &self.vmwrite_per_exit,
            &self.ibpb,
            &self.vmclear,
            &self.vmclear_per_exit,
        ]
    }

    /// Percent by which `counted` costs more than `base`, if whatever is below the host goes about it this way.
    #[must_use]
    pub(crate) fn overhead(&self, counted: &Counted, base: &Counted, way: Way) -> Overhead {
        let at = |point: &Point| percent_more(cycles(counted, point, way), cycles(base, point, way));
        let mid = at(&self.all().map(|cost| cost.mid));
        // Each figure alone moves an overhead in one direction only, so the extremes are among the corners.
        let corners = (0..1u32 << FIGURES).map(|corner| {
            let mut bit = 0;
            at(&self.all().map(|cost| {
                bit += 1;
                if corner >> (bit - 1) & 1 == 0 {
                    cost.low
                } else {
                    cost.high
                }
            }))
        });
        let (low, high) = corners.fold((mid, mid), |(low, high), value| (low.min(value), high.max(value)));
        Overhead { low, mid, high }
    }

    /// Where the middle of the overhead of `counted` over `base` sits.
    #[must_use]
    pub(crate) fn parts(&self, counted: &Counted, base: &Counted) -> Parts {
        let point = self.all().map(|cost| cost.mid);
        let whole = cycles(base, &point, Way::Default);
        let [own, paging, transitions, vmptrld, vmread, vmwrite, ibpb, _] = terms(counted, &point, Way::Default);
        let [base_own, _, base_transitions, ..] = terms(base, &point, Way::Default);
        let percent = |cycles: f64| cycles / whole * 100.0;
        Parts {
            instructions: percent(own - base_own),
            transitions: percent(transitions - base_transitions),
            vmptrld: percent(vmptrld),
            vmread: percent(vmread),
            vmwrite: percent(vmwrite),
            paging: percent(paging),
            ibpb: percent(ibpb),
        }
    }
}

fn cycles(counted: &Counted, point: &Point, way: Way) -> f64 {
    terms(counted, point, way).iter().sum()
}

/// Instructions, page walks, transitions, VMPTRLDs, VMREADs, VMWRITEs, barriers, VMCLEARs.
fn terms(counted: &Counted, point: &Point, way: Way) -> [f64; 8] {
    let [
        ipc,
        transition,
        vmptrld,
        vmread,
        vmwrite,
        paging,
        pointers,
        reads,
        writes,
        ibpb,
        vmclear,
        clears,
    ] = *point;
    let nested = counted.l0_exits > 0.0;
    let transitions = if nested { counted.l0_exits } else { counted.guest_exits };
    let own = counted.instructions / ipc;
    let walks = if nested { own * paging / 100.0 } else { 0.0 };
    [
        own,
        walks,
        transitions * transition,
        counted.l0_exits * pointers * vmptrld,
        counted.l0_exits * reads * vmread,
        counted.l0_exits * writes * vmwrite,
        counted.guest_exits * ibpb * f64::from(u8::from(nested && way != Way::NoBarriers)),
        counted.l0_exits * clears * vmclear * f64::from(u8::from(way == Way::Cleared)),
    ]
}

/// Percent by which `value` is more than `base`.
#[must_use]
pub(crate) fn percent_more(value: f64, base: f64) -> f64 {
    (value / base - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: f64, expected: f64) {
        assert!((value - expected).abs() < 1e-9, "{value}, not {expected}");
    }

    /// A table with every range of width 0.
    fn exact() -> Costs {
        let mut costs = Costs::table().unwrap();
        let figures = [1.0, 1000.0, 100.0, 10.0, 20.0, 1.0, 2.0, 3.0, 1.0, 500.0, 40.0, 1.0];
        let all = [
            &mut costs.ipc,
            &mut costs.transition,
            &mut costs.vmptrld,
            &mut costs.vmread,
            &mut costs.vmwrite,
            &mut costs.host_paging,
            &mut costs.vmptrld_per_exit,
            &mut costs.vmread_per_exit,
            &mut costs.vmwrite_per_exit,
            &mut costs.ibpb,
            &mut costs.vmclear,
            &mut costs.vmclear_per_exit,
        ];
        for (cost, value) in all.into_iter().zip(figures) {
            (cost.low, cost.mid, cost.high) = (value, value, value);
        }
        costs
    }

    const BASE: Counted = Counted {
        instructions: 90_000.0,
        guest_exits: 10.0,
        l0_exits: 0.0,
    };

    #[test]
    fn worked_by_hand() {
        let costs = exact();
        let point = costs.all().map(|cost| cost.mid);
        close(cycles(&BASE, &point, Way::Cleared), 100_000.0);
        let nested = Counted {
            instructions: 92_000.0,
            l0_exits: 20.0,
            ..BASE
        };
        // 92,000 and 1% of it, 20 transitions, 20 times (2 VMPTRLDs, 3 VMREADs and a VMWRITE).
        let bare = 92_000.0 + 920.0 + 20_000.0 + 20.0 * 250.0;
        close(cycles(&nested, &point, Way::NoBarriers), bare);
        // 10 exits of the guest; 20 VMCLEARs.
        close(cycles(&nested, &point, Way::Default), bare + 5_000.0);
        close(cycles(&nested, &point, Way::Cleared), bare + 5_000.0 + 800.0);
        let overhead = costs.overhead(&nested, &BASE, Way::NoBarriers);
        close(overhead.mid, 17.92);
        close(overhead.low, overhead.mid);
        close(overhead.high, overhead.mid);
        let parts = costs.parts(&nested, &BASE);
        close(parts.instructions, 2.0);
        close(parts.transitions, 10.0);
        close(parts.vmptrld, 4.0);
        close(parts.vmread + parts.vmwrite, 0.6 + 0.4);
        close(parts.paging, 0.92);
        close(parts.ibpb, 5.0);
    }

    #[test]
    fn a_host_that_runs_natively_pays_for_its_instructions_alone() {
        let costs = Costs::table().unwrap();
        let same = costs.overhead(&BASE, &BASE, Way::Cleared);
        close(same.low, 0.0);
        close(same.high, 0.0);
    }

    #[test]
    fn ranges_enclose_what_any_combination_gives() {
        let costs = Costs::table().unwrap();
        let nested = Counted {
            instructions: 95_000.0,
            l0_exits: 22.0,
            ..BASE
        };
        let overhead = costs.overhead(&nested, &BASE, Way::Cleared);
        assert!(overhead.low < overhead.mid && overhead.mid < overhead.high);
        // Points inside of the table's box, by a fixed sequence.
        let mut state = 1u64;
        for _ in 0..10_000 {
            let point = costs.all().map(|cost| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                cost.low + (cost.high - cost.low) * ((state >> 33) as f64 / f64::from(1u32 << 31))
            });
            let value = percent_more(
                cycles(&nested, &point, Way::Cleared),
                cycles(&BASE, &point, Way::Cleared),
            );
            assert!(
                (overhead.low..=overhead.high).contains(&value),
                "{value} is outside of {overhead:?}"
            );
        }
    }

    #[test]
    fn mistakes_in_a_table_are_named() {
        let wrong = |from: &str, to: &str| {
            assert!(TABLE.contains(from), "{from}");
            let error = Costs::parse(&TABLE.replacen(from, to, 1)).unwrap_err();
            format!("{error:#}")
        };
        assert!(wrong("low = 0.6", "low = 2.6").contains("low <= mid"));
        assert!(wrong("[vmptrld]", "[vmptrld_cost]").contains("vmptrld_cost"));
        assert!(wrong("low = 0.6", "low = 0.0").contains("no instruction"));
        assert!(wrong("source = \"4 in a round\"", "source = \"\"").contains("no source"));
    }
}
