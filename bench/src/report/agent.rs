//! What `locum` prints with `--json`, as far as the lab reads it.
//!
//! The lab has types of its own, and fields that it does not know do not matter: it has to work with an agent that is
//! being changed, and a test should not share its eyes with what it tests.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `locum status --json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Status {
    /// Generation of the reigning host.
    pub generation: u32,
    /// The daemon's state: `idle`, ... or `no daemon`.
    pub state: String,
    /// Every CPU of the machine.
    pub cpus: Vec<Cpu>,
    /// Exits that L0 took since boot.
    pub exits: Exits,
    /// Exits since the last refresh ended, or since boot; none while a CPU is nested, or a refresh is under way.
    #[serde(default)]
    pub native_exits: Option<u64>,
    /// What L0 uses of its tables.
    #[serde(default)]
    pub tables: Option<Tables>,
    /// Bytes of L0's image.
    #[serde(default)]
    pub image_bytes: u64,
    /// Bytes of memory that belong to nobody.
    #[serde(default)]
    pub unreclaimed_bytes: u64,
    /// The daemon's word.
    #[serde(default)]
    pub daemon: Option<Daemon>,
    /// The last refresh, or the present one so far.
    #[serde(default)]
    pub last_report: Option<Refresh>,
}

/// What L0 uses of tables of a fixed size.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Tables {
    /// Stretches of memory of one kind and owner.
    pub memory_stretches: u32,
    /// EPT tables, per slot.
    pub ept: Vec<u32>,
}

/// One CPU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Cpu {
    /// xAPIC id.
    pub apic_id: u32,
    /// `absent`, `parked`, `native` or `nested`.
    pub mode: String,
    /// Slot of its owner.
    pub owner: Option<u32>,
    /// Times it was made nested.
    pub enters: u64,
    /// Times it was made native.
    pub leaves: u64,
    /// Exits that L0 took on it.
    pub exits: u64,
}

/// L0's exits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Exits {
    /// All.
    pub total: u64,
    /// Those of guests, passed on to KVM.
    #[serde(default)]
    pub guest: u64,
    /// Those of hosts, by reason.
    #[serde(default)]
    pub by_reason: BTreeMap<String, u64>,
}

/// The daemon.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Daemon {
    /// One line for an operator.
    #[serde(default)]
    pub summary: String,
    /// Why the last refresh failed, if it did.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// What a refresh did. Times are TSC ticks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Refresh {
    /// Kernel release of the incumbent.
    pub incumbent: String,
    /// Kernel release of the successor.
    pub successor: String,
    /// `running`, `done`, `aborted` or `retired`.
    pub outcome: String,
    /// What went wrong.
    #[serde(default)]
    pub error: Option<String>,
    /// In order.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// In order of handover.
    #[serde(default)]
    pub guests: Vec<Guest>,
    /// Actions at which a daemon that was started anew took it up.
    #[serde(default)]
    pub taken_up: Vec<String>,
    /// What did not come back, in words.
    #[serde(default)]
    pub losses: Vec<String>,
    /// Bytes that belong to nobody now.
    #[serde(default)]
    pub unreclaimed_bytes: u64,
}

/// A stretch of a refresh.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Phase {
    /// What it did.
    pub name: String,
    /// `incumbent` or `successor`.
    #[serde(default)]
    pub by: String,
    /// TSC at its begin.
    pub start: u64,
    /// TSC at its end.
    pub end: u64,
    /// Exits that L0 took meanwhile.
    #[serde(default)]
    pub l0_exits: u64,
}

/// One guest's handover.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Guest {
    /// Its name.
    pub name: String,
    /// Whether it runs on the successor.
    #[serde(default)]
    pub moved: bool,
    /// TSC when QEMU was told to migrate.
    #[serde(default)]
    pub begun: u64,
    /// TSC when the guest had stopped.
    #[serde(default)]
    pub stopped: u64,
    /// TSC when all state was in the channel.
    #[serde(default)]
    pub saved: u64,
    /// TSC when all state had been read.
    #[serde(default)]
    pub received: u64,
    /// TSC when the successor's QEMU had resumed it.
    #[serde(default)]
    pub resumed: u64,
    /// Frames that had come while it crossed, and went after it.
    #[serde(default)]
    pub late_frames: u64,
    /// Bytes through the channel.
    #[serde(default)]
    pub state_bytes: u64,
    /// Bytes of pool RAM among them.
    #[serde(default)]
    pub ram_bytes_copied: u64,
}

/// `lab-guest watch`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Beat {
    /// The guest's name.
    pub name: String,
    /// Beats so far.
    pub beats: u64,
    /// The host's TSC when they were read.
    pub host_tsc: u64,
    /// Faults that its checks found.
    pub faults: u64,
    /// Work done and extremes, by name.
    #[serde(default)]
    pub work: BTreeMap<String, u64>,
    /// Its clocks.
    #[serde(default)]
    pub clock: Option<Clock>,
}

/// A guest's clocks at one beat.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Clock {
    /// The guest's TSC.
    pub tsc: u64,
    /// `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
}

/// One entry of `lab-guest watch --gaps`: a time in which a guest stood still.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Gap {
    /// TSC when the old beat was last seen.
    pub from_tsc: u64,
    /// TSC when the new beat was first seen.
    pub to_tsc: u64,
    /// Ticks between them in which the watcher was absent itself.
    pub absent_ticks: u64,
}

impl Status {
    /// Whether no CPU is nested.
    #[must_use]
    pub(crate) fn all_native(&self) -> bool {
        self.cpus.iter().all(|cpu| cpu.mode == "native")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_do_not_matter_and_missing_ones_that_must_be_there_do() {
        let text = r#"{"generation":1,"state":"idle","new":{},"exits":{"total":3},
            "cpus":[{"apic_id":0,"mode":"native","owner":1,"enters":1,"leaves":1,"exits":3,"guest_exits":1}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert!(status.all_native());
        assert!(serde_json::from_str::<Status>(r#"{"generation":1}"#).is_err());
    }
}
