//! A refresh as a drawing: who ran when, which state the refresh was in, and where the guests stood still.
//!
//! A column is a phase; under it is how long it took, above it the state that the refresh was in. Phases differ a
//! thousandfold, so columns are stretched, and a strip shows them to scale. A refresh that was given up, or that runs, is drawn
//! as far as it came.
//!
//! `locum report --svg` draws what a server's agents reported, and `cargo lab picture` what a run of the lab did.

#![forbid(unsafe_code)]

mod figures;
mod lanes;
mod svg;

pub use figures::{Unit, grouped, millions};
use svg::{Anchor, Svg};

/// Phases of a refresh in their order, and the state in which each is gone through.
pub const STATES: [(&str, &str); 9] = [
    ("offload", "Planned"),
    ("load", "Offloaded"),
    ("enter", "Offloaded"),
    ("start", "Nested"),
    ("boot", "Nested"),
    ("handover", "SuccessorUp"),
    ("retire", "Handover"),
    ("leave", "Retired"),
    ("reclaim", "Dormant"),
];
/// The states of earlier releases, in which a successor was nested until it had all.
const NESTED_RECLAIM: [(&str, &str); 2] = [("reclaim", "Retired"), ("leave", "Reclaimed")];
/// The phase in which everything is put back.
const ABORT: &str = "abort";

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
/// Characters that a line has room for.
const LINE: usize = 150;

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// In large type.
    pub title: String,
    /// Below it.
    pub subtitle: String,
    /// In order.
    pub phases: Vec<Phase>,
    /// In order.
    pub guests: Vec<Guest>,
    /// In what times are told.
    pub unit: Unit,
    /// How it ended.
    pub end: End,
    /// Below everything: where the figures are from.
    pub footnote: String,
}

/// A phase. Neighbours of one name are one.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// Ticks that it took.
    pub ticks: u64,
    /// VM exits that L0 took meanwhile.
    pub exits: u64,
}

/// A guest.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Ticks from the begin of the phase `handover` until it stood still, and how long it did; none if it did not cross.
    pub still: Option<(u64, u64)>,
    /// What else is known of it, in a line below the drawing.
    pub line: String,
}

/// How a refresh ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The successor reigns.
    Done,
    /// It was given up, for this reason.
    GivenUp(String),
    /// It has not ended.
    Running,
}

/// Draws it: an SVG document that needs nothing else.
#[must_use]
pub fn draw(timeline: &Timeline) -> String {
    let phases = merged(&timeline.phases);
    let sheet = Sheet {
        timeline,
        columns: &columns(&phases),
    };
    let guests = timeline.guests.len() as f64;
    let after = LANES + (guests + 3.0) * LANE;
    let why = match &timeline.end {
        End::GivenUp(reason) => Some(("still-word", format!("given up: {reason}"))),
        End::Running => Some(("lane", "it runs: this is how far it came".to_owned())),
        End::Done => None,
    };
    let height = after + 86.0 + 15.0 * guests + if why.is_some() { 18.0 } else { 0.0 };
    let mut svg = Svg::new(WIDTH, height, &timeline.title);
    svg.text((18.0, 30.0), "title", Anchor::Start, &timeline.title);
    svg.text((18.0, 48.0), "note", Anchor::Start, &timeline.subtitle);
    sheet.heads(&mut svg, after);
    sheet.hosts(&mut svg, LANES + (guests + 1.0) * LANE);
    for (number, guest) in (1u32..).zip(&timeline.guests) {
        sheet.guest(&mut svg, guest, LANES + f64::from(number) * LANE);
    }
    sheet.l0(&mut svg, LANES + (guests + 2.0) * LANE);
    sheet.axis(&mut svg, after);
    for (number, guest) in (0u32..).zip(&timeline.guests) {
        let y = after + 62.0 + 15.0 * f64::from(number);
        svg.text((18.0, y), "small", Anchor::Start, &guest.line);
    }
    let mut y = after + 66.0 + 15.0 * guests;
    if let Some((class, why)) = why {
        svg.text((18.0, y), class, Anchor::Start, clipped(&why));
        y += 18.0;
    }
    svg.text((18.0, y), "note small", Anchor::Start, &timeline.footnote);
    svg.end()
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(LINE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A phase, and where its column is.
struct Column<'a> {
    phase: &'a Phase,
    state: &'static str,
    from: f64,
    to: f64,
}

/// What the parts of a drawing are made of.
struct Sheet<'a> {
    timeline: &'a Timeline,
    columns: &'a [Column<'a>],
}

impl Sheet<'_> {
    /// Where a phase begins and ends; none if it did not come to that.
    fn span(&self, phase: &str) -> Option<(f64, f64)> {
        let found = self.columns.iter().find(|column| column.phase.name == phase);
        found.map(|column| (column.from, column.to))
    }
}

fn merged(phases: &[Phase]) -> Vec<Phase> {
    let merge = |same: &[Phase]| Phase {
        name: same[0].name.clone(),
        ticks: same.iter().map(|phase| phase.ticks).sum(),
        exits: same.iter().map(|phase| phase.exits).sum(),
    };
    phases.chunk_by(|a, b| a.name == b.name).map(merge).collect()
}

/// The state in which one of these phases was gone through.
fn state(phases: &[Phase], phase: &str) -> &'static str {
    let at = |name: &str| phases.iter().position(|phase| phase.name == name);
    // The order tells the release.
    let older = at("reclaim").is_some_and(|reclaim| at("leave").is_some_and(|leave| reclaim < leave));
    let older = older.then_some(NESTED_RECLAIM).into_iter().flatten();
    let known = older.chain(STATES).find(|(name, _)| *name == phase);
    known.map_or(if phase == ABORT { "Aborting" } else { "" }, |(_, state)| state)
}

/// Every column has room for its figure; what is left of the width is shared out by the root of the ticks.
fn columns(phases: &[Phase]) -> Vec<Column<'_>> {
    let root = |phase: &Phase| (phase.ticks as f64).sqrt();
    let all: f64 = phases.iter().map(root).sum();
    let (mut from, end) = COLUMNS;
    let narrow = NARROW.min((end - from) / (phases.len() as f64).max(1.0));
    let free = end - from - narrow * phases.len() as f64;
    phases
        .iter()
        .map(|phase| {
            let to = from + narrow + free * root(phase) / all.max(1.0);
            let state = state(phases, &phase.name);
            let column = Column { phase, state, from, to };
            from = to;
            column
        })
        .collect()
}

#[cfg(test)]
mod tests;
