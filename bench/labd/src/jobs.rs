//! The commands that run for the lab: each a shell with two threads, one for its input and one for its output.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Sender},
    thread,
    time::Duration,
};

use labd::{MAX_CHUNK, ToHost, ToLab};

/// Running jobs, by number.
pub(crate) struct Jobs {
    to_lab: Sender<ToLab>,
    running: HashMap<u32, Job>,
}

struct Job {
    input: Option<Sender<Vec<u8>>>,
}

impl Jobs {
    /// No job yet; what jobs have to say goes to `to_lab`.
    pub(crate) fn new(to_lab: Sender<ToLab>) -> Self {
        Self {
            to_lab,
            running: HashMap::new(),
        }
    }

    /// Does what the lab asks. Unknown job numbers are ignored: the job may have just ended.
    pub(crate) fn handle(&mut self, message: ToHost) {
        match message {
            ToHost::Run { job, command, input } => self.run(job, &command, input),
            ToHost::Input { job, data } => {
                if let Some(input) = self.running.get(&job).and_then(|job| job.input.as_ref()) {
                    let _ = input.send(data);
                }
            }
            ToHost::Eof { job } => {
                if let Some(job) = self.running.get_mut(&job) {
                    job.input = None;
                }
            }
        }
    }

    /// Forgets a job whose [`ToLab::Exit`] has been sent.
    pub(crate) fn forget(&mut self, job: u32) {
        self.running.remove(&job);
    }

    fn run(&mut self, job: u32, command: &str, input: bool) {
        match spawn(command, input) {
            Ok((mut child, output)) => {
                let input = child.stdin.take().map(feed);
                let to_lab = self.to_lab.clone();
                thread::spawn(move || watch(job, child, output, &to_lab));
                self.running.insert(job, Job { input });
            }
            Err(error) => {
                let data = format!("labd: cannot run /bin/sh: {error}\n").into_bytes();
                let _ = self.to_lab.send(ToLab::Output { job, data });
                let _ = self.to_lab.send(ToLab::Exit { job, status: 127 });
            }
        }
    }
}

fn spawn(command: &str, input: bool) -> io::Result<(Child, io::PipeReader)> {
    let (reader, writer) = io::pipe()?;
    let child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(if input { Stdio::piped() } else { Stdio::null() })
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    Ok((child, reader))
}

fn feed(mut stdin: std::process::ChildStdin) -> Sender<Vec<u8>> {
    let (sender, receiver) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || {
        for data in receiver {
            if stdin.write_all(&data).and_then(|()| stdin.flush()).is_err() {
                return;
            }
        }
    });
    sender
}

/// Passes on what the job writes until its shell ends. A background process may keep the pipe open for ever, so the
/// end of the shell counts, not the end of the pipe; what was written by then is passed on.
fn watch(job: u32, mut child: Child, mut output: io::PipeReader, to_lab: &Sender<ToLab>) {
    let (done, drained) = mpsc::channel::<()>();
    let copy = to_lab.clone();
    thread::spawn(move || {
        let mut buffer = [0; MAX_CHUNK];
        while let Ok(n @ 1..) = output.read(&mut buffer) {
            let data = buffer.get(..n).unwrap_or_default().to_vec();
            if copy.send(ToLab::Output { job, data }).is_err() {
                return;
            }
        }
        drop(done);
    });
    let status = match child.wait() {
        Ok(status) => status
            .code()
            .or(status.signal().map(|signal| 128 + signal))
            .unwrap_or(255),
        Err(_) => 255,
    };
    let _ = drained.recv_timeout(Duration::from_secs(1));
    let _ = to_lab.send(ToLab::Exit { job, status });
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::Receiver, time::Instant};

    use super::*;

    fn jobs() -> (Jobs, Receiver<ToLab>) {
        let (sender, events) = mpsc::channel();
        (Jobs::new(sender), events)
    }

    fn run(jobs: &mut Jobs, job: u32, command: &str, input: bool) {
        jobs.handle(ToHost::Run {
            job,
            command: command.into(),
            input,
        });
    }

    /// Output and status of a job, in the order in which the lab sees them.
    fn result(events: &Receiver<ToLab>, wanted: u32) -> (String, i32) {
        let mut text = Vec::new();
        loop {
            match events.recv_timeout(Duration::from_secs(60)).unwrap() {
                ToLab::Output { job, data } if job == wanted => text.extend(data),
                ToLab::Exit { job, status } if job == wanted => {
                    return (String::from_utf8(text).unwrap(), status);
                }
                _ => {}
            }
        }
    }

    #[test]
    fn output_comes_before_the_status() {
        let (mut jobs, events) = jobs();
        run(&mut jobs, 1, "seq 1000; echo error >&2; exit 7", false);
        let (text, status) = result(&events, 1);
        assert_eq!(status, 7);
        assert!(text.starts_with("1\n2\n") && text.ends_with("1000\nerror\n"));
    }

    #[test]
    fn input_reaches_the_command_and_ends() {
        let (mut jobs, events) = jobs();
        run(&mut jobs, 2, "cat", true);
        for data in [b"one ".to_vec(), b"two".to_vec()] {
            jobs.handle(ToHost::Input { job: 2, data });
        }
        jobs.handle(ToHost::Eof { job: 2 });
        assert_eq!(result(&events, 2), ("one two".into(), 0));
    }

    #[test]
    fn a_signal_is_told_by_the_status() {
        let (mut jobs, events) = jobs();
        run(&mut jobs, 3, "kill -9 $$", false);
        assert_eq!(result(&events, 3).1, 128 + 9);
    }

    #[test]
    fn a_process_left_behind_does_not_hold_the_status_up() {
        let (mut jobs, events) = jobs();
        let begin = Instant::now();
        run(&mut jobs, 4, "sleep 100 & echo started", false);
        assert_eq!(result(&events, 4), ("started\n".into(), 0));
        assert!(begin.elapsed() < Duration::from_secs(60));
    }
}
