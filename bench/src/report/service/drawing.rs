//! The time line of a refresh with what a client got done, as SVG.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{AROUND, POINT, Service};

const SIZE: (u32, u32) = (1000, 440);
const LINE: RGBColor = RGBColor(0x4c, 0x78, 0xa8);
const BANDS: [RGBColor; 2] = [RGBColor(0xf4, 0xf4, 0xf4), RGBColor(0xe6, 0xec, 0xf4)];
const BUSY: RGBColor = RGBColor(0x99, 0x99, 0x99);
const STALL: RGBColor = RGBColor(0xd6, 0x27, 0x28);
/// Names of phases stand in so many rows, so that those of short ones do not cover one another.
const ROWS: u32 = 4;

/// Draws it: operations for a million ticks against million ticks since the refresh began.
///
/// # Errors
/// The drawing library refuses.
pub(crate) fn draw(service: &Service, which: &str) -> Result<String> {
    let mut svg = String::new();
    let title = &format!("Redis in a guest, YCSB workload A, one client outside: {which}");
    // The library's errors borrow the drawing.
    draw_into(service, title, &mut svg).map_err(|error| anyhow!("drawing the client's time line: {error}"))?;
    Ok(svg)
}

#[expect(clippy::cast_precision_loss, reason = "ticks are far below 2^53")]
fn millions(ticks: u64) -> f64 {
    ticks as f64 / 1e6
}

fn draw_into(service: &Service, title: &str, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let at = |tick: u64| millions(tick) - millions(service.begin);
    let point = |number: u64, count: u64| {
        let tick = service.begin.saturating_sub(AROUND) + number * POINT + POINT / 2;
        (at(tick), millions(count * (1_000_000 / (POINT / 1_000_000))))
    };
    let line = (0..).zip(&service.line);
    let points: Vec<_> = line.map(|(number, count)| point(number, *count)).collect();
    let busy = (0..).zip(&service.busy);
    let busy: Vec<_> = busy
        .filter_map(|(number, count)| Some(point(number, (*count)?)))
        .collect();
    // In the lower half, below the client's.
    let busy_top = busy.iter().map(|point| point.1).fold(1.0, f64::max) * 3.0;
    let top = points.iter().map(|point| point.1).fold(1.0, f64::max) * 1.35;
    let (left, right) = (-millions(AROUND), at(service.end + AROUND));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .right_y_label_area_size(64)
        .build_cartesian_2d(left..right, 0.0..top)?
        .set_secondary_coord(left..right, 0.0..busy_top);
    for (number, stretch) in (0u32..).zip(&service.stretches) {
        let band = BANDS[usize::from(number % 2 == 1)];
        let (from, to) = (at(stretch.from), at(stretch.to));
        chart.draw_series([Rectangle::new([(from, 0.0), (to, top)], band.filled())])?;
    }
    // Over all bands: a name is wider than a short one.
    for (number, stretch) in (0u32..).zip(&service.stretches) {
        let height = top * (0.97 - 0.05 * f64::from(number % ROWS));
        let place = (at(stretch.from), height);
        chart.draw_series([Text::new(stretch.name.clone(), place, ("sans-serif", 13).into_font())])?;
    }
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_y_mesh()
        .x_desc("million ticks since the refresh began")
        .y_desc("operations in a million ticks")
        .draw()?;
    if !busy.is_empty() {
        chart
            .configure_secondary_axes()
            .y_desc("beats of a busy guest in a million ticks")
            .draw()?;
        chart.draw_secondary_series(LineSeries::new(busy, BUSY.stroke_width(1)))?;
    }
    if let Some(stall) = service.stalls.first() {
        let (from, to) = (at(stall.from), at(stall.from + stall.ticks));
        chart.draw_series([Rectangle::new([(from, 0.0), (to, top * 0.7)], STALL.mix(0.3).filled())])?;
        let text = format!("longest operation: {} ticks", timeline::millions(stall.ticks));
        let place = (from.min(left + (right - left) * 0.6), top * 0.73);
        chart.draw_series([Text::new(text, place, ("sans-serif", 13).into_font().color(&STALL))])?;
    }
    chart.draw_series(LineSeries::new(points, LINE.stroke_width(2)))?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Beats;
    use super::super::tests::{operations, refresh};
    use super::*;
    use crate::machine::segment::Connections;

    #[test]
    fn phases_and_the_longest_stall_are_in_the_drawing() {
        let m = 1_000_000;
        let refresh = refresh(&[("boot", 600 * m, 4700 * m), ("handover", 4700 * m, 4800 * m)]);
        let operations = operations(6000 * m, 4710 * m..4745 * m);
        let busy: Beats = "1000000 7\n5400000000 700000007\n".parse().unwrap();
        let service = Service::of(&refresh, &operations, &Connections::default(), &busy).unwrap();
        let svg = draw(&service, "refresh 7").unwrap();
        for word in [
            "client outside: refresh 7",
            "before",
            "boot",
            "handover",
            "after",
            "longest operation: 35",
            "beats of a busy guest",
        ] {
            assert!(svg.contains(word), "{word} is not in the drawing");
        }
    }
}
