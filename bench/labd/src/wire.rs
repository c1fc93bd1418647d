//! Messages and their framing.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Largest payload, in bytes, that either side puts into one message.
pub const MAX_CHUNK: usize = 512;

/// Longest frame, in bytes, that a [`Decoder`] collects before it gives the frame up.
const MAX_FRAME: usize = 16 * 1024;

/// From the lab to the host. `job` is chosen by the lab and is new for every command of a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHost {
    /// Run `command` with `/bin/sh -c`, standard error joined to standard output.
    Run {
        /// Number of the job.
        job: u32,
        /// Shell text.
        command: String,
        /// Give the command a pipe for its standard input; without it reads end of file.
        input: bool,
    },
    /// Bytes for the standard input of a job.
    Input {
        /// Number of the job.
        job: u32,
        /// At most [`MAX_CHUNK`] bytes.
        data: Vec<u8>,
    },
    /// End of the standard input of a job.
    Eof {
        /// Number of the job.
        job: u32,
    },
}

/// From the host to the lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLab {
    /// Sent when `labd` starts.
    Hello {
        /// `uname -r` of the host.
        release: String,
        /// Generation of the host: `locum.generation=` on its command line, 0 without.
        generation: u32,
        /// Process id of this `labd`, so that the lab notices a restart.
        pid: u32,
    },
    /// Bytes that a job wrote.
    Output {
        /// Number of the job.
        job: u32,
        /// At most [`MAX_CHUNK`] bytes.
        data: Vec<u8>,
    },
    /// The job is over; no more of its output follows.
    Exit {
        /// Number of the job.
        job: u32,
        /// Exit status; 128 + signal number when a signal ended it, as a shell reports it.
        status: i32,
    },
}

/// Why a frame was dropped.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    /// Not COBS.
    #[error("a frame is not valid COBS (noise on the line)")]
    Cobs,
    /// Too short, or a wrong CRC.
    #[error("a frame has a wrong checksum (bytes were lost)")]
    Checksum,
    /// The other side speaks another version.
    #[error("a frame holds no known message (is the labd in the image older than the lab?)")]
    Message,
    /// Longer than any message.
    #[error("a frame is longer than {MAX_FRAME} bytes")]
    TooLong,
}

/// Encodes a message, delimiters included.
///
/// # Errors
/// Never in practice: [`WireError::Message`] if postcard cannot serialize it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, WireError> {
    let mut body = postcard::to_allocvec(message).map_err(|_| WireError::Message)?;
    body.extend_from_slice(&crc32fast::hash(&body).to_le_bytes());
    let mut frame = vec![0];
    frame.extend(cobs::encode_vec(&body));
    frame.push(0);
    Ok(frame)
}

/// Cuts a byte stream into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    frame: Vec<u8>,
}

impl Decoder {
    /// Takes the next byte of the line; returns a message when the byte ends one.
    pub fn push<T: DeserializeOwned>(&mut self, byte: u8) -> Option<Result<T, WireError>> {
        if byte != 0 {
            self.frame.push(byte);
            if self.frame.len() > MAX_FRAME {
                self.frame.clear();
                return Some(Err(WireError::TooLong));
            }
            return None;
        }
        if self.frame.is_empty() {
            return None;
        }
        let frame = std::mem::take(&mut self.frame);
        Some(decode(&frame))
    }
}

fn decode<T: DeserializeOwned>(frame: &[u8]) -> Result<T, WireError> {
    let body = cobs::decode_vec(frame).map_err(|_| WireError::Cobs)?;
    let (message, crc) = body.split_last_chunk::<4>().ok_or(WireError::Checksum)?;
    if crc32fast::hash(message) != u32::from_le_bytes(*crc) {
        return Err(WireError::Checksum);
    }
    postcard::from_bytes(message).map_err(|_| WireError::Message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(decoder: &mut Decoder, bytes: &[u8]) -> Vec<Result<ToLab, WireError>> {
        bytes.iter().filter_map(|byte| decoder.push(*byte)).collect()
    }

    fn sample() -> ToLab {
        ToLab::Output {
            job: 7,
            data: vec![0, 1, 0, 255, 0],
        }
    }

    #[test]
    fn message_survives_noise_before_it() {
        let mut line = b"[ 0.0] noise".to_vec();
        line.extend(encode(&sample()).unwrap());
        let got = feed(&mut Decoder::default(), &line);
        assert_eq!(got.last(), Some(&Ok(sample())));
    }

    #[test]
    fn lost_byte_is_noticed_and_next_message_arrives() {
        let frame = encode(&sample()).unwrap();
        let mut line: Vec<u8> = frame
            .iter()
            .enumerate()
            .filter_map(|(i, b)| (i != 4).then_some(*b))
            .collect();
        line.extend(&frame);
        let got = feed(&mut Decoder::default(), &line);
        assert_eq!(got.len(), 2);
        assert!(got.first().unwrap().is_err());
        assert_eq!(got.last(), Some(&Ok(sample())));
    }

    #[test]
    fn output_can_not_forge_a_frame() {
        let inner = encode(&ToLab::Exit { job: 1, status: 0 }).unwrap();
        let outer = ToLab::Output { job: 1, data: inner };
        let got = feed(&mut Decoder::default(), &encode(&outer).unwrap());
        assert_eq!(got, [Ok(outer)]);
    }

    #[test]
    fn endless_frame_is_given_up() {
        let got = feed(&mut Decoder::default(), &vec![1; MAX_FRAME + 1]);
        assert_eq!(got, [Err(WireError::TooLong)]);
    }
}
