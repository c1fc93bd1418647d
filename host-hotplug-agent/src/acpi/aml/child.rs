//! The interpreter in a process of its own: started, listened to for a while, ended.

use std::io::{BufRead, BufReader};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::listing::{Line, Outcome};
use crate::sysroot::SysRoot;

/// The longest listing that is believed.
const LINES: usize = 100_000;

/// Has `program` list the tables but for what is in `skip`.
pub fn run(sys: &SysRoot, program: &str, skip: &[String], limit: Duration) -> Outcome {
    let mut command = Command::new(program);
    command.arg("--root").arg(sys.path("")).arg("__aml");
    for step in skip {
        command.arg("--skip").arg(step);
    }
    command
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return dead(Vec::new(), format!("the interpreter does not start: {error}")),
    };
    let Some(stdout) = child.stdout.take() else {
        return dead(Vec::new(), "the interpreter has no output".to_owned());
    };
    let (sender, receiver) = mpsc::sync_channel(64);
    let reader = thread::spawn(move || {
        let lines = BufReader::new(stdout).lines().map_while(Result::ok).take(LINES);
        // Whoever stopped listening has ended the process.
        lines.map_while(|line| sender.send(line).ok()).count()
    });
    let (lines, late) = listen(&receiver, Instant::now() + limit);
    drop(receiver);
    // It may be gone already, or may go on after it closed its output.
    let _ = child.kill();
    let status = child.wait();
    let _ = reader.join();
    let ended = lines.last() == Some(&Line::End);
    match status {
        _ if ended => Outcome { lines, died: None },
        _ if late => dead(lines, format!("no end after {} s", limit.as_secs())),
        Ok(status) => dead(lines, cause(status)),
        Err(error) => dead(lines, format!("the interpreter was lost: {error}")),
    }
}

/// Takes lines until the last one, and tells whether time ran out. What is no line of ours ends it, too.
fn listen(receiver: &mpsc::Receiver<String>, deadline: Instant) -> (Vec<Line>, bool) {
    let mut lines = Vec::new();
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => match serde_json::from_str(&text) {
                Ok(Line::End) => {
                    lines.push(Line::End);
                    return (lines, false);
                }
                Ok(line) => lines.push(line),
                Err(_) => return (lines, false),
            },
            Err(error) => return (lines, error == RecvTimeoutError::Timeout),
        }
    }
}

fn dead(lines: Vec<Line>, cause: String) -> Outcome {
    Outcome {
        lines,
        died: Some(cause),
    }
}

fn cause(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("the interpreter ended by signal {signal}"),
        None => format!("the interpreter ended with {status}"),
    }
}
