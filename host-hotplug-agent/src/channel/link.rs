//! Channel 0: messages between the two agents, each a header of 16 bytes, then JSON.
//!
//! | offset | length | field (little-endian) |
//! | --- | --- | --- |
//! | 0 | 4 | magic `LCMM` |
//! | 4 | 2 | version that the message is written in |
//! | 6 | 2 | zero |
//! | 8 | 4 | bytes of JSON |
//! | 12 | 4 | CRC-32 (ISO-HDLC) of the JSON |

use std::time::Duration;

use super::message::{ANSWERS, Message};
use super::port::{Port, PortError};
use super::versions::{FIRST, Versions};
use crate::deadline::Deadline;

const MAGIC: [u8; 4] = *b"LCMM";
/// For the other agent to try again, which it does several times a second.
const OPENS: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 3000 });
/// Between two looks at its end.
const LOOK: Duration = Duration::from_millis(5);
/// More JSON than this is a damaged length.
const MAX_LEN: u32 = 4 << 20;

/// Why a message did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The channel.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Not a header.
    #[error("the other host sent bytes that are no message ({0:02x?}): its agent is damaged or not `locum`")]
    Magic([u8; 4]),
    /// A version that was not agreed on.
    #[error(
        "the other host's agent sent a message in version {0} of the protocol, this one speaks {ours}: it is damaged, or \
         install a newer `locum` here",
        ours = Versions::OURS
    )]
    Version(u16),
    /// Two agents without a common version.
    #[error(
        "the other host's agent speaks versions {0} of the protocol, this one {ours}: install a `locum` in one of the two \
         that is nearer to the other",
        ours = Versions::OURS
    )]
    NothingInCommon(Versions),
    /// The other agent does not know something.
    #[error("the other host's agent does not understand `{kind}` ({reason}): install this host's `locum` there")]
    NotUnderstood {
        /// Kind of the message.
        kind: String,
        /// Why not.
        reason: String,
    },
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
    /// A message that no version has.
    #[error("a message of the other host cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Channel 0.
#[derive(Debug)]
pub struct Link {
    port: Port,
    ours: Versions,
    /// What is agreed on; the first until then.
    version: u16,
}

impl Link {
    /// Over an open channel, for an agent that speaks what this release does.
    #[cfg(test)]
    pub fn new(port: Port) -> Self {
        Self::speaking(Versions::OURS, port)
    }

    /// Over an open channel, for an agent that speaks those versions.
    pub fn speaking(ours: Versions, port: Port) -> Self {
        Self {
            port,
            ours,
            version: FIRST,
        }
    }

    /// The version that both speak, known once the successor's [`Message::Hello`] or the incumbent's
    /// [`Message::Welcome`] has been received.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// Whether the other agent has closed the channel, and nothing of it is left to be read.
    pub fn ended(&self) -> bool {
        self.port.ended()
    }

    /// Waits, for a while, until the other agent has opened its end. An agent that finds this one closed closes its own at once, and
    /// tries again: of two that did so, both ends would hardly ever be open at once.
    ///
    /// That takes `limit` at most. An end that stays closed is told to whoever reads.
    pub fn await_other_end(&self, limit: Duration) {
        let _ = Deadline::after(OPENS.min(limit)).comes_true(LOOK, || !self.ended());
    }

    /// Whether nothing can come over `port` any more of what was agreed upon over `link`, to be asked while another thread
    /// reads. An agent that died before its first byte sends none; after that, its own end is in the stream.
    pub fn abandoned<'a>(link: Option<&'a Self>, port: &Port) -> impl Fn() -> bool + use<'a> {
        let untouched = port.untouched();
        move || untouched() && link.is_none_or(Self::ended)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`MessageError`].
    pub fn send(&mut self, message: &Message, until: &Deadline<'_>) -> Result<(), MessageError> {
        let json = serde_json::to_vec(message)?;
        let mut bytes = Vec::with_capacity(16 + json.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&json).to_le_bytes());
        bytes.extend_from_slice(&json);
        Ok(self.port.write_all(&bytes, until)?)
    }

    /// Waits for a message. One that cannot be understood is answered, and the wait goes on.
    ///
    /// # Errors
    /// [`MessageError`]. After any but [`MessageError::NotUnderstood`] and a time-out before the first byte, the channel
    /// is out of step and of no more use.
    pub fn receive(&mut self, until: &Deadline<'_>) -> Result<Message, MessageError> {
        loop {
            let json = self.receive_json(until)?;
            match serde_json::from_slice(&json) {
                Ok(Message::NotUnderstood { kind, reason }) => {
                    return Err(MessageError::NotUnderstood { kind, reason });
                }
                Ok(message) => {
                    self.agree(&message)?;
                    return Ok(message);
                }
                // Before this version no agent had messages that this one does not know.
                Err(error) if self.version < ANSWERS || !error.is_data() => return Err(error.into()),
                Err(error) => {
                    let kind = kind(&json);
                    let reason = error.to_string();
                    tracing::warn!(
                        "the other host's agent sent `{kind}`, which this one does not understand: {reason}"
                    );
                    self.send(&Message::NotUnderstood { kind, reason }, until)?;
                }
            }
        }
    }

    fn receive_json(&mut self, until: &Deadline<'_>) -> Result<Vec<u8>, MessageError> {
        let mut header = [0; 16];
        self.port.read_exact(&mut header, until)?;
        let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3, c0, c1, c2, c3] = header;
        if [m0, m1, m2, m3] != MAGIC {
            return Err(MessageError::Magic([m0, m1, m2, m3]));
        }
        let version = u16::from_le_bytes([v0, v1]);
        if !self.ours.contains(version) {
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
        Ok(json)
    }

    /// Takes note of what both speak.
    fn agree(&mut self, message: &Message) -> Result<(), MessageError> {
        match *message {
            Message::Hello { versions, .. } => {
                let common = self.ours.common(versions);
                self.version = common.ok_or(MessageError::NothingInCommon(versions))?;
            }
            Message::Welcome { version, .. } if self.ours.contains(version) => self.version = version,
            Message::Welcome { version, .. } => return Err(MessageError::Version(version)),
            _ => {}
        }
        Ok(())
    }
}

/// The kind of a message, in whatever version.
fn kind(json: &[u8]) -> String {
    match serde_json::from_slice(json) {
        Ok(serde_json::Value::String(kind)) => kind,
        Ok(serde_json::Value::Object(message)) => message.keys().next().cloned().unwrap_or_default(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::There;
    use super::super::port::{pair, within};
    use super::super::versions::VERSION;
    use super::*;
    use crate::guest::Place;
    use partitioner::Refresh;
    use serde_json::Value;

    fn hello() -> Message {
        Message::Hello {
            generation: 1,
            kernel: "6.12.2".to_owned(),
            cpus: 2,
            versions: Versions::OURS,
            guests: Some(vec![There {
                name: "one".to_owned(),
                place: Place::Waiting,
                sent: false,
            }]),
            ended: vec!["two".to_owned()],
            entrusted: false,
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

    /// Every message of the first release, as its agents wrote it.
    const FIRST_RELEASE: &[&str] = &[
        include_str!("../../tests/releases/1/hello.json"),
        include_str!("../../tests/releases/1/welcome.json"),
        include_str!("../../tests/releases/1/prepared.json"),
        include_str!("../../tests/releases/1/receive.json"),
        include_str!("../../tests/releases/1/receiving.json"),
        include_str!("../../tests/releases/1/resumed.json"),
        include_str!("../../tests/releases/1/failed.json"),
        include_str!("../../tests/releases/1/return.json"),
        include_str!("../../tests/releases/1/gone.json"),
        include_str!("../../tests/releases/1/entrust.json"),
        include_str!("../../tests/releases/1/entrust-losses.json"),
        include_str!("../../tests/releases/1/entrusted.json"),
    ];

    /// Whether `new` says all that `old` says.
    fn includes(new: &Value, old: &Value) -> bool {
        match (new, old) {
            (Value::Object(new), Value::Object(old)) => old
                .iter()
                .all(|(key, value)| new.get(key).is_some_and(|now| includes(now, value))),
            (Value::Array(new), Value::Array(old)) => {
                new.len() == old.len() && new.iter().zip(old).all(|(now, then)| includes(now, then))
            }
            (new, old) => new == old,
        }
    }

    #[test]
    fn messages_of_the_first_release_are_read_and_still_written() {
        for text in FIRST_RELEASE {
            let message: Message = serde_json::from_str(text).unwrap();
            let now = serde_json::to_value(&message).unwrap();
            assert!(includes(&now, &serde_json::from_str(text).unwrap()), "{text}\n{now}");
        }
        let Ok(Message::Entrust { refresh, .. }) =
            serde_json::from_str(include_str!("../../tests/releases/1/entrust.json"))
        else {
            panic!("an Entrust");
        };
        assert!(Refresh::take_over(*refresh).is_ok());
    }

    /// A frame as the first release had it, with a version and JSON of one's own.
    fn frame(version: u16, json: &str) -> Vec<u8> {
        let mut bytes = b"LCMM".to_vec();
        bytes.extend(version.to_le_bytes());
        bytes.extend([0, 0]);
        bytes.extend((json.len() as u32).to_le_bytes());
        bytes.extend(crc32fast::hash(json.as_bytes()).to_le_bytes());
        bytes.extend(json.as_bytes());
        bytes
    }

    /// The version and the JSON of the next message.
    fn raw(port: &mut Port) -> (u16, Value) {
        let mut header = [0; 16];
        port.read_exact(&mut header, &within(180)).unwrap();
        let mut json = vec![0; header[8] as usize | (header[9] as usize) << 8];
        port.read_exact(&mut json, &within(180)).unwrap();
        (
            u16::from_le_bytes([header[4], header[5]]),
            serde_json::from_slice(&json).unwrap(),
        )
    }

    fn welcome(version: u16) -> Message {
        let text = include_str!("../../tests/releases/1/welcome.json");
        match serde_json::from_str(text).unwrap() {
            Message::Welcome {
                clock, guests, seconds, ..
            } => Message::Welcome {
                clock,
                guests,
                seconds,
                version,
                inheritance: None,
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_successor_of_the_first_release_is_spoken_to_in_its_version() {
        let (left, mut right) = pair();
        let mut link = Link::new(left);
        right.write_all(&frame(1, FIRST_RELEASE[0]), &within(180)).unwrap();
        let Message::Hello { cpus, versions, .. } = link.receive(&within(180)).unwrap() else {
            panic!("a Hello");
        };
        assert_eq!((cpus, versions, link.version()), (2, Versions::default(), 1));
        link.send(&welcome(link.version()), &within(180)).unwrap();
        let (version, json) = raw(&mut right);
        assert_eq!(version, 1);
        assert!(includes(&json, &serde_json::from_str(FIRST_RELEASE[1]).unwrap()));
    }

    #[test]
    fn an_incumbent_of_the_first_release_is_spoken_to_in_its_version() {
        let (left, mut right) = pair();
        let mut link = Link::new(left);
        link.send(&hello(), &within(180)).unwrap();
        let (version, json) = raw(&mut right);
        assert_eq!(
            (version, json["hello"]["versions"]["max"].clone()),
            (1, Versions::OURS.max.into())
        );
        right.write_all(&frame(1, FIRST_RELEASE[1]), &within(180)).unwrap();
        link.receive(&within(180)).unwrap();
        link.send(&Message::Entrusted, &within(180)).unwrap();
        assert_eq!(raw(&mut right).0, 1);
        // Nothing that it does not know is ever said to it.
        right.write_all(&frame(1, "{\"later\":{}}"), &within(180)).unwrap();
        assert!(matches!(link.receive(&within(180)), Err(MessageError::Json(_))));
    }

    #[test]
    fn two_agents_agree_on_the_newest_version_of_both() {
        let (left, right) = pair();
        let (mut incumbent, mut successor) = (Link::new(left), Link::speaking(Versions { min: 1, max: 7 }, right));
        let Message::Hello {
            generation,
            kernel,
            cpus,
            ..
        } = hello()
        else {
            panic!("a Hello");
        };
        let hello = Message::Hello {
            generation,
            kernel,
            cpus,
            versions: successor.ours,
            guests: None,
            ended: vec![],
            entrusted: false,
        };
        successor.send(&hello, &within(180)).unwrap();
        incumbent.receive(&within(180)).unwrap();
        incumbent.send(&welcome(incumbent.version()), &within(180)).unwrap();
        successor.receive(&within(180)).unwrap();
        assert_eq!((incumbent.version(), successor.version()), (VERSION, VERSION));
    }

    #[test]
    fn agents_without_a_common_version_say_so() {
        let (left, mut right) = pair();
        let far = r#"{"hello":{"generation":1,"kernel":"","cpus":2,"versions":{"min":8,"max":9}}}"#;
        right.write_all(&frame(1, far), &within(180)).unwrap();
        let error = Link::new(left).receive(&within(180)).unwrap_err();
        assert!(error.to_string().contains("speaks versions 8 to 9"), "{error}");
    }

    #[test]
    fn what_is_not_understood_is_answered_and_the_rest_goes_on() {
        let (left, mut right) = pair();
        let mut link = Link::new(left);
        link.version = 2;
        // A kind of a later release; a known one that lacks something; one with a field more.
        for json in [
            r#"{"later":{"a":1}}"#,
            r#"{"gone":{}}"#,
            r#"{"gone":{"name":"one","later":{"b":[2]}}}"#,
        ] {
            right.write_all(&frame(2, json), &within(180)).unwrap();
        }
        let gone = Message::Gone { name: "one".to_owned() };
        assert_eq!(link.receive(&within(180)).unwrap(), gone);
        let (_, answer) = raw(&mut right);
        assert_eq!(answer["not_understood"]["kind"], "later");
        let (version, answer) = raw(&mut right);
        assert_eq!((version, &answer["not_understood"]["kind"]), (2, &"gone".into()));
        // And the other way round.
        let answer = r#"{"not_understood":{"kind":"later","reason":"unknown variant"}}"#;
        right.write_all(&frame(2, answer), &within(180)).unwrap();
        let error = link.receive(&within(180)).unwrap_err().to_string();
        assert!(error.contains("does not understand `later`"), "{error}");
    }
}
