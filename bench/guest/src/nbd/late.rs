//! A disk that does what it is asked for late, as one far away does.

use super::{Request, Store, command, handshake};
use anyhow::Result;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

/// As [`super::serve`], each request so much later than it came, and in order, while more are taken. What was taken is done even if
/// its client goes. Whenever a request is due, `seen` is told how many wait, this one among them. Answers go to `out`.
///
/// # Errors
/// As [`super::serve`].
pub fn serve(
    mut stream: impl Read + Write,
    mut out: impl Write + Send,
    store: &(impl Store + Sync),
    delay: Duration,
    seen: impl Fn(usize) + Send,
) -> Result<()> {
    if !handshake(&mut stream, store.size())? {
        return Ok(());
    }
    let waiting = &AtomicUsize::new(0);
    let (taken, requests) = channel::<(Instant, Request)>();
    thread::scope(|scope| {
        scope.spawn(move || {
            for (due, request) in requests {
                thread::sleep(due.saturating_duration_since(Instant::now()));
                seen(waiting.fetch_sub(1, SeqCst));
                // Whether anybody hears of it or not.
                let _ = out.write_all(&request.perform(store));
            }
        });
        while let Some(request) = Request::take(&mut stream)? {
            if request.command == command::DISCONNECT {
                break;
            }
            waiting.fetch_add(1, SeqCst);
            if taken.send((Instant::now() + delay, request)).is_err() {
                break;
            }
        }
        drop(taken);
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{flags, option, request};
    use super::super::{REPLY_MAGIC, option as wanted};
    use super::*;
    use std::io::{self, Cursor};
    use std::sync::Mutex;
    use std::sync::mpsc::Sender;

    #[derive(Default)]
    struct Disk(Mutex<Vec<u8>>);

    impl Store for Disk {
        fn size(&self) -> u64 {
            4096
        }
        fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
            Ok(())
        }
        fn write(&self, _: u64, from: &[u8]) -> Result<()> {
            self.0.lock().unwrap().extend(from);
            Ok(())
        }
    }

    struct Client(Cursor<Vec<u8>>);

    impl Read for Client {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.0.read(to)
        }
    }

    impl Write for Client {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            Ok(from.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Out(Option<Sender<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            match &self.0 {
                Some(out) => out.send(from.to_vec()).map(|()| from.len()).map_err(io::Error::other),
                None => Err(io::ErrorKind::BrokenPipe.into()),
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn writes(out: Out, delay: Duration, seen: impl Fn(usize) + Send) -> Vec<u8> {
        let write = |byte| [request(command::WRITE, 0, 1), vec![byte]].concat();
        let sends = [flags(), option(wanted::GO), write(1), write(2)].concat();
        let disk = Disk::default();
        serve(Client(Cursor::new(sends)), out, &disk, delay, seen).unwrap();
        disk.0.into_inner().unwrap()
    }

    #[test]
    fn requests_wait_for_each_other_and_are_done_in_order() {
        let (out, came) = channel();
        let (seen, most) = channel();
        let delay = Duration::from_millis(200);
        let begin = Instant::now();
        let written = writes(Out(Some(out)), delay, move |waiting| seen.send(waiting).unwrap());
        assert!(begin.elapsed() >= delay);
        assert_eq!(written, [1, 2]);
        let answers: Vec<_> = came.iter().collect();
        assert_eq!(answers.len(), 2);
        assert!(
            answers
                .iter()
                .all(|answer| answer.starts_with(&REPLY_MAGIC.to_be_bytes()))
        );
        assert_eq!(most.iter().max(), Some(2), "both waited");
    }

    #[test]
    fn what_a_client_wrote_is_written_though_it_has_gone() {
        assert_eq!(writes(Out(None), Duration::ZERO, |_| {}), [1, 2]);
    }
}
