//! Programs that ask the daemon and go away: by Ctrl-C, with their terminal, or before they were answered; and those that ask at
//! the same time.

use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use anyhow::bail;
use clap::Parser;

use super::stage::{HANG, Stage};
use crate::cli::Cli;
use crate::command::refresh::follow;
use crate::daemon::ipc::{self, Question};
use crate::daemon::serve;
use crate::deadline::Deadline;
use crate::error::Refusal;
use crate::sysroot::SysRoot;
use crate::testing::world::{Behaviour, INCUMBENT};

/// A thread that answers, until this goes away.
struct Answers(UnixListener);

impl Drop for Answers {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

impl Stage {
    /// Answers at a socket, as the daemon's main loop does.
    fn answers_at(&self, socket: &Path) -> Answers {
        let (listener, worker) = (UnixListener::bind(socket).unwrap(), self.worker.clone());
        let answers = Answers(listener.try_clone().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let worker = worker.clone();
                std::thread::spawn(move || serve(&worker, stream));
            }
        });
        answers
    }

    /// The refresh stands still before its `after`th step until the flag is set.
    fn gate(&self, after: usize) -> Arc<AtomicBool> {
        let open = Arc::new(AtomicBool::new(false));
        let seen = open.clone();
        let opens = move || {
            let open = Deadline::after(HANG).comes_true(Duration::from_millis(2), || seen.load(Ordering::Relaxed));
            assert!(open, "nobody opened the gate");
        };
        self.world.strike(INCUMBENT, after, Arc::new(opens));
        open
    }
}

#[test]
fn a_refresh_goes_on_without_the_program_that_began_it_and_can_be_followed_again() {
    let stage = Stage::new(Behaviour::Boots);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("locum.sock");
    let _answers = stage.answers_at(&socket);
    let open = stage.gate(10);

    // Ended before it has read an answer, as by Ctrl-C.
    let mut client = UnixStream::connect(&socket).unwrap();
    ipc::send(&mut client, &Question::Refresh("next".to_owned())).unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    drop(client);
    stage.sees(|stage| stage.world.struck(INCUMBENT).is_some());

    // Ended while it follows, as with its terminal.
    let cli = Cli::parse_from(["locum", "--socket", socket.to_str().unwrap(), "refresh", "--follow"]);
    let status = || ipc::ask(&socket, &Question::Status).unwrap();
    let lost = follow(&cli, status(), |_| bail!("its terminal is gone"));
    assert!(lost.is_err());
    assert_eq!(status().running.as_deref(), Some("next"));

    // One that comes later sees the rest of it, to the end.
    let mut lines = Vec::new();
    let ended = follow(&cli, status(), |line| {
        lines.push(line.to_owned());
        open.store(true, Ordering::Relaxed);
        Ok(())
    });
    let report = ended.unwrap().report.unwrap();
    assert_eq!(report.outcome, "retired", "{report:#?}");
    let [first, ..] = lines.as_slice() else {
        panic!("nothing was shown");
    };
    let (done, total) = first.split_once(' ').unwrap().0.split_once('/').unwrap();
    let (done, total): (usize, usize) = (done.parse().unwrap(), total.parse().unwrap());
    assert!(0 < done && done < total, "{first}");
    stage.ended("followed");
    let over = crate::command::refresh::refresh(
        &SysRoot::default(),
        &cli,
        None,
        crate::refresh::Wishes::default(),
        false,
        crate::cli::Output { json: false },
    );
    assert!(matches!(
        over.unwrap_err().downcast_ref(),
        Some(Refusal::NothingToFollow)
    ));
}

#[test]
fn of_many_that_ask_at_once_one_is_heard() {
    let stage = Stage::new(Behaviour::Boots);
    let open = stage.gate(0);
    let many = 8;
    let together = Barrier::new(many);
    let refused = std::thread::scope(|scope| {
        let asks = || {
            together.wait();
            stage.worker.begin("next")
        };
        let threads: Vec<_> = (0..many).map(|_| scope.spawn(asks)).collect();
        let outcomes = threads.into_iter().map(|thread| thread.join().unwrap());
        outcomes.filter_map(Result::err).collect::<Vec<_>>()
    });
    open.store(true, Ordering::Relaxed);
    assert_eq!(refused.len(), many - 1);
    for error in refused {
        assert!(
            matches!(error.downcast_ref(), Some(Refusal::Running(name)) if name == "next"),
            "{error:#}"
        );
    }
    assert_eq!(stage.wait().outcome, "retired");
    stage.ended("one of many");
}
