//! What the lab and `labd` say to each other over a serial line.
//!
//! A message is encoded with postcard, followed by its CRC-32 (little endian), COBS-encoded, and put between zero
//! bytes. COBS output contains no zero, so a reader that starts in the middle of anything (boot noise on the line, a
//! `labd` that was started again) finds the next message by itself, and nothing that a command prints can be taken
//! for framing.

mod wire;

pub use wire::{Decoder, MAX_CHUNK, ToHost, ToLab, WireError, encode};
