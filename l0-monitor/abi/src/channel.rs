//! Byte rings between the two hosts, in L0's shared region. L0 clears them when a successor starts and takes no part
//! in the traffic. There is no doorbell (no interrupt crosses a partition): the reader polls.
//!
//! `channels` in the header is an array `[[ChannelRing; 2]; CHANNEL_COUNT]`. Direction 0 goes from the host in slot 0
//! to the host in slot 1. Positions count bytes since the ring was cleared and wrap at 2^32; `head - tail` bytes are
//! in the ring. The writer stores data, then `head` (release); the reader loads `head` (acquire), then data, then
//! stores `tail` (release).

/// Number of channels. Channel 0 carries the agents' messages, the others guest state.
pub const CHANNEL_COUNT: usize = 4;
/// Bytes of data in a ring, a power of two.
pub const RING_DATA: usize = 64 * 1024;

/// `flags`: the writer will write no more.
pub const FLAG_EOF: u32 = 1;

/// One direction of one channel.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct ChannelRing {
    /// Bytes written so far. Written by the writer.
    pub head: u32,
    /// [`FLAG_EOF`]. Written by the writer.
    pub flags: u32,
    /// Not used, zero. Keeps the two sides on separate cache lines.
    pub pad0: [u32; 30],
    /// Bytes read so far. Written by the reader.
    pub tail: u32,
    /// The reader wants no more: writers get an error. Written by the reader.
    pub closed: u32,
    /// Not used, zero.
    pub pad1: [u32; 30],
    /// Not used, zero.
    pub pad2: [u8; 3840],
    /// The bytes; position `p` is at `data[p % RING_DATA]`.
    pub data: [u8; RING_DATA],
}

const _: () = assert!(size_of::<ChannelRing>() == 4096 + RING_DATA);
const _: () = assert!(core::mem::offset_of!(ChannelRing, tail) == 128);
const _: () = assert!(core::mem::offset_of!(ChannelRing, data) == 4096);
