//! The figure as a drawing: bars for what was counted, what is modelled, and what the paper says.

use anyhow::{Result, anyhow};
use plotters::{
    coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    prelude::*,
};

use super::{Entry, PAPER, Spread};
use crate::benchmarks::model::Overhead;

const SIZE: (u32, u32) = (900, 520);
/// Of bars: what they show, and their colour.
const KINDS: [(&str, RGBColor); 3] = [
    ("counted: instructions, with the spread", RGBColor(0x4c, 0x78, 0xa8)),
    (
        "modelled: cycles, with the range of the costs",
        RGBColor(0xf5, 0x85, 0x18),
    ),
    ("the paper, on its machine", RGBColor(0xb0, 0xb0, 0xb0)),
];

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
pub(crate) fn draw(entries: &[Entry], clients: u64) -> Result<String> {
    let mut svg = String::new();
    // The library's errors borrow the drawing.
    draw_into(entries, clients, &mut svg).map_err(|error| anyhow!("drawing figure 1: {error}"))?;
    Ok(svg)
}

fn caption(clients: u64) -> String {
    let plural = if clients == 1 { "" } else { "s" };
    format!("Redis, YCSB workload A, {clients} client{plural}: overhead against plain KVM")
}

/// Percent at which the axis ends: above everything that is drawn.
fn top(entries: &[Entry]) -> f64 {
    entries
        .iter()
        .flat_map(|entry| {
            let modelled = entry.modelled_overhead_percent.map(|range| range.high);
            let counted = entry.counted_overhead_spread_percent.map(|range| range.max);
            [modelled, counted].into_iter().flatten()
        })
        .chain(PAPER.iter().map(|(_, percent)| *percent))
        .fold(10.0, f64::max)
        * 1.15
}

/// What is drawn, in units of the axes: set-ups across, percent upwards.
#[derive(Default)]
struct Marks {
    /// Left edge and height: counted, modelled, the paper's.
    bars: [Vec<(f64, f64)>; 3],
    /// Where a bar's figure stands, and the figure.
    labels: Vec<((f64, f64), f64)>,
    /// Middle of a bar; least, middle and most.
    ranges: Vec<(f64, [f64; 3])>,
    /// Under each set-up.
    titles: Vec<(&'static str, f64)>,
}

impl Marks {
    fn of(entries: &[Entry], top: f64) -> Self {
        let mut marks = Self::default();
        for (place, entry) in (0u32..).map(f64::from).zip(entries) {
            if let Some(Spread { min, median, max }) = entry.counted_overhead_spread_percent {
                marks.bar(0, place + 0.08, median, raised(max, top));
                marks.ranges.push((place + 0.21, [min, median, max]));
            }
            if let Some(Overhead { low, mid, high }) = entry.modelled_overhead_percent {
                marks.bar(1, place + 0.36, mid, raised(high, top));
                marks.ranges.push((place + 0.49, [low, mid, high]));
            }
            if let Some((_, percent)) = PAPER.iter().find(|(set_up, _)| *set_up == entry.name) {
                marks.bar(2, place + 0.64, *percent, raised(*percent, top));
            }
            marks.titles.push((entry.name.title(), place + 0.36));
        }
        marks
    }

    fn bar(&mut self, kind: usize, from: f64, percent: f64, label: f64) {
        self.bars[kind].push((from, percent.max(0.0)));
        self.labels.push(((from + 0.03, label), percent));
    }
}

/// Where the figure of a bar stands whose range ends at `percent`: a little above, on the stretched axis.
fn raised(percent: f64, top: f64) -> f64 {
    (percent.max(0.0).sqrt() + 0.045 * top.sqrt()).powi(2)
}

fn draw_into(entries: &[Entry], clients: u64, svg: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let top = top(entries);
    let Marks {
        bars,
        labels,
        ranges,
        titles,
    } = Marks::of(entries, top);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(caption(clients), ("sans-serif", 22))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..f64::from(u32::try_from(entries.len())?), Stretched(top))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .y_desc("percent more (axis stretched near zero)")
        .draw()?;
    for (bars, (text, colour)) in bars.into_iter().zip(KINDS) {
        let bars = bars
            .into_iter()
            .map(|(from, percent)| Rectangle::new([(from, 0.0), (from + 0.26, percent)], colour.filled()));
        chart
            .draw_series(bars)?
            .label(text)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
    }
    chart.draw_series(ranges.into_iter().map(|(x, range)| {
        let [low, mid, high] = range.map(|percent| percent.max(0.0));
        ErrorBar::new_vertical(x, low, mid, high, BLACK.filled(), 8)
    }))?;
    chart.draw_series(
        labels
            .into_iter()
            .map(|(at, percent)| Text::new(format!("{percent:.1}%"), at, ("sans-serif", 13).into_font())),
    )?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK)
        .background_style(WHITE)
        .label_font(("sans-serif", 14))
        .draw()?;
    for (title, place) in titles {
        let (x, y) = chart.backend_coord(&(place, 0.0));
        root.draw_text(title, &("sans-serif", 16).into_font().into(), (x, y + 12))?;
    }
    root.present()?;
    Ok(())
}
