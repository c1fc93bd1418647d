//! A host on the server, as the lab speaks to it.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use super::{
    channel::{Channel, Hello, JobId, Output},
    deadline::Span,
    server::{LOOK, Machine},
};
use crate::tools;

/// How long an emulator may take to end after it has closed its lines: wall time, since it counts no more ticks.
const GONE: Duration = Duration::from_secs(60);

/// Long enough for a host to power the machine off.
const OFF: Span = Span::seconds(300);

/// The generation of the host that a machine boots.
const FIRST: u32 = 0;

/// For a trifle.
const TRIFLE: Span = Span::seconds(300);

/// A host on the server.
pub(crate) struct Host<'a> {
    machine: &'a mut Machine,
    generation: u32,
}

impl Machine {
    /// The host of a generation. There may be none yet: [`Host::wait_ready`].
    pub(crate) fn host(&mut self, generation: u32) -> Host<'_> {
        Host {
            machine: self,
            generation,
        }
    }
}

impl Host<'_> {
    /// Waits for the hello of this host's `labd`.
    ///
    /// # Errors
    /// None comes within `limit`, or the machine dies.
    pub(crate) fn wait_ready(&mut self, limit: Span) -> Result<Hello> {
        // Generations of the same parity share the line.
        let generation = self.generation;
        self.wait(limit, |channel| {
            channel.hello().filter(|hello| hello.generation == generation)
        })
        .with_context(|| format!("waiting for the host of generation {generation} to boot"))
    }

    /// Runs a shell command to its end.
    ///
    /// # Errors
    /// It does not end within `limit`, or the machine dies. A failing command is not an error: see [`Output::ok`].
    pub(crate) fn run(&mut self, command: &str, limit: Span) -> Result<Output> {
        let job = self.start(command)?;
        self.finish(job, limit).with_context(|| format!("running {command:?}"))
    }

    /// Starts a shell command.
    ///
    /// # Errors
    /// The line is closed.
    pub(crate) fn start(&mut self, command: &str) -> Result<JobId> {
        let started = self.channel().start(command, None);
        started.map_err(|error| self.explain(error))
    }

    /// Why a line is closed: most often because the emulator is gone.
    fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let begin = Instant::now();
        while begin.elapsed() < GONE {
            if let Err(cause) = self.alive() {
                return cause;
            }
            sleep(LOOK);
        }
        error
    }

    /// Takes what a started command has written since the last call, and its status once it is over.
    #[must_use]
    pub(crate) fn poll(&self, job: JobId) -> (Vec<u8>, Option<i32>) {
        self.channel().take(job)
    }

    /// The hello of this very host, if it has come.
    #[must_use]
    pub(crate) fn hello(&self) -> Option<Hello> {
        self.channel()
            .hello()
            .filter(|hello| hello.generation == self.generation)
    }

    /// Starts a command whose standard input stays open for [`Host::type_line`].
    ///
    /// # Errors
    /// The line is closed.
    pub(crate) fn open(&mut self, command: &str) -> Result<JobId> {
        self.channel().start_open(command)
    }

    /// Sends a line to a command started with [`Host::open`].
    ///
    /// # Errors
    /// The line is closed.
    pub(crate) fn type_line(&mut self, job: JobId, line: &str) -> Result<()> {
        self.channel().input(job, format!("{line}\n").as_bytes())
    }

    /// Makes sure that the machine runs.
    ///
    /// # Errors
    /// It does not, or its time is up.
    pub(crate) fn alive(&mut self) -> Result<()> {
        self.machine.check(self.machine.end)
    }

    /// Waits for a started command.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub(crate) fn finish(&mut self, job: JobId, limit: Span) -> Result<Output> {
        let mut bytes = Vec::new();
        let (generation, before) = (self.generation, self.channel().hellos());
        let status = self.wait(limit, |channel| {
            let (output, status) = channel.take(job);
            bytes.extend(output);
            let anew = channel.hellos() > before && channel.hello().is_some_and(|hello| hello.generation == generation);
            match status {
                Some(status) => Some(Ok(status)),
                None if anew => Some(Err(anyhow!(
                    "the host has booted anew, or its labd has started anew, meanwhile"
                ))),
                None => None,
            }
        });
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let status = status.flatten();
        let status =
            status.with_context(|| format!("the command's output so far:\n{}", tools::last_lines(&text, 20)))?;
        Ok(Output { status, text })
    }

    /// Writes a file in the host. Slow: some 5 kB per second.
    ///
    /// # Errors
    /// As [`Host::run`]; or the file cannot be written.
    pub(crate) fn push(&mut self, path: &str, bytes: &[u8], limit: Span) -> Result<()> {
        let job = self.channel().start(&format!("cat > '{path}'"), Some(bytes))?;
        self.finish(job, limit)?
            .ok()
            .with_context(|| format!("writing {path} in the host"))?;
        Ok(())
    }

    /// The host's time stamp counter.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub(crate) fn tsc(&mut self) -> Result<u64> {
        let text = self.run("labd tsc", TRIFLE)?.ok()?;
        text.trim()
            .parse()
            .with_context(|| format!("labd tsc printed {text:?}"))
    }

    /// Has the host reboot the machine, without its init, and waits for its `labd` to say hello again.
    ///
    /// # Errors
    /// It does not within `limit`, or the machine dies.
    pub(crate) fn reboot(&mut self, limit: Span) -> Result<Hello> {
        self.boots_anew(limit, |host| host.start("reboot -f").map(drop))
    }

    /// Does something that has the machine boot again, and waits for the `labd` of its first host to say hello, which this is
    /// from then on, however often the machine was refreshed before.
    ///
    /// # Errors
    /// Those of `cause`; or it does not within `limit`, or the machine dies.
    pub(crate) fn boots_anew(&mut self, limit: Span, cause: impl FnOnce(&mut Self) -> Result<()>) -> Result<Hello> {
        let [even, _] = &self.machine.channels;
        let before = even.hellos();
        cause(self)?;
        self.generation = FIRST;
        self.wait(limit, |channel| {
            let hello = channel.hello().filter(|hello| hello.generation == FIRST);
            hello.filter(|_| channel.hellos() > before)
        })
        .context("waiting for the host to reboot")
    }

    /// As [`Machine::monitor`], of the machine that it runs on.
    ///
    /// # Errors
    /// As that.
    pub(crate) fn monitor(&mut self, command: &str) -> Result<String> {
        self.machine.monitor(command)
    }

    /// Asks the kernel to power off and waits until the machine is off.
    ///
    /// # Errors
    /// It does not go off in time.
    pub(crate) fn power_off(&mut self) -> Result<()> {
        self.start("echo o > /proc/sysrq-trigger")?;
        self.machine.wait_off(OFF).map(drop)
    }

    fn channel(&self) -> &Channel {
        let [even, odd] = &self.machine.channels;
        if self.generation.is_multiple_of(2) { even } else { odd }
    }

    fn wait<T>(&mut self, limit: Span, mut ready: impl FnMut(&Channel) -> Option<T>) -> Result<T> {
        let deadline = self.machine.deadline(limit)?;
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
