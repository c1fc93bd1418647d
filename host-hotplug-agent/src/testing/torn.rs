//! A guest's state that does not arrive as it was sent.

use anyhow::Result;
use locum_abi::Slot;

use super::world::World;
use crate::channel::{Port, port};
use crate::deadline::Deadline;

/// Which state, and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub struct Torn {
    /// Who sends it.
    pub slot: Slot,
    /// How many of its sendings come through.
    pub spared: usize,
    /// How many bytes, chunks' headers included, come through.
    pub at: usize,
    /// What comes then.
    pub then: Then,
}

/// What comes after some of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing: all channels break off.
    Cut,
    /// Nothing, for as long as anybody waits.
    Silence,
    /// The rest, with a bit of its first byte changed.
    Damage,
    /// Bytes of something else in place of the rest.
    Foreign,
}

impl Torn {
    /// Sends `whole`, a stream as it would be.
    ///
    /// # Errors
    /// The channel's.
    pub(super) fn send(self, world: &World, whole: &[u8], port: &mut Port, until: &Deadline<'_>) -> Result<()> {
        let (first, rest) = whole.split_at(self.at.min(whole.len()));
        port.write_all(first, until)?;
        if self.then == Then::Cut {
            world.cut_channels();
        } else {
            world.drop_wires();
        }
        let mut rest = rest.to_vec();
        match self.then {
            Then::Cut | Then::Silence => return Ok(()),
            Then::Damage => {
                if let Some(byte) = rest.first_mut() {
                    *byte ^= 0x10;
                }
            }
            Then::Foreign => rest.fill(0x5a),
        }
        Ok(port.write_all(&rest, until)?)
    }
}

/// All that `send` writes into a channel.
///
/// # Errors
/// As `send`.
pub(crate) fn captured(send: impl FnOnce(Port) -> Result<()>, until: &Deadline<'_>) -> Result<Vec<u8>> {
    let (into, mut out) = port::pair();
    send(into)?;
    let mut whole = Vec::new();
    let mut some = [0; 4096];
    loop {
        match out.read_some(&mut some, until)? {
            0 => return Ok(whole),
            count => whole.extend_from_slice(&some[..count]),
        }
    }
}
