//! A running server, and the hosts on it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    bochs::{self, Hardware, Platform},
    channel::{Channel, Hello, JobId, Output},
    qemu,
    slots::{self, Slot},
    tools,
};

/// How often a wait looks at the emulator and its logs when no message comes.
const LOOK: Duration = Duration::from_millis(200);

/// How long an emulator may take to end after it has closed its lines.
const GONE: Duration = Duration::from_secs(5);

/// Signs in a log that nothing good follows.
const FATAL: &[(&str, &str)] = &[
    ("console0.log", "Kernel panic - not syncing"),
    ("console1.log", "Kernel panic - not syncing"),
    ("l0.log", "this CPU halts"),
    ("bochs.log", ">>PANIC<<"),
];

/// A running server.
pub struct Machine {
    dir: PathBuf,
    child: Child,
    channels: [Channel; 2],
    deadline: Instant,
    expected: Vec<&'static str>,
    // Last, so that the next emulator starts when this one is gone.
    _slot: Slot,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct Setup {
    /// CPUs, 1 to 4.
    pub cpus: u32,
    /// Their model, as Bochs calls it.
    pub cpu_model: String,
    /// RAM in MiB.
    pub memory: u32,
    /// The CD.
    pub iso: PathBuf,
    /// What runs it.
    pub platform: Platform,
    /// Everything about the run goes there.
    pub dir: PathBuf,
    /// The machine is killed after this long (wall time).
    pub timeout: Duration,
}

impl Machine {
    /// Powers the server on.
    ///
    /// # Errors
    /// The emulator does not start.
    pub fn start(setup: &Setup) -> Result<Self> {
        fs::create_dir_all(&setup.dir)?;
        let slot = slots::take()?;
        let channels = [Channel::listen()?, Channel::listen()?];
        let hardware = Hardware {
            cpus: setup.cpus,
            cpu_model: setup.cpu_model.clone(),
            memory: setup.memory,
            iso: setup.iso.clone(),
            channels: [channels[0].port(), channels[1].port()],
        };
        let child = match setup.platform {
            Platform::Bochs => bochs::start(&hardware, &setup.dir)?,
            Platform::Kvm => qemu::start(&hardware, &setup.dir)?,
        };
        Ok(Self {
            dir: setup.dir.clone(),
            child,
            channels,
            deadline: Instant::now() + setup.timeout,
            expected: Vec::new(),
            _slot: slot,
        })
    }

    /// The host of a generation. There may be none yet: [`Host::wait_ready`].
    pub fn host(&mut self, generation: u32) -> Host<'_> {
        Host {
            machine: self,
            generation,
        }
    }

    /// Where the logs are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The text of a log so far: `console0.log`, `console1.log`, `l0.log`, `bochs.log`.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        fs::read(self.dir.join(name)).map_or_else(
            |_| String::new(),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// From now on, a panic in that log does not end waits: the scenario wants it.
    pub fn expect_panic(&mut self, log: &'static str) {
        self.expected.push(log);
    }

    /// Waits until a log contains `text`; returns the line with it.
    ///
    /// # Errors
    /// It does not within `timeout`, or the machine dies; with the last lines of every log.
    pub fn wait_log(&mut self, log: &str, text: &str, timeout: Duration) -> Result<String> {
        let deadline = self.deadline.min(Instant::now() + timeout);
        loop {
            let found = self
                .log(log)
                .lines()
                .find(|line| line.contains(text))
                .map(str::to_owned);
            if let Some(line) = found {
                return Ok(line);
            }
            self.check(deadline)
                .with_context(|| format!("waiting for {text:?} in {log}"))?;
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the machine has powered itself off.
    ///
    /// # Errors
    /// It does not within `timeout`.
    pub fn wait_off(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = self.deadline.min(Instant::now() + timeout);
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(self.failure("the machine did not power off in time"));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Ends the emulator.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn check(&mut self, deadline: Instant) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.failure(&format!("the machine is off (emulator: {status})")));
        }
        for (log, sign) in FATAL {
            if !self.expected.contains(log) && self.log(log).contains(sign) {
                // What follows the sign explains it; let it arrive.
                std::thread::sleep(Duration::from_secs(2));
                return Err(self.failure(&format!("{sign:?} in {log}")));
            }
        }
        if Instant::now() > deadline {
            return Err(self.failure("time is up"));
        }
        Ok(())
    }

    /// Waits for `pause`, or less if the machine dies meanwhile.
    ///
    /// # Errors
    /// The machine is off, a log shows a panic, or the run's time is up.
    pub fn look(&mut self, pause: Duration) -> Result<()> {
        let end = Instant::now() + pause;
        while Instant::now() < end {
            self.check(self.deadline)?;
            std::thread::sleep(LOOK.min(pause));
        }
        Ok(())
    }

    /// An error that shows the last lines of every log.
    #[must_use]
    pub fn failure(&self, what: &str) -> anyhow::Error {
        let mut text = format!("{what}\n(logs: {})", self.dir.display());
        for log in [
            "bochs.log",
            "bochs.err",
            "l0.log",
            "console1.log",
            "console0.log",
        ] {
            let tail = tools::last_lines(&self.log(log), 20);
            if !tail.trim().is_empty() {
                text.push_str(&format!("\n--- {log}, last lines:\n{tail}"));
            }
        }
        anyhow::Error::msg(text)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A host on the server.
pub struct Host<'a> {
    machine: &'a mut Machine,
    generation: u32,
}

impl Host<'_> {
    /// Waits for the hello of this host's `labd`.
    ///
    /// # Errors
    /// None comes within `timeout`, or the machine dies.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<Hello> {
        // Generations of the same parity share the line.
        let generation = self.generation;
        self.wait(timeout, |channel| {
            channel
                .hello()
                .filter(|hello| hello.generation == generation)
        })
        .with_context(|| format!("waiting for the host of generation {generation} to boot"))
    }

    /// Runs a shell command to its end.
    ///
    /// # Errors
    /// It does not end within `timeout`, or the machine dies. A failing command is not an error: see [`Output::ok`].
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<Output> {
        let job = self.start(command)?;
        self.finish(job, timeout)
            .with_context(|| format!("running {command:?}"))
    }

    /// Starts a shell command.
    ///
    /// # Errors
    /// The line is closed.
    pub fn start(&mut self, command: &str) -> Result<JobId> {
        let started = self.channel().start(command, None);
        started.map_err(|error| self.explain(error))
    }

    /// Why a line is closed: most often because the emulator is gone.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        match self.machine.look(GONE) {
            Err(cause) => cause,
            Ok(()) => error,
        }
    }

    /// Takes what a started command has written since the last call, and its status once it is over.
    #[must_use]
    pub fn poll(&self, job: JobId) -> (Vec<u8>, Option<i32>) {
        self.channel().take(job)
    }

    /// The hello of this very host, if it has come.
    #[must_use]
    pub fn hello(&self) -> Option<Hello> {
        self.channel()
            .hello()
            .filter(|hello| hello.generation == self.generation)
    }

    /// Starts a command whose standard input stays open for [`Host::type_line`].
    ///
    /// # Errors
    /// The line is closed.
    pub fn open(&mut self, command: &str) -> Result<JobId> {
        self.channel().start_open(command)
    }

    /// Sends a line to a command started with [`Host::open`].
    ///
    /// # Errors
    /// The line is closed.
    pub fn type_line(&mut self, job: JobId, line: &str) -> Result<()> {
        self.channel().input(job, format!("{line}\n").as_bytes())
    }

    /// Makes sure that the machine runs.
    ///
    /// # Errors
    /// It does not, or its time is up.
    pub fn alive(&mut self) -> Result<()> {
        self.machine.check(self.machine.deadline)
    }

    /// Waits for a started command.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn finish(&mut self, job: JobId, timeout: Duration) -> Result<Output> {
        let mut bytes = Vec::new();
        let status = self.wait(timeout, |channel| {
            let (output, status) = channel.take(job);
            bytes.extend(output);
            status
        });
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = status.with_context(|| {
            format!(
                "the command's output so far:\n{}",
                tools::last_lines(&text, 20)
            )
        })?;
        Ok(Output { status, text })
    }

    /// Writes a file in the host. Slow: some 5 kB per second.
    ///
    /// # Errors
    /// As [`Host::run`]; or the file cannot be written.
    pub fn push(&mut self, path: &str, bytes: &[u8], timeout: Duration) -> Result<()> {
        let job = self
            .channel()
            .start(&format!("cat > '{path}'"), Some(bytes))?;
        self.finish(job, timeout)?
            .ok()
            .with_context(|| format!("writing {path} in the host"))?;
        Ok(())
    }

    /// The host's time stamp counter.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn tsc(&mut self) -> Result<u64> {
        let text = self.run("labd tsc", Duration::from_secs(60))?.ok()?;
        text.trim()
            .parse()
            .with_context(|| format!("labd tsc printed {text:?}"))
    }

    /// Asks the kernel to power off and waits until the machine is off.
    ///
    /// # Errors
    /// It does not go off within `timeout`.
    pub fn power_off(&mut self, timeout: Duration) -> Result<()> {
        self.start("echo o > /proc/sysrq-trigger")?;
        self.machine.wait_off(timeout).map(drop)
    }

    fn channel(&self) -> &Channel {
        let [even, odd] = &self.machine.channels;
        if self.generation.is_multiple_of(2) {
            even
        } else {
            odd
        }
    }

    fn wait<T>(
        &mut self,
        timeout: Duration,
        mut ready: impl FnMut(&Channel) -> Option<T>,
    ) -> Result<T> {
        let deadline = self.machine.deadline.min(Instant::now() + timeout);
        loop {
            let soon = Instant::now() + LOOK;
            if let Some(found) = self.channel().wait_for(soon, LOOK, &mut ready) {
                return Ok(found);
            }
            if let Err(error) = self.machine.check(deadline) {
                bail!(error);
            }
        }
    }
}
