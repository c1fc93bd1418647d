//! The thread that uses the guest's network: sends datagrams to the host's echo service and compares the answers.
#![expect(unsafe_code, reason = "interfaces are configured by ioctl")]

use super::guest::Guest;
use super::pace::sleep;
use crate::beat::{Fault, Tally};
use crate::echo::PORT;
use crate::pattern::Pattern;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The guest and the host in QEMU's user network.
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// Bytes of a datagram.
const LENGTH: usize = 512;
/// Distinguishes datagrams from pages of the buffer.
const NET: u64 = 0x006e_6574;

pub(super) struct Net {
    socket: UdpSocket,
}

impl Net {
    /// Brings up the first network interface, if the guest has one.
    pub(super) fn find() -> Option<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        configure(&socket).ok()?;
        socket.connect((HOST, PORT)).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(200))).ok()?;
        Some(Net { socket })
    }

    /// Never returns.
    pub(super) fn work(&self, guest: &Guest<'_>) -> ! {
        let mut answer = [0; 2 * LENGTH];
        let mut number = 0u32;
        loop {
            number = number.wrapping_add(1);
            let pattern = Pattern {
                seed: guest.seed ^ NET,
                page: number,
                generation: 0,
            };
            let sent = self.socket.send(&pattern.bytes(LENGTH));
            match sent.and_then(|_| self.receive(&mut answer, number)) {
                Ok(datagram) => compare(guest, pattern, datagram),
                // A pause of the guest, or a host that is not there yet.
                Err(_) => guest.page.add(Tally::NetLost, 1),
            }
            guest.page.beat();
            sleep(guest, guest.params.io_ms * 1_000_000);
        }
    }

    /// Answers that come after their time belong to earlier datagrams, which were counted as lost.
    fn receive<'a>(&self, answer: &'a mut [u8], number: u32) -> std::io::Result<&'a [u8]> {
        loop {
            let length = self.socket.recv(answer)?;
            let title = answer
                .get(4..8)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_le_bytes);
            if title.is_none_or(|title| title >= number) {
                return Ok(answer.get(..length).unwrap_or_default());
            }
        }
    }
}

fn compare(guest: &Guest<'_>, pattern: Pattern, datagram: &[u8]) {
    if let Some(at) = pattern.first_difference(datagram, LENGTH) {
        let byte = |bytes: &[u8]| bytes.get(at).copied().map_or(0, u64::from);
        guest.fault(
            Fault::NetCorrupt,
            at as u64,
            byte(&pattern.bytes(LENGTH)),
            byte(datagram),
        );
    }
    guest.page.add(Tally::NetEchoes, 1);
}

/// Gives eth0 its address and brings it up (netdevice(7)).
fn configure(socket: &UdpSocket) -> std::io::Result<()> {
    for (request, address) in [(libc::SIOCSIFADDR, GUEST), (libc::SIOCSIFNETMASK, MASK)] {
        let mut interface = eth0();
        interface.ifr_ifru.ifru_addr = socket_address(address);
        control(socket, request, &mut interface)?;
    }
    let mut interface = eth0();
    interface.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    control(socket, libc::SIOCSIFFLAGS, &mut interface)
}

fn eth0() -> libc::ifreq {
    // SAFETY: all zeroes is a valid ifreq, a structure of integers.
    let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in interface.ifr_name.iter_mut().zip(b"eth0") {
        *to = from.cast_signed();
    }
    interface
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let [a, b, c, d] = address.octets().map(u8::cast_signed);
    // struct sockaddr_in: port, then address, both in network order.
    let mut data = [0; 14];
    data[2..6].copy_from_slice(&[a, b, c, d]);
    libc::sockaddr {
        sa_family: libc::AF_INET as libc::sa_family_t,
        sa_data: data,
    }
}

fn control(socket: &UdpSocket, request: libc::c_ulong, interface: &mut libc::ifreq) -> std::io::Result<()> {
    // SAFETY: the socket is open, and the requests used here take a pointer to an ifreq.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, std::ptr::from_mut(interface)) };
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}
