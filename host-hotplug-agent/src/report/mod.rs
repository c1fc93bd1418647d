//! What a refresh did, in ticks and exits: made by both agents, one after the other, read by `locum status` and `locum report`.

pub mod drawing;
mod text;

use serde::{Deserialize, Serialize};

/// A stretch of a refresh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// What it led to or did, in one or two words.
    pub name: String,
    /// `incumbent` or `successor`: whose agent did it.
    pub by: String,
    /// TSC when it began.
    pub start: u64,
    /// TSC when it ended.
    pub end: u64,
    /// VM exits that L0 took meanwhile, on all CPUs.
    pub l0_exits: u64,
}

/// How one guest went over. All times are TSC ticks, which both hosts share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Its name.
    pub name: String,
    /// Whether it runs on the successor.
    pub moved: bool,
    /// When the incumbent's QEMU was told to migrate.
    pub begun: u64,
    /// When the incumbent's QEMU had stopped the guest.
    pub stopped: u64,
    /// When all its state was in the channel.
    pub saved: u64,
    /// When all its state had been read from the channel.
    pub received: u64,
    /// When the successor's QEMU had resumed the guest.
    pub resumed: u64,
    /// `resumed - stopped`: QEMU's events; the guest's own first progress comes a little later.
    pub pause_ticks: u64,
    /// Bytes that crossed the channel: device state, ROM and ACPI blocks.
    pub state_bytes: u64,
    /// Bytes of guest RAM in the pool that were copied: 0, as QEMU was told to leave them.
    pub ram_bytes_copied: u64,
    /// Frames that had come for it while it crossed, and went after it.
    #[serde(default)]
    pub late_frames: u64,
    /// Ticks that the successor's QEMU took from start to readiness, before the guest was stopped.
    pub prepare_ticks: u64,
}

/// The last refresh, or the present one so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the successor's configuration.
    pub name: String,
    /// Generation of the incumbent.
    pub from_generation: u64,
    /// Kernel release of the incumbent.
    pub incumbent: String,
    /// Kernel release of the successor, once it has said so.
    pub successor: String,
    /// `running`, `done`, `aborted` or `retired`.
    pub outcome: String,
    /// What went wrong, if anything did.
    pub error: Option<String>,
    /// The stable name of that, for programs.
    #[serde(default)]
    pub error_name: Option<String>,
    /// TSC when it began.
    pub start: u64,
    /// TSC when it ended, 0 before.
    pub end: u64,
    /// Rate of the TSC.
    pub tsc_khz: u64,
    /// What happened, in order.
    pub phases: Vec<Phase>,
    /// Guests, in order of handover.
    pub guests: Vec<GuestReport>,
    /// Actions that came next when a daemon that had been started anew took the refresh up.
    #[serde(default)]
    pub taken_up: Vec<String>,
    /// What was saved of a successor that died, and where; or why not.
    #[serde(default)]
    pub saved: Vec<String>,
    /// What did not come back, in words.
    pub losses: Vec<String>,
    /// Bytes of memory that belong to nobody now.
    pub unreclaimed_bytes: u64,
    /// L0's exits over all CPUs when all was done and every CPU native that would be; counts since then are exits while native.
    pub exits_at_end: u64,
}

impl Report {
    /// The guest's entry, made if it is not there.
    pub fn guest(&mut self, name: &str) -> &mut GuestReport {
        let position = self
            .guests
            .iter()
            .position(|guest| guest.name == name)
            .unwrap_or_else(|| {
                self.guests.push(GuestReport {
                    name: name.to_owned(),
                    ..GuestReport::default()
                });
                self.guests.len() - 1
            });
        &mut self.guests[position]
    }
}

impl GuestReport {
    /// Fills in what follows from the times.
    pub fn conclude(&mut self) {
        self.moved = self.resumed != 0;
        self.pause_ticks = if self.moved {
            self.resumed.saturating_sub(self.stopped)
        } else {
            0
        };
    }
}
