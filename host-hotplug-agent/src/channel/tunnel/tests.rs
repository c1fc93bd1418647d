use super::super::port::{pair, within};
use super::*;

type Outcome = Result<Counts, TunnelError>;

struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn paths(&self, side: &str) -> [PathBuf; CONNECTIONS] {
        ["words", "state"].map(|name| self.dir.path().join(format!("{side}-{name}")))
    }

    fn listeners(&self, side: &str) -> [UnixListener; CONNECTIONS] {
        self.paths(side).map(|path| UnixListener::bind(path).unwrap())
    }
}

/// The first byte of the answer is the request's, and the rest are as many as that says.
fn echo(listener: &UnixListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all.reverse();
    stream.write_all(&all).unwrap();
}

fn ask(path: &PathBuf, size: usize) {
    let mut stream = UnixStream::connect(path).unwrap();
    let bytes: Vec<u8> = (0..size).map(|number| (number * 31) as u8).collect();
    let mut reader = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        let answer = scope.spawn(move || {
            let mut answer = Vec::new();
            reader.read_to_end(&mut answer).unwrap();
            answer
        });
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = answer.join().unwrap();
        answer.reverse();
        assert!(answer == bytes, "{size} bytes came back changed");
    });
}

#[test]
fn both_connections_go_through_one_channel_at_once_again_and_again() {
    let (mut here, mut there) = pair();
    for size in [1, 40_000, 3_000_000] {
        let lab = Lab::new();
        let (listeners, servers) = (lab.listeners("here"), lab.listeners("there"));
        let end = End::default();
        std::thread::scope(|scope| {
            for server in &servers {
                scope.spawn(|| echo(server));
            }
            let opens = Side::Opens { listeners, end: &end };
            let opens = scope.spawn(|| carry(&mut here, opens, &within(180)));
            let sockets = lab.paths("there");
            let follows = scope.spawn(|| carry(&mut there, Side::Follows { sockets }, &within(180)));
            let [words, state] = lab.paths("here");
            let asks = [
                scope.spawn(move || ask(&words, 1000)),
                scope.spawn(move || ask(&state, size)),
            ];
            asks.into_iter().for_each(|ask| ask.join().unwrap());
            end.set(Ending::Well);
            let right = [2000, 2 * size as u64];
            assert_eq!(opens.join().unwrap().unwrap(), right);
            assert_eq!(follows.join().unwrap().unwrap(), right);
        });
    }
}

/// What comes of a tunnel at the side that opens connections and at the other, while `done` has their sockets in hand.
fn outcomes<T>(end: &End, done: impl FnOnce(&Lab) -> T) -> (Outcome, Outcome, T) {
    let lab = Lab::new();
    let (mut here, mut there) = pair();
    let (listeners, sockets) = (lab.listeners("here"), lab.paths("there"));
    std::thread::scope(|scope| {
        let opens = scope.spawn(|| carry(&mut here, Side::Opens { listeners, end }, &within(180)));
        let follows = scope.spawn(|| carry(&mut there, Side::Follows { sockets }, &within(180)));
        let done = done(&lab);
        (opens.join().unwrap(), follows.join().unwrap(), done)
    })
}

#[test]
fn whoever_ends_it_badly_is_heard() {
    for ending in [Ending::Kept, Ending::Unknown] {
        let end = End::default();
        end.set(ending);
        let right = |outcome: &Outcome| match ending {
            Ending::Kept => matches!(outcome, Err(TunnelError::Abandoned)),
            _ => matches!(outcome, Err(TunnelError::Broken)),
        };
        let (opens, follows, ()) = outcomes(&end, |_| {});
        assert!(right(&follows), "{follows:?}");
        assert!(right(&opens), "{opens:?}");
    }
}

#[test]
fn whoever_opens_it_and_fails_does_not_claim_to_keep_the_guest() {
    let lab = Lab::new();
    let (mut here, mut there) = pair();
    let end = End::default();
    let listeners = lab.listeners("here");
    std::thread::scope(|scope| {
        let opens = scope.spawn(|| {
            let given_up = within(180);
            carry(
                &mut here,
                Side::Opens { listeners, end: &end },
                &given_up.or_when(&|| true),
            )
        });
        let sockets = lab.paths("there");
        let follows = carry(&mut there, Side::Follows { sockets }, &within(180));
        assert!(matches!(follows, Err(TunnelError::Broken)), "{follows:?}");
        let opens = opens.join().unwrap();
        assert!(matches!(opens, Err(TunnelError::Port(PortError::GivenUp))), "{opens:?}");
    });
}

#[test]
fn a_connection_that_nobody_takes_ends_it_on_both_sides() {
    let ask = |lab: &Lab| UnixStream::connect(&lab.paths("here")[0]).unwrap();
    let (opens, follows, mut stream) = outcomes(&End::default(), ask);
    assert!(matches!(follows, Err(TunnelError::Connect { .. })), "{follows:?}");
    assert!(matches!(opens, Err(TunnelError::Abandoned)), "{opens:?}");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "who asked is not left waiting");
}

/// As a QEMU is that finds something wrong with the guest that it is to take.
#[test]
fn who_is_gone_at_one_end_is_gone_at_the_other() {
    let end = End::default();
    let (opens, follows, ()) = outcomes(&end, |lab| {
        for (server, path) in lab.listeners("there").iter().zip(lab.paths("here")) {
            let mut stream = UnixStream::connect(path).unwrap();
            stream.write_all(b"ab").unwrap();
            let (mut taken, _) = server.accept().unwrap();
            // What it leaves unread is no reason to keep silent.
            taken.read_exact(&mut [0]).unwrap();
            drop(taken);
            while stream.write(&[0]).is_ok() {}
        }
        end.set(Ending::Well);
    });
    assert!(opens.is_ok(), "it was noticed before the end");
    assert!(follows.is_ok());
}

#[test]
fn a_damaged_frame_is_none() {
    for damaged in 0..HEADER + 3 {
        let (mut here, mut there) = pair();
        let (mut raw, mut copy) = pair();
        send(&mut raw, Kind::Data, 1, b"abc", &within(180)).unwrap();
        let mut frame = [0; HEADER + 3];
        copy.read_exact(&mut frame, &within(180)).unwrap();
        frame[damaged] ^= 1;
        here.write_all(&frame, &within(180)).unwrap();
        drop(here);
        let read = receive(&mut there, &within(180));
        assert!(read.is_err(), "byte {damaged}: {read:?}");
    }
}
