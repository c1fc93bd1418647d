//! What the two agents tell each other. How that goes over a channel is [`super::link`]'s.
//!
//! The incumbent's agent may be years older than its successor's, or younger. So the successor says in [`Message::Hello`],
//! which is written in the first version, what it speaks, the incumbent answers in [`Message::Welcome`] what they both
//! speak from then on, and every agent reads all versions since the first. A field that is new has a default
//! (`#[serde(default)]`), one that is unknown is ignored, and so it is with all that a message carries (guests, the
//! refresh, the report). A kind of message that is unknown is answered by [`Message::NotUnderstood`] and is no reason to
//! stop.

use partitioner::Refresh;
use serde::{Deserialize, Serialize};

use super::versions::{FIRST, Versions};
use crate::clock::Clock;
use crate::guest::frames::Frame;
use crate::guest::{Place, Spec};
use crate::journal::Inheritance;
use crate::report::Report;

/// Version since which [`Message::NotUnderstood`] is.
pub const ANSWERS: u16 = 2;
/// Version since which [`Message::Heir`] is.
pub const HEIRS: u16 = 3;
/// Version since which [`Message::Late`] is.
pub const FRAMES: u16 = 4;

/// What one agent tells the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// Successor: I am up.
    Hello {
        /// Its generation.
        generation: u64,
        /// Its kernel's release.
        kernel: String,
        /// CPUs online in it.
        cpus: usize,
        /// What it speaks.
        #[serde(default)]
        versions: Versions,
        /// Guests that have a QEMU there. An older agent does not tell.
        #[serde(default)]
        guests: Option<Vec<There>>,
        /// Guests whose QEMUs have ended there, and which may have run in them before. An older agent tells none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ended: Vec<String>,
        /// Whether the incumbent has put it in charge.
        #[serde(default)]
        entrusted: bool,
    },
    /// Incumbent: welcome; this is the time, and these guests are to come. Their QEMUs are started at once.
    Welcome {
        /// Wall clock.
        clock: Clock,
        /// Guests, in order of handover.
        guests: Vec<Spec>,
        /// Seconds that their QEMUs may take to be ready.
        seconds: u64,
        /// What both speak from now on.
        #[serde(default = "first")]
        version: u16,
        /// Where the refresh stands, for a successor that has to go on without the incumbent. Since version 3.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        inheritance: Option<Box<Inheritance>>,
    },
    /// Successor, once every guest's QEMU has been told of: if the incumbent dies from now on, this host goes on alone.
    /// Since version 3.
    Heir,
    /// Successor: that guest's QEMU waits for its state.
    Prepared {
        /// Guest.
        name: String,
        /// Ticks that it took.
        ticks: u64,
    },
    /// Incumbent: read that guest's state from its channel.
    Receive {
        /// Guest.
        name: String,
        /// Seconds that it may take; `Resumed` or `Failed` follows by then.
        seconds: u64,
    },
    /// The answer: its QEMU reads.
    Receiving {
        /// Guest.
        name: String,
    },
    /// The guest runs here now; the other QEMU can go.
    Resumed {
        /// Guest.
        name: String,
        /// TSC when all state had been read.
        received: u64,
        /// TSC when it was resumed.
        resumed: u64,
    },
    /// What had come for that guest on the network in the host that it has left, if anything. Since version 4, after each
    /// [`Message::Resumed`] of the successor's.
    Late {
        /// Guest.
        name: String,
        /// Frames for each of its network cards.
        frames: Vec<Vec<Frame>>,
    },
    /// The guest does not run here: its QEMU failed and is gone.
    Failed {
        /// Guest.
        name: String,
        /// Why.
        reason: String,
    },
    /// Incumbent: send that guest back through its channel; a QEMU waits here.
    Return {
        /// Guest.
        name: String,
        /// Seconds that it may take.
        seconds: u64,
    },
    /// The other QEMU of that guest is gone.
    Gone {
        /// Guest.
        name: String,
    },
    /// Incumbent: you are in charge once I am gone.
    Entrust {
        /// The state of the refresh.
        refresh: Box<Refresh>,
        /// What happened so far.
        report: Box<Report>,
        /// Seconds that the incumbent has to power off.
        seconds: u64,
    },
    /// Successor: I have it.
    Entrusted,
    /// The answer to what cannot be understood. Since version 2.
    NotUnderstood {
        /// Kind of the message.
        kind: String,
        /// Why not.
        reason: String,
    },
}

/// A guest's QEMU in the other host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct There {
    /// The guest.
    pub name: String,
    /// What it does there.
    pub place: Place,
    /// All of it was sent to the other host, in which it may have run since. An older agent does not tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sent: bool,
}

fn first() -> u16 {
    FIRST
}
