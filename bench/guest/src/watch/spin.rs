//! Measures pauses from outside the guest, in the host's TSC: the guest's own clocks stand still with it.

use crate::beat::BeatPage;
use crate::{priority, tsc};
use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::Serialize;
use std::io;
use std::time::{Duration, Instant};

/// Between two looks. A look costs a few thousand instructions, and one CPU has a hundred thousand in this time where it is emulated.
const PERIOD: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};
/// Looks until it is asked whether they are enough.
const LOOKS: u32 = 16;

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
    /// Ticks of these in which the watcher was absent itself: the guest may have gone on that much earlier.
    pub absent_ticks: u64,
    /// The host's TSC when the old value was first seen.
    pub from_tsc: u64,
    /// The host's TSC when the new value was first seen.
    pub to_tsc: u64,
    /// The old value.
    pub from_beat: u64,
    /// The new value.
    pub to_beat: u64,
}

/// Looks a thousand times a second until `enough`, asked now and then, and returns the `keep` longest gaps, longest first. A gap that
/// has not ended is not among them. No other thread keeps it from looking, so what it sees is the guest's absence and not its own.
///
/// # Errors
/// It is not let run before others.
pub fn gaps(page: BeatPage<'_>, keep: usize, mut enough: impl FnMut() -> bool) -> io::Result<Vec<Gap>> {
    priority::first()?;
    let mut observer = Observer::new(page.beats(), tsc::read_ordered(), keep);
    let mut due = clock_gettime(ClockId::Monotonic);
    while !enough() {
        for _ in 0..LOOKS {
            due += PERIOD;
            clock_nanosleep_absolute(ClockId::Monotonic, &due)?;
            let (beat, tsc, now) = (page.beats(), tsc::read_ordered(), clock_gettime(ClockId::Monotonic));
            let absent = now - due > PERIOD;
            observer.observe(beat, tsc, absent);
            if absent {
                due = now;
            }
        }
    }
    Ok(observer.longest)
}

/// Keeps the longest gaps among the observations that it is told.
struct Observer {
    beat: u64,
    /// TSC when that was first seen.
    tsc: u64,
    /// TSC of the last look.
    looked: u64,
    /// Ticks since `tsc` in which nobody looked, though it was due.
    absent: u64,
    keep: usize,
    longest: Vec<Gap>,
}

impl Observer {
    fn new(beat: u64, tsc: u64, keep: usize) -> Self {
        Observer {
            beat,
            tsc,
            looked: tsc,
            absent: 0,
            keep,
            longest: Vec::with_capacity(keep + 1),
        }
    }

    /// The gap begins with the first sight of a value: between two sights of it nothing can have happened. `absent`: this look comes
    /// late.
    fn observe(&mut self, beat: u64, tsc: u64, absent: bool) {
        if absent {
            self.absent += tsc.wrapping_sub(self.looked);
        }
        self.looked = tsc;
        if beat == self.beat {
            return;
        }
        let gap = Gap {
            ticks: tsc.wrapping_sub(self.tsc),
            absent_ticks: self.absent,
            from_tsc: self.tsc,
            to_tsc: tsc,
            from_beat: self.beat,
            to_beat: beat,
        };
        insert(&mut self.longest, gap, self.keep);
        self.beat = beat;
        self.tsc = tsc;
        self.absent = 0;
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
        for (beat, tsc, absent) in [
            (1, 1005, false),
            (2, 1010, true),
            (3, 1020, false),
            (3, 5000, true),
            (3, 7000, false),
            (9, 9020, true),
            (10, 9030, false),
        ] {
            observer.observe(beat, tsc, absent);
        }
        let pause = Gap {
            ticks: 8000,
            absent_ticks: 3980 + 2020,
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
        if !rustix::process::geteuid().is_root() {
            eprintln!("not played: only root may go first");
            return;
        }
        let words = blank_page();
        let page = BeatPage::create(&words, &identity());
        let mut looks = 0;
        let enough = || {
            looks += 1;
            looks > 3
        };
        assert_eq!(gaps(page, 2, enough).unwrap(), []);
    }

    #[test]
    fn only_the_longest_are_kept() {
        let gap = |ticks| Gap {
            ticks,
            absent_ticks: 0,
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
