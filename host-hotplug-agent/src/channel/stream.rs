//! A guest's state through a channel: chunks, each with its length and CRC-32, then a chunk of length zero.
//!
//! So the end is part of the stream, a channel serves any number of guests one after the other, and a damaged byte
//! never reaches QEMU.
//!
//! Nor does the last chunk before the end is there, and a QEMU lets no guest run of whose state it lacks a byte. So as long as
//! [`send`] has not succeeded, the guest has not run in the other host, whatever becomes of that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::PollFlags;

use super::port::{Port, PortError};
use crate::deadline::Deadline;

/// Bytes of a chunk at most: half the ring, so that one side can write while the other reads.
const CHUNK: usize = 32 * 1024;
/// Length that says that the sender gave up.
const ABANDONED: u32 = u32::MAX;

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The channel.
    #[error(transparent)]
    Port(#[from] PortError),
    /// QEMU's end.
    #[error("QEMU closed its migration stream: {0}")]
    Qemu(io::Error),
    /// The sender gave up.
    #[error("the sending host gave up")]
    Abandoned,
    /// A damaged chunk.
    #[error("the guest's state arrived damaged")]
    Damaged,
}

/// Copies all that QEMU writes into the channel. Returns the number of bytes.
///
/// # Errors
/// [`StreamError`]; the receiver is told, and its QEMU does not get all of it.
pub fn send(mut qemu: UnixStream, port: &mut Port, until: &Deadline<'_>) -> Result<u64, StreamError> {
    let outcome = pump_out(&mut qemu, port, until);
    match outcome {
        Ok(total) => {
            port.write_all(&header(0, 0), until)?;
            Ok(total)
        }
        Err(error) => {
            abandon(port, until);
            Err(error)
        }
    }
}

/// Tells the receiver that the stream, begun or not, does not go on.
pub fn abandon(port: &mut Port, until: &Deadline<'_>) {
    // The receiver may be gone as well; its own time-out covers that.
    let _ = port.write_all(&header(ABANDONED, 0), until);
}

fn pump_out(qemu: &mut UnixStream, port: &mut Port, until: &Deadline<'_>) -> Result<u64, StreamError> {
    qemu.set_nonblocking(true).map_err(StreamError::Qemu)?;
    let mut chunk = vec![0; CHUNK];
    let mut total = 0;
    loop {
        match qemu.read(&mut chunk) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                let bytes = chunk.get(..count).unwrap_or_default();
                let mut framed = header(count as u32, crc32fast::hash(bytes)).to_vec();
                framed.extend_from_slice(bytes);
                port.write_all(&framed, until)?;
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                until.wait(&*qemu, PollFlags::IN)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StreamError::Qemu(error)),
        }
    }
}

/// Copies a stream from the channel to QEMU. Returns the number of bytes.
///
/// # Errors
/// [`StreamError`].
pub fn receive(port: &mut Port, mut qemu: UnixStream, until: &Deadline<'_>) -> Result<u64, StreamError> {
    qemu.set_nonblocking(true).map_err(StreamError::Qemu)?;
    let mut total = 0;
    // After QEMU has failed, the rest is read all the same: the sender must not wait, and the channel be clean.
    let mut failed = None;
    let mut held_back = Vec::new();
    loop {
        let mut head = [0; 8];
        port.read_exact(&mut head, until)?;
        let [l0, l1, l2, l3, c0, c1, c2, c3] = head;
        let crc = u32::from_le_bytes([c0, c1, c2, c3]);
        let len = match u32::from_le_bytes([l0, l1, l2, l3]) {
            0 if crc == 0 => {
                return match failed {
                    Some(error) => Err(error),
                    None => feed(&mut qemu, &held_back, until).map(|()| total),
                };
            }
            // Not nothing's checksum: another length was meant, and the state does not end here.
            0 => return Err(StreamError::Damaged),
            ABANDONED => return Err(StreamError::Abandoned),
            len if len as usize > CHUNK => return Err(StreamError::Damaged),
            len => len as usize,
        };
        let mut bytes = vec![0; len];
        port.read_exact(&mut bytes, until)?;
        if crc32fast::hash(&bytes) != crc {
            return Err(StreamError::Damaged);
        }
        if failed.is_none() {
            failed = feed(&mut qemu, &held_back, until).err();
        }
        held_back = bytes;
        total += len as u64;
    }
}

fn feed(qemu: &mut UnixStream, mut bytes: &[u8], until: &Deadline<'_>) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        match qemu.write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                until.wait(&*qemu, PollFlags::OUT)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StreamError::Qemu(error)),
        }
    }
    Ok(())
}

fn header(len: u32, crc: u32) -> [u8; 8] {
    let ([l0, l1, l2, l3], [c0, c1, c2, c3]) = (len.to_le_bytes(), crc.to_le_bytes());
    [l0, l1, l2, l3, c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::super::port::{pair, within};
    use super::*;

    #[test]
    fn streams_follow_each_other_through_one_channel() {
        let (mut out, mut into) = pair();
        for size in [1, 100_000, 3_000_000] {
            let state: Vec<u8> = (0..size).map(|n: u32| (n * 31) as u8).collect();
            let (mut source, source_end) = UnixStream::pair().unwrap();
            let (mut target, target_end) = UnixStream::pair().unwrap();
            let written = state.clone();
            std::thread::scope(|scope| {
                scope.spawn(move || source.write_all(&written).unwrap());
                scope.spawn(|| assert_eq!(send(source_end, &mut out, &within(180)).unwrap(), u64::from(size)));
                scope.spawn(|| assert_eq!(receive(&mut into, target_end, &within(180)).unwrap(), u64::from(size)));
                let mut read = Vec::new();
                target.read_to_end(&mut read).unwrap();
                assert!(read == state);
            });
        }
    }

    #[test]
    fn qemu_has_the_last_chunk_once_the_end_is_there() {
        let (mut out, mut into) = pair();
        let chunk = |bytes: &[u8]| [&header(bytes.len() as u32, crc32fast::hash(bytes)), bytes].concat();
        let state = [chunk(b"first"), chunk(b"last")].concat();
        out.write_all(&state, &within(180)).unwrap();
        let (mut qemu, end) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let received = scope.spawn(|| receive(&mut into, end, &within(180)));
            let mut some = [0; 5];
            qemu.read_exact(&mut some).unwrap();
            assert_eq!(&some, b"first");
            abandon(&mut out, &within(180));
            assert!(matches!(received.join().unwrap(), Err(StreamError::Abandoned)));
        });
        let mut rest = Vec::new();
        qemu.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"");
    }

    #[test]
    fn damage_and_abandonment_are_told_apart() {
        let (mut out, mut into) = pair();
        out.write_all(&header(4, 0x1234), &within(180)).unwrap();
        out.write_all(b"abcd", &within(180)).unwrap();
        let (_keep, end) = UnixStream::pair().unwrap();
        assert!(matches!(
            receive(&mut into, end, &within(180)),
            Err(StreamError::Damaged)
        ));

        // As a length of a power of two becomes by one bit.
        let (mut out, mut into) = pair();
        out.write_all(&header(0, 0x1234), &within(180)).unwrap();
        let (_keep, end) = UnixStream::pair().unwrap();
        let early = receive(&mut into, end, &within(180));
        assert!(matches!(early, Err(StreamError::Damaged)), "not the end");

        let (mut out, mut into) = pair();
        let (_source, end) = UnixStream::pair().unwrap();
        let given_up = within(180).or_when(&|| true);
        assert!(matches!(
            send(end, &mut out, &given_up),
            Err(StreamError::Port(PortError::GivenUp))
        ));
        let (_keep, end) = UnixStream::pair().unwrap();
        assert!(matches!(
            receive(&mut into, end, &within(180)),
            Err(StreamError::Abandoned)
        ));
    }
}
