//! Channels that carry anything: what was sent torn, damaged, repeated or late, and what nobody sent. Whatever comes, each read
//! ends with what was sent or with an error; nothing panics, and nothing goes round for ever.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::link::{Link, MessageError};
use super::message::Message;
use super::port::{Port, PortError, within};
use super::stream::{self, StreamError};
use crate::testing::torn::captured;

/// What happens to bytes on their way.
#[derive(Clone, Debug)]
enum Noise {
    /// A bit is another.
    Flip(Index, u8),
    /// The rest never comes.
    Cut(Index),
    /// A piece comes twice.
    Repeat(Index, Index),
    /// A piece is missing.
    Lose(Index, Index),
    /// Something comes from elsewhere.
    Foreign(Index, Vec<u8>),
}

fn noise() -> impl Strategy<Value = Noise> {
    let at = any::<Index>;
    prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Noise::Flip(at, bit)),
        at().prop_map(Noise::Cut),
        (at(), at()).prop_map(|(from, to)| Noise::Repeat(from, to)),
        (at(), at()).prop_map(|(from, to)| Noise::Lose(from, to)),
        (at(), vec(any::<u8>(), 1..40)).prop_map(|(at, bytes)| Noise::Foreign(at, bytes)),
    ]
}

impl Noise {
    /// Does it, and returns the first byte that is not as it was.
    fn meddle(&self, bytes: &mut Vec<u8>) -> usize {
        let before = bytes.clone();
        let place = |index: &Index| index.index(before.len() + 1);
        let piece = |from, to| {
            let (from, to) = (place(from), place(to));
            from.min(to)..from.max(to)
        };
        match self {
            Self::Flip(at, bit) => {
                if let Some(byte) = bytes.get_mut(place(at)) {
                    *byte ^= 1 << bit;
                }
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Repeat(from, to) => {
                let piece = piece(from, to);
                let copy = before[piece.clone()].to_vec();
                drop(bytes.splice(piece.end..piece.end, copy));
            }
            Self::Lose(from, to) => drop(bytes.drain(piece(from, to))),
            Self::Foreign(at, other) => drop(bytes.splice(place(at)..place(at), other.iter().copied())),
        }
        before.iter().zip(&*bytes).take_while(|(was, is)| was == is).count()
    }
}

/// A channel with these bytes in it and nothing after them. Its other end can still be written to.
fn carrying(bytes: &[u8]) -> (UnixStream, Port) {
    let (mut near, far) = UnixStream::pair().unwrap();
    near.write_all(bytes).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    (near, Port::over(far).unwrap())
}

fn message() -> impl Strategy<Value = Message> {
    let name = || "[a-z]{0,12}";
    prop_oneof![
        Just(Message::Heir),
        Just(Message::Entrusted),
        (name(), any::<u64>()).prop_map(|(name, ticks)| Message::Prepared { name, ticks }),
        (name(), any::<u64>()).prop_map(|(name, seconds)| Message::Receive { name, seconds }),
        (name(), any::<u64>(), any::<u64>()).prop_map(|(name, received, resumed)| Message::Resumed {
            name,
            received,
            resumed
        }),
        (name(), ".{0,40}").prop_map(|(name, reason)| Message::Failed { name, reason }),
        name().prop_map(|name| Message::Gone { name }),
    ]
}

/// All that can be read, and why there is no more.
fn read_all(bytes: &[u8]) -> (Vec<Message>, MessageError) {
    let (_near, port) = carrying(bytes);
    let mut link = Link::new(port);
    let mut read = Vec::new();
    // A message has 16 bytes at least.
    for _ in 0..=bytes.len() / 16 {
        match link.receive(&within(60)) {
            Ok(message) => read.push(message),
            Err(error) => return (read, error),
        }
    }
    panic!("more messages than bytes for them");
}

/// The chunks of a guest's state, as they are sent.
fn chunks(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        let (mut qemu, end) = UnixStream::pair().unwrap();
        qemu.write_all(part).unwrap();
        drop(qemu);
        let sent = captured(
            |mut port| Ok(stream::send(end, &mut port, &within(60)).map(drop)?),
            &within(60),
        );
        all.extend(sent.unwrap());
        // The last one, which ends the stream.
        all.truncate(all.len() - 8);
    }
    all.extend([0; 8]);
    all
}

/// What comes to QEMU, and how it ended.
fn fed(bytes: &[u8]) -> (Vec<u8>, Result<u64, StreamError>) {
    let (_near, mut port) = carrying(bytes);
    let (qemu, mut end) = UnixStream::pair().unwrap();
    let outcome = stream::receive(&mut port, qemu, &within(60));
    let mut all = Vec::new();
    end.read_to_end(&mut all).unwrap();
    (all, outcome)
}

/// Whether some of the parts, in whatever order and number, make up `all`.
fn made_of(all: &[u8], parts: &[Vec<u8>]) -> bool {
    let mut reached = vec![false; all.len() + 1];
    reached[0] = true;
    for at in 0..all.len() {
        if !reached[at] {
            continue;
        }
        for part in parts.iter().filter(|part| all[at..].starts_with(part)) {
            reached[at + part.len()] = true;
        }
    }
    reached[all.len()]
}

proptest! {
    #[test]
    fn of_messages_with_noise_only_such_as_were_sent_are_read(
        sent in vec(message(), 0..6),
        noises in vec(noise(), 0..4),
    ) {
        let mut ends = vec![0];
        let mut bytes = Vec::new();
        for message in &sent {
            let sent = captured(|port| Ok(Link::new(port).send(message, &within(60))?), &within(60));
            bytes.extend(sent.unwrap());
            ends.push(bytes.len());
        }
        let good = noises.iter().map(|noise| noise.meddle(&mut bytes)).min().unwrap_or(bytes.len());
        let (read, why) = read_all(&bytes);
        let untouched = ends.iter().filter(|end| **end <= good).count() - 1;
        prop_assert!(read.starts_with(&sent[..untouched]), "{read:?} of {sent:?}");
        prop_assert!(read.iter().all(|message| sent.contains(message)), "{read:?} of {sent:?}");
        if noises.is_empty() {
            prop_assert_eq!(&read, &sent);
            prop_assert!(matches!(why, MessageError::Port(PortError::Closed)), "{}", why);
        }
        prop_assert!(!why.to_string().is_empty());
    }

    #[test]
    fn whole_messages_with_any_content_are_read_or_told(
        version in 0..6u16,
        texts in vec(prop_oneof![".{0,60}", "[\\[{\",:}\\]0-9a-z_]{0,60}", Just("[".repeat(5000))], 1..4),
    ) {
        let mut bytes = Vec::new();
        for text in &texts {
            bytes.extend_from_slice(b"LCMM");
            bytes.extend_from_slice(&version.to_le_bytes());
            bytes.extend_from_slice(&[0, 0]);
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&crc32fast::hash(text.as_bytes()).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        let (read, _) = read_all(&bytes);
        prop_assert!(read.iter().all(|message| matches!(message, Message::Heir | Message::Entrusted)), "{read:?}");
    }

    #[test]
    fn of_a_state_with_noise_only_whole_chunks_come_to_qemu(
        parts in vec(vec(any::<u8>(), 1..200), 0..6),
        noises in vec(noise(), 0..4),
    ) {
        let mut bytes = chunks(&parts);
        let good = noises.iter().map(|noise| noise.meddle(&mut bytes)).min().unwrap_or(bytes.len());
        let (all, outcome) = fed(&bytes);
        prop_assert!(made_of(&all, &parts), "{all:02x?} of {parts:02x?}");
        let mut end = 0;
        let mut untouched: Vec<_> = parts
            .iter()
            .take_while(|part| {
                end += 8 + part.len();
                end <= good
            })
            .cloned()
            .collect();
        if outcome.is_err() {
            // Held back until the end, or another chunk, is there.
            untouched.pop();
        }
        prop_assert!(all.starts_with(&untouched.concat()));
        if let Ok(total) = outcome {
            prop_assert_eq!(total, all.len() as u64);
        }
        if noises.is_empty() {
            prop_assert_eq!(&all, &parts.concat());
            prop_assert!(outcome.is_ok());
        }
    }

    #[test]
    fn of_bytes_that_nobody_sent_nothing_comes_to_qemu(bytes in vec(any::<u8>(), 0..300)) {
        let (all, outcome) = fed(&bytes);
        prop_assert!(all.is_empty());
        // Zeroes are the end of a state of nothing.
        prop_assert!(outcome.is_err() || bytes.starts_with(&[0; 8]));
    }
}
