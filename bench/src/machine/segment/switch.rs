//! A switch, as it stands between servers and their clients: it learns at which port an address is from what comes from there.

use std::collections::HashMap;

use smoltcp::wire::{EthernetAddress, EthernetFrame};

/// Where a cable leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Port {
    /// To a card of the server.
    Card(u32),
    /// To the client.
    Client,
}

/// A switch.
#[derive(Debug)]
pub(super) struct Switch {
    ports: Vec<Port>,
    learned: HashMap<EthernetAddress, Port>,
}

impl Switch {
    /// With that many cards, and the client.
    #[must_use]
    pub(super) fn new(cards: u32) -> Self {
        Self {
            ports: (0..cards).map(Port::Card).chain([Port::Client]).collect(),
            learned: HashMap::new(),
        }
    }

    /// The ports that a frame from `from` goes to.
    pub(super) fn forward(&mut self, from: Port, frame: &[u8]) -> Vec<Port> {
        let Ok(frame) = EthernetFrame::new_checked(frame) else {
            return Vec::new();
        };
        if frame.src_addr().is_unicast() {
            self.learned.insert(frame.src_addr(), from);
        }
        match self.learned.get(&frame.dst_addr()) {
            Some(port) if *port == from => Vec::new(),
            Some(port) => vec![*port],
            None => self.ports.iter().copied().filter(|port| *port != from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: u8, from: u8) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, to, 0x52, 0x54, 0, 0, 0, from, 8, 0];
        if to == 0xff {
            frame[..6].fill(0xff);
        }
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn an_address_is_where_it_was_last_heard() {
        let mut switch = Switch::new(2);
        let [first, second] = [Port::Card(0), Port::Card(1)];
        // Nobody knows it yet: everywhere.
        assert_eq!(switch.forward(Port::Client, &frame(9, 1)), [first, second]);
        assert_eq!(switch.forward(first, &frame(1, 9)), [Port::Client]);
        assert_eq!(switch.forward(Port::Client, &frame(9, 1)), [first]);
        // It says from the other host that it is there now.
        assert_eq!(switch.forward(second, &frame(0xff, 9)), [first, Port::Client]);
        assert_eq!(switch.forward(Port::Client, &frame(9, 1)), [second]);
        // Not back to where it came from.
        assert_eq!(switch.forward(second, &frame(9, 7)), []);
        assert_eq!(switch.forward(first, b"torn"), []);
    }
}
