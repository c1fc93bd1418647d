//! What it prints: values of the agent's own types.

use std::{io, path::PathBuf};

use anyhow::{Context, Result};
use lab_fleet::{Ill, Last, Machine, Stage};
use locum_agent::{
    error::Refusal,
    guest::Spec,
    told::{
        Around, CpuView, DaemonStatus, ExitView, GuestReport, GuestView, HostView, L0View, Place, PlanView, Report,
        StatusView, TablesView,
    },
};
use partitioner::{
    ApicId, BlockState, BootSize, Cpu, CpuNumber, CpuRequest, Generation, Inventory, MemRange, MemoryBlock,
    MemoryRequest, NodeId, Request, Slot,
};

/// CPUs of the machine.
const CPUS: u32 = 4;
/// Those of them that a successor begins with.
const TO_MOVE: u32 = 2;
const MIB: u64 = 1 << 20;
/// A memory block.
const BLOCK: u64 = 128 * MIB;
/// Its blocks.
const BLOCKS: u64 = 16;
/// Ticks of the TSC in a millisecond.
const TSC_KHZ: u64 = 2_400_000;
/// Milliseconds that each guest stands still.
const PAUSE_MS: u64 = 20;

/// A kernel that is not there.
pub(crate) fn no_kernel(machine: &Machine, version: &str) -> Refusal {
    Refusal::NoKernel {
        version: version.to_owned(),
        known: machine.installed.join(", "),
    }
}

/// A guest that cannot go.
pub(crate) fn stays() -> Refusal {
    Refusal::Stays {
        guests: "vm9 (its RAM is not in the pool)".to_owned(),
        leave: "--leave vm9".to_owned(),
    }
}

/// `locum status --json`.
pub(crate) fn status(machine: &Machine) -> StatusView {
    let absent = machine.ill == Some(Ill::NoDaemon) || matches!(machine.stage, Stage::Starts(1..));
    let daemon = if absent {
        let refusal = Refusal::NoDaemon {
            path: PathBuf::from("/run/locum.sock"),
            error: io::Error::from(io::ErrorKind::NotFound),
        };
        Err(refusal.into())
    } else {
        Ok(daemon(machine))
    };
    StatusView::new(l0(machine), 328_448, machine.kernel.clone(), daemon, around(machine))
}

fn around(machine: &Machine) -> Around {
    let view = |(name, place): (&String, Place)| GuestView {
        name: name.clone(),
        place,
    };
    let here = machine.guests.iter().map(|name| (name, Place::Here));
    let off = machine.off.iter().map(|name| (name, Place::Off));
    Around {
        slot: Some(slot(machine).raw()),
        guests: Some(here.chain(off).map(view).collect()),
        ..Around::default()
    }
}

fn slot(machine: &Machine) -> Slot {
    Generation(u64::from(machine.generation)).slot()
}

fn l0(machine: &Machine) -> L0View {
    let nested = machine.ill == Some(Ill::Nested) || matches!(machine.stage, Stage::Runs(_) | Stage::Stuck);
    let own = slot(machine);
    let cpu = |apic_id| CpuView {
        apic_id,
        mode: if nested { "nested" } else { "native" }.to_owned(),
        owner: Some(own),
        enters: u64::from(machine.generation),
        leaves: u64::from(machine.generation),
        exits: 0,
        guest_exits: 0,
    };
    let host = |slot: Slot| HostView {
        slot,
        state: if slot == own { "running" } else { "absent" }.to_owned(),
        generation: if slot == own { machine.generation } else { 0 },
        reason: None,
    };
    L0View {
        generation: machine.generation,
        cpus: (0..CPUS).map(cpu).collect(),
        hosts: vec![host(own), host(own.other())],
        exits: ExitView::default(),
        refusals: 0,
        tables: TablesView::default(),
    }
}

/// What the daemon says to a request.
pub(crate) fn daemon(machine: &Machine) -> DaemonStatus {
    let words = match machine.stage {
        Stage::Runs(_) => ("handover", "running"),
        Stage::Stuck => ("nested", "stuck"),
        Stage::Rests if machine.ill == Some(Ill::Refreshes) => ("offloaded", "running"),
        Stage::Rests | Stage::Away(_) | Stage::Starts(_) => ("idle", "resting"),
    };
    let runs = words.0 != "idle";
    let wanted = machine.last.as_ref().map(|last| last.to.clone());
    let unreclaimed = match machine.ill {
        Some(Ill::Unreclaimed(bytes)) => bytes,
        _ => 0,
    };
    DaemonStatus {
        role: "incumbent".to_owned(),
        state: words.0.to_owned(),
        course: words.1.to_owned(),
        running: runs.then(|| wanted.unwrap_or_else(|| "another".to_owned())),
        total: if runs { 40 } else { 0 },
        summary: format!("generation {}, {}", machine.generation, words.0),
        last_error: error(machine),
        unreclaimed_bytes: unreclaimed,
        report: machine.last.as_ref().map(|last| report(machine, last)),
        ..DaemonStatus::default()
    }
}

fn error(machine: &Machine) -> Option<String> {
    if matches!(machine.stage, Stage::Stuck) {
        return Some("CPU 3 does not come online".to_owned());
    }
    let aborted = machine.last.as_ref().is_some_and(|last| last.outcome == "aborted");
    aborted.then(|| "the successor does not answer within 600 s".to_owned())
}

fn report(machine: &Machine, last: &Last) -> Report {
    let done = last.outcome == "done";
    let guest = |(name, moved): (&String, bool)| {
        let mut guest = GuestReport {
            name: name.clone(),
            begun: TSC_KHZ,
            stopped: 2 * TSC_KHZ,
            resumed: if moved { (2 + PAUSE_MS) * TSC_KHZ } else { 0 },
            ..GuestReport::default()
        };
        guest.conclude();
        guest
    };
    let here = machine.guests.iter().chain(&machine.off).map(|name| (name, done));
    let lost = last.lost.iter().map(|name| (name, false));
    let losses = last.lost.iter().map(|name| format!("guest {name}: its QEMU is gone"));
    Report {
        name: last.to.clone(),
        from_generation: u64::from(machine.generation) - u64::from(done),
        incumbent: last.from.clone(),
        successor: last.to.clone(),
        outcome: last.outcome.clone(),
        error: error(machine),
        start: 1,
        end: 90_000 * TSC_KHZ,
        tsc_khz: TSC_KHZ,
        guests: here.chain(lost).map(guest).collect(),
        losses: losses.collect(),
        ..Report::default()
    }
}

/// `locum plan --json`: made by the rules of the agent's own plans.
pub(crate) fn plan(machine: &Machine, kernel: &str, leave: &[String]) -> Result<PlanView> {
    let going: Vec<String> = machine
        .guests
        .iter()
        .filter(|guest| !leave.contains(guest))
        .cloned()
        .collect();
    let request = Request {
        cpus: CpuRequest::Count(TO_MOVE as usize),
        memory: MemoryRequest::Size(4 * BLOCK),
        boot: BootSize {
            kernel_init: 50 * MIB,
            kernel_align: 2 * MIB,
            initramfs: 45 * MIB,
            tables: MIB,
        },
        functions: Vec::new(),
        ports: Vec::new(),
        pins: Vec::new(),
        guests: going.clone(),
    };
    let plan = partitioner::plan(&inventory(machine)?, &request)?;
    Ok(PlanView {
        name: kernel.to_owned(),
        kernel: PathBuf::from(format!("/boot/vmlinuz-{kernel}")),
        initramfs_bytes: usize::try_from(45 * MIB)?,
        immovable: Vec::new(),
        memory_bytes: plan.memory_bytes(),
        unreclaimed_bytes: plan.unreclaimed_bytes(),
        guests: going.into_iter().map(spec).collect(),
        leaving: leave.to_vec(),
        notes: Vec::new(),
        plan,
    })
}

fn inventory(machine: &Machine) -> Result<Inventory> {
    let range = |start, end| MemRange::new(start, end).context("a range has an end");
    let blocks: Result<Vec<MemoryBlock>> = (0..BLOCKS)
        .map(|number| {
            Ok(MemoryBlock {
                range: range(number * BLOCK, (number + 1) * BLOCK)?,
                state: BlockState::Online,
                removable: number >= BLOCKS / 2,
                free: BLOCK,
                node: NodeId(0),
                kept: None,
                foreign: None,
            })
        })
        .collect();
    let cpu = |number| Cpu {
        apic: ApicId(number),
        number: CpuNumber(number),
        online: true,
        node: NodeId(0),
        core: None,
    };
    Ok(Inventory {
        generation: Generation(u64::from(machine.generation)),
        cpus: (0..CPUS).map(cpu).collect(),
        block_size: BLOCK,
        blocks: blocks?,
        ram: vec![range(16 * MIB, BLOCKS * BLOCK)?],
        spare: BLOCKS / 2 * BLOCK,
        functions: Vec::new(),
        pins: Vec::new(),
        staying_ports: Vec::new(),
        firmware: Vec::new(),
        unread_firmware: Vec::new(),
        pool: vec![range(BLOCKS * BLOCK, 2 * BLOCKS * BLOCK)?],
        pool_nodes: Vec::new(),
        entry_reach: 4 << 30,
        never_moves: vec![range(0, 16 * MIB)?],
        unreclaimed: Vec::new(),
    })
}

fn spec(name: String) -> Spec {
    Spec {
        qmp: PathBuf::from(format!("/run/{name}.qmp")),
        name,
        command: vec!["qemu-system-x86_64".to_owned()],
        channel: 1,
        ..Spec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_the_guests_that_go() {
        let machine = Machine::new("1", &["1", "2"], &["a", "b"]);
        let view = plan(&machine, "2", &["b".to_owned()]).unwrap();
        assert_eq!(view.plan.guests, ["a"]);
        assert_eq!(view.leaving, ["b"]);
        assert_eq!(view.plan.cpus.len(), TO_MOVE as usize);
    }

    #[test]
    fn a_daemon_that_is_not_there_yet_is_told() {
        let mut machine = Machine::new("1", &["1", "2"], &[]);
        assert_eq!(status(&machine).state, "idle");
        machine.stage = Stage::Starts(1);
        assert_eq!(status(&machine).state, "no daemon");
    }
}
