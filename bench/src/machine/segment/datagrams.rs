//! A stream of numbered datagrams beside the connection: echo requests (RFC 792), which the guest's kernel answers one by one.
//! What is lost, doubled or overtaken on the way to the guest or back is seen.

use serde::Serialize;
use smoltcp::{
    iface::{SocketHandle, SocketSet},
    phy::ChecksumCapabilities,
    socket::icmp,
    wire::{Icmpv4Packet, Icmpv4Repr, Ipv4Address},
};

/// Ticks from one to the next.
const PACE: u64 = 2_000_000;
/// What tells its datagrams from others'.
const IDENT: u16 = 0x4c6f;
/// Datagrams that wait to be sent or read at most.
const ROOM: usize = 64;

/// What became of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Datagrams {
    /// How many were sent. They are numbered from 0 on.
    pub sent: u64,
    /// Those without an answer.
    pub lost: Vec<u64>,
    /// Those answered more than once.
    pub doubled: Vec<u64>,
    /// Those answered after a later one.
    pub overtaken: Vec<u64>,
}

/// Sends them, and takes the answers.
pub(super) struct Stream {
    socket: SocketHandle,
    /// The tick at which the next one is sent.
    due: u64,
    answered: Vec<bool>,
    latest: Option<u64>,
    doubled: Vec<u64>,
    overtaken: Vec<u64>,
}

impl Stream {
    pub(super) fn new(sockets: &mut SocketSet<'static>) -> Self {
        let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; ROOM], vec![0; ROOM * 64]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        // A new socket is not bound yet.
        let _ = socket.bind(icmp::Endpoint::Ident(IDENT));
        Self {
            socket: sockets.add(socket),
            due: 0,
            answered: Vec::new(),
            latest: None,
            doubled: Vec::new(),
            overtaken: Vec::new(),
        }
    }

    /// Takes what has come, and sends one to `to` if one is due; whether it did.
    pub(super) fn step(&mut self, sockets: &mut SocketSet<'_>, now: u64, to: Option<Ipv4Address>) -> bool {
        let socket = sockets.get_mut::<icmp::Socket<'_>>(self.socket);
        while let Ok((bytes, _)) = socket.recv() {
            if let Some(number) = number(bytes) {
                self.take(number);
            }
        }
        let Some(to) = to.filter(|_| now >= self.due && socket.can_send()) else {
            return false;
        };
        let number = self.answered.len() as u64;
        let request = Icmpv4Repr::EchoRequest {
            ident: IDENT,
            seq_no: number as u16,
            data: &number.to_be_bytes(),
        };
        if let Ok(room) = socket.send(request.buffer_len(), to.into()) {
            request.emit(&mut Icmpv4Packet::new_unchecked(room), &ChecksumCapabilities::default());
            self.answered.push(false);
        }
        self.due = now + PACE;
        true
    }

    /// The tick at which the next one is due.
    pub(super) fn wake(&self) -> u64 {
        self.due
    }

    fn take(&mut self, number: u64) {
        let place = usize::try_from(number)
            .ok()
            .and_then(|place| self.answered.get_mut(place));
        let Some(answered) = place else {
            return;
        };
        if std::mem::replace(answered, true) {
            self.doubled.push(number);
        } else if self.latest.is_some_and(|latest| number < latest) {
            self.overtaken.push(number);
        }
        self.latest = self.latest.max(Some(number));
    }

    pub(super) fn told(&self) -> Datagrams {
        let numbered = (0..).zip(&self.answered);
        Datagrams {
            sent: self.answered.len() as u64,
            lost: numbered
                .filter(|(_, answered)| !**answered)
                .map(|(number, _)| number)
                .collect(),
            doubled: self.doubled.clone(),
            overtaken: self.overtaken.clone(),
        }
    }
}

/// The number in an answer.
fn number(bytes: &[u8]) -> Option<u64> {
    let packet = Icmpv4Packet::new_checked(bytes).ok()?;
    match Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default()).ok()? {
        Icmpv4Repr::EchoReply { data, .. } => Some(u64::from_be_bytes(data.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_or_overtaken_is_told_by_number() {
        let mut stream = Stream::new(&mut SocketSet::new(Vec::new()));
        stream.answered = vec![false; 6];
        // 9 was never sent.
        for number in [0, 2, 1, 2, 5, 9] {
            stream.take(number);
        }
        assert_eq!(
            stream.told(),
            Datagrams {
                sent: 6,
                lost: vec![3, 4],
                doubled: vec![2],
                overtaken: vec![1],
            }
        );
    }
}
