//! Exits, counted: those of guests by the KVM of their host, and those that whatever is below this host takes.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::run::{LONG, Run};

/// Exits since boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Of guests, as the KVM of their host counts them: KVM's statistics that are not 0, `exits` being all.
    pub guests: BTreeMap<String, u64>,
    /// Taken by what is below that host, by reason: L0, or the outer KVM (its statistics). Empty if there is nothing.
    pub below: BTreeMap<String, u64>,
    /// All of `below`.
    pub below_total: u64,
}

impl Counts {
    /// Exits of guests, all reasons.
    #[must_use]
    pub(crate) fn guest_total(&self) -> u64 {
        self.guests.get("exits").copied().unwrap_or(0)
    }

    /// What came since `earlier`.
    #[must_use]
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            now.iter()
                .map(|(name, count)| {
                    let before = then.get(name).copied().unwrap_or(0);
                    (name.clone(), count.saturating_sub(before))
                })
                .filter(|(_, count)| *count > 0)
                .collect()
        };
        Counts {
            guests: less(&self.guests, &earlier.guests),
            below: less(&self.below, &earlier.below),
            below_total: self.below_total.saturating_sub(earlier.below_total),
        }
    }
}

/// What is below the host of the guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// The bare machine.
    Nothing,
    /// L0, dormant or not.
    L0,
    /// A KVM: the host is itself a guest, of the machine's host of generation 0.
    OuterKvm,
}

/// The emulated CPU lacks what servers have against L1TF, so KVM would empty the L1 data cache by software at most
/// entries (`vmx_l1d_flush` in arch/x86/kvm/vmx/vmx.c): thousands of instructions, and a CPUID, which exits if the host
/// is nested. Servers of the last years do not do that.
pub(crate) const NO_FLUSH: &str = "echo never >/sys/module/kvm_intel/parameters/vmentry_l1d_flush";
/// The lab's hand looks at its line only so often: each look of the inner host's is several exits.
pub(crate) const LAZY_LABD: &str = "labd.idle_ms=100";

impl Run {
    /// Makes KVM's statistics readable in the reigning host, and its entries those of a server.
    ///
    /// # Errors
    /// The host does not answer, or KVM is not loaded.
    pub(crate) fn prepare_counting(&mut self) -> Result<()> {
        self.sh(&format!(
            "mount -t debugfs none /sys/kernel/debug; [ -d /sys/kernel/debug/kvm ] && {NO_FLUSH}"
        ))
        .map(drop)
    }

    /// Exits so far.
    ///
    /// # Errors
    /// A host does not answer.
    pub(crate) fn exits(&mut self, below: Below) -> Result<Counts> {
        let guests = statistics(&self.sh(STATISTICS)?);
        let (below, below_total) = match below {
            Below::Nothing => Default::default(),
            Below::L0 => {
                let exits = self.status()?.exits;
                (exits.by_reason, exits.total)
            }
            Below::OuterKvm => {
                let outer = self.machine.host(0).run(STATISTICS, LONG)?;
                let below = statistics(&outer.ok()?);
                let total = below.get("exits").copied().unwrap_or(0);
                (below, total)
            }
        };
        Ok(Counts {
            guests,
            below,
            below_total,
        })
    }
}

/// Prints `NAME:VALUE` for each of KVM's counters over all its VMs (virt/kvm/kvm_main.c, `kvm_init_debug`), by one
/// process: they are dear in a nested host.
const STATISTICS: &str = "cd /sys/kernel/debug/kvm && grep -s . *; true";

/// KVM's counters of exits and injections that are not 0.
fn statistics(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| counts_events(name))
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .filter(|(_, value)| *value > 0)
        .collect()
}

/// Whether a statistic only grows: the others say what is the case now.
fn counts_events(name: &str) -> bool {
    let exits = name.ends_with("exits") || name.ends_with("_injections");
    let faults = name.starts_with("pf_") && name != "pf_guest";
    exits || faults || matches!(name, "nested_run" | "hypercalls" | "tlb_flush")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_events_that_happened() {
        let text = "exits:120\nhalt_exits:0\npages_4k:77\nio_exits:20\nmax_mmu_page_hash_collisions:x\n";
        let found = statistics(text);
        let names: Vec<_> = found.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(names, [("exits", 120), ("io_exits", 20)]);
    }

    #[test]
    fn counts_since() {
        let counts = |exits, cpuid, total| Counts {
            guests: [("exits".to_owned(), exits)].into(),
            below: [("cpuid".to_owned(), cpuid), ("ept".to_owned(), 5)].into(),
            below_total: total,
        };
        let since = counts(30, 9, 19).since(&counts(10, 2, 12));
        assert_eq!((since.guest_total(), since.below_total), (20, 7));
        assert_eq!(since.below, [("cpuid".to_owned(), 7)].into());
    }
}
