//! The lab's end of the line to `labd` in a host.

use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use labd::{Decoder, MAX_CHUNK, ToHost, ToLab, encode};

/// The I/O ports of the line to a host: COM3 is that to even generations, COM4 to odd ones.
#[must_use]
pub(crate) fn ports(generation: u32) -> &'static str {
    if generation.is_multiple_of(2) {
        "0x3e8-0x3ef"
    } else {
        "0x2e8-0x2ef"
    }
}

/// A command channel to whatever host holds the machine's serial port.
pub(crate) struct Channel {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    line: Option<TcpStream>,
    hello: Option<Hello>,
    /// How many came.
    hellos: u32,
    next_job: u32,
    jobs: HashMap<u32, JobState>,
}

/// What a host says of itself when its `labd` starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    /// `uname -r`.
    pub release: String,
    /// Which host speaks.
    pub generation: u32,
    /// Process id of `labd`.
    pub pid: u32,
}

#[derive(Default)]
struct JobState {
    output: Vec<u8>,
    status: Option<i32>,
}

/// What a command in a host left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Exit status; 128 + signal number if a signal ended it.
    pub status: i32,
    /// Standard output and standard error, as they came.
    pub text: String,
}

impl Output {
    /// The text, if the command succeeded.
    ///
    /// # Errors
    /// The status is not zero; the error shows the text.
    pub(crate) fn ok(self) -> Result<String> {
        if self.status != 0 {
            bail!("the command ended with status {}:\n{}", self.status, self.text);
        }
        Ok(self.text)
    }
}

/// A command that runs in a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobId(u32);

impl Channel {
    /// Listens for the emulator on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port can be had.
    pub(crate) fn listen() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("listening for the emulator's serial port")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        thread::spawn(move || {
            if let Ok((line, _)) = listener.accept() {
                let _ = line.set_nodelay(true);
                if let Ok(copy) = line.try_clone() {
                    for_thread.lock().line = Some(copy);
                    for_thread.changed.notify_all();
                    for_thread.receive(line);
                }
            }
        });
        Ok(Self { port, shared })
    }

    /// The TCP port that the emulator has to connect to.
    #[must_use]
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The last hello that came on this line.
    #[must_use]
    pub(crate) fn hello(&self) -> Option<Hello> {
        self.shared.lock().hello.clone()
    }

    /// How many hellos came on this line: one more whenever a host, or its `labd`, has started.
    #[must_use]
    pub(crate) fn hellos(&self) -> u32 {
        self.shared.lock().hellos
    }

    /// Starts a shell command; its standard input is `input`, or empty.
    ///
    /// # Errors
    /// The line is closed.
    pub(crate) fn start(&self, command: &str, input: Option<&[u8]>) -> Result<JobId> {
        let job = {
            let mut state = self.shared.lock();
            state.next_job += 1;
            let job = state.next_job;
            state.jobs.insert(job, JobState::default());
            job
        };
        self.send(&ToHost::Run {
            job,
            command: command.to_owned(),
            input: input.is_some(),
        })?;
        if let Some(input) = input {
            for chunk in input.chunks(MAX_CHUNK) {
                self.send(&ToHost::Input {
                    job,
                    data: chunk.to_vec(),
                })?;
            }
            self.send(&ToHost::Eof { job })?;
        }
        Ok(JobId(job))
    }

    /// Sends more standard input to a job that was started with some.
    ///
    /// # Errors
    /// The line is closed.
    pub(crate) fn input(&self, job: JobId, data: &[u8]) -> Result<()> {
        for chunk in data.chunks(MAX_CHUNK) {
            self.send(&ToHost::Input {
                job: job.0,
                data: chunk.to_vec(),
            })?;
        }
        Ok(())
    }

    /// Starts a command whose standard input stays open for [`Channel::input`].
    ///
    /// # Errors
    /// The line is closed.
    pub(crate) fn start_open(&self, command: &str) -> Result<JobId> {
        let mut state = self.shared.lock();
        state.next_job += 1;
        let job = state.next_job;
        state.jobs.insert(job, JobState::default());
        drop(state);
        self.send(&ToHost::Run {
            job,
            command: command.to_owned(),
            input: true,
        })?;
        Ok(JobId(job))
    }

    /// Takes what the job has written since the last call, and its status once it is over.
    #[must_use]
    pub(crate) fn take(&self, job: JobId) -> (Vec<u8>, Option<i32>) {
        let mut state = self.shared.lock();
        let Some(found) = state.jobs.get_mut(&job.0) else {
            return (Vec::new(), None);
        };
        let output = std::mem::take(&mut found.output);
        let status = found.status;
        if status.is_some() {
            state.jobs.remove(&job.0);
        }
        (output, status)
    }

    /// Waits until something arrives on the line, at most `for_at_most`.
    pub(crate) fn wait(&self, for_at_most: Duration) {
        let state = self.shared.lock();
        drop(self.shared.changed.wait_timeout(state, for_at_most));
    }

    /// Waits until `ready` returns something, looking again whenever a message has arrived, and at least each
    /// `interval`; `None` after `deadline`.
    pub(crate) fn wait_for<T>(
        &self,
        deadline: Instant,
        interval: Duration,
        mut ready: impl FnMut(&Self) -> Option<T>,
    ) -> Option<T> {
        loop {
            if let Some(found) = ready(self) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            self.wait(left.min(interval));
        }
    }

    fn send(&self, message: &ToHost) -> Result<()> {
        let frame = encode(message)?;
        let line = self.shared.lock().line.as_ref().map(TcpStream::try_clone);
        let mut line = line.context("the emulator has not connected its serial port")??;
        line.write_all(&frame).context("the emulator closed its serial port")
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, mut line: TcpStream) {
        let mut decoder = Decoder::default();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = line.read(&mut buffer) {
            let mut state = self.lock();
            for byte in buffer.get(..n).unwrap_or_default() {
                // What is no message is noise on the line.
                if let Some(Ok(message)) = decoder.push(*byte) {
                    state.take(message);
                }
            }
            self.changed.notify_all();
        }
        self.lock().line = None;
        self.changed.notify_all();
    }
}

impl State {
    fn take(&mut self, message: ToLab) {
        match message {
            ToLab::Hello {
                release,
                generation,
                pid,
            } => {
                self.hellos += 1;
                self.hello = Some(Hello {
                    release,
                    generation,
                    pid,
                });
            }
            ToLab::Output { job, data } => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.output.extend(data);
                }
            }
            ToLab::Exit { job, status } => {
                if let Some(job) = self.jobs.get_mut(&job) {
                    job.status = Some(status);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host made of one thread: answers every command with its text and status 3.
    fn echo_host(port: u16) {
        thread::spawn(move || {
            let mut line = TcpStream::connect(("127.0.0.1", port)).unwrap();
            line.write_all(b"boot noise\xff").unwrap();
            let hello = ToLab::Hello {
                release: "6.12".into(),
                generation: 2,
                pid: 1,
            };
            line.write_all(&encode(&hello).unwrap()).unwrap();
            let mut decoder = Decoder::default();
            let mut byte = [0];
            while line.read_exact(&mut byte).is_ok() {
                if let Some(Ok(ToHost::Run { job, command, .. })) = decoder.push(byte[0]) {
                    let data = command.into_bytes();
                    line.write_all(&encode(&ToLab::Output { job, data }).unwrap()).unwrap();
                    line.write_all(&encode(&ToLab::Exit { job, status: 3 }).unwrap())
                        .unwrap();
                }
            }
        });
    }

    #[test]
    fn command_and_answer() {
        let channel = Channel::listen().unwrap();
        echo_host(channel.port());
        let deadline = Instant::now() + Duration::from_secs(180);
        let tick = Duration::from_millis(100);
        let hello = channel.wait_for(deadline, tick, Channel::hello).unwrap();
        assert_eq!((hello.release.as_str(), hello.generation), ("6.12", 2));
        let job = channel.start("abc", None).unwrap();
        let mut text = Vec::new();
        let status = channel.wait_for(deadline, tick, |channel| {
            let (output, status) = channel.take(job);
            text.extend(output);
            status
        });
        assert_eq!((status, text.as_slice()), (Some(3), b"abc".as_slice()));
    }
}
