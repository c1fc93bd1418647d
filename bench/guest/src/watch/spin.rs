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
    /// The host's TSC when the old value was first seen.
    pub from_tsc: u64,
    /// The host's TSC when the new value was first seen.
    pub to_tsc: u64,
    /// The old value.
    pub from_beat: u64,
    /// The new value.
    pub to_beat: u64,
}

/// Spins until `enough`, asked now and then, and returns the `keep` longest gaps, longest first. A gap that has not
/// ended is not among them. Whoever else is to have the CPU gets it at once: what is measured waits for others a lot, and
/// would wait for this one.
#[must_use]
pub fn gaps(page: BeatPage<'_>, keep: usize, mut enough: impl FnMut() -> bool) -> Vec<Gap> {
    let mut observer = Observer::new(page.beats(), tsc::read_ordered(), keep);
    while !enough() {
        for _ in 0..16 {
            for _ in 0..64 {
                observer.observe(page.beats(), tsc::read_ordered());
            }
            std::thread::yield_now();
        }
    }
    observer.longest
}

/// Keeps the longest gaps among the observations that it is told.
struct Observer {
    beat: u64,
    tsc: u64,
    keep: usize,
    longest: Vec<Gap>,
}

impl Observer {
    fn new(beat: u64, tsc: u64, keep: usize) -> Self {
        Observer {
            beat,
            tsc,
            keep,
            longest: Vec::with_capacity(keep + 1),
        }
    }

    /// The gap begins with the first sight of a value: between two sights of it nothing can have happened.
    fn observe(&mut self, beat: u64, tsc: u64) {
        if beat == self.beat {
            return;
        }
        let gap = Gap {
            ticks: tsc.wrapping_sub(self.tsc),
            from_tsc: self.tsc,
            to_tsc: tsc,
            from_beat: self.beat,
            to_beat: beat,
        };
        insert(&mut self.longest, gap, self.keep);
        self.beat = beat;
        self.tsc = tsc;
    }
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
            let progress = first_progress(page, 0, Duration::from_secs(180)).expect("one beat");
            assert_eq!(progress.beat, 1);
            assert!(progress.host_tsc > progress.start_tsc);
        });
    }

    #[test]
    fn the_longest_gap_is_the_pause() {
        let mut observer = Observer::new(1, 1000, 2);
        for (beat, tsc) in [(1, 1005), (2, 1010), (3, 1020), (3, 5000), (9, 9020), (10, 9030)] {
            observer.observe(beat, tsc);
        }
        let pause = Gap {
            ticks: 8000,
            from_tsc: 1020,
            to_tsc: 9020,
            from_beat: 3,
            to_beat: 9,
        };
        assert_eq!(observer.longest.first(), Some(&pause));
        assert_eq!(observer.longest.len(), 2);
    }

    #[test]
    #[cfg_attr(miri, ignore = "reads the TSC")]
    fn a_guest_that_stands_still_has_no_gap_that_ended() {
        let words = blank_page();
        let page = BeatPage::create(&words, &identity());
        let mut looks = 0;
        let enough = || {
            looks += 1;
            looks > 3
        };
        assert_eq!(gaps(page, 2, enough), []);
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
        assert_eq!(longest.iter().map(|g| g.ticks).collect::<Vec<_>>(), [9, 7, 5]);
    }
}
