//! A disk that answers late, as one far away does.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// A connection on which what is written goes out so much later, in order, while more is read.
#[derive(Debug)]
pub struct Late<S> {
    stream: S,
    delay: Duration,
    answers: Sender<Answer>,
    waiting: Arc<AtomicUsize>,
}

/// Some bytes, and when they are to go out.
type Answer = (Instant, Vec<u8>);

impl<S: Read> Late<S> {
    /// What is written goes to `out`. Whenever an answer is due, `seen` is told how many wait, this one among them.
    pub fn new(
        stream: S,
        out: impl Write + Send + 'static,
        delay: Duration,
        seen: impl Fn(usize) + Send + 'static,
    ) -> Self {
        let (answers, queue) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let left = Arc::clone(&waiting);
        // With an error the queue ends, which the next answer finds.
        thread::spawn(move || send(&queue, out, &left, seen));
        Self {
            stream,
            delay,
            answers,
            waiting,
        }
    }
}

fn send(queue: &Receiver<Answer>, mut out: impl Write, waiting: &AtomicUsize, seen: impl Fn(usize)) -> io::Result<()> {
    for (due, answer) in queue {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        seen(waiting.fetch_sub(1, SeqCst));
        out.write_all(&answer)?;
    }
    Ok(())
}

impl<S: Read> Read for Late<S> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.read(to)
    }
}

impl<S> Write for Late<S> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.waiting.fetch_add(1, SeqCst);
        let answer = (Instant::now() + self.delay, from.to_vec());
        self.answers
            .send(answer)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(from.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::Sender;

    struct Out(Sender<Vec<u8>>);

    impl Write for Out {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            self.0.send(from.to_vec()).map_err(gone).map(|()| from.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn answers_wait_for_each_other_and_go_out_in_order() {
        let (out, came) = channel();
        let (seen, most) = channel();
        let delay = Duration::from_millis(200);
        let begin = Instant::now();
        let mut late = Late::new(io::empty(), Out(out), delay, move |waiting| {
            let _ = seen.send(waiting);
        });
        for answer in [b"one", b"two"] {
            late.write_all(answer).unwrap();
        }
        assert_eq!(came.recv().unwrap(), b"one");
        assert!(begin.elapsed() >= delay);
        assert_eq!(came.recv().unwrap(), b"two");
        assert!(most.recv().unwrap() >= 1);
        // What waits still goes out when the client has gone.
        late.write_all(b"three").unwrap();
        drop(late);
        assert_eq!(came.recv().unwrap(), b"three");
        assert!(came.recv().is_err());
    }

    #[test]
    fn a_client_that_takes_no_answer_is_an_error() {
        let (out, came) = channel();
        drop(came);
        let mut late = Late::new(io::empty(), Out(out), Duration::ZERO, |_| {});
        let error = loop {
            if let Err(error) = late.write_all(b"one") {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
