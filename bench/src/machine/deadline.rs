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
//!
//! QEMU's TCG counts nothing, and its guests see the wall clock. Its second is one of wall time, of which that share
//! counts in which the kernel let its threads run, of the time in which they wanted to ([`share`]). So a machine that
//! waits for a busy developer's machine is not charged for that, and one that idles is.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, File},
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

/// A length of a machine's time.
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
    Runs {
        /// `/proc/PID/task`.
        tasks: PathBuf,
        /// Of each thread, at the last look.
        seen: HashMap<String, Sched>,
        time: Duration,
        looked: Instant,
    },
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

    /// The clock of an emulator that is this process and counts nothing itself.
    #[must_use]
    pub(crate) fn runs(pid: u32) -> Self {
        Self(Source::Runs {
            tasks: Path::new("/proc").join(pid.to_string()).join("task"),
            seen: HashMap::new(),
            time: Duration::ZERO,
            looked: Instant::now(),
        })
    }

    /// Looks at the clock.
    ///
    /// # Errors
    /// It stands still.
    pub(crate) fn now(&mut self) -> Result<Moment, StandsStill> {
        match &mut self.0 {
            Source::Wall(begin) => Ok(Moment(begin.elapsed())),
            Source::Runs {
                tasks,
                seen,
                time,
                looked,
            } => {
                let then = std::mem::replace(looked, Instant::now());
                let threads = Sched::of_threads(tasks);
                let since = Sched::since(seen, &threads);
                *seen = threads;
                *time += share(looked.duration_since(then), since);
                Ok(Moment(*time))
            }
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

/// What the kernel tells of a thread (`schedstat`, Documentation/scheduler/sched-stats.rst), in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Sched {
    /// It ran.
    ran: u64,
    /// It could have run, and another one did.
    waited: u64,
}

impl Sched {
    /// Of all threads of a process, by their ids; none where the kernel tells nothing, or the process is gone.
    fn of_threads(tasks: &Path) -> HashMap<String, Self> {
        let read = |thread: fs::DirEntry| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            Some((thread.file_name().to_string_lossy().into_owned(), Self::parse(&text)?))
        };
        let threads = fs::read_dir(tasks).into_iter().flatten().flatten();
        threads.filter_map(read).collect()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
        Some(Self {
            ran: numbers.next()?,
            waited: numbers.next()?,
        })
    }

    /// The sum over the threads that there are now, of what came since the last look.
    fn since(before: &HashMap<String, Self>, now: &HashMap<String, Self>) -> Self {
        let mut sum = Self::default();
        for (thread, now) in now {
            let before = before.get(thread).copied().unwrap_or_default();
            sum.ran += now.ran.saturating_sub(before.ran);
            sum.waited += now.waited.saturating_sub(before.waited);
        }
        sum
    }
}

/// How much of `wall` counts for a process whose threads ran and waited so long in it.
fn share(wall: Duration, since: Sched) -> Duration {
    match since.ran + since.waited {
        0 => wall,
        wanted => wall.mul_f64(since.ran as f64 / wanted as f64),
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
#[must_use]
pub(crate) fn length(ticks: u64, hz: u64) -> Duration {
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
    fn who_is_kept_waiting_is_not_charged() {
        let sched = |ran, waited| Sched { ran, waited };
        let second = Duration::from_secs(1);
        assert_eq!(share(second, sched(0, 0)), second, "it sleeps");
        assert_eq!(share(second, sched(4_000_000_000, 0)), second, "four threads ran");
        assert_eq!(share(second, sched(500_000_000, 1_500_000_000)), second / 4);
        assert_eq!(Sched::parse("12 34 5\n"), Some(sched(12, 34)));
        assert_eq!(Sched::parse(""), None);
        let threads = |of: &[(&str, Sched)]| of.iter().map(|(id, sched)| ((*id).to_owned(), *sched)).collect();
        let before = threads(&[("1", sched(10, 1)), ("2", sched(100, 100))]);
        let now = threads(&[("1", sched(15, 1)), ("3", sched(7, 2))]);
        assert_eq!(Sched::since(&before, &now), sched(12, 2), "2 is gone and 3 is new");
    }

    #[test]
    fn a_process_that_sleeps_ages_and_one_that_works_is_seen_to() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let mut clock = Clock::runs(child.id());
        let start = Moment::after_start(Span::seconds(0));
        let begin = Instant::now();
        let mut ran = 0;
        while ran == 0 && begin.elapsed() < STALL {
            std::thread::sleep(Duration::from_millis(20));
            let Clock(Source::Runs { tasks, .. }) = &clock else {
                panic!("another clock")
            };
            ran = Sched::of_threads(tasks).values().map(|sched| sched.ran).sum();
        }
        let now = clock.now().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ran > 0, "the kernel tells nothing of threads");
        assert!(now > start && now <= Moment(begin.elapsed()), "{now}");
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
