//! The daemon's socket: one JSON line asks, one JSON line answers.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::error::{Refusal, Told};
use crate::refresh::Choice;
use crate::status::DaemonStatus;

/// For the daemon to answer: it reads kernel and initramfs before it accepts a refresh.
const ANSWER: Duration = Duration::from_secs(600);
/// For it to say how it is: that waits for nothing.
const STATUS: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// A question to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// How is it?
    Status,
    /// Start a refresh to that successor.
    Refresh(String),
    /// Start a refresh to the installed kernel of that version.
    RefreshToKernel(String),
    /// Start a refresh, with what an operator says beside the configuration ([`crate::refresh::Wishes`]).
    RefreshWith {
        /// Where to.
        to: Target,
        /// Guests whose storage is trusted.
        #[serde(default)]
        trust_storage: Vec<String>,
        /// Guests to shut down first.
        #[serde(default)]
        leave: Vec<String>,
    },
    /// Give that guest the QEMU that is installed now.
    Renew(String),
    /// Stop the refresh that runs, or give back what one left behind.
    Abort,
    /// The same; a successor of which nothing is known is stopped whatever runs there.
    AbortByForce,
    /// Try again what it is stuck on.
    Retry,
}

/// Where a refresh goes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// That successor.
    Named(String),
    /// The installed kernel of that version.
    Kernel(String),
}

impl Target {
    /// As the refresh takes it.
    pub fn as_choice(&self) -> Choice<'_> {
        match self {
            Self::Named(name) => Choice::Named(name),
            Self::Kernel(version) => Choice::Kernel(version),
        }
    }
}

impl From<Choice<'_>> for Target {
    fn from(choice: Choice<'_>) -> Self {
        match choice {
            Choice::Named(name) => Self::Named(name.to_owned()),
            Choice::Kernel(version) => Self::Kernel(version.to_owned()),
        }
    }
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// That is how it is; after a request, too.
    Status(Box<DaemonStatus>),
    /// No, because. An older daemon sends the text alone.
    Refused(Told),
}

/// Asks the daemon at `socket`.
///
/// # Errors
/// [`Refusal::NoDaemon`], [`Refusal::DaemonHangs`], or the daemon's refusal.
pub fn ask(socket: &Path, question: &Question) -> Result<DaemonStatus> {
    let no_daemon = |error| Refusal::NoDaemon {
        path: socket.to_owned(),
        error,
    };
    let mut stream = UnixStream::connect(socket).map_err(no_daemon)?;
    let limit = if *question == Question::Status { STATUS } else { ANSWER };
    stream.set_read_timeout(Some(limit))?;
    send(&mut stream, question)?;
    let answer = receive(&mut BufReader::new(stream)).map_err(|error| match error.downcast_ref::<io::Error>() {
        Some(late) if late.kind() == io::ErrorKind::WouldBlock => Refusal::DaemonHangs {
            path: socket.to_owned(),
            seconds: limit.as_secs(),
        }
        .into(),
        _ => error.context("reading the daemon's answer"),
    })?;
    match answer {
        Answer::Status(status) => Ok(*status),
        Answer::Refused(told) => Err(told.into()),
    }
}

/// Writes one line.
///
/// # Errors
/// If the other side is gone.
pub fn send(stream: &mut UnixStream, value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    Ok(())
}

/// Reads one line.
///
/// # Errors
/// If the other side is gone or sends something else.
pub fn receive<T: for<'a> Deserialize<'a>>(reader: &mut impl BufRead) -> Result<T> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(anyhow!("the other side closed the connection"));
    }
    Ok(serde_json::from_str(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_and_answer_cross_the_socket() {
        let (mut left, right) = UnixStream::pair().unwrap();
        send(&mut left, &Question::Refresh("next".to_owned())).unwrap();
        let mut reader = BufReader::new(right);
        assert_eq!(
            receive::<Question>(&mut reader).unwrap(),
            Question::Refresh("next".to_owned())
        );
        drop(left);
        assert!(receive::<Question>(&mut reader).is_err());
    }

    #[test]
    fn a_refusal_crosses_with_its_name_and_an_older_daemons_without() {
        let error = anyhow::Error::from(Refusal::Split).context("beginning");
        let answer = Answer::Refused(Told::of(&error));
        let line = serde_json::to_string(&answer).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
        let Answer::Refused(told) = answer else { panic!() };
        let told = anyhow::Error::from(told);
        assert_eq!(crate::error::name_of(&told).as_deref(), Some("split"));
        assert!(
            told.to_string().starts_with("beginning: the machine is split"),
            "{told}"
        );
        let older: Answer = serde_json::from_str(r#"{"refused":"no"}"#).unwrap();
        assert_eq!(
            older,
            Answer::Refused(Told {
                name: None,
                text: "no".to_owned()
            })
        );
    }

    #[test]
    fn a_daemon_that_hangs_is_told_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locum.sock");
        // Stopped (SIGSTOP), its kernel still takes connections and bytes.
        let _daemon = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = ask(&path, &Question::Status).unwrap_err();
        assert!(
            matches!(error.downcast_ref(), Some(Refusal::DaemonHangs { .. })),
            "{error}"
        );
        assert!(error.to_string().contains("systemctl restart locum"), "{error}");
    }

    #[test]
    fn no_daemon_is_a_refusal_with_a_remedy() {
        let error = ask(Path::new("/nowhere/locum.sock"), &Question::Status).unwrap_err();
        assert!(error.to_string().contains("systemctl start locum"), "{error}");
    }
}
