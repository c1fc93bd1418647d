//! Channels
//!
//! /dev/locum-chan0 and on (mode 0600): byte streams to the other host, both directions in one file; like a FIFO opened
//! on both ends. L0 empties them when it starts a host ([`IOC_START`](super::IOC_START)), so bytes written before are
//! lost.
//!
//! read(2): blocks until there is at least a byte (O_NONBLOCK: -EAGAIN), may be short. 0: the ring is empty and the
//! writer on the other side closed or shut down; more may follow after it opens again, so agree with the other side
//! (on channel 0) before a channel is used for a second stream. write(2): blocks until all is written or a signal comes,
//! may be short with O_NONBLOCK. -EPIPE (no SIGPIPE): the reader on the other side closed. Both: -ENOTCONN if there is
//! no other host (neither being prepared nor running, and for read: nothing left in the ring).
//! poll(2): POLLIN, POLLOUT, POLLHUP (other host gone, or the end of its stream reached), POLLERR (its reader closed).
//! One file at a time may have a channel open for reading and one for writing: -EBUSY. Closing a file does what
//! [`CHAN_SHUTDOWN`] does; opening undoes it, and a reader that opens again drops what was left.

use super::number::iow;

/// For [`CHAN_SHUTDOWN`]: want no more; the other side's writes get -EPIPE.
pub const SHUT_READ: u32 = 1;
/// For [`CHAN_SHUTDOWN`]: write no more; the other side reads to the end, then 0.
pub const SHUT_WRITE: u32 = 2;

/// On a channel. Takes [`SHUT_READ`], [`SHUT_WRITE`] or both by pointer, 32 bits. Errors: -EINVAL, -EPERM (direction not
/// open).
pub const CHAN_SHUTDOWN: u32 = iow::<u32>(0x60);
