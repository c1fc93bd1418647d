//! The host's side: gives orders to a guest that measures, over the socket that is the guest's console.

use super::orders::{Line, Measured};
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a guest that may not have booted yet is asked.
const ASK: Duration = Duration::from_secs(1);

/// A guest's console.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    pending: Vec<u8>,
}

impl Client {
    /// Connects to the console and waits until the guest takes orders.
    ///
    /// # Errors
    /// There is no such socket, or the guest does not answer within `timeout`.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let socket = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}: start measure.sh first", path.display()))?;
        Self::new(socket, timeout)
    }

    fn new(socket: UnixStream, timeout: Duration) -> Result<Self> {
        let mut client = Client {
            socket,
            pending: Vec::new(),
        };
        let end = Instant::now() + timeout;
        while Instant::now() < end {
            client.socket.write_all(b"\n").context("the guest is gone")?;
            if let Some(Line::Ready { .. }) = client.line(Instant::now() + ASK)? {
                return Ok(client);
            }
        }
        bail!("the guest does not answer; see its console")
    }

    /// Has `EVENT[:COUNT]` measured, and returns the guest's answer.
    ///
    /// # Errors
    /// The guest refuses, or does not answer within `timeout`.
    pub fn order(&mut self, order: &str, timeout: Duration) -> Result<Measured> {
        writeln!(self.socket, "{order}").context("the guest is gone")?;
        let end = Instant::now() + timeout;
        loop {
            match self.line(end)? {
                Some(Line::Measured(measured)) => return Ok(measured),
                Some(Line::Error { error }) => bail!("the guest says: {error}"),
                // An answer to an earlier question.
                Some(Line::Ready { .. }) => {}
                None => bail!("no answer to {order:?} in time; see the guest's console"),
            }
        }
    }

    /// The next line in JSON; anything else on the console is passed over.
    fn line(&mut self, end: Instant) -> Result<Option<Line>> {
        loop {
            while let Some(at) = self.pending.iter().position(|byte| *byte == b'\n') {
                let rest = self.pending.split_off(at + 1);
                let line = std::mem::replace(&mut self.pending, rest);
                if let Ok(line) = serde_json::from_slice(line.trim_ascii()) {
                    return Ok(Some(line));
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut buffer = [0; 1024];
            match self.socket.read(&mut buffer) {
                Ok(0) => bail!("the guest is gone"),
                Ok(count) => self.pending.extend(buffer.iter().take(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("reading the guest's console"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    /// A guest made of one thread, which says all that a console says besides.
    fn guest(answer: &'static str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        std::thread::spawn(move || {
            let mut out = theirs.try_clone().expect("a copy");
            for line in BufReader::new(theirs).lines().map_while(Result::ok) {
                let said = if line.is_empty() {
                    "[    0.1] boot\r\n{\"cpus\":1}\r\n{\"cpus\":1}"
                } else {
                    answer
                };
                if write!(out, "{line}\r\n{said}\r\n").is_err() {
                    return;
                }
            }
        });
        ours
    }

    #[test]
    #[cfg_attr(miri, ignore = "sockets")]
    fn orders_are_answered_among_other_words() {
        let answer = r#"{"event":"cpuid","iterations":1,"min":1,"median":2,"mean":3,"max":4,"empty":5}"#;
        let long = Duration::from_secs(60);
        let mut client = Client::new(guest(answer), long).expect("ready");
        assert_eq!(client.order("cpuid:1", long).expect("an answer").median, 2);
        let mut client = Client::new(guest(r#"{"error":"no"}"#), long).expect("ready");
        assert!(
            client
                .order("ipi", long)
                .is_err_and(|error| error.to_string().contains("no"))
        );
    }
}
