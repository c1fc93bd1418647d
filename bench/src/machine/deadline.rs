//! Limits of waits, in the machine's own time.
//!
//! A limit in wall time fails on a busy machine for no fault of what is tested. So the lab's limits are [`Span`]s of
//! emulated time, which its [`Clock`] reads from the emulator (`BOCHS_TICKS`, see `emulator/bochs.patch`): however slow
//! the emulator is, it gets as far within its limit. Wall time has one use: an emulator that counts no tick for
//! [`STALL`] stands still, and would reach no limit.
//!
//! An emulated second is [`IPS`] ticks in which some CPU worked, or a second of Linux's clock ([`bochs::tsc_hz`]) in
//! which all were halted. The two differ on CPUs whose TSC Linux takes for faster than it is: there, a host that sleeps
//! for a second takes 35 times as many ticks, which pass quickly.

use std::{
    fmt,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::bochs::{self, IPS};

/// An emulator that counts no tick for so long (wall time) stands still; even one that gets a hundredth of a CPU counts
/// millions meanwhile.
pub(crate) const STALL: Duration = Duration::from_secs(300);

/// What one look may add to the time without a tick: if the lab comes to look this late, it was held up itself, and the
/// emulator perhaps with it.
const LATE: Duration = Duration::from_secs(5);

/// A length of emulated time; of wall time where the platform has no emulated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span(Duration);

impl Span {
    /// So many emulated seconds.
    #[must_use]
    pub(crate) const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s of the machine's time", self.0.as_secs_f64())
    }
}

/// A moment in a machine's life, counted from power on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Duration);

impl Moment {
    /// The end of a machine that may run for `span`.
    #[must_use]
    pub(crate) const fn after_start(span: Span) -> Self {
        Self(span.0)
    }

    /// The moment `span` later.
    #[must_use]
    pub(crate) fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after power on", Span(self.0))
    }
}

/// No tick for so long, in wall time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StandsStill(Duration);

impl fmt::Display for StandsStill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        write!(f, "the emulator stands still: no tick for {seconds} s")
    }
}

impl std::error::Error for StandsStill {}

/// A machine's time.
#[derive(Debug)]
pub(crate) struct Clock(Source);

#[derive(Debug)]
enum Source {
    Ticks {
        file: PathBuf,
        /// Ticks of a second in which every CPU is halted.
        idle_hz: u64,
        now: Ticks,
        stall: Stall,
        looked: Instant,
    },
    Wall(Instant),
}

impl Clock {
    /// The clock of a Bochs with CPUs of that model, which shows its ticks in `file`, perhaps not yet.
    #[must_use]
    pub(crate) fn bochs(file: &Path, cpu_model: &str) -> Self {
        Self(Source::Ticks {
            file: file.to_owned(),
            idle_hz: bochs::tsc_hz(cpu_model).unwrap_or(IPS),
            now: Ticks::default(),
            stall: Stall::default(),
            looked: Instant::now(),
        })
    }

    /// The wall clock, for a machine that runs as fast as this one.
    #[must_use]
    pub(crate) fn wall() -> Self {
        Self(Source::Wall(Instant::now()))
    }

    /// Looks at the clock.
    ///
    /// # Errors
    /// It stands still.
    pub(crate) fn now(&mut self) -> Result<Moment, StandsStill> {
        match &mut self.0 {
            Source::Wall(begin) => Ok(Moment(begin.elapsed())),
            Source::Ticks {
                file,
                idle_hz,
                now,
                stall,
                looked,
            } => {
                let then = std::mem::replace(looked, Instant::now());
                *now = Ticks::read(file).unwrap_or(*now);
                stall.look(*now, looked.duration_since(then))?;
                Ok(Moment(now.time(*idle_hz)))
            }
        }
    }
}

/// What an emulator counts, in the order of its file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ticks {
    /// All since power on.
    all: u64,
    /// Those in which every CPU was halted.
    idle: u64,
}

impl Ticks {
    /// `None` while the emulator has not made the file.
    fn read(file: &Path) -> Option<Self> {
        let mut words = [[0; 8]; 2];
        File::open(file)
            .and_then(|file| file.read_exact_at(words.as_flattened_mut(), 0))
            .ok()?;
        let [all, idle] = words.map(u64::from_le_bytes);
        Some(Self { all, idle })
    }

    fn time(self, idle_hz: u64) -> Duration {
        // The two words are not read at the same moment.
        let busy = self.all.saturating_sub(self.idle);
        length(busy, IPS) + length(self.idle, idle_hz)
    }
}

/// How long so many ticks take.
fn length(ticks: u64, hz: u64) -> Duration {
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(hz.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

/// Finds out that the ticks stand still.
#[derive(Debug, Default)]
struct Stall {
    last: Ticks,
    still: Duration,
}

impl Stall {
    /// `since` is the wall time since the last look.
    fn look(&mut self, now: Ticks, since: Duration) -> Result<(), StandsStill> {
        if now == self.last {
            self.still += since.min(LATE);
        } else {
            self.last = now;
            self.still = Duration::ZERO;
        }
        if self.still >= STALL {
            return Err(StandsStill(self.still));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::bochs::{HASWELL, SKYLAKE_X};

    const LOOK: Duration = Duration::from_secs(1);

    fn ticks(all: u64) -> Ticks {
        Ticks { all, idle: 0 }
    }

    #[test]
    fn an_emulator_without_ticks_stands_still_a_slow_one_does_not() {
        let mut stall = Stall::default();
        for _ in 1..STALL.as_secs() {
            assert_eq!(stall.look(ticks(0), LOOK), Ok(()));
        }
        let error = stall.look(ticks(0), LOOK).unwrap_err().to_string();
        assert_eq!(error, "the emulator stands still: no tick for 300 s");

        let mut crawling = Stall::default();
        for second in 0..10 * STALL.as_secs() {
            let now = ticks(second / (STALL.as_secs() - 1));
            assert_eq!(crawling.look(now, LOOK), Ok(()));
        }
    }

    #[test]
    fn a_lab_that_was_held_up_itself_does_not_blame_the_emulator() {
        let mut stall = Stall::default();
        assert_eq!(stall.look(ticks(0), 10 * STALL), Ok(()));
        assert_eq!(stall.still, LATE);
    }

    #[test]
    fn time_is_work_and_idleness() {
        let busy = ticks(3 * IPS);
        let idle = Ticks {
            all: 3_500_000_000,
            idle: 3_500_000_000,
        };
        let hz = |model| bochs::tsc_hz(model).unwrap();
        assert_eq!(busy.time(hz(HASWELL)), Duration::from_secs(3));
        assert_eq!(busy.time(hz(SKYLAKE_X)), Duration::from_secs(3));
        assert_eq!(idle.time(hz(HASWELL)), Duration::from_secs(35));
        assert_eq!(idle.time(hz(SKYLAKE_X)), Duration::from_secs(1));
        // Words of two moments; and no overflow in a life of years.
        let torn = Ticks { all: 5, idle: 6 };
        assert_eq!(torn.time(IPS), Duration::from_nanos(60));
        assert_eq!(length(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn the_clock_follows_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ticks");
        let mut clock = Clock::bochs(&file, HASWELL);
        let start = Moment::after_start(Span::seconds(0));
        assert_eq!(clock.now(), Ok(start), "no file yet");
        std::fs::write(&file, [0; 7]).unwrap();
        assert_eq!(clock.now(), Ok(start), "not all of it yet");
        let words = [7 * IPS, 2 * IPS].map(u64::to_le_bytes);
        std::fs::write(&file, words.as_flattened()).unwrap();
        let now = clock.now().unwrap();
        assert_eq!(now, start.after(Span::seconds(7)));
        assert_eq!(now.to_string(), "7.0 s of the machine's time after power on");
        assert!(now > start.after(Span::seconds(6)));
    }
}
