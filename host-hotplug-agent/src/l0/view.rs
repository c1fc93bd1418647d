//! What `locum status` shows of L0: modes, owners and counters, in words.

use std::collections::BTreeMap;

use locum_abi::status::EXIT_REASONS;
use locum_abi::{CpuStatus, HostState, Slot, Status};
use serde::{Serialize, Serializer};

use super::names;

/// One CPU of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuView {
    /// xAPIC id.
    pub apic_id: u32,
    /// `absent`, `parked`, `native` or `nested`.
    pub mode: String,
    /// Slot of the host that owns it; none if no host does.
    #[serde(serialize_with = "number")]
    pub owner: Option<Slot>,
    /// Times it went from native to nested.
    pub enters: u64,
    /// Times it went from nested to native.
    pub leaves: u64,
    /// VM exits taken by L0 on it.
    pub exits: u64,
    /// Of these, exits of guests that L0 passed on to KVM.
    pub guest_exits: u64,
}

/// The host of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostView {
    /// Its slot.
    #[serde(serialize_with = "number")]
    pub slot: Slot,
    /// `absent`, `preparing`, `running`, `dead`, `retired` or `dumping`.
    pub state: String,
    /// Its generation.
    pub generation: u32,
    /// Why it is dead, if it is.
    pub reason: Option<String>,
}

/// Exits that L0 took since boot, over all CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ExitView {
    /// All of them.
    pub total: u64,
    /// Of these, guests' exits, passed on to KVM.
    pub guest: u64,
    /// Exits of hosts by reason.
    pub by_reason: BTreeMap<String, u64>,
}

/// L0's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct L0View {
    /// Generation of the reigning host.
    pub generation: u32,
    /// Every CPU of the machine.
    pub cpus: Vec<CpuView>,
    /// Both slots.
    pub hosts: Vec<HostView>,
    /// Exit counters.
    pub exits: ExitView,
    /// Requests that L0 refused since boot.
    pub refusals: u64,
    /// What L0 uses of its tables.
    pub tables: TablesView,
}

/// Whether L0 has a host in this state, or a partition for one.
pub fn is_there(state: HostState) -> bool {
    !matches!(state, HostState::Absent | HostState::Retired)
}

/// Whether a host in this state was started, and has not been cleared away since.
pub fn was_started(state: HostState) -> bool {
    matches!(state, HostState::Running | HostState::Dead | HostState::Dumping)
}

/// What L0 uses of tables whose size is fixed. It does not grow from refresh to refresh. An older L0 counts nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TablesView {
    /// Stretches of memory of one kind and owner.
    pub memory_stretches: u32,
    /// EPT tables of each slot, 4 KiB each.
    pub ept: Vec<u32>,
}

impl L0View {
    /// The view of a copy of the status region.
    pub fn new(status: &Status) -> Self {
        let cpus = used(status);
        let mut exits = ExitView {
            total: total_exits(status),
            ..ExitView::default()
        };
        for cpu in cpus {
            exits.guest += cpu.guest_exits;
            for (reason, &count) in cpu.exits_by_reason.iter().enumerate().filter(|(_, count)| **count > 0) {
                let name = if reason + 1 == EXIT_REASONS {
                    "other".to_owned()
                } else {
                    names::exit_reason(reason as u64)
                };
                *exits.by_reason.entry(name).or_default() += count;
            }
        }
        let hosts = status.hosts.iter().map(|(slot, host)| HostView {
            slot,
            state: names::host_state(host.state).to_owned(),
            generation: host.generation,
            reason: (host.reason != 0).then(|| names::stop_reason(host)),
        });
        Self {
            generation: status.generation,
            cpus: cpus.iter().map(cpu_view).collect(),
            hosts: hosts.collect(),
            exits,
            refusals: status.refusals,
            tables: TablesView {
                memory_stretches: status.memory_stretches,
                ept: status.ept_tables.iter().map(|(_, tables)| *tables).collect(),
            },
        }
    }

    /// Whether every CPU on which a host runs is native: L0 is dormant.
    pub fn all_native(&self) -> bool {
        self.cpus.iter().all(|cpu| cpu.mode != "nested")
    }
}

/// The entries of [`Status::cpus`] in use.
pub fn used(status: &Status) -> &[CpuStatus] {
    status.cpus.get(..status.cpu_count as usize).unwrap_or_default()
}

/// The slot of the host that owns a CPU; `None` if no host does.
pub fn owner(cpu: &CpuStatus) -> Option<Slot> {
    Slot::from_raw(cpu.owner)
}

/// VM exits of all CPUs since boot.
pub fn total_exits(status: &Status) -> u64 {
    used(status).iter().map(|cpu| cpu.exits).sum()
}

/// Slots are numbers in JSON.
fn number<S: Serializer>(slot: &(impl Copy + Into<Option<Slot>>), serializer: S) -> Result<S::Ok, S::Error> {
    (*slot).into().map(Slot::raw).serialize(serializer)
}

fn cpu_view(cpu: &CpuStatus) -> CpuView {
    CpuView {
        apic_id: cpu.apic_id,
        mode: names::cpu_mode(cpu.mode).to_owned(),
        owner: owner(cpu),
        enters: cpu.enters,
        leaves: cpu.leaves,
        exits: cpu.exits,
        guest_exits: cpu.guest_exits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l0::memory;
    use crate::testing::l0::FakeRegion;
    use locum_abi::CpuMode;
    use locum_abi::status::NO_OWNER;

    #[test]
    fn counters_are_summed_and_named() {
        let region = FakeRegion::new(2);
        region.update(|status| {
            status.generation = 3;
            status.cpus[0].exits = 10;
            status.cpus[0].exits_by_reason[10] = 4;
            status.cpus[1].exits = 5;
            status.cpus[1].guest_exits = 2;
            status.cpus[1].exits_by_reason[10] = 1;
            status.cpus[1].mode = CpuMode::Nested as u32;
        });
        let view = L0View::new(&memory::status(&region, &region.header()).unwrap());
        assert_eq!(view.generation, 3);
        assert_eq!(view.exits.total, 15);
        assert_eq!(view.exits.guest, 2);
        assert_eq!(view.exits.by_reason["cpuid"], 5);
        assert!(!view.all_native());
        assert_eq!(view.cpus.len(), 2);
    }

    #[test]
    fn slots_are_numbers_in_json() {
        let region = FakeRegion::new(2);
        region.update(|status| status.cpus[1].owner = NO_OWNER);
        let view = L0View::new(&memory::status(&region, &region.header()).unwrap());
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!(json["cpus"][0]["owner"], 0);
        assert_eq!(json["cpus"][1]["owner"], serde_json::Value::Null);
        assert_eq!(
            (&json["hosts"][0]["slot"], &json["hosts"][1]["slot"]),
            (&0.into(), &1.into())
        );
    }

    #[test]
    fn a_count_beyond_the_array_is_not_believed() {
        let region = FakeRegion::new(2);
        region.update(|status| status.cpu_count = u32::MAX);
        let status = memory::status(&region, &region.header()).unwrap();
        assert_eq!(used(&status).len(), 0, "nothing is shown rather than garbage");
    }
}
