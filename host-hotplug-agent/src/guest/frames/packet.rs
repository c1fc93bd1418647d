//! Frames of an interface (packet(7)).
#![expect(
    unsafe_code,
    reason = "addresses and options of AF_PACKET, which neither the standard library nor rustix has"
)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};

/// Longest that the kernel makes of what came in pieces, with its header.
const LONGEST: usize = (1 << 16) + 64;

/// The frames of one interface, each behind a `struct virtio_net_hdr` of ten bytes.
#[derive(Debug)]
pub(super) struct Packets(OwnedFd);

impl Packets {
    /// All that pass it from now on.
    pub(super) fn all(index: u32) -> io::Result<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "a number of 16 bits")]
        Self::bound(index, (libc::ETH_P_ALL as u16).to_be())
    }

    /// For sending alone.
    pub(super) fn none(index: u32) -> io::Result<Self> {
        Self::bound(index, 0)
    }

    fn bound(index: u32, protocol: u16) -> io::Result<Self> {
        // Without a protocol it gets nothing until it is bound.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        let on: libc::c_int = 1;
        // SAFETY: the option's value is read from a c_int, of which the size is given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as libc::sa_family_t,
            sll_protocol: protocol,
            sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is a whole sockaddr_ll, of which the size is given.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(socket))
    }

    /// The next frame that the host sends out of the interface; for a tap, to its guest. None if none comes for so long.
    pub(super) fn next_to_guest(&self, quiet: Duration) -> io::Result<Option<Vec<u8>>> {
        let limit = Timespec::try_from(quiet).map_err(io::Error::other)?;
        loop {
            let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
            if poll(&mut ready, Some(&limit))? == 0 {
                return Ok(None);
            }
            if let Some((libc::PACKET_OUTGOING, frame)) = self.receive()? {
                return Ok(Some(frame));
            }
        }
    }

    /// A frame and which way it goes.
    fn receive(&self) -> io::Result<Option<(u8, Vec<u8>)>> {
        let mut frame = vec![0; LONGEST];
        // SAFETY: it is made of integers.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the kernel writes no more than the buffer's length there, and no more than `size` to `from`.
        let length = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        match usize::try_from(length) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some((from.sll_pkttype, frame)))
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Sends a frame with its header out of the interface.
    pub(super) fn send(&self, frame: &[u8]) -> io::Result<()> {
        Ok(send(&self.0, frame, SendFlags::empty()).map(drop)?)
    }
}
