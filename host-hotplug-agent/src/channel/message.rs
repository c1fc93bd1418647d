//! Messages between the two agents: a header of 16 bytes, then JSON.
//!
//! | offset | length | field (little-endian) |
//! | --- | --- | --- |
//! | 0 | 4 | magic `LCMM` |
//! | 4 | 2 | version |
//! | 6 | 2 | zero |
//! | 8 | 4 | bytes of JSON |
//! | 12 | 4 | CRC-32 (ISO-HDLC) of the JSON |

use partitioner::Refresh;
use serde::{Deserialize, Serialize};

use super::port::{Port, PortError};
use crate::clock::Clock;
use crate::deadline::Deadline;
use crate::guest::Spec;
use crate::report::Report;

const MAGIC: [u8; 4] = *b"LCMM";
/// Version of [`Message`]. A difference between the hosts is refused at the first message.
pub const VERSION: u16 = 1;
/// More JSON than this is a damaged length.
const MAX_LEN: u32 = 4 << 20;

/// What one agent tells the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Successor: I am up.
    Hello {
        /// Its generation.
        generation: u64,
        /// Its kernel's release.
        kernel: String,
        /// CPUs online in it.
        cpus: usize,
    },
    /// Incumbent: welcome; this is the time, and these guests are to come. Their QEMUs are started at once.
    Welcome {
        /// Wall clock.
        clock: Clock,
        /// Guests, in order of handover.
        guests: Vec<Spec>,
        /// Seconds that their QEMUs may take to be ready.
        seconds: u64,
    },
    /// Successor: that guest's QEMU waits for its state.
    Prepared {
        /// Guest.
        name: String,
        /// Ticks that it took.
        ticks: u64,
    },
    /// Incumbent: read that guest's state from its channel.
    Receive {
        /// Guest.
        name: String,
        /// Seconds that it may take; `Resumed` or `Failed` follows by then.
        seconds: u64,
    },
    /// The answer: its QEMU reads.
    Receiving {
        /// Guest.
        name: String,
    },
    /// The guest runs here now; the other QEMU can go.
    Resumed {
        /// Guest.
        name: String,
        /// TSC when all state had been read.
        received: u64,
        /// TSC when it was resumed.
        resumed: u64,
    },
    /// The guest does not run here: its QEMU failed and is gone.
    Failed {
        /// Guest.
        name: String,
        /// Why.
        reason: String,
    },
    /// Incumbent: send that guest back through its channel; a QEMU waits here.
    Return {
        /// Guest.
        name: String,
        /// Seconds that it may take.
        seconds: u64,
    },
    /// The other QEMU of that guest is gone.
    Gone {
        /// Guest.
        name: String,
    },
    /// Incumbent: you are in charge once I am gone.
    Entrust {
        /// The state of the refresh.
        refresh: Box<Refresh>,
        /// What happened so far.
        report: Box<Report>,
        /// Seconds that the incumbent has to power off.
        seconds: u64,
    },
    /// Successor: I have it.
    Entrusted,
}

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The channel.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Not a header.
    #[error("the other host sent bytes that are no message ({0:02x?}): its agent is damaged or not `locum`")]
    Magic([u8; 4]),
    /// Another version.
    #[error(
        "the other host's agent speaks version {0} of the protocol, this one {VERSION}: install the same `locum` on both"
    )]
    Version(u16),
    /// An impossible length.
    #[error("the other host sent a message of {0} bytes, more than can be: it is damaged")]
    TooLong(u32),
    /// A damaged message.
    #[error("a message of the other host arrived damaged (CRC {found:#x}, {expected:#x} expected)")]
    Crc {
        /// Of what arrived.
        found: u32,
        /// In the header.
        expected: u32,
    },
    /// A message that this version does not know.
    #[error("a message of the other host cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Channel 0.
#[derive(Debug)]
pub struct Link {
    port: Port,
}

impl Link {
    /// Over an open channel.
    pub fn new(port: Port) -> Self {
        Self { port }
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn send(&mut self, message: &Message, until: &Deadline<'_>) -> Result<(), MessageError> {
        let json = serde_json::to_vec(message)?;
        let mut bytes = Vec::with_capacity(16 + json.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
        bytes.extend_from_slice(&json);
        Ok(self.port.write_all(&bytes, until)?)
    }

    /// Waits for a message.
    ///
    /// # Errors
    /// [`MessageError`]. After any but a time-out before the first byte, the channel is out of step and of no more use.
    pub fn receive(&mut self, until: &Deadline<'_>) -> Result<Message, MessageError> {
        let mut header = [0; 16];
        self.port.read_exact(&mut header, until)?;
        let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3, c0, c1, c2, c3] = header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(MessageError::Magic([m0, m1, m2, m3]));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(MessageError::Version(version));
        }
        let len = u32::from_le_bytes([l0, l1, l2, l3]);
        if len > MAX_LEN {
            return Err(MessageError::TooLong(len));
        }
        let mut json = vec![0; len as usize];
        self.port.read_exact(&mut json, until)?;
        let (found, expected) = (crc32fast::hash(&json), u32::from_le_bytes([c0, c1, c2, c3]));
        if found != expected {
            return Err(MessageError::Crc { found, expected });
        }
        Ok(serde_json::from_slice(&json)?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::port::{pair, within};
    use super::*;

    fn hello() -> Message {
        Message::Hello {
            generation: 1,
            kernel: "6.12.2".to_owned(),
            cpus: 2,
        }
    }

    #[test]
    fn a_message_crosses_whole() {
        let (left, right) = pair();
        Link::new(left).send(&hello(), &within(180)).unwrap();
        assert_eq!(Link::new(right).receive(&within(180)).unwrap(), hello());
    }

    #[test]
    fn large_messages_cross_a_small_ring() {
        let (left, right) = pair();
        let big = Message::Failed {
            name: "x".to_owned(),
            reason: "y".repeat(1 << 20),
        };
        let sent = big.clone();
        let writer = std::thread::spawn(move || Link::new(left).send(&sent, &within(180)));
        assert_eq!(Link::new(right).receive(&within(180)).unwrap(), big);
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn torn_corrupt_and_foreign_messages_are_errors_and_not_hangs() {
        let bytes = |wait: &Deadline<'_>, change: &dyn Fn(&mut Vec<u8>)| {
            let (left, mut right) = pair();
            Link::new(left).send(&hello(), &within(180)).unwrap();
            let mut bytes = vec![0; 4096];
            let count = right.read_some(&mut bytes, &within(180)).unwrap();
            bytes.truncate(count);
            change(&mut bytes);
            let (mut left, right) = pair();
            left.write_all(&bytes, &within(180)).unwrap();
            let keep = Link::new(right).receive(wait);
            drop(left);
            keep.unwrap_err()
        };
        assert!(matches!(bytes(&within(180), &|b| b[0] ^= 1), MessageError::Magic(_)));
        assert!(matches!(bytes(&within(180), &|b| b[4] = 9), MessageError::Version(9)));
        assert!(matches!(
            bytes(&within(180), &|b| b[11] = 0xff),
            MessageError::TooLong(_)
        ));
        assert!(matches!(
            bytes(&within(180), &|b| *b.last_mut().unwrap() ^= 1),
            MessageError::Crc { .. }
        ));
        assert!(matches!(
            bytes(&within(1), &|b| b.truncate(b.len() - 1)),
            MessageError::Port(PortError::Timeout)
        ));
        let (left, right) = pair();
        drop(left);
        let closed = Link::new(right).receive(&within(180)).unwrap_err();
        assert!(matches!(closed, MessageError::Port(PortError::Closed)));
    }
}
