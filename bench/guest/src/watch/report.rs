//! What a host reads from one beat page, as JSON.

use crate::beat::{self, DISK_BLOCKS, Tally};
use crate::scan::Found;
use crate::tsc;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The guest's name.
    pub name: String,
    /// Offset of its beat page into the mapped part of the pool, in bytes.
    pub offset: u64,
    /// Guest-physical address of its beat page.
    pub gpa: u64,
    /// Random number of this boot.
    pub boot_id: u64,
    /// Size of its verified buffer, in bytes.
    pub buffer_bytes: u64,
    /// Whether the buffer is filled and all checks run.
    pub running: bool,
    /// Beats so far.
    pub beats: u64,
    /// The host's TSC when the beats were read.
    pub host_tsc: u64,
    /// Faults so far.
    pub faults: u64,
    /// Faults by kind, those not zero.
    pub fault_kinds: BTreeMap<String, u64>,
    /// The first fault.
    pub first_fault: Option<Fault>,
    /// Work done and extremes, by name.
    pub work: BTreeMap<String, u64>,
    /// The guest's clocks; `None` when it was stopped while it wrote them.
    pub clock: Option<Clock>,
}

/// Details of a fault; see [`beat::FirstFault`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of beat::FirstFault")]
pub struct Fault {
    pub kind: String,
    pub place: u64,
    pub expected: u64,
    pub found: u64,
}

/// The guest's clocks at one beat; see [`beat::Sample`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of beat::Sample")]
pub struct Clock {
    pub beat: u64,
    pub tsc: u64,
    pub monotonic_ns: u64,
    pub realtime_ns: u64,
}

impl Report {
    /// Reads a page.
    #[must_use]
    pub fn read(found: &Found<'_>) -> Self {
        let page = found.page;
        let identity = page.identity();
        let kinds = beat::Fault::ALL.map(|fault| (fault.name().to_owned(), page.count(fault)));
        Report {
            name: identity.name,
            offset: found.offset,
            gpa: identity.gpa,
            boot_id: identity.boot_id,
            buffer_bytes: identity.buffer_bytes,
            running: page.running(),
            beats: page.beats(),
            host_tsc: tsc::read_ordered(),
            faults: page.faults(),
            fault_kinds: kinds.into_iter().filter(|(_, count)| *count > 0).collect(),
            first_fault: page.first_fault().map(|first| Fault {
                kind: first.fault.name().to_owned(),
                place: first.place,
                expected: first.expected,
                found: first.found,
            }),
            work: Tally::ALL
                .map(|tally| (tally.name().to_owned(), page.tally(tally)))
                .into(),
            clock: page.sample().map(|sample| Clock {
                beat: sample.beat,
                tsc: sample.tsc,
                monotonic_ns: sample.monotonic_ns,
                realtime_ns: sample.realtime_ns,
            }),
        }
    }
}

/// Work that must go on in a guest that did any of it.
const MUST_ADVANCE: [Tally; 5] = [
    Tally::PagesVerified,
    Tally::RegisterRounds,
    Tally::ClockChecks,
    Tally::DiskBlocks,
    Tally::NetEchoes,
];

/// How much of it: all of the buffer and of the disk's blocks, so that whatever was written before the event is read
/// after it.
fn enough(kind: Tally, guest: &Report) -> u64 {
    match kind {
        Tally::PagesVerified => guest.buffer_bytes / beat::PAGE_BYTES as u64,
        Tally::DiskBlocks => DISK_BLOCKS,
        _ => 1,
    }
}

/// What speaks against it that the guest of report `before` survived, given two later reports of that name: empty when
/// all is well. Work must have advanced from `start` to `now`, that is, after the event.
#[must_use]
pub fn survived(before: &Report, start: &Report, now: &Report) -> Vec<String> {
    let mut complaints = Vec::new();
    if now.boot_id != before.boot_id {
        let (new, old) = (now.boot_id, before.boot_id);
        complaints.push(format!("it booted anew (boot id {new:#x}, was {old:#x})"));
        return complaints;
    }
    if now.faults > 0 {
        let (faults, kinds) = (now.faults, &now.fault_kinds);
        complaints.push(format!("{faults} faults {kinds:?}, first {:?}", now.first_fault));
    }
    if start.beats < before.beats {
        let (late, early) = (start.beats, before.beats);
        complaints.push(format!("its memory is an older one: beat {late} after {early}"));
    }
    if now.beats <= start.beats {
        complaints.push(format!("it stands still at beat {}", now.beats));
    }
    let tally = |report: &Report, kind: Tally| report.work.get(kind.name()).copied().unwrap_or(0);
    for kind in MUST_ADVANCE {
        let (from, to) = (tally(start, kind), tally(now, kind));
        let enough = enough(kind, now).max(1);
        if tally(before, kind) > 0 && to.saturating_sub(from) < enough {
            complaints.push(format!(
                "{} went from {from} to {to} only, of {enough} needed",
                kind.name()
            ));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::{BeatPage, FirstFault, Identity, blank_page};

    fn identity() -> Identity {
        Identity {
            name: "g1".into(),
            gpa: 0x1000,
            boot_id: 5,
            started_ns: 0,
            buffer_bytes: DISK_BLOCKS * beat::PAGE_BYTES as u64,
        }
    }

    #[test]
    fn a_report_is_json_and_back() {
        let words = blank_page();
        let page = BeatPage::create(&words, &identity());
        page.record(FirstFault {
            fault: beat::Fault::MemoryStale,
            place: 1,
            expected: 2,
            found: 3,
        });
        let report = Report::read(&Found { offset: 4096, page });
        assert_eq!(report.fault_kinds, [("memory_stale".to_owned(), 1)].into());
        let json = serde_json::to_string(&report).expect("plain data");
        assert_eq!(serde_json::from_str::<Report>(&json).expect("just written"), report);
    }

    fn reports() -> [Report; 3] {
        let words = blank_page();
        let page = BeatPage::create(&words, &identity());
        [0, 1, 2].map(|_| {
            page.beat();
            for kind in MUST_ADVANCE {
                page.add(kind, DISK_BLOCKS);
            }
            Report::read(&Found { offset: 0, page })
        })
    }

    #[test]
    fn a_guest_that_goes_on_survived() {
        let [before, start, now] = reports();
        assert_eq!(survived(&before, &start, &now), Vec::<String>::new());
    }

    #[test]
    fn every_way_of_not_surviving_is_seen() {
        type Change = fn(&mut Report, &mut Report);
        let changes: [(Change, &str); 5] = [
            (|_, now| now.boot_id = 6, "booted anew"),
            (|_, now| now.faults = 1, "1 faults"),
            (|start, _| start.beats = 0, "an older one"),
            (|start, now| now.beats = start.beats, "at beat"),
            (
                |start, now| now.work.clone_from(&start.work),
                "disk_blocks went from 64 to 64",
            ),
        ];
        for (change, word) in changes {
            let [before, mut start, mut now] = reports();
            change(&mut start, &mut now);
            let complaints = survived(&before, &start, &now).join("; ");
            assert!(complaints.contains(word), "{word}: {complaints}");
        }
    }

    #[test]
    fn one_page_short_of_a_pass_is_not_enough() {
        let [before, start, mut now] = reports();
        if let Some(pages) = now.work.get_mut("pages_verified") {
            *pages -= 1;
        }
        let complaints = survived(&before, &start, &now).join("; ");
        assert!(
            complaints.contains("pages_verified went from 64 to 95 only, of 32"),
            "{complaints}"
        );
    }

    #[test]
    fn work_that_a_guest_never_did_need_not_go_on() {
        let [mut before, start, mut now] = reports();
        before.work.insert("disk_blocks".into(), 0);
        now.work.insert("disk_blocks".into(), start.work["disk_blocks"]);
        assert_eq!(survived(&before, &start, &now), Vec::<String>::new());
    }
}
