//! Measures pauses from outside the guest, in the host's TSC: the guest's own clocks stand still with it.

use crate::beat::BeatPage;
use crate::tsc;
use serde::Serialize;
use std::time::{Duration, Instant};

/// The beat that ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The beat that was waited beyond.
    pub since_beat: u64,
    /// The beat seen.
    pub beat: u64,
    /// The host's TSC when the wait began.
    pub start_tsc: u64,
    /// The host's TSC when the beat was seen.
    pub host_tsc: u64,
}

/// Spins until the counter is beyond `since_beat`; `None` after `timeout`.
#[must_use]
pub fn first_progress(page: BeatPage<'_>, since_beat: u64, timeout: Duration) -> Option<Progress> {
    let end = Instant::now() + timeout;
    let start_tsc = tsc::read_ordered();
    loop {
        // Asking for the time costs more than looking at the counter.
        for _ in 0..1000 {
            let beat = page.beats();
            if beat > since_beat {
                return Some(Progress {
                    since_beat,
                    beat,
                    start_tsc,
                    host_tsc: tsc::read_ordered(),
                });
            }
            std::hint::spin_loop();
        }
        if Instant::now() >= end {
            return None;
        }
    }
}

/// A time in which the counter stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Length in the host's TSC.
    pub ticks: u64,
    /// The host's TSC when the old value was last seen.
    pub from_tsc: u64,
    /// The host's TSC when the new value was first seen.
    pub to_tsc: u64,
    /// The old value.
    pub from_beat: u64,
    /// The new value.
    pub to_beat: u64,
}

/// Spins for `duration` and returns the `keep` longest gaps, longest first. A gap that has not ended is not among them.
#[must_use]
pub fn gaps(page: BeatPage<'_>, duration: Duration, keep: usize) -> Vec<Gap> {
    let end = Instant::now() + duration;
    let mut longest = Vec::with_capacity(keep + 1);
    let (mut from_beat, mut from_tsc) = (page.beats(), tsc::read_ordered());
    while Instant::now() < end {
        for _ in 0..1000 {
            let (to_beat, to_tsc) = (page.beats(), tsc::read_ordered());
            if to_beat != from_beat {
                let gap = Gap {
                    ticks: to_tsc.wrapping_sub(from_tsc),
                    from_tsc,
                    to_tsc,
                    from_beat,
                    to_beat,
                };
                insert(&mut longest, gap, keep);
                from_beat = to_beat;
                from_tsc = to_tsc;
            }
        }
    }
    longest
}

fn insert(longest: &mut Vec<Gap>, gap: Gap, keep: usize) {
    let place = longest.partition_point(|other| other.ticks >= gap.ticks);
    if place < keep {
        longest.insert(place, gap);
        longest.truncate(keep);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beat::{Identity, blank_page};

    fn identity() -> Identity {
        Identity {
            name: "g1".into(),
            gpa: 0,
            boot_id: 0,
            started_ns: 0,
            buffer_bytes: 0,
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads the TSC")]
    fn progress_is_seen_and_its_absence_too() {
        let words = blank_page();
        let page = BeatPage::create(&words, &identity());
        assert_eq!(first_progress(page, 0, Duration::from_millis(5)), None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(5));
                page.beat();
            });
            let progress = first_progress(page, 0, Duration::from_secs(10)).expect("one beat");
            assert_eq!(progress.beat, 1);
            assert!(progress.host_tsc > progress.start_tsc);
        });
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads the TSC")]
    fn the_longest_gap_is_the_pause() {
        let words = blank_page();
        let page = BeatPage::create(&words, &identity());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for beat in 1..=200 {
                    std::thread::sleep(Duration::from_millis(if beat == 100 { 100 } else { 1 }));
                    page.beat();
                }
            });
            let gaps = gaps(page, Duration::from_secs(1), 2);
            assert_eq!(gaps.len(), 2);
            assert!(
                gaps[0].from_beat < 100 && gaps[0].to_beat >= 100,
                "{gaps:?}"
            );
            assert!(gaps[0].ticks > gaps[1].ticks);
        });
    }

    #[test]
    fn only_the_longest_are_kept() {
        let gap = |ticks| Gap {
            ticks,
            from_tsc: 0,
            to_tsc: 0,
            from_beat: 0,
            to_beat: 0,
        };
        let mut longest = Vec::new();
        for ticks in [3, 9, 1, 5, 7] {
            insert(&mut longest, gap(ticks), 3);
        }
        assert_eq!(
            longest.iter().map(|g| g.ticks).collect::<Vec<_>>(),
            [9, 7, 5]
        );
    }
}
