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
pub struct Jobs {
    to_lab: Sender<ToLab>,
    running: HashMap<u32, Job>,
}

struct Job {
    input: Option<Sender<Vec<u8>>>,
    pid: u32,
}

impl Jobs {
    /// No job yet; what jobs have to say goes to `to_lab`.
    pub fn new(to_lab: Sender<ToLab>) -> Self {
        Self {
            to_lab,
            running: HashMap::new(),
        }
    }

    /// Does what the lab asks. Unknown job numbers are ignored: the job may have just ended.
    pub fn handle(&mut self, message: ToHost) {
        match message {
            ToHost::Ping => {}
            ToHost::Run {
                job,
                command,
                input,
            } => self.run(job, &command, input),
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
            ToHost::Kill { job } => {
                if let Some(job) = self.running.get(&job) {
                    let group = format!("-{}", job.pid);
                    let _ = Command::new("kill").args(["-9", "--", &group]).status();
                }
            }
        }
    }

    /// Forgets a job whose [`ToLab::Exit`] has been sent.
    pub fn forget(&mut self, job: u32) {
        self.running.remove(&job);
    }

    fn run(&mut self, job: u32, command: &str, input: bool) {
        match spawn(command, input) {
            Ok((mut child, output)) => {
                let pid = child.id();
                let input = child.stdin.take().map(feed);
                let to_lab = self.to_lab.clone();
                thread::spawn(move || watch(job, child, output, &to_lab));
                self.running.insert(job, Job { input, pid });
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
