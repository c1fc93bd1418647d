//! A QMP client (QEMU `docs/interop/qmp-spec.rst`): commands, events, and file descriptors passed along.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    sendmsg, socket_with,
};
use rustix::process::Pid;
use serde_json::{Map, Value, json};

use crate::channel::port::PortError;
use crate::deadline::Deadline;
use crate::tsc;

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(20);

/// An event, with the TSC at which it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name: `STOP`, `RESUME`, `MIGRATION`.
    pub name: String,
    /// Its data.
    pub data: Value,
    /// TSC when it was read.
    pub tsc: u64,
}

/// Why a connection gave nothing, whatever was asked.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nothing came in time.
    #[error("QEMU does not answer in time: it hangs, or is stopped (`kill -CONT` it, or end it)")]
    Silent,
    /// Its process ended, or it took the connection away.
    #[error("QEMU closed the connection")]
    Closed,
    /// Someone here wants it to end.
    #[error("given up")]
    GivenUp,
    /// Anything else.
    #[error("the connection to QEMU failed: {0}")]
    Io(#[from] io::Error),
}

impl From<PortError> for QmpError {
    fn from(error: PortError) -> Self {
        match error {
            PortError::Timeout => Self::Silent,
            PortError::Closed => Self::Closed,
            PortError::GivenUp => Self::GivenUp,
            PortError::Io(error) => Self::Io(error),
        }
    }
}

/// A QEMU that does as it is told, however that reaches it.
pub trait Monitor {
    /// Executes a command and returns its `return`.
    ///
    /// # Errors
    /// QEMU's description of the error, or the connection's.
    fn execute(&mut self, command: &str, arguments: Value, until: &Deadline<'_>) -> Result<Value>;
}

impl Monitor for Qmp {
    fn execute(&mut self, command: &str, arguments: Value, until: &Deadline<'_>) -> Result<Value> {
        self.command(command, arguments, None, until)
    }
}

/// A connection to a QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<Event>,
}

/// A connection that does not block. [`UnixStream::connect`] would, for as long as a QEMU that hangs has not accepted the
/// connections before (`unix_stream_connect()`).
fn connect(path: &Path, until: &Deadline<'_>) -> Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    let connected = until.find(AGAIN, || match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(Some(())),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(error) => Err(io::Error::from(error)),
    })?;
    connected.context("it takes no connections: does it hang (`kill -CONT` it, or end it), or is it stopped?")?;
    Ok(socket.into())
}

impl Qmp {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// If QEMU does not answer in time; it serves one client at a time.
    pub fn connect(path: &Path, until: &Deadline<'_>) -> Result<Self> {
        let stream = connect(path, until)?;
        let mut qmp = Self {
            stream,
            buffer: Vec::new(),
            events: VecDeque::new(),
        };
        let greeting = qmp
            .message(until)
            .context("no greeting, as if another program were connected to this socket")?;
        if greeting.get("QMP").is_none() {
            bail!("it is no QMP socket");
        }
        qmp.execute("qmp_capabilities", json!({}), until)?;
        Ok(qmp)
    }

    /// The process at the other end of its socket.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn peer(&self) -> Result<Pid> {
        Ok(rustix::net::sockopt::socket_peercred(&self.stream)?.pid)
    }

    /// Gives QEMU a file descriptor under a name.
    ///
    /// # Errors
    /// As [`Monitor::execute`].
    pub fn getfd(&mut self, name: &str, fd: BorrowedFd<'_>, until: &Deadline<'_>) -> Result<()> {
        self.command("getfd", json!({ "fdname": name }), Some(fd), until)
            .map(drop)
    }

    fn command(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        until: &Deadline<'_>,
    ) -> Result<Value> {
        let mut line = serde_json::to_vec(&json!({ "execute": command, "arguments": arguments }))?;
        line.push(b'\n');
        self.send(&line, fd, until).with_context(|| format!("QMP {command}"))?;
        loop {
            let message = self.message(until).with_context(|| format!("QMP {command}"))?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                let text = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("an error without description");
                bail!("QMP {command}: {text}");
            }
        }
    }

    /// The next event whose name is in `names`; others before it are dropped.
    ///
    /// # Errors
    /// If QEMU is gone, or none comes in time.
    pub fn event(&mut self, names: &[&str], until: &Deadline<'_>) -> Result<Event> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if names.contains(&event.name.as_str()) {
                    return Ok(event);
                }
            }
            self.message(until)?;
        }
    }

    /// Whether there is an event with that name among those read and not taken yet.
    pub fn heard(&self, name: &str) -> bool {
        self.events.iter().any(|event| event.name == name)
    }

    /// Forgets the events read so far.
    pub fn drop_events(&mut self) {
        self.events.clear();
    }

    /// Waits until QEMU closes the connection: its process ends.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_closed(&mut self, until: &Deadline<'_>) -> Result<()> {
        loop {
            if let Err(error) = self.message(until) {
                return match error.downcast_ref() {
                    Some(QmpError::Closed) => Ok(()),
                    _ => Err(error),
                };
            }
        }
    }

    /// The next message. Events are noted as well.
    fn message(&mut self, until: &Deadline<'_>) -> Result<Map<String, Value>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let message: Map<String, Value> =
                    serde_json::from_slice(&line).map_err(|error| anyhow!("QEMU sent no JSON object: {error}"))?;
                if let Some(name) = message.get("event").and_then(Value::as_str) {
                    let data = message.get("data").cloned().unwrap_or(Value::Null);
                    self.events.push_back(Event {
                        name: name.to_owned(),
                        data,
                        tsc: tsc::now(),
                    });
                }
                return Ok(message);
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(QmpError::Closed.into()),
                Ok(count) => self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(PollFlags::IN, until)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed.into());
                }
                Err(error) => return Err(QmpError::Io(error).into()),
            }
        }
    }

    fn wait(&self, flags: PollFlags, until: &Deadline<'_>) -> Result<(), QmpError> {
        until.wait(&self.stream, flags).map(drop).map_err(QmpError::from)
    }

    /// Writes a line; the descriptor goes along with its first byte.
    fn send(&mut self, line: &[u8], fd: Option<BorrowedFd<'_>>, until: &Deadline<'_>) -> Result<()> {
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rest = line;
        let mut first = true;
        while !rest.is_empty() {
            let mut control = SendAncillaryBuffer::new(&mut space);
            if first && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
                bail!("no room for a file descriptor");
            }
            match sendmsg(
                self.stream.as_fd(),
                &[IoSlice::new(rest)],
                &mut control,
                SendFlags::NOSIGNAL,
            ) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    first = false;
                }
                Err(rustix::io::Errno::AGAIN) => {
                    self.wait(PollFlags::OUT, until)?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(QmpError::Closed.into());
                }
                Err(error) => return Err(QmpError::Io(error.into()).into()),
            }
        }
        Ok(())
    }
}
