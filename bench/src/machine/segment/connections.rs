//! What is seen of TCP on the wire: which connections there are, and what is sent twice.

use std::{collections::BTreeMap, net::SocketAddrV4};

use serde::Serialize;
use smoltcp::wire::{EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber};

/// What was seen so far.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Connections {
    /// Each connection, from either side: the side that is named first is the source.
    #[serde(skip)]
    sides: BTreeMap<(SocketAddrV4, SocketAddrV4), TcpSeqNumber>,
    /// Ticks at which payload was on the wire that had been there before, and from where.
    pub retransmitted: Vec<(u64, SocketAddrV4)>,
    /// Ticks at which a card could not take a frame, and the card.
    pub dropped: Vec<(u64, u32)>,
}

impl Connections {
    /// A frame that is on the wire.
    pub(super) fn frame(&mut self, tick: u64, frame: &[u8]) {
        let Some((from, to, begin, length)) = segment(frame) else {
            return;
        };
        let end = begin + length;
        match self.sides.get_mut(&(from, to)) {
            Some(known) if length > 0 && begin < *known => self.retransmitted.push((tick, from)),
            Some(known) => *known = end.max(*known),
            None => drop(self.sides.insert((from, to), end)),
        }
    }

    /// A frame that a card could not take.
    pub(super) fn dropped(&mut self, tick: u64, card: u32, frame: &[u8]) {
        // A card that is down takes nothing, and what everybody gets is no loss there.
        if segment(frame).is_some() {
            self.dropped.push((tick, card));
        }
    }

    /// Both ends of each connection, once.
    #[must_use]
    pub(crate) fn ends(&self) -> Vec<[SocketAddrV4; 2]> {
        let ends = self.sides.keys().map(|(from, to)| [*from.min(to), *from.max(to)]);
        let mut ends: Vec<_> = ends.collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }
}

/// Source, destination, sequence number and length (with SYN and FIN) of a TCP segment.
fn segment(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, TcpSeqNumber, usize)> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Tcp {
        return None;
    }
    let tcp = TcpPacket::new_checked(packet.payload()).ok()?;
    let from = SocketAddrV4::new(packet.src_addr(), tcp.src_port());
    let to = SocketAddrV4::new(packet.dst_addr(), tcp.dst_port());
    Some((from, to, tcp.seq_number(), tcp.segment_len()))
}
