//! Two connections through one channel: what two libvirt daemons say to each other, and a guest's state, which flow at the
//! same time and both ways.
//!
//! A frame has a header of 12 bytes, then its data:
//!
//! | offset | length | field (little-endian) |
//! | --- | --- | --- |
//! | 0 | 4 | bytes of data, 32 KiB at most |
//! | 4 | 4 | CRC-32 (ISO-HDLC) of the data and of the next four bytes |
//! | 8 | 1 | kind |
//! | 9 | 1 | connection |
//! | 10 | 2 | zero |
//!
//! The side that opens connections says when all is over, and how; the other one answers alike. Each side says so once, and
//! reads until the other one has said it. So the end is part of the stream, and a channel serves one guest after the other.
//! That the guest stays is said only where that is certain: what the other side has of it is thrown away then.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::port::{Port, PortError};
use crate::deadline::Deadline;

/// Connections of a tunnel.
pub const CONNECTIONS: usize = 2;
/// Bytes of data at most: half the ring, so that one side can write while the other reads.
const CHUNK: usize = 32 * 1024;
/// Bytes of a header.
const HEADER: usize = 12;
/// Between two looks for a connection that is to come, or for the end.
const LOOK: Duration = Duration::from_millis(5);
/// For either side's last word, once something went wrong.
const LAST: Duration = Duration::from_secs(10);

/// Why a tunnel ended early.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The channel.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The side that opens connections keeps the guest, or the other one gave up.
    #[error("the other host gave up")]
    Abandoned,
    /// The side that opens connections does not know how it ended.
    #[error("the other host does not know how it ended")]
    Broken,
    /// A frame that is none.
    #[error("what libvirt sent arrived damaged")]
    Damaged,
    /// Nobody takes a connection.
    #[error("connecting to {}: {error}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A socket of this host.
    #[error("a socket of the tunnel failed: {0}")]
    Socket(#[from] io::Error),
}

/// What one side of a tunnel does with its connections.
pub enum Side<'a> {
    /// Takes them, and says when all is over.
    Opens {
        /// Where each comes in.
        listeners: [UnixListener; CONNECTIONS],
        /// Set by whoever knows how it ended.
        end: &'a End,
    },
    /// Makes each that the other side has taken.
    Follows {
        /// Where each goes to.
        sockets: [PathBuf; CONNECTIONS],
    },
}

/// How a conversation ended, as the side says that opens connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest has been given up here.
    Well,
    /// The guest stays here.
    Kept,
    /// Nobody knows.
    Unknown,
}

impl Ending {
    const fn kind(self) -> Kind {
        match self {
            Self::Well => Kind::Done,
            Self::Kept => Kind::Abandoned,
            Self::Unknown => Kind::Broken,
        }
    }

    fn of(kind: Kind) -> Option<Self> {
        [Self::Well, Self::Kept, Self::Unknown]
            .into_iter()
            .find(|ending| ending.kind() == kind)
    }
}

/// The end of a conversation, once it is known.
#[derive(Debug, Default)]
pub struct End {
    /// The kind of frame that says it, or 0.
    kind: AtomicU8,
}

impl End {
    /// All is over: nothing more comes.
    pub fn set(&self, ending: Ending) {
        self.kind.store(ending.kind() as u8, Ordering::Release);
    }

    fn get(&self) -> Option<Ending> {
        Ending::of(Kind::from_raw(self.kind.load(Ordering::Acquire))?)
    }
}

/// Bytes of each connection, both ways.
pub type Counts = [u64; CONNECTIONS];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Open = 1,
    Data = 2,
    /// The connection's other end says no more, and may still listen.
    Close = 3,
    Done = 4,
    Abandoned = 5,
    Broken = 6,
    /// The connection's other end neither says anything nor listens.
    Gone = 7,
}

impl Kind {
    fn from_raw(raw: u8) -> Option<Self> {
        let all = [
            Self::Open,
            Self::Data,
            Self::Close,
            Self::Done,
            Self::Abandoned,
            Self::Broken,
            Self::Gone,
        ];
        all.into_iter().find(|kind| *kind as u8 == raw)
    }
}

/// What both threads of a side know.
struct Shared<'a> {
    /// Those that are open: for reading, and for writing.
    connections: Mutex<[Option<UnixStream>; CONNECTIONS]>,
    /// Set where the other side ends it, or one of the threads fails.
    end: &'a End,
    counts: [AtomicU64; CONNECTIONS],
}

impl Shared<'_> {
    fn connection(&self, number: usize) -> io::Result<Option<UnixStream>> {
        let connections = self
            .connections
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        connections
            .get(number)
            .and_then(Option::as_ref)
            .map(UnixStream::try_clone)
            .transpose()
    }

    fn add(&self, number: usize, stream: UnixStream) {
        let mut connections = self
            .connections
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(place) = connections.get_mut(number) {
            *place = Some(stream);
        }
    }

    fn count(&self, number: usize, bytes: usize) {
        if let Some(count) = self.counts.get(number) {
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// Carries the connections until the side that opens them says that all is over.
///
/// # Errors
/// [`TunnelError`]; the other side is told.
pub fn carry(port: &mut Port, side: Side<'_>, until: &Deadline<'_>) -> Result<Counts, TunnelError> {
    let own = End::default();
    let (listeners, sockets, end) = match side {
        Side::Opens { listeners, end } => (Some(listeners), None, end),
        Side::Follows { sockets } => (None, Some(sockets), &own),
    };
    let shared = Shared {
        connections: Mutex::default(),
        end,
        counts: Default::default(),
    };
    let fallback = on_failure(listeners.is_some());
    let mut out = port.other_half()?;
    let failed = AtomicBool::new(false);
    let given_up = || until.given_up() || failed.load(Ordering::Relaxed);
    let until = &until.or_when(&given_up);
    let (wrote, read) = std::thread::scope(|scope| {
        let fail = |_: &TunnelError| failed.store(true, Ordering::Relaxed);
        let (shared, listeners) = (&shared, listeners.as_ref());
        let writer = scope.spawn(move || pump_out(&mut out, listeners, shared, until).inspect_err(fail));
        let read = pump_in(port, sockets.as_ref(), shared, until).inspect_err(|error| {
            // The writer tells the other side.
            fail(error);
            shared.end.set(fallback);
            drain(port);
        });
        (writer.join(), read)
    });
    let wrote = wrote.unwrap_or_else(|_| Err(io::Error::other("the pump panicked").into()));
    match (read, wrote) {
        (Ok(Ending::Well), Ok(())) => Ok(shared.counts.map(AtomicU64::into_inner)),
        (Ok(Ending::Kept), Ok(())) => Err(TunnelError::Abandoned),
        (Ok(Ending::Unknown), Ok(())) => Err(TunnelError::Broken),
        // Who gave up for the other one's fault has less to say.
        (Err(TunnelError::Port(PortError::GivenUp)), Err(error)) | (Err(error), _) | (Ok(_), Err(error)) => Err(error),
    }
}

/// What a side says that fails: whoever opens connections does not know then how those end that use them.
const fn on_failure(opens: bool) -> Ending {
    if opens { Ending::Unknown } else { Ending::Kept }
}

/// Tells the other side of a tunnel that was not begun here that it is over.
pub fn abandon(port: &mut Port) {
    // The other side may be gone as well; its own time-out covers that.
    if send(port, Kind::Abandoned, 0, &[], &Deadline::after(LAST)).is_ok() {
        drain(port);
    }
}

/// Reads what the other side still says, as far as to its last word, so that the channel is clean.
fn drain(port: &mut Port) {
    let until = Deadline::after(LAST);
    while let Ok((kind, ..)) = receive(port, &until) {
        if Ending::of(kind).is_some() {
            return;
        }
    }
}

/// Sends what the connections say, and at the end, how it ended.
fn pump_out(
    port: &mut Port,
    listeners: Option<&[UnixListener; CONNECTIONS]>,
    shared: &Shared<'_>,
    until: &Deadline<'_>,
) -> Result<(), TunnelError> {
    let outcome = pump_connections(port, listeners, shared, until);
    let ending = outcome
        .as_ref()
        .map_or(on_failure(listeners.is_some()), |ending| *ending);
    let told = send(port, ending.kind(), 0, &[], &Deadline::after(LAST));
    outcome?;
    told
}

/// Until all is over; returns how it ended.
fn pump_connections(
    port: &mut Port,
    listeners: Option<&[UnixListener; CONNECTIONS]>,
    shared: &Shared<'_>,
    until: &Deadline<'_>,
) -> Result<Ending, TunnelError> {
    for listener in listeners.into_iter().flatten() {
        listener.set_nonblocking(true)?;
    }
    let mut open: [Option<UnixStream>; CONNECTIONS] = Default::default();
    let mut ended = [false; CONNECTIONS];
    let mut chunk = vec![0; CHUNK];
    loop {
        let over = shared.end.get();
        let mut idle = true;
        for number in 0..CONNECTIONS {
            let (Some(place), Some(ended)) = (open.get_mut(number), ended.get_mut(number)) else {
                continue;
            };
            if place.is_none() && !*ended {
                *place = match listeners.and_then(|listeners| listeners.get(number)) {
                    Some(listener) => accept(listener, number, port, shared, until)?,
                    None => shared.connection(number)?,
                };
            }
            let Some(connection) = place else { continue };
            if *ended {
                if is_gone(connection) {
                    send(port, Kind::Gone, number, &[], until)?;
                    *place = None;
                }
                continue;
            }
            match connection.read(&mut chunk) {
                Ok(0) if !is_gone(connection) => {
                    send(port, Kind::Close, number, &[], until)?;
                    *ended = true;
                }
                Ok(count @ 1..) => {
                    let data = chunk.get(..count).unwrap_or_default();
                    send(port, Kind::Data, number, data, until)?;
                    shared.count(number, count);
                    idle = false;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                // A QEMU that waits for a word from the other one learns by this alone that none comes.
                Ok(0) | Err(_) => {
                    send(port, Kind::Gone, number, &[], until)?;
                    (*place, *ended) = (None, true);
                }
            }
        }
        if !idle {
            continue;
        }
        if let Some(ending) = over {
            return Ok(ending);
        }
        if until.passed() {
            return Err(PortError::Timeout.into());
        }
        if until.given_up() {
            return Err(PortError::GivenUp.into());
        }
        let speaking = open.iter().zip(&ended).filter(|(_, ended)| !**ended);
        wait(speaking.filter_map(|(connection, _)| connection.as_ref()));
    }
}

/// Whether nobody is at its other end.
fn is_gone(connection: &UnixStream) -> bool {
    let mut fds = [PollFd::new(connection, PollFlags::empty())];
    let asked = poll(&mut fds, Some(&Timespec::default()));
    let [fd] = &fds;
    asked.is_ok() && fd.revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

fn accept(
    listener: &UnixListener,
    number: usize,
    port: &mut Port,
    shared: &Shared<'_>,
    until: &Deadline<'_>,
) -> Result<Option<UnixStream>, TunnelError> {
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    stream.set_nonblocking(true)?;
    shared.add(number, stream.try_clone()?);
    send(port, Kind::Open, number, &[], until)?;
    Ok(Some(stream))
}

/// Waits a little for any of them to say something.
fn wait<'s>(connections: impl Iterator<Item = &'s UnixStream>) {
    let mut fds: Vec<PollFd<'_>> = connections.map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
    let most = Timespec {
        tv_sec: 0,
        tv_nsec: LOOK.subsec_nanos().into(),
    };
    // Whatever it says, all are looked at again.
    let _ = poll(&mut fds, Some(&most));
}

/// Gives the connections what the other side's say; returns how it ended there.
fn pump_in(
    port: &mut Port,
    sockets: Option<&[PathBuf; CONNECTIONS]>,
    shared: &Shared<'_>,
    until: &Deadline<'_>,
) -> Result<Ending, TunnelError> {
    loop {
        let (kind, number, data) = receive(port, until)?;
        match kind {
            Kind::Open => {
                let socket = sockets.and_then(|sockets| sockets.get(number));
                let path = socket.ok_or(TunnelError::Damaged)?;
                let stream = UnixStream::connect(path).map_err(|error| TunnelError::Connect {
                    path: path.clone(),
                    error,
                })?;
                stream.set_nonblocking(true)?;
                shared.add(number, stream);
            }
            Kind::Data => {
                shared.count(number, data.len());
                if let Some(mut connection) = shared.connection(number)? {
                    feed(&mut connection, &data, until)?;
                }
            }
            Kind::Close | Kind::Gone => {
                let which = if kind == Kind::Gone {
                    Shutdown::Both
                } else {
                    Shutdown::Write
                };
                if let Some(connection) = shared.connection(number)? {
                    // Its other end may be gone already.
                    let _ = connection.shutdown(which);
                }
            }
            Kind::Done | Kind::Abandoned | Kind::Broken => {
                let ending = Ending::of(kind).ok_or(TunnelError::Damaged)?;
                if sockets.is_some() {
                    shared.end.set(ending);
                } else if ending != Ending::Well {
                    // The other side's failure says nothing of the guest.
                    shared.end.set(Ending::Unknown);
                }
                return Ok(ending);
            }
        }
    }
}

/// Writes all of `bytes`, unless the connection's other end is gone: then there is nobody to miss it.
fn feed(connection: &mut UnixStream, mut bytes: &[u8], until: &Deadline<'_>) -> Result<(), TunnelError> {
    while !bytes.is_empty() {
        match connection.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                until.wait(&*connection, PollFlags::OUT)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
    Ok(())
}

fn send(port: &mut Port, kind: Kind, number: usize, data: &[u8], until: &Deadline<'_>) -> Result<(), TunnelError> {
    let tail = [kind as u8, number as u8, 0, 0];
    let mut crc = crc32fast::Hasher::new();
    crc.update(&tail);
    crc.update(data);
    let mut frame = Vec::with_capacity(HEADER + data.len());
    frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
    frame.extend_from_slice(&crc.finalize().to_le_bytes());
    frame.extend_from_slice(&tail);
    frame.extend_from_slice(data);
    Ok(port.write_all(&frame, until)?)
}

fn receive(port: &mut Port, until: &Deadline<'_>) -> Result<(Kind, usize, Vec<u8>), TunnelError> {
    let mut header = [0; HEADER];
    port.read_exact(&mut header, until)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3, tail @ ..] = header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > CHUNK {
        return Err(TunnelError::Damaged);
    }
    let mut data = vec![0; len];
    port.read_exact(&mut data, until)?;
    let mut crc = crc32fast::Hasher::new();
    crc.update(&tail);
    crc.update(&data);
    let [kind, number, ..] = tail;
    let kind = Kind::from_raw(kind).ok_or(TunnelError::Damaged)?;
    let number = usize::from(number);
    if crc.finalize() != u32::from_le_bytes([c0, c1, c2, c3]) || number >= CONNECTIONS {
        return Err(TunnelError::Damaged);
    }
    Ok((kind, number, data))
}

#[cfg(test)]
mod tests;
