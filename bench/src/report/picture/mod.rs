//! A refresh as a drawing: who ran when, which state the refresh was in, and where the guests stood still.
//!
//! All of it comes from a [`Report`]. A column is a phase; under it are its counted ticks, above it the state that the
//! refresh was in. Phases differ a thousandfold, so columns are stretched, and a strip shows them to scale.

mod svg;

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{Guest, Phase, Report};
use svg::{Anchor, Svg};

/// Phases of a refresh in their order, and the state in which each is gone through.
const STATES: &[(&str, &str)] = &[
    ("offload", "Planned"),
    ("load", "Offloaded"),
    ("enter", "Offloaded"),
    ("start", "Nested"),
    ("boot", "Nested"),
    ("handover", "SuccessorUp"),
    ("retire", "Handover"),
    ("reclaim", "Retired"),
    ("leave", "Reclaimed"),
];

/// Of the whole drawing.
const WIDTH: f64 = 960.0;
/// Where columns begin and end; beside them is what was before and is afterwards.
const COLUMNS: (f64, f64) = (126.0, 926.0);
/// Before and after them.
const STUB: f64 = 18.0;
/// Least width of a column: its figure must have room.
const NARROW: f64 = 58.0;
/// First lane, and from one lane to the next.
const LANES: f64 = 122.0;
const LANE: f64 = 34.0;
/// Height of a bar in its lane.
const BAR: f64 = 22.0;
/// Least width of a stand-still that can be seen.
const SEEN: f64 = 3.0;

/// Draws the last refresh of a report (`report.json`) into an SVG file.
///
/// # Errors
/// There is no report or no refresh in it, or the drawing cannot be written.
pub(crate) fn write(report: &Path, svg: &Path) -> Result<()> {
    let text = fs::read(report).with_context(|| format!("reading {}", report.display()))?;
    let read: Report = serde_json::from_slice(&text).with_context(|| format!("{} is no report", report.display()))?;
    let drawn = draw(&read).with_context(|| format!("drawing {}", report.display()))?;
    fs::write(svg, drawn).with_context(|| format!("writing {}", svg.display()))
}

/// Draws the last refresh of a report.
fn draw(report: &Report) -> Result<String> {
    let columns = columns(last_refresh(report)?);
    let guests = report.guests.len() as f64;
    let after = LANES + (guests + 3.0) * LANE;
    let height = after + 86.0 + 15.0 * guests;
    let mut svg = Svg::new(WIDTH, height, &title(report));
    svg.text((18.0, 30.0), "title", Anchor::Start, title(report));
    svg.text((18.0, 48.0), "note", Anchor::Start, subtitle(report));
    heads(&mut svg, &columns, after);
    let place = Place(&columns);
    hosts(&mut svg, &place, LANES + (guests + 1.0) * LANE);
    let mut before = 0;
    for (number, guest) in (1u32..).zip(&report.guests) {
        before = guest_lane(&mut svg, &place, guest, before, LANES + f64::from(number) * LANE);
    }
    l0(&mut svg, &columns, LANES + (guests + 2.0) * LANE);
    axis(&mut svg, &columns, after);
    for (number, guest) in (0u32..).zip(&report.guests) {
        let y = after + 62.0 + 15.0 * f64::from(number);
        svg.text((18.0, y), "small", Anchor::Start, stood_still(guest));
    }
    let y = after + 66.0 + 15.0 * guests;
    svg.text((18.0, y), "note small", Anchor::Start, COUNTED);
    Ok(svg.end())
}

const COUNTED: &str = "Everything here was counted: ticks of the emulated time stamp counter, and VM exits to L0 on all CPUs. Nothing is modelled, \
    and nothing is time on a real server. Columns are stretched.";

/// A phase, and where its column is.
struct Column<'a> {
    phase: &'a Phase,
    state: &'static str,
    from: f64,
    to: f64,
}

/// The phases of the last refresh that went through.
fn last_refresh(report: &Report) -> Result<&[Phase]> {
    let named = |phases: &[Phase], name| phases.iter().rposition(|phase: &Phase| phase.name == name);
    let phases = named(&report.phases, "leave").map(|end| &report.phases[..=end]);
    let phases = phases.and_then(|phases| Some(&phases[named(phases, "offload")?..]));
    let phases = phases.context("no refresh in it went through")?;
    ensure!(
        phases
            .iter()
            .map(|phase| phase.name.as_str())
            .eq(STATES.iter().map(|(name, _)| *name)),
        "its last refresh has other phases than offload to leave"
    );
    Ok(phases)
}

/// Every column has room for its figure; what is left of the width is shared out by the root of the ticks.
fn columns(phases: &[Phase]) -> Vec<Column<'_>> {
    let root = |phase: &Phase| (phase.instructions as f64).sqrt();
    let all: f64 = phases.iter().map(root).sum();
    let (mut from, end) = COLUMNS;
    let free = end - from - NARROW * phases.len() as f64;
    phases
        .iter()
        .zip(STATES)
        .map(|(phase, (_, state))| {
            let to = from + NARROW + free * root(phase) / all.max(1.0);
            let column = Column { phase, state, from, to };
            from = to;
            column
        })
        .collect()
}

/// Columns by the names of their phases.
struct Place<'a>(&'a [Column<'a>]);

impl Place<'_> {
    fn of(&self, phase: &str) -> (f64, f64) {
        let found = self.0.iter().find(|column| column.phase.name == phase);
        found.map_or(COLUMNS, |column| (column.from, column.to))
    }
}

fn title(report: &Report) -> String {
    match report.guests.len() {
        0 => "A host replaced".into(),
        1 => "A host replaced under a running guest".into(),
        2 => "A host replaced under two running guests".into(),
        count => format!("A host replaced under {count} running guests"),
    }
}

fn subtitle(report: &Report) -> String {
    let pair = [report.incumbent.clone(), report.successor.clone()];
    // Reports of earlier labs know the first host and the last.
    let hosts = match report.generation {
        1 if report.hosts.is_empty() => &pair[..],
        _ => &report.hosts[..],
    };
    let host = |generation: u32| match hosts.get(generation as usize) {
        Some(release) => format!("generation {generation}, Linux {release}"),
        None => format!("generation {generation}"),
    };
    let (from, to) = (host(report.generation.saturating_sub(1)), host(report.generation));
    format!("{from} → {to}; {} CPUs, emulated ({})", report.cpus, report.platform)
}

/// States above, and the phases that they consist of.
fn heads(svg: &mut Svg, columns: &[Column<'_>], end: f64) {
    svg.text((18.0, 79.0), "note", Anchor::Start, "state");
    svg.text((18.0, 101.0), "note", Anchor::Start, "phase");
    for state in columns.chunk_by(|a, b| a.state == b.state) {
        let (from, to) = (state[0].from, state[state.len() - 1].to);
        svg.bar((from + 1.0, to - 1.0), (65.0, 20.0), "band");
        svg.text((f64::midpoint(from, to), 79.0), "small", Anchor::Middle, state[0].state);
    }
    for Column { phase, from, to, .. } in columns {
        svg.line((*from, 90.0), (*from, end), "rule");
        svg.text((f64::midpoint(*from, *to), 101.0), "note", Anchor::Middle, &phase.name);
    }
    svg.line((COLUMNS.1, 90.0), (COLUMNS.1, end), "rule");
}

/// The incumbent above the guests, the successor at `below`.
fn hosts(svg: &mut Svg, place: &Place<'_>, below: f64) {
    let (begin, end) = (COLUMNS.0 - STUB, COLUMNS.1 + STUB);
    let (enter, off) = (place.of("enter").0, place.of("retire").1);
    let lane = (LANES, BAR);
    name(svg, LANES, "incumbent");
    svg.bar((begin, off), lane, "incumbent");
    svg.nested((enter, off), lane);
    word(svg, place.of("offload"), LANES, "native");
    word(svg, place.of("boot"), LANES, "nested");
    svg.text((off + 6.0, LANES + 15.0), "note", Anchor::Start, "off");
    let (load, start, leave) = (place.of("load").0, place.of("start").0, place.of("leave").1);
    let lane = (below, BAR);
    name(svg, below, "successor");
    svg.bar((load, start), lane, "loading");
    svg.bar((start, end), lane, "successor");
    svg.nested((start, leave), lane);
    let middle = f64::midpoint(load, start);
    svg.text(
        (middle, below + 15.0),
        "note small",
        Anchor::Middle,
        "kernel into memory",
    );
    word(svg, place.of("boot"), below, "boots, nested");
    word(svg, place.of("reclaim"), below, "reigns");
}

/// A guest on the one host and then on the other, with the time between that it stood still. Guests go over one after
/// the other: `before` is when this one's turn came, and the result when the next one's does.
fn guest_lane(svg: &mut Svg, place: &Place<'_>, guest: &Guest, before: u64, y: f64) -> u64 {
    let (from, to) = place.of("handover");
    let all = place.0.iter().find(|column| column.phase.name == "handover");
    let all = all.map_or(1, |column| column.phase.instructions.max(1));
    let at = |ticks: u64| from + (to - from) * (ticks as f64 / all as f64).min(1.0);
    let ask = guest.steps.iter().find(|step| step.name == "ask");
    let stop = before + ask.map_or(0, |step| step.instructions);
    let stopped = at(stop).min(to - SEEN);
    let resumed = at(stop + guest.pause_instructions).max(stopped + SEEN);
    name(svg, y, &format!("guest {}", guest.name));
    svg.bar((COLUMNS.0 - STUB, stopped), (y, BAR), "incumbent");
    svg.bar((resumed, COLUMNS.1 + STUB), (y, BAR), "successor");
    svg.bar((stopped, resumed), (y - 2.0, BAR + 4.0), "still");
    word(svg, place.of("boot"), y, "runs on the incumbent");
    let figure = format!("stood still {}", millions(guest.pause_instructions));
    svg.text((to + 8.0, y + 15.0), "in", Anchor::Start, figure);
    stop + guest.stopped()
}

/// L0 sleeps, works and sleeps, with its exits in each phase.
fn l0(svg: &mut Svg, columns: &[Column<'_>], y: f64) {
    let place = Place(columns);
    let (enter, leave) = (place.of("enter").0, place.of("leave").1);
    let middle = y + BAR / 2.0;
    name(svg, y, "L0");
    svg.line((COLUMNS.0 - STUB, middle), (enter, middle), "dormant");
    let asleep = place.of("offload");
    let above = (f64::midpoint(asleep.0, asleep.1), middle - 5.0);
    svg.text(above, "note small", Anchor::Middle, "dormant");
    svg.bar((enter, leave), (y, BAR), "l0");
    svg.line((leave, middle), (COLUMNS.1 + STUB, middle), "dormant");
    svg.text((18.0, y + LANE + 4.0), "note", Anchor::Start, "its VM exits");
    word(svg, place.of("boot"), y, "in VMX root");
    for Column { phase, from, to, .. } in columns {
        let at = (f64::midpoint(*from, *to), y + LANE + 4.0);
        svg.text(at, "small", Anchor::Middle, grouped(phase.l0_exits));
    }
}

/// Ticks of each phase, and the phases to scale.
fn axis(svg: &mut Svg, columns: &[Column<'_>], y: f64) {
    let all: u64 = columns.iter().map(|column| column.phase.instructions).sum();
    svg.text((18.0, y + 22.0), "note", Anchor::Start, "ticks");
    for Column { phase, from, to, .. } in columns {
        let at = (f64::midpoint(*from, *to), y + 22.0);
        svg.text(at, "small", Anchor::Middle, millions(phase.instructions));
    }
    let (begin, end) = COLUMNS;
    svg.text((18.0, y + 42.0), "note", Anchor::Start, "to scale");
    let mut from = begin;
    for Column { phase, .. } in columns {
        let to = from + (end - begin) * phase.instructions as f64 / all.max(1) as f64;
        svg.bar((from, to), (y + 31.0, 14.0), "scale");
        // A short one says nothing; it is there.
        if to - from > 6.0 * phase.name.len() as f64 {
            let at = (f64::midpoint(from, to), y + 41.5);
            svg.text(at, "note small", Anchor::Middle, &phase.name);
        }
        from = to;
    }
}

fn name(svg: &mut Svg, y: f64, name: &str) {
    svg.text((18.0, y + 15.0), "lane", Anchor::Start, name);
}

/// A word in the middle of a bar.
fn word(svg: &mut Svg, (from, to): (f64, f64), y: f64, word: &str) {
    svg.text((f64::midpoint(from, to), y + 15.0), "in", Anchor::Middle, word);
}

/// A guest's figures, in a line.
fn stood_still(guest: &Guest) -> String {
    let by = match guest.pause_seen_by.as_str() {
        "beats" => "as a watcher outside saw it",
        _ => "by QEMU",
    };
    format!(
        "{}: stood still for {} ticks {by}; from QEMU's stop to its resume {} ({}); {} bytes of RAM copied, {} of state",
        guest.name,
        millions(guest.pause_instructions),
        millions(guest.stopped()),
        guest.told(),
        grouped(guest.ram_bytes_copied),
        grouped(guest.state_bytes),
    )
}

/// Millions, as exact as a figure of three places.
pub(super) fn millions(ticks: u64) -> String {
    let tenths = (ticks + 50_000) / 100_000;
    match tenths {
        0 => format!("0.{:02} M", (ticks + 5_000) / 10_000),
        1..1000 => format!("{}.{} M", tenths / 10, tenths % 10),
        _ => format!("{} M", grouped((ticks + 500_000) / 1_000_000)),
    }
}

/// With commas.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the scenario `refresh-next` left, and what was drawn of it.
    const REPORT: &str = include_str!("../../../pictures/refresh.json");
    const DRAWN: &str = include_str!("../../../pictures/refresh.svg");

    fn report() -> Report {
        serde_json::from_str(REPORT).unwrap()
    }

    #[test]
    fn the_kept_picture_is_what_is_drawn_of_the_kept_report() {
        let drawn = draw(&report()).unwrap();
        assert!(
            drawn == DRAWN,
            "draw it anew: cargo lab picture bench/pictures/refresh.json bench/pictures/refresh.svg"
        );
        assert!(drawn.len() < 12_000, "{} bytes", drawn.len());
    }

    #[test]
    fn states_phases_guests_and_their_figures_are_in_it() {
        let drawn = draw(&report()).unwrap();
        for (phase, state) in STATES {
            assert!(drawn.contains(&format!(">{phase}<")) && drawn.contains(&format!(">{state}<")));
        }
        // Of the last refresh: its boot and exits, not those of the first.
        for figure in [
            "4,261 M",
            "744,179",
            "stood still 3.4 M",
            "stood still 48.1 M",
            "0 bytes of RAM copied",
        ] {
            assert!(drawn.contains(figure), "{figure}");
        }
        assert!(!drawn.contains("672,418"));
        assert!(drawn.contains("generation 1, Linux 7.3.4+deb13-amd64 → generation 2, Linux 6.12.107+deb13-amd64"));
        for outside in ["<script", "href", "@import", "@font-face", "url(http"] {
            assert!(!drawn.contains(outside), "{outside}");
        }
    }

    #[test]
    fn columns_fill_their_place_and_have_room_for_their_figures() {
        let report = report();
        let columns = columns(last_refresh(&report).unwrap());
        assert!(columns.iter().all(|column| column.to - column.from >= NARROW));
        assert!(columns.windows(2).all(|pair| pair[0].to == pair[1].from));
        let (first, last) = (&columns[0], &columns[columns.len() - 1]);
        assert!(first.from == COLUMNS.0 && (last.to - COLUMNS.1).abs() < 1e-6);
    }

    #[test]
    fn a_report_without_a_whole_refresh_is_refused() {
        let mut report = report();
        report.phases.retain(|phase| phase.name != "leave");
        assert!(draw(&report).is_err());
        assert!(draw(&Report::default()).is_err());
    }

    #[test]
    fn what_names_bring_along_is_no_markup() {
        let mut report = report();
        report.guests[0].name = "<g&1>".into();
        assert!(draw(&report).unwrap().contains("guest &lt;g&amp;1&gt;"));
    }

    #[test]
    fn figures_have_two_or_three_places() {
        let texts = [
            0,
            8_849,
            48_721,
            550_437,
            3_350_996,
            99_949_999,
            99_950_000,
            4_261_472_802,
        ]
        .map(millions);
        assert_eq!(
            texts,
            [
                "0.00 M", "0.01 M", "0.05 M", "0.6 M", "3.4 M", "99.9 M", "100 M", "4,261 M"
            ]
        );
    }
}
