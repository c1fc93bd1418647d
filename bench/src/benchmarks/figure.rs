//! Figure 1: what a set-up costs on workload A, as a table, as JSON and as a drawing.
//!
//! Counted and modelled figures stay apart: columns, fields and bars of their own.

use std::{collections::BTreeMap, fmt::Write as _};

use anyhow::{Context, Result, anyhow};
use lab_ycsb::report::Latency;
use plotters::{
    coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    prelude::*,
};
use serde::Serialize;

use super::{
    bed::SetUp,
    model::{self, Costs, Counted, Overhead, Parts},
};

/// What the paper's figure says of the same workload: percent of overhead. Its numbers come from another machine.
pub const PAPER: &[(SetUp, f64)] = &[
    (SetUp::LocumNative, 2.0),
    (SetUp::LocumNested, 4.1),
    (SetUp::NestedKvm, 36.2),
];

/// Smallest, middle and largest of the repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
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
    pub fn of(values: impl IntoIterator<Item = f64>) -> Result<Self> {
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
pub struct Entry {
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
    /// Modelled: where the middle of that sits.
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
    pub fn counted(&self) -> Counted {
        Counted {
            instructions: self.instructions_per_op,
            guest_exits: self.guest_exits_per_op,
            l0_exits: self.l0_exits_per_op,
        }
    }
}

/// Fills in the overheads, against the entry of [`SetUp::Kvm`]; without one there are none.
pub fn compare(entries: &mut [Entry], costs: &Costs) {
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
        entry.modelled_overhead_percent = Some(costs.overhead(&counted, &base));
        entry.modelled_parts_percent = Some(costs.parts(&counted, &base));
    }
}

/// The table for people.
#[must_use]
pub fn table(entries: &[Entry]) -> String {
    let mut text = format!(
        "{:<14}|{:^61}|{:^25}|{:^9}\n{:<14}|{:>12} {:>17} {:>12} {:>9} {:>7}|{:>25}|{:>9}\n",
        "",
        "counted, per operation",
        "modelled",
        "paper",
        "set-up",
        "instructions",
        "spread",
        "guest exits",
        "L0 exits",
        "more %",
        "more % (low to high)",
        "more %"
    );
    for entry in entries {
        let Spread { min, max, .. } = entry.instructions_spread;
        let counted = entry
            .counted_overhead_percent
            .map_or_else(|| "-".to_owned(), |percent| format!("{percent:.2}"));
        let modelled = entry.modelled_overhead_percent.map_or_else(
            || "-".to_owned(),
            |Overhead { low, mid, high }| format!("{mid:.2} ({low:.2} to {high:.2})"),
        );
        let paper = PAPER
            .iter()
            .find(|(set_up, _)| *set_up == entry.name)
            .map_or_else(String::new, |(_, percent)| format!("{percent:.1}"));
        let _ = writeln!(
            text,
            "{:<14}|{:>12.0} {:>17} {:>12.2} {:>9.2} {counted:>7}|{modelled:>25}|{paper:>9}",
            entry.name.title(),
            entry.instructions_per_op,
            format!("{min:.0}-{max:.0}"),
            entry.guest_exits_per_op,
            entry.l0_exits_per_op,
        );
    }
    for entry in entries {
        if let Some(parts) = entry.modelled_parts_percent
            && entry.l0_exits_per_op > 0.0
        {
            let _ = writeln!(
                text,
                "{:<14} modelled, of KVM's cycles: instructions {:.2} %, transitions {:.2}, VMPTRLD {:.2}, VMREAD {:.2}, \
                 VMWRITE {:.2}, paging {:.2}",
                entry.name.title(),
                parts.instructions,
                parts.transitions,
                parts.vmptrld,
                parts.vmread,
                parts.vmwrite,
                parts.paging
            );
        }
        if let (Some(rate), Some(seconds)) = (entry.operations_per_second, entry.seconds) {
            let _ = writeln!(
                text,
                "{:<14} measured: {:.0} operations/s ({:.0} to {:.0}), {seconds:.2} s in all",
                entry.name.title(),
                rate.median,
                rate.min,
                rate.max
            );
        }
    }
    text
}

const SIZE: (u32, u32) = (900, 520);
const COUNTED: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const MODELLED: RGBColor = RGBColor(0xf5, 0x85, 0x18);
const OTHERS: RGBColor = RGBColor(0xb0, 0xb0, 0xb0);

/// Percents on an axis that is stretched near zero, where the differences of interest are: it shows the square root.
#[derive(Clone)]
struct Stretched(f64);

impl Ranged for Stretched {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let root = |value: f64| value.max(0.0).sqrt();
        let part = root(*value) / root(self.0);
        #[expect(clippy::cast_possible_truncation, reason = "a pixel of the drawing")]
        let offset = (part * f64::from(limit.1 - limit.0)) as i32;
        limit.0 + offset
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        [
            0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0,
        ]
        .into_iter()
        .filter(|point| *point <= self.0)
        .collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.0
    }
}

impl ValueFormatter<f64> for Stretched {
    fn format(value: &f64) -> String {
        format!("{value}%")
    }
}

/// Draws the figure for so many clients at the same time, as SVG. Bars: counted, with the spread of the repetitions;
/// modelled, with its range; the paper's.
///
/// # Errors
/// The drawing library refuses.
pub fn draw(entries: &[Entry], clients: u64) -> Result<String> {
    let mut svg = String::new();
    // The library's errors borrow the drawing.
    draw_into(entries, clients, &mut svg).map_err(|error| anyhow!("drawing figure 1: {error}"))?;
    Ok(svg)
}

fn caption(clients: u64) -> String {
    let plural = if clients == 1 { "" } else { "s" };
    format!("Redis, YCSB workload A, {clients} client{plural}: overhead against plain KVM")
}

fn draw_into(entries: &[Entry], clients: u64, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let top = entries
        .iter()
        .flat_map(|entry| {
            let modelled = entry.modelled_overhead_percent.map(|range| range.high);
            let counted = entry.counted_overhead_spread_percent.map(|range| range.max);
            [modelled, counted].into_iter().flatten()
        })
        .chain(PAPER.iter().map(|(_, percent)| *percent))
        .fold(10.0, f64::max)
        * 1.15;
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let count = i32::try_from(entries.len())?;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption(clients), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..f64::from(count), Stretched(top))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("percent more (axis stretched near zero)")
        .draw()?;
    let bar = |from: f64, percent: f64, colour: RGBColor| {
        Rectangle::new([(from, 0.0), (from + 0.26, percent.max(0.0))], colour.filled())
    };
    let label = |at: f64, percent: f64, from: f64| {
        Text::new(
            format!("{percent:.1}%"),
            (at + 0.03, from.max(0.0)),
            ("sans-serif", 13).into_font(),
        )
    };
    let raised = |percent: f64| (percent.max(0.0).sqrt() + 0.045 * top.sqrt()).powi(2);
    let mut series: [Vec<_>; 3] = Default::default();
    let mut labels = Vec::new();
    let mut ranges = Vec::new();
    let mut titles = Vec::new();
    for (place, entry) in (0..count).map(f64::from).zip(entries) {
        if let Some(Spread { min, median, max }) = entry.counted_overhead_spread_percent {
            series[0].push(bar(place + 0.08, median, COUNTED));
            labels.push(label(place + 0.08, median, raised(max)));
            ranges.push((place + 0.21, min, median, max));
        }
        if let Some(Overhead { low, mid, high }) = entry.modelled_overhead_percent {
            series[1].push(bar(place + 0.36, mid, MODELLED));
            labels.push(label(place + 0.36, mid, raised(high)));
            ranges.push((place + 0.49, low, mid, high));
        }
        if let Some((_, percent)) = PAPER.iter().find(|(set_up, _)| *set_up == entry.name) {
            series[2].push(bar(place + 0.64, *percent, OTHERS));
            labels.push(label(place + 0.64, *percent, raised(*percent)));
        }
        titles.push((entry.name.title(), chart.backend_coord(&(place + 0.36, 0.0))));
    }
    let legends = [
        ("counted: instructions, with the spread", COUNTED),
        ("modelled: cycles, with the range of the costs", MODELLED),
        ("the paper, on its machine", OTHERS),
    ];
    for (bars, (text, colour)) in series.into_iter().zip(legends) {
        chart
            .draw_series(bars)?
            .label(text)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
    }
    chart.draw_series(ranges.into_iter().map(|(x, low, mid, high)| {
        ErrorBar::new_vertical(x, low.max(0.0), mid.max(0.0), high.max(0.0), BLACK.filled(), 8)
    }))?;
    chart.draw_series(labels)?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(("sans-serif", 14))
        .draw()?;
    for (title, (x, y)) in titles {
        root.draw_text(title, &("sans-serif", 16).into_font().into(), (x, y + 12))?;
    }
    root.present()?;
    Ok(())
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
    }
}
