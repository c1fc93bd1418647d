//! What the emulator and the lab say to each other about a segment (`lockstep_c` in `emulator/bochs.patch`): little-endian words.

use std::io::{self, ErrorKind, Read, Write};

/// Longest frame that a card sends, in bytes: Ethernet's, with a VLAN tag.
const LONGEST: u64 = 1518;

/// Why the emulator calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cause {
    /// That card has sent this frame.
    Sent(u32, Vec<u8>),
    /// It was to be woken.
    Woken,
    /// That card could not take this frame, which is lost.
    Dropped(u32, Vec<u8>),
}

/// A call of the emulator, which stands still until it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// Ticks since power on.
    pub tick: u64,
    /// Why.
    pub cause: Cause,
}

/// A frame for a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The tick at which the card has it.
    pub due: u64,
    /// The card.
    pub card: u32,
    /// From the destination's address to the payload's end.
    pub frame: Vec<u8>,
}

impl Call {
    /// The next call; none when the emulator is gone.
    ///
    /// # Errors
    /// What comes is no call.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 24];
        match from.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let [tick, kind_and_card, length] = words(&head);
        let no_call = || {
            io::Error::new(
                ErrorKind::InvalidData,
                format!("the emulator's call is none: {head:x?}"),
            )
        };
        if length > LONGEST {
            return Err(no_call());
        }
        let mut frame = vec![0; usize::try_from(length).map_err(|_| no_call())?];
        from.read_exact(&mut frame)?;
        #[expect(clippy::cast_possible_truncation, reason = "two words of half the size in one")]
        let (kind, card) = (kind_and_card as u32, (kind_and_card >> 32) as u32);
        let cause = match kind {
            0 => Cause::Sent(card, frame),
            1 => Cause::Woken,
            2 => Cause::Dropped(card, frame),
            _ => return Err(no_call()),
        };
        Ok(Some(Self { tick, cause }))
    }
}

/// Answers a call: these frames, and the tick at which to call again at the latest.
///
/// # Errors
/// The emulator is gone.
pub(super) fn answer(to: &mut impl Write, wake: u64, deliveries: &[Delivery]) -> io::Result<()> {
    let mut body = Vec::new();
    for Delivery { due, card, frame } in deliveries {
        let length = u32::try_from(frame.len()).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        body.extend(due.to_le_bytes());
        body.extend(card.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend(frame);
    }
    let mut message = Vec::from(wake.to_le_bytes());
    message.extend((body.len() as u64).to_le_bytes());
    message.extend(body);
    to.write_all(&message)
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = bytes
        .chunks_exact(8)
        .map(|word| word.try_into().map(u64::from_le_bytes));
    std::array::from_fn(|_| words.next().and_then(Result::ok).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(tick: u64, kind: u32, card: u32, frame: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from(tick.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(card.to_le_bytes());
        bytes.extend((frame.len() as u64).to_le_bytes());
        bytes.extend(frame);
        bytes
    }

    #[test]
    fn calls_are_read_one_after_the_other() {
        let mut bytes = call(7, 0, 1, b"frame");
        bytes.extend(call(9, 1, 0, b""));
        bytes.extend(call(11, 2, 0, b"lost"));
        let mut from = bytes.as_slice();
        let mut next = || Call::read(&mut from).unwrap();
        let sent = Cause::Sent(1, b"frame".to_vec());
        assert_eq!(next(), Some(Call { tick: 7, cause: sent }));
        assert_eq!(next().map(|call| (call.tick, call.cause)), Some((9, Cause::Woken)));
        assert_eq!(next().map(|call| call.cause), Some(Cause::Dropped(0, b"lost".to_vec())));
        assert_eq!(next(), None);
    }

    #[test]
    fn what_is_no_call_is_an_error() {
        assert!(Call::read(&mut call(1, 3, 0, b"").as_slice()).is_err());
        let mut endless = call(1, 0, 0, b"");
        endless[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Call::read(&mut endless.as_slice()).is_err());
        assert!(Call::read(&mut call(1, 0, 0, b"frame")[..26].to_vec().as_slice()).is_err());
    }

    #[test]
    fn an_answer_has_the_length_of_what_follows() {
        let frame = Delivery {
            due: 0x1122,
            card: 1,
            frame: vec![0xab; 60],
        };
        let mut bytes = Vec::new();
        answer(&mut bytes, 5, &[frame.clone(), frame]).unwrap();
        let [wake, length] = words(&bytes);
        assert_eq!((wake, length), (5, 2 * 76));
        assert_eq!(bytes.len(), 16 + 2 * 76);
        assert_eq!(bytes[16..18], [0x22, 0x11]);
        assert_eq!((bytes[24], bytes[28], bytes[32]), (1, 60, 0xab));
    }
}
