//! What `locum status` tells: L0's view and the daemon's, beside what this host's Linux and the pool's table tell.
//!
//! | module | what |
//! | --- | --- |
//! | [`around`] | memory and guests, looked at here |
//! | [`picture`] | all of it in a few lines, for a glance |
//! | [`long`] | all of it line by line |
//! | [`wait`] | what a refresh waits for, and for how long it may |
//! | [`left`] | how long a refresh will still take |

pub mod around;
pub mod left;
mod long;
pub mod picture;
#[cfg(test)]
mod picture_tests;
pub mod wait;

use locum_abi::Slot;
use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::guest::renew::Renewed;
use crate::l0::L0View;
use crate::l0::view::{CpuView, ExitView, HostView, TablesView};
use crate::report::Report;
use around::Around;
pub use long::Long;
pub use picture::Picture;
use wait::Wait;

/// What the daemon knows of a refresh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// `incumbent` or `successor`.
    pub role: String,
    /// `idle`, `planned`, `offloaded`, `nested`, `successor_up`, `handover`, `retired` or `dormant`.
    pub state: String,
    /// `resting`, `running`, `aborting` or `stuck`.
    pub course: String,
    /// The refresh that runs.
    pub running: Option<String>,
    /// Actions behind.
    pub done: usize,
    /// Actions in all.
    pub total: usize,
    /// One line for an operator.
    pub summary: String,
    /// Why the last refresh failed, if it did.
    pub last_error: Option<String>,
    /// The stable name of that, for programs. An older daemon tells none.
    #[serde(default)]
    pub last_error_name: Option<String>,
    /// Memory that belongs to nobody.
    pub unreclaimed: Vec<partitioner::Unreclaimed>,
    /// Its bytes.
    pub unreclaimed_bytes: u64,
    /// The last refresh, or the present one so far.
    pub report: Option<Report>,
    /// The guest that has got another QEMU, in the answer to that request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewed: Option<Renewed>,
    /// The phase of the refresh that runs, as its report will call it. An older daemon tells none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// What it waits for. An older daemon does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Wait>,
    /// Seconds that it will still take, about: see [`left`]. None: there is nothing to tell it from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_seconds: Option<u64>,
    /// Bytes of memory that the incumbent has given to the successor. Told by the incumbent's daemon while a refresh runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_memory_bytes: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusView {
    /// Generation of the reigning host.
    pub generation: u32,
    /// Kernel release of this host.
    pub kernel: String,
    /// The daemon's state, `no daemon` or `daemon hangs`.
    pub state: String,
    /// Every CPU of the machine.
    pub cpus: Vec<CpuView>,
    /// Both slots.
    pub hosts: Vec<HostView>,
    /// L0's exits since boot.
    pub exits: ExitView,
    /// L0's exits since the last refresh ended, or since boot if none is known: no more of them while L0 is dormant. None
    /// while a CPU is nested, or a refresh is under way.
    pub native_exits: Option<u64>,
    /// Requests that L0 refused since boot.
    pub refusals: u64,
    /// What L0 uses of its tables.
    pub tables: TablesView,
    /// Bytes of L0's loaded image.
    pub image_bytes: u64,
    /// Bytes of memory that belong to nobody.
    pub unreclaimed_bytes: u64,
    /// The daemon's word, if it answers.
    pub daemon: Option<DaemonStatus>,
    /// Why it does not.
    pub no_answer: Option<String>,
    /// The last refresh, or the present one so far.
    pub last_report: Option<Report>,
    /// Slot of this host, its memory and the guests.
    #[serde(flatten)]
    pub around: Around,
}

impl StatusView {
    /// Puts all views together.
    pub fn new(
        l0: L0View,
        image_bytes: u64,
        kernel: String,
        daemon: anyhow::Result<DaemonStatus>,
        mut around: Around,
    ) -> Self {
        let hangs = matches!(&daemon, Err(error) if matches!(error.downcast_ref(), Some(Refusal::DaemonHangs { .. })));
        let (daemon, no_answer) = match daemon {
            Ok(daemon) => (Some(daemon), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let silent = if hangs { "daemon hangs" } else { "no daemon" };
        if let Some(daemon) = &daemon {
            around.memory.other = daemon.other_memory_bytes;
            around.memory.nobody = Some(daemon.unreclaimed_bytes);
        }
        let last_report = daemon.as_ref().and_then(|daemon| daemon.report.clone());
        let before = last_report.as_ref().map_or(0, |report| report.exits_at_end);
        // Then its report has no end, and nothing says how many there were before.
        let under_way = last_report.as_ref().is_some_and(|report| report.end == 0);
        Self {
            native_exits: (l0.all_native() && !under_way).then(|| l0.exits.total.saturating_sub(before)),
            generation: l0.generation,
            kernel,
            state: daemon
                .as_ref()
                .map_or_else(|| silent.to_owned(), |daemon| daemon.state.clone()),
            cpus: l0.cpus,
            hosts: l0.hosts,
            exits: l0.exits,
            refusals: l0.refusals,
            tables: l0.tables,
            image_bytes,
            unreclaimed_bytes: daemon.as_ref().map_or(0, |daemon| daemon.unreclaimed_bytes),
            daemon,
            no_answer,
            last_report,
            around,
        }
    }

    /// Whether a refresh runs, as far as the daemon tells.
    pub fn running(&self) -> Option<&DaemonStatus> {
        self.daemon.as_ref().filter(|daemon| daemon.running.is_some())
    }

    /// Slot of this host; of the reigning one where the module does not tell.
    pub fn own(&self) -> Slot {
        let slot = self.around.slot.and_then(Slot::from_raw);
        slot.unwrap_or_else(|| Slot::of_generation(self.generation))
    }

    /// The same without what goes on from second to second though nothing happens.
    pub fn steady(&self) -> Self {
        let mut steady = self.clone();
        if let Some(daemon) = &mut steady.daemon {
            daemon.left_seconds = None;
            if let Some(wait) = &mut daemon.waits {
                wait.seconds = 0;
            }
        }
        steady
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l0::memory;
    use crate::testing::l0::FakeRegion;

    #[test]
    fn exits_while_native_count_from_the_last_leave() {
        let region = FakeRegion::new(2);
        region.update(|status| status.cpus[1].exits = 120);
        let l0 = L0View::new(&memory::status(&region, &region.header()).unwrap());
        let report = Report {
            exits_at_end: 100,
            end: 7,
            ..Report::default()
        };
        let daemon = |report| DaemonStatus {
            report: Some(report),
            ..DaemonStatus::default()
        };
        let begun = daemon(Report::default());
        let view = StatusView::new(l0.clone(), 1, "6.12".to_owned(), Ok(begun), Around::default());
        assert_eq!(view.native_exits, None, "a successor that reclaims");
        let daemon = daemon(report);
        let view = StatusView::new(l0.clone(), 1, "6.12".to_owned(), Ok(daemon), Around::default());
        assert_eq!(view.native_exits, Some(20));
        let alone = StatusView::new(l0, 1, "6.12".to_owned(), Err(anyhow::anyhow!("why")), Around::default());
        assert_eq!(alone.native_exits, Some(120));
        assert!(Long(&alone).to_string().contains("why"));
        assert_eq!(alone.state, "no daemon");
        let hangs = Refusal::DaemonHangs {
            path: "/run/locum.sock".into(),
            seconds: 10,
        };
        let hung = StatusView::new(
            L0View::new(&memory::status(&region, &region.header()).unwrap()),
            1,
            "6.12".to_owned(),
            Err(hangs.into()),
            Around::default(),
        );
        assert_eq!(hung.state, "daemon hangs");
        let text = Long(&alone).to_string();
        assert!(text.contains("APIC 1   native  slot 0"), "{text}");
        assert!(text.contains("slot 1: absent, generation 0"), "{text}");
    }

    #[test]
    fn json_has_got_fields_and_lost_none() {
        let region = FakeRegion::new(1);
        let l0 = L0View::new(&memory::status(&region, &region.header()).unwrap());
        let daemon = Ok(DaemonStatus {
            other_memory_bytes: Some(5),
            unreclaimed_bytes: 7,
            ..DaemonStatus::default()
        });
        let view = StatusView::new(l0, 1, "6.12".to_owned(), daemon, Around::default());
        let json = serde_json::to_value(&view).unwrap();
        for field in [
            "generation",
            "kernel",
            "state",
            "cpus",
            "hosts",
            "exits",
            "native_exits",
            "refusals",
            "tables",
            "image_bytes",
            "unreclaimed_bytes",
            "daemon",
            "no_answer",
            "last_report",
            "slot",
            "memory",
            "guests",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(
            (&json["memory"]["other"], &json["memory"]["nobody"]),
            (&5.into(), &7.into())
        );
        // What an older daemon says is understood.
        let older = r#"{"role":"incumbent","state":"idle","course":"resting","running":null,"done":0,"total":0,"summary":"",
            "last_error":null,"unreclaimed":[],"unreclaimed_bytes":0,"report":null}"#;
        assert_eq!(serde_json::from_str::<DaemonStatus>(older).unwrap().waits, None);
    }
}
