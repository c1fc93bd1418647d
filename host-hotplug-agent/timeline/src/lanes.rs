//! The parts of the drawing, from above to below.

use super::svg::{Anchor, Svg};
use super::{ABORT, BAR, COLUMNS, Column, End, Guest, LANE, LANES, STUB, Sheet, grouped};

/// Least width of a stand-still that can be seen.
const SEEN: f64 = 3.0;

impl Sheet<'_> {
    /// Where bars end: what runs has no afterwards.
    fn right(&self) -> f64 {
        match self.timeline.end {
            End::Running => COLUMNS.1,
            End::Done | End::GivenUp(_) => COLUMNS.1 + STUB,
        }
    }

    /// Where the last CPU became native again, if it did.
    fn left_nested(&self) -> Option<f64> {
        let (last, over) = match self.timeline.end {
            End::Done => ("leave", true),
            End::GivenUp(_) => (ABORT, true),
            End::Running => ("leave", self.span("reclaim").is_some()),
        };
        self.span(last).filter(|_| over).map(|(_, to)| to)
    }

    /// States above, and the phases that they consist of.
    pub(super) fn heads(&self, svg: &mut Svg, end: f64) {
        svg.text((18.0, 79.0), "note", Anchor::Start, "state");
        svg.text((18.0, 101.0), "note", Anchor::Start, "phase");
        for state in self.columns.chunk_by(|a, b| a.state == b.state) {
            let (from, to) = (state[0].from, state[state.len() - 1].to);
            svg.bar((from + 1.0, to - 1.0), (65.0, 20.0), "band");
            svg.text((f64::midpoint(from, to), 79.0), "small", Anchor::Middle, state[0].state);
        }
        for Column { phase, from, to, .. } in self.columns {
            let (rule, word) = match phase.name == ABORT {
                true => ("still", "still-word"),
                false => ("rule", "note"),
            };
            svg.line((*from, 90.0), (*from, end), rule);
            svg.text((f64::midpoint(*from, *to), 101.0), word, Anchor::Middle, &phase.name);
        }
        svg.line((COLUMNS.1, 90.0), (COLUMNS.1, end), "rule");
    }

    /// The incumbent above the guests, the successor at `below`.
    pub(super) fn hosts(&self, svg: &mut Svg, below: f64) {
        self.incumbent(svg);
        self.successor(svg, below);
    }

    fn incumbent(&self, svg: &mut Svg) {
        let begin = COLUMNS.0 - STUB;
        let gone = self.span("retire").map(|(_, to)| to);
        let off = gone.filter(|_| self.timeline.end == End::Done || self.span("leave").is_some());
        let end = off.unwrap_or(self.right());
        let lane = (LANES, BAR);
        name(svg, LANES, "incumbent");
        svg.bar((begin, end), lane, "incumbent");
        if let Some((enter, _)) = self.span("enter") {
            svg.nested((enter, off.or(self.left_nested()).unwrap_or(end)), lane);
        }
        self.word(svg, "offload", LANES, "native");
        self.word(svg, "boot", LANES, "nested");
        if let Some(off) = off {
            svg.text((off + 6.0, LANES + 15.0), "note", Anchor::Start, "off");
        }
    }

    fn successor(&self, svg: &mut Svg, below: f64) {
        let lane = (below, BAR);
        // While everything is put back it is stopped, and its memory cleared.
        let abort = self.span(ABORT);
        let end = abort.map_or(self.right(), |(from, _)| from);
        let start = self.span("start").map(|(from, _)| from);
        name(svg, below, "successor");
        let load = self.span("load").map(|(from, _)| (from, start.unwrap_or(end)));
        if let Some(load) = load {
            svg.bar(load, lane, "loading");
        }
        if let Some(start) = start {
            svg.bar((start, end), lane, "successor");
            let leave = self.left_nested().filter(|_| abort.is_none());
            svg.nested((start, leave.unwrap_or(end)), lane);
        }
        if let Some((from, to)) = load {
            let middle = f64::midpoint(from, to);
            svg.text(
                (middle, below + 15.0),
                "note small",
                Anchor::Middle,
                "kernel into memory",
            );
        }
        self.word(svg, "boot", below, "boots, nested");
        self.word(svg, "reclaim", below, "reigns");
        if let Some(abort) = abort {
            svg.text(
                (f64::midpoint(abort.0, abort.1), below + 15.0),
                "note",
                Anchor::Middle,
                "given up",
            );
        }
    }

    /// A guest on the one host and then on the other, with the time between that it stood still.
    pub(super) fn guest(&self, svg: &mut Svg, guest: &Guest, y: f64) {
        let begin = COLUMNS.0 - STUB;
        name(svg, y, &format!("guest {}", guest.name));
        let (Some((from, to)), Some((stop, pause))) = (self.span("handover"), guest.still) else {
            svg.bar((begin, self.right()), (y, BAR), "incumbent");
            return self.word(svg, "boot", y, "runs on the incumbent");
        };
        let all = self.columns.iter().find(|column| column.phase.name == "handover");
        let all = all.map_or(1, |column| column.phase.ticks.max(1));
        let at = |ticks: u64| from + (to - from) * (ticks as f64 / all as f64).min(1.0);
        let stopped = at(stop).min(to - SEEN);
        let resumed = at(stop + pause).max(stopped + SEEN);
        svg.bar((begin, stopped), (y, BAR), "incumbent");
        svg.bar((resumed, self.right()), (y, BAR), "successor");
        svg.bar((stopped, resumed), (y - 2.0, BAR + 4.0), "still");
        self.word(svg, "boot", y, "runs on the incumbent");
        let figure = format!("stood still {}", self.timeline.unit.figure(pause));
        svg.text((to + 8.0, y + 15.0), "in", Anchor::Start, figure);
    }

    /// L0 sleeps, works and sleeps, with its exits in each phase.
    pub(super) fn l0(&self, svg: &mut Svg, y: f64) {
        let middle = y + BAR / 2.0;
        name(svg, y, "L0");
        let enter = self.span("enter").map(|(from, _)| from);
        svg.line(
            (COLUMNS.0 - STUB, middle),
            (enter.unwrap_or(self.right()), middle),
            "dormant",
        );
        if let Some(asleep) = self.span("offload") {
            let above = (f64::midpoint(asleep.0, asleep.1), middle - 5.0);
            svg.text(above, "note small", Anchor::Middle, "dormant");
        }
        if let Some(enter) = enter {
            let leave = self.left_nested().unwrap_or(self.right());
            svg.bar((enter, leave), (y, BAR), "l0");
            svg.line((leave, middle), (self.right(), middle), "dormant");
        }
        svg.text((18.0, y + LANE + 4.0), "note", Anchor::Start, "its VM exits");
        self.word(svg, "boot", y, "in VMX root");
        for Column { phase, from, to, .. } in self.columns {
            let at = (f64::midpoint(*from, *to), y + LANE + 4.0);
            svg.text(at, "small", Anchor::Middle, grouped(phase.exits));
        }
    }

    /// How long each phase took, and the phases to scale.
    pub(super) fn axis(&self, svg: &mut Svg, y: f64) {
        let unit = self.timeline.unit;
        let all: u64 = self.columns.iter().map(|column| column.phase.ticks).sum();
        svg.text((18.0, y + 22.0), "note", Anchor::Start, unit.word());
        for Column { phase, from, to, .. } in self.columns {
            let at = (f64::midpoint(*from, *to), y + 22.0);
            svg.text(at, "small", Anchor::Middle, unit.figure(phase.ticks));
        }
        let (begin, end) = COLUMNS;
        svg.text((18.0, y + 42.0), "note", Anchor::Start, "to scale");
        let mut from = begin;
        for Column { phase, .. } in self.columns {
            let to = from + (end - begin) * phase.ticks as f64 / all.max(1) as f64;
            svg.bar((from, to), (y + 31.0, 14.0), "scale");
            // A short one says nothing; it is there.
            if to - from > 6.0 * phase.name.len() as f64 {
                let at = (f64::midpoint(from, to), y + 41.5);
                svg.text(at, "note small", Anchor::Middle, &phase.name);
            }
            from = to;
        }
    }

    /// A word in the middle of a phase, if there was that phase.
    fn word(&self, svg: &mut Svg, phase: &str, y: f64, word: &str) {
        if let Some((from, to)) = self.span(phase) {
            svg.text((f64::midpoint(from, to), y + 15.0), "in", Anchor::Middle, word);
        }
    }
}

fn name(svg: &mut Svg, y: f64, name: &str) {
    svg.text((18.0, y + 15.0), "lane", Anchor::Start, name);
}
