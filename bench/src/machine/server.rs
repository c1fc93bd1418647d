//! A running server, and the hosts on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{Mutex, PoisonError},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::{
    board::Board,
    bochs::{self, Hardware},
    channel::Channel,
    deadline::{Clock, Moment, Span},
    follow::{self, Follower},
    monitor::Monitor,
    platform::Platform,
    qemu,
    segment::Segment,
    tcg,
    turns::{self, Turn},
};
use crate::tools;

/// How often a wait looks at the emulator and its logs when no message comes; wall time, since that costs the hosts
/// nothing.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// What follows a fatal sign explains it: so long it may arrive.
const EXPLANATION: Span = Span::seconds(2);

/// How much of the end of a log is looked at for its last lines, in bytes.
const TAIL: u64 = 1 << 16;

/// All logs, in the order in which an error shows them.
const LOGS: &[&str] = &[
    "bochs.log",
    "bochs.err",
    qemu::ERRORS,
    "l0.log",
    "console1.log",
    "console0.log",
];

/// What the screen showed when something failed.
const SCREEN: &str = "screen.png";

/// Signs in a log that nothing good follows.
const FATAL: &[(&str, &str)] = &[
    ("console0.log", "Kernel panic - not syncing"),
    ("console1.log", "Kernel panic - not syncing"),
    // systemd's, and nobody is there to log in.
    ("console0.log", "You are in emergency mode"),
    ("l0.log", "this CPU halts"),
    ("l0.log", "this CPU ends here"),
    ("l0.log", "the machine resets"),
    ("bochs.log", ">>PANIC<<"),
];

/// A running server.
pub(crate) struct Machine {
    dir: PathBuf,
    child: Child,
    pub(super) channels: [Channel; 2],
    clock: Clock,
    pub(super) end: Moment,
    signs: Vec<Sign>,
    expected: Vec<&'static str>,
    monitor: Option<Mutex<Monitor>>,
    segment: Option<Segment>,
    // Last, so that the next emulator starts when this one is gone.
    _turn: Turn,
}

/// One of [`FATAL`], followed.
struct Sign {
    log: &'static str,
    text: &'static str,
    follower: Follower,
}

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// CPUs.
    pub cpus: u32,
    /// Their model, as Bochs calls it.
    pub cpu_model: String,
    /// RAM of all but the second board, in MiB.
    pub memory: u32,
    /// The second board, with [`Platform::Tcg`].
    pub board: Board,
    /// What it boots.
    pub medium: Medium,
    /// The image of a disk that it has besides, behind a USB controller, and writes to; on Bochs only.
    pub disk: Option<PathBuf>,
    /// Its cards hang on a segment with a client; on Bochs only.
    pub segment: bool,
    /// What runs it.
    pub platform: Platform,
    /// Everything about the run goes there.
    pub dir: PathBuf,
    /// Its CPUs may be given machine checks, if Bochs runs it.
    pub machine_checks: bool,
    /// The machine is killed after this long.
    pub limit: Span,
}

/// What a machine boots.
#[derive(Debug, Clone)]
pub(crate) enum Medium {
    /// A CD's image.
    Cd(PathBuf),
    /// A disk's, which it writes to; on the second board only.
    Disk(PathBuf),
}

impl Medium {
    /// The CD, if it is one.
    #[must_use]
    pub(crate) fn cd(&self) -> Option<&Path> {
        match self {
            Self::Cd(iso) => Some(iso),
            Self::Disk(_) => None,
        }
    }
}

impl Machine {
    /// Powers the server on.
    ///
    /// # Errors
    /// The emulator does not start.
    pub(crate) fn start(setup: &Setup) -> Result<Self> {
        fs::create_dir_all(&setup.dir)?;
        // What another machine left there says nothing of this one.
        for file in LOGS.iter().chain([&bochs::TICKS, &SCREEN]) {
            let _ = fs::remove_file(setup.dir.join(file));
        }
        ensure!(
            setup.disk.is_none() || setup.platform == Platform::Bochs,
            "only --platform bochs has a disk beside its CD, not {}",
            setup.platform
        );
        ensure!(
            !setup.segment || setup.platform == Platform::Bochs,
            "only --platform bochs has cards on a segment, not {}",
            setup.platform
        );
        let segment = || Segment::listen(&setup.dir, bochs::CARDS);
        let segment = setup.segment.then(segment).transpose()?;
        let turn = turns::take()?;
        let channels = [Channel::listen()?, Channel::listen()?];
        let ports = [channels[0].port(), channels[1].port()];
        let hardware = || -> Result<Hardware> {
            Ok(Hardware {
                cpus: setup.cpus,
                cpu_model: setup.cpu_model.clone(),
                memory: setup.memory,
                iso: setup
                    .medium
                    .cd()
                    .context("only --platform tcg boots a disk")?
                    .to_owned(),
                disk: setup.disk.clone(),
                machine_checks: setup.machine_checks,
                segment: segment.as_ref().map(Segment::device),
                channels: ports,
            })
        };
        let mut monitor = None;
        let (child, clock) = match setup.platform {
            Platform::Bochs => (
                bochs::start(&hardware()?, &setup.dir)?,
                Clock::bochs(&setup.dir.join(bochs::TICKS), &setup.cpu_model),
            ),
            Platform::Kvm => (qemu::start(&hardware()?, &setup.dir)?, Clock::wall()),
            Platform::Tcg => {
                let ours = Monitor::listen()?;
                let wires = tcg::Wires {
                    cpus: setup.cpus,
                    medium: &setup.medium,
                    channels: ports,
                    monitor: ours.port()?,
                };
                let child = tcg::start(&setup.board, &wires, &setup.dir)?;
                monitor = Some(Mutex::new(ours));
                let clock = Clock::runs(child.id());
                (child, clock)
            }
        };
        Ok(Self {
            dir: setup.dir.clone(),
            child,
            channels,
            clock,
            end: Moment::after_start(setup.limit),
            signs: signs(&setup.dir),
            expected: Vec::new(),
            monitor,
            segment,
            _turn: turn,
        })
    }

    /// Where the logs are.
    #[must_use]
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The text of a log so far: `console0.log`, `console1.log`, `l0.log`, `bochs.log`.
    #[must_use]
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read(self.dir.join(name))
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// From now on, a panic in that log does not end waits: the scenario wants it.
    pub(crate) fn expect_panic(&mut self, log: &'static str) {
        self.expected.push(log);
    }

    /// What its cards hang on.
    ///
    /// # Errors
    /// They hang on no segment.
    pub(crate) fn segment(&self) -> Result<&Segment> {
        self.segment.as_ref().context("the machine's cards hang on no segment")
    }

    /// A command of QEMU's monitor for people; returns what it prints.
    ///
    /// # Errors
    /// The machine has no monitor, or QEMU refuses.
    pub(crate) fn monitor(&mut self, line: &str) -> Result<String> {
        let monitor = self.monitor.as_mut().context("only --platform tcg has a monitor")?;
        let monitor = monitor.get_mut().unwrap_or_else(PoisonError::into_inner);
        monitor.human(line)
    }

    /// The machine's time.
    ///
    /// # Errors
    /// It stands still.
    pub(crate) fn now(&mut self) -> Result<Moment> {
        self.clock.now().map_err(|stall| self.failure(&stall.to_string()))
    }

    /// The end of a wait that begins now: after `limit`, or at the machine's own end if that comes first.
    ///
    /// # Errors
    /// As [`Machine::now`].
    pub(crate) fn deadline(&mut self, limit: Span) -> Result<Moment> {
        Ok(self.end.min(self.now()?.after(limit)))
    }

    /// Waits until a log contains `text` so many times.
    ///
    /// # Errors
    /// It does not within `limit`, or the machine dies; with the last lines of every log.
    pub(crate) fn wait_log(&mut self, log: &str, text: &str, times: usize, limit: Span) -> Result<()> {
        let deadline = self.deadline(limit)?;
        let mut follower = Follower::new(self.dir.join(log), text);
        while follower.look() < times {
            self.check(deadline)
                .with_context(|| format!("waiting for {text:?} in {log}"))?;
            sleep(LOOK);
        }
        Ok(())
    }

    /// Waits until the machine has powered itself off.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub(crate) fn wait_off(&mut self, limit: Span) -> Result<ExitStatus> {
        let deadline = self.deadline(limit)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if self.now()? > deadline {
                return Err(self.failure("the machine did not power off in time"));
            }
            sleep(LOOK);
        }
    }

    /// Ends the emulator.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Makes sure that the machine runs and that there is time left.
    pub(super) fn check(&mut self, deadline: Moment) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.failure(&format!("the machine is off (emulator: {status})")));
        }
        if let Some(sign) = self.fatal() {
            let end = self.deadline(EXPLANATION)?;
            while self.now().is_ok_and(|now| now < end) && self.child.try_wait()?.is_none() {
                sleep(LOOK);
            }
            return Err(self.failure(&sign));
        }
        let now = self.now()?;
        if now > deadline {
            return Err(self.failure(&format!("time is up: it is {now}, the limit was {deadline}")));
        }
        Ok(())
    }

    fn fatal(&mut self) -> Option<String> {
        let expected = &self.expected;
        let mut signs = self.signs.iter_mut();
        let sign =
            signs.find_map(|sign| (!expected.contains(&sign.log) && sign.follower.look() > 0).then_some(sign))?;
        Some(format!("{:?} in {}", sign.text, sign.log))
    }

    /// Waits for `pause`, or less if the machine dies meanwhile.
    ///
    /// # Errors
    /// The machine is off, a log shows a panic, or the run's time is up.
    pub(crate) fn look(&mut self, pause: Span) -> Result<()> {
        let end = self.now()?.after(pause);
        while self.now()? < end {
            self.check(self.end)?;
            sleep(LOOK);
        }
        Ok(())
    }

    /// An error that shows the last lines of every log.
    #[must_use]
    pub(crate) fn failure(&self, what: &str) -> anyhow::Error {
        let mut text = format!("{what}\n(logs: {})", self.dir.display());
        if let Some(monitor) = &self.monitor {
            let mut monitor = monitor.lock().unwrap_or_else(PoisonError::into_inner);
            // A QEMU that is gone has no screen.
            if monitor.screen(&self.dir.join(SCREEN)).is_ok() {
                text.push_str(&format!("\n(the screen: {SCREEN} there)"));
            }
        }
        for log in LOGS {
            let tail = tools::last_lines(&follow::tail(&self.dir.join(log), TAIL), 20);
            if !tail.trim().is_empty() {
                text.push_str(&format!("\n--- {log}, last lines:\n{tail}"));
            }
        }
        anyhow::Error::msg(text)
    }
}

fn signs(dir: &Path) -> Vec<Sign> {
    FATAL
        .iter()
        .map(|(log, text)| Sign {
            log,
            text,
            follower: Follower::new(dir.join(log), text),
        })
        .collect()
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests;
