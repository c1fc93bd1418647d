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

/// `SKF_AD_OFF` and `SKF_AD_MARK` of linux/filter.h.
const SKF_AD_OFF: u32 = (-0x1000_i32).cast_unsigned();
const SKF_AD_MARK: u32 = 20;
/// Bytes of frames, with what the kernel has for each, that wait to be read.
const ROOM: libc::c_int = 8 << 20;
const ON: libc::c_int = 1;

/// The frames of one interface, each behind a `struct virtio_net_hdr` of ten bytes.
#[derive(Debug)]
pub(super) struct Packets(OwnedFd);

impl Packets {
    /// All with this mark that pass it from now on.
    pub(super) fn marked(index: u32, mark: u32) -> io::Result<Self> {
        let packets = Self::open()?;
        let word = |code, yes, no, k| libc::sock_filter {
            code,
            jt: yes,
            jf: no,
            k,
        };
        // Load the mark; all of the frame if it is this, else nothing (linux/filter.h, SKF_AD_MARK).
        let program = [
            word(0x20, 0, 0, SKF_AD_OFF + SKF_AD_MARK),
            word(0x15, 0, 1, mark),
            word(0x06, 0, 0, u32::MAX),
            word(0x06, 0, 0, 0),
        ];
        let filter = libc::sock_fprog {
            len: program.len() as libc::c_ushort,
            // The kernel does not write there.
            filter: program.as_ptr().cast_mut(),
        };
        packets.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)?;
        // What a guest gets in a second of a fast network; the kernel takes it from the memory of this control group.
        packets.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &ROOM)?;
        #[expect(clippy::cast_possible_truncation, reason = "a number of 16 bits")]
        packets.bind(index, (libc::ETH_P_ALL as u16).to_be())?;
        Ok(packets)
    }

    /// For sending alone.
    #[cfg(test)]
    pub(super) fn none(index: u32) -> io::Result<Self> {
        let packets = Self::open()?;
        packets.bind(index, 0)?;
        Ok(packets)
    }

    /// For sending alone, past what the host has before the interface ([`Aside`](super::aside::Aside), too).
    pub(super) fn direct(index: u32) -> io::Result<Self> {
        let packets = Self::open()?;
        packets.bind(index, 0)?;
        packets.set(libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &ON)?;
        Ok(packets)
    }

    fn open() -> io::Result<Self> {
        // Without a protocol it gets nothing until it is bound.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let packets = Self(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?);
        packets.set(libc::SOL_PACKET, libc::PACKET_VNET_HDR, &ON)?;
        Ok(packets)
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the kernel reads the value, of which the size is given; what a filter points to lives on in the caller.
        let set = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        match set {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn bind(&self, index: u32, protocol: u16) -> io::Result<()> {
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
                self.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        match bound {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The next frame that the host sends out of the interface. None if none comes for so long.
    pub(super) fn next_sent(&self, quiet: Duration) -> io::Result<Option<Vec<u8>>> {
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
