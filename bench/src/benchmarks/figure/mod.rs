//! Figure 1: what a set-up costs on workload A, as a table, as JSON and as a drawing.
//!
//! Counted and modelled figures stay apart: columns, fields and bars of their own.

mod drawing;
mod table;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lab_ycsb::report::Latency;
use serde::Serialize;

pub(crate) use drawing::draw;
pub(crate) use table::table;

use super::{
    bed::SetUp,
    model::{self, Costs, Counted, Overhead, Parts, Way},
};

/// What the paper's figure says of the same workload: percent of overhead. Its numbers come from another machine.
pub(crate) const PAPER: &[(SetUp, f64)] = &[
    (SetUp::LocumNative, 2.0),
    (SetUp::LocumNested, 4.1),
    (SetUp::NestedKvm, 36.2),
];

/// Smallest, middle and largest of the repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The smallest.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Result<Self> {
        let mut sorted: Vec<_> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = sorted
            .first()
            .zip(sorted.last())
            .context("no repetition to take figures from")?;
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Ok(Self {
            min: *min,
            median,
            max: *max,
        })
    }
}

/// What one set-up showed. Figures for an operation are medians over the repetitions.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Entry {
    /// The set-up.
    pub name: SetUp,
    /// Operations, of all repetitions together.
    pub operations: u64,
    /// Counted: instructions (ticks of the emulator's time stamp counter) for an operation.
    pub instructions_per_op: f64,
    /// Counted: the same, over the repetitions.
    pub instructions_spread: Spread,
    /// Counted: exits of the guest for an operation.
    pub guest_exits_per_op: f64,
    /// Counted: the same by the names of KVM's statistics, of which some count other things than exits.
    pub kvm_statistics_per_op: BTreeMap<String, f64>,
    /// Counted: the guest's exits for an operation by exit reason, in a repetition of its own with tracing on.
    pub guest_exits_by_reason: BTreeMap<String, f64>,
    /// Counted: exits for an operation that the monitor below the host took (L0; the outer KVM).
    pub l0_exits_per_op: f64,
    /// Counted: the same by reason.
    pub l0_exits_by_reason: BTreeMap<String, f64>,
    /// Counted: percent more instructions than the baseline, if that was played.
    pub counted_overhead_percent: Option<f64>,
    /// Counted: the same for each repetition, against the baseline's median.
    pub counted_overhead_spread_percent: Option<Spread>,
    /// Modelled: percent more cycles than the baseline.
    pub modelled_overhead_percent: Option<Overhead>,
    /// Modelled: the same without branch predictor barriers.
    pub modelled_without_ibpb_percent: Option<Overhead>,
    /// Modelled: the same with the shadow VMCS cleared at each use.
    pub modelled_cleared_percent: Option<Overhead>,
    /// Modelled: where the middle of `modelled_overhead_percent` sits.
    pub modelled_parts_percent: Option<Parts>,
    /// Counted: ticks of a read, medians over the repetitions.
    pub read_ticks: Latency,
    /// Counted: ticks of an update, likewise.
    pub update_ticks: Latency,
    /// Measured, only where time is real: operations per second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_per_second: Option<Spread>,
    /// Measured, only where time is real: seconds of all repetitions together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

impl Entry {
    /// What the model wants to know.
    #[must_use]
    pub(crate) fn counted(&self) -> Counted {
        Counted {
            instructions: self.instructions_per_op,
            guest_exits: self.guest_exits_per_op,
            l0_exits: self.l0_exits_per_op,
        }
    }
}

/// Fills in the overheads, against the entry of [`SetUp::Kvm`]; without one there are none.
pub(crate) fn compare(entries: &mut [Entry], costs: &Costs) {
    let Some(base) = entries
        .iter()
        .find(|entry| entry.name == SetUp::Kvm)
        .map(Entry::counted)
    else {
        return;
    };
    for entry in entries {
        let counted = entry.counted();
        let more = |instructions| model::percent_more(instructions, base.instructions);
        let Spread { min, median, max } = entry.instructions_spread;
        entry.counted_overhead_percent = Some(more(counted.instructions));
        entry.counted_overhead_spread_percent = Some(Spread {
            min: more(min),
            median: more(median),
            max: more(max),
        });
        let overhead = |way| Some(costs.overhead(&counted, &base, way));
        entry.modelled_overhead_percent = overhead(Way::Default);
        entry.modelled_without_ibpb_percent = overhead(Way::NoBarriers);
        entry.modelled_cleared_percent = overhead(Way::Cleared);
        entry.modelled_parts_percent = Some(costs.parts(&counted, &base));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: SetUp, instructions: f64, l0_exits: f64) -> Entry {
        Entry {
            name,
            operations: 50_000,
            instructions_per_op: instructions,
            instructions_spread: Spread {
                min: instructions - 1.0,
                median: instructions,
                max: instructions + 1.0,
            },
            guest_exits_per_op: 8.0,
            kvm_statistics_per_op: BTreeMap::new(),
            guest_exits_by_reason: BTreeMap::new(),
            l0_exits_per_op: l0_exits,
            l0_exits_by_reason: BTreeMap::new(),
            counted_overhead_percent: None,
            counted_overhead_spread_percent: None,
            modelled_overhead_percent: None,
            modelled_without_ibpb_percent: None,
            modelled_cleared_percent: None,
            modelled_parts_percent: None,
            read_ticks: Latency::default(),
            update_ticks: Latency::default(),
            operations_per_second: None,
            seconds: None,
        }
    }

    fn entries() -> Vec<Entry> {
        let mut entries = vec![
            entry(SetUp::Kvm, 100_000.0, 0.0),
            entry(SetUp::LocumNative, 100_000.0, 0.0),
            entry(SetUp::LocumNested, 101_000.0, 16.0),
            entry(SetUp::NestedKvm, 250_000.0, 120.0),
        ];
        compare(&mut entries, &Costs::table().unwrap());
        entries
    }

    #[test]
    fn the_median_is_in_the_middle() {
        let spread = Spread::of([5.0, 1.0, 3.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 3.0, 5.0));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert!(Spread::of([]).is_err());
    }

    #[test]
    fn set_ups_are_compared_with_plain_kvm() {
        let entries = entries();
        let counted: Vec<_> = entries
            .iter()
            .map(|entry| entry.counted_overhead_percent.unwrap().round())
            .collect();
        assert_eq!(counted, [0.0, 0.0, 1.0, 150.0]);
        assert_eq!(entries[1].modelled_overhead_percent.unwrap().high, 0.0);
        let modelled = |entry: &Entry| entry.modelled_overhead_percent.unwrap();
        let nested = modelled(&entries[2]);
        let spread = entries[2].counted_overhead_spread_percent.unwrap();
        assert!((spread.max - spread.min - 0.002).abs() < 1e-9, "{spread:?}");
        assert!(1.0 < nested.low && nested.mid < modelled(&entries[3]).low);
        assert!(entries[2].modelled_without_ibpb_percent.unwrap().mid < nested.mid);
        assert!(nested.mid < entries[2].modelled_cleared_percent.unwrap().mid);
    }

    #[test]
    fn without_the_baseline_nothing_is_compared() {
        let mut entries = vec![entry(SetUp::LocumNested, 101_000.0, 16.0)];
        compare(&mut entries, &Costs::table().unwrap());
        assert_eq!(entries[0].counted_overhead_percent, None);
        assert!(table(&entries).lines().last().unwrap().contains(" -|"));
        assert!(draw(&entries, 1).is_ok());
    }

    #[test]
    fn the_drawing_has_every_bar() {
        let svg = draw(&entries(), 16).unwrap();
        for colour in ["#4C78A8", "#F58518", "#B0B0B0"] {
            let bars = svg.matches(&format!("fill=\"{colour}\"")).count();
            // One more each in the legend; the paper has no bar for plain KVM, which is what it compares with.
            let expected = if colour == "#B0B0B0" { 3 } else { 4 };
            assert_eq!(bars, expected + 1, "{colour} in\n{svg}");
        }
        for word in ["16 clients", "KVM", "Locum, nested", "36.2%", "150.0%"] {
            assert!(svg.contains(word), "{word} is not in\n{svg}");
        }
    }

    #[test]
    fn real_time_is_shown_only_where_there_is_any() {
        let mut entries = entries();
        assert!(!table(&entries).contains("operations/s"));
        entries[0].operations_per_second = Spread::of([900.0, 1000.0, 1200.0]).ok();
        entries[0].seconds = Some(50.0);
        assert!(table(&entries).contains("1000 operations/s (900 to 1200), 50.00 s in all"));
    }

    #[test]
    fn the_table_keeps_counted_and_modelled_apart() {
        let table = table(&entries());
        let nested = table.lines().nth(5).unwrap();
        let columns: Vec<_> = nested.split('|').collect();
        assert_eq!(columns.len(), 4, "{table}");
        assert!(columns[1].contains("150.00") && !columns[2].contains("150.00"));
        assert!(columns[3].contains("36.2"));
        // Two set-ups have somebody below their host.
        assert_eq!(table.matches("modelled, of KVM's cycles").count(), 2);
        assert_eq!(table.matches("modelled, more % otherwise").count(), 2);
    }
}
