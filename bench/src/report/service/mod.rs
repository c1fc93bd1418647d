//! What a client outside saw of a refresh: how many operations it did meanwhile, and how long the longest took.
//!
//! All times are ticks, and those of the server alone: the client's own work takes none (`machine::segment`).

mod beats;
mod drawing;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::agent::Refresh;
use crate::machine::segment::{Connections, Operation, SERVER};

pub(crate) use beats::Beats;
pub(crate) use drawing::draw;

/// Ticks before and after a refresh that are told, too.
const AROUND: u64 = 500_000_000;
/// Ticks of a point of the line.
const POINT: u64 = 10_000_000;
/// So many of the longest operations are told.
const STALLS: usize = 5;

/// One refresh, as the client saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    /// TSC when the refresh began.
    pub begin: u64,
    /// TSC when it ended.
    pub end: u64,
    /// Before it, its phases in their order, and after it.
    pub stretches: Vec<Stretch>,
    /// Operations answered in each ten million ticks, from [`AROUND`] before the begin.
    pub line: Vec<u64>,
    /// Beats of the busy guest in the same time each; `None` where nobody looked.
    #[serde(default)]
    pub busy: Vec<Option<u64>>,
    /// The longest operations, the longest first.
    pub stalls: Vec<Stall>,
    /// Ticks at which the client sent something again, which had been lost or was waited for too long.
    pub again_by_client: Vec<u64>,
    /// Likewise the server.
    pub again_by_server: Vec<u64>,
    /// Frames that had come for guests while they crossed, and went after them.
    #[serde(default)]
    pub late_frames: u64,
    /// Ticks at which a card could not take a frame.
    pub dropped: Vec<u64>,
    /// The phases of the same refresh in which the client said nothing, if that was played, too.
    #[serde(default)]
    pub without: Vec<Stretch>,
}

/// A stretch of the time line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stretch {
    /// The phase.
    pub name: String,
    /// TSC at its begin.
    pub from: u64,
    /// TSC at its end.
    pub to: u64,
    /// Operations that were answered in it.
    pub operations: u64,
    /// Ticks of the longest of them.
    pub longest: u64,
    /// Beats of the busy guest in it, if somebody looked.
    #[serde(default)]
    pub beats: Option<u64>,
}

/// A long operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stall {
    /// Ticks from the request's last byte in to the answer's last byte out.
    pub ticks: u64,
    /// TSC at the request.
    pub from: u64,
    /// The phase that it was answered in.
    pub answered_in: String,
}

impl Stretch {
    /// So many for a million ticks.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn rate(&self, count: u64) -> f64 {
        count as f64 * 1e6 / self.to.saturating_sub(self.from).max(1) as f64
    }
}

impl Service {
    /// Of that refresh, from all operations of a client in their order.
    #[must_use]
    pub(crate) fn of(refresh: &Refresh, operations: &[Operation], seen: &Connections, busy: &Beats) -> Option<Self> {
        let (begin, end) = (refresh.phases.first()?.start, refresh.phases.last()?.end);
        let (from, to) = (begin.saturating_sub(AROUND), end + AROUND);
        let starts = refresh.phases.iter().map(|phase| (phase.name.as_str(), phase.start));
        let mut borders: Vec<_> = [("before", from)].into_iter().chain(starts).collect();
        // An incumbent's phase goes on as its successor's.
        borders.dedup_by(|next, last| next.0 == last.0);
        borders.push(("after", end));
        let ends = borders.iter().skip(1).map(|border| border.1).chain([to]);
        let answered = |from: u64, to: u64| operations.iter().filter(move |op| (from..to).contains(&op.answered));
        let stretch = |((name, from), to): (&(&str, u64), u64)| Stretch {
            name: (*name).to_owned(),
            from: *from,
            to,
            operations: answered(*from, to).count() as u64,
            longest: answered(*from, to).map(Operation::ticks).max().unwrap_or_default(),
            beats: busy.between(*from, to),
        };
        let stretches: Vec<_> = borders.iter().zip(ends).map(stretch).collect();
        let mut longest: Vec<_> = answered(from, to).collect();
        longest.sort_by_key(|op| std::cmp::Reverse(op.ticks()));
        let stalls = longest.into_iter().take(STALLS).map(|op| Stall {
            ticks: op.ticks(),
            from: op.asked,
            answered_in: stretches
                .iter()
                .find(|stretch| (stretch.from..stretch.to).contains(&op.answered))
                .map(|stretch| stretch.name.clone())
                .unwrap_or_default(),
        });
        let points = (0..(to - from).div_ceil(POINT)).map(|point| from + point * POINT);
        let within = |ticks: &u64| (from..to).contains(ticks);
        let again = |server: bool| {
            let by = seen
                .retransmitted
                .iter()
                .filter(|(_, from)| (from.port() == SERVER) == server);
            by.map(|(tick, _)| *tick).filter(within).collect()
        };
        Some(Self {
            begin,
            end,
            line: points
                .clone()
                .map(|at| answered(at, at + POINT).count() as u64)
                .collect(),
            busy: points.map(|at| busy.between(at, at + POINT)).collect(),
            stalls: stalls.collect(),
            stretches,
            late_frames: refresh.guests.iter().map(|guest| guest.late_frames).sum(),
            again_by_client: again(false),
            again_by_server: again(true),
            dropped: seen.dropped.iter().map(|(tick, _)| *tick).filter(within).collect(),
            without: Vec::new(),
        })
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<10} {:>14} {:>12} {:>16} {:>14} {:>16}",
            "phase", "ticks", "operations", "of a million", "longest, ticks", "beats of a mill."
        )?;
        for stretch in &self.stretches {
            writeln!(
                f,
                "{:<10} {:>14} {:>12} {:>16.2} {:>14} {:>16}",
                stretch.name,
                timeline::millions(stretch.to.saturating_sub(stretch.from)),
                stretch.operations,
                stretch.rate(stretch.operations),
                stretch.longest,
                match stretch.beats {
                    Some(beats) => format!("{:.2}", stretch.rate(beats)),
                    None => "-".to_owned(),
                }
            )?;
        }
        let stalls = self.stalls.iter();
        let stalls = stalls.map(|stall| format!("{} ({})", timeline::millions(stall.ticks), stall.answered_in));
        write!(
            f,
            "longest operations: {}; sent again by the client: {}, by the server: {}; sent after the guest: {}; not \
             taken by a card: {}",
            stalls.collect::<Vec<_>>().join(", "),
            self.again_by_client.len(),
            self.again_by_server.len(),
            self.late_frames,
            self.dropped.len()
        )?;
        for (number, stretch) in self.without.iter().enumerate() {
            let words = if number == 0 { "\nwithout a client:" } else { "," };
            write!(
                f,
                "{words} {} {}",
                stretch.name,
                timeline::millions(stretch.to.saturating_sub(stretch.from))
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::agent::Phase;

    pub(super) fn refresh(phases: &[(&str, u64, u64)]) -> Refresh {
        let phases = phases.iter().map(|(name, start, end)| Phase {
            name: (*name).to_owned(),
            by: String::new(),
            start: *start,
            end: *end,
            l0_exits: 0,
        });
        Refresh {
            incumbent: "a".into(),
            successor: "b".into(),
            outcome: "done".into(),
            error: None,
            phases: phases.collect(),
            guests: Vec::new(),
            taken_up: Vec::new(),
            losses: Vec::new(),
            unreclaimed_bytes: 0,
        }
    }

    /// One each 100,000 ticks, but for a time in which there is none.
    pub(super) fn operations(until: u64, gap: std::ops::Range<u64>) -> Vec<Operation> {
        let mut operations = Vec::new();
        let mut asked = 0;
        while asked < until {
            let mut answered = asked + 100_000;
            if gap.contains(&answered) {
                answered = gap.end;
            }
            operations.push(Operation {
                update: false,
                asked,
                answered,
            });
            asked = answered;
        }
        operations
    }

    #[test]
    fn each_phase_has_its_operations_and_the_longest_is_told_where_it_ended() {
        let m = 1_000_000;
        let refresh = refresh(&[
            ("offload", 600 * m, 700 * m),
            ("retire", 700 * m, 710 * m),
            // By the successor; nothing was done for a moment.
            ("retire", 712 * m, 720 * m),
            ("leave", 720 * m, 730 * m),
        ]);
        let operations = operations(2000 * m, 705 * m..725 * m);
        let service = Service::of(&refresh, &operations, &Connections::default(), &Beats::default()).unwrap();
        let told: Vec<_> = service
            .stretches
            .iter()
            .map(|stretch| (stretch.name.as_str(), stretch.operations, stretch.longest / 100_000))
            .collect();
        assert_eq!(
            told,
            [
                ("before", 5000, 1),
                ("offload", 1000, 1),
                ("retire", 50, 1),
                ("leave", 50, 201),
                ("after", 5000, 1)
            ]
        );
        assert_eq!(service.stalls[0].answered_in, "leave");
        assert_eq!(service.stalls[0].ticks, 20_100_000);
        assert_eq!(service.line.len(), 113);
        assert_eq!(service.line.iter().sum::<u64>(), 11_100);
        let text = service.to_string();
        assert!(
            text.contains("before              500 M         5000            10.00         100000"),
            "{text}"
        );
        assert!(
            Service::of(
                &super::tests::refresh(&[]),
                &operations,
                &Connections::default(),
                &Beats::default()
            )
            .is_none()
        );
    }
}
