//! The vmexit table: what single events cost a guest, under each set-up.
//!
//! A guest measures itself (`lab_guest::measure`, /guest/measure.sh): ticks are medians over many events, seen by the
//! guest's TSC. Exits are read around two runs of different length, so that what starting, asking and printing costs
//! falls out; what is left of the host's timer in them makes a few hundredths. Machines have one CPU, where a tick is
//! an instruction; only the IPI needs two.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::bed::{self, Bed, BedArgs, SetUp};
use crate::steps::Run;

/// One kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// As `lab_guest::measure` calls it.
    pub name: &'static str,
    /// For people.
    pub title: &'static str,
    /// CPUs of the machine and of the guest.
    pub cpus: u32,
    /// How often at most: where one event takes long.
    pub limit: u32,
}

const fn event(name: &'static str, title: &'static str, cpus: u32, limit: u32) -> Event {
    Event {
        name,
        title,
        cpus,
        limit,
    }
}

/// The rows of the table.
pub const EVENTS: &[Event] = &[
    event("cpuid", "CPUID", 1, 4000),
    event("vmcall", "VMCALL, from user mode", 1, 4000),
    event("pio_kernel", "port, answered in KVM", 1, 4000),
    event("pio_user", "port, answered in QEMU", 1, 4000),
    event("mmio_kernel", "MMIO, answered in KVM", 1, 4000),
    event("mmio_user", "MMIO, answered in QEMU", 1, 4000),
    event("ept", "EPT fault, fresh 4 KiB page", 1, 1200),
    event("timer", "timer interrupt, spinning vCPU", 1, 100),
    event("ipi", "IPI to a spinning vCPU, answered", 2, 1000),
];

/// An event by its name.
///
/// # Errors
/// There is none; the text lists them.
pub fn find(name: &str) -> Result<Event, String> {
    let found = EVENTS.iter().find(|event| event.name == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = EVENTS.iter().map(|event| event.name).collect();
        format!("give one of {}", names.join(", "))
    })
}

/// What one event costs under one set-up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cell {
    /// Median, in ticks of the guest's TSC.
    pub ticks: u64,
    /// The cheapest.
    pub ticks_min: u64,
    /// Exits of the guest per event.
    pub guest_exits: f64,
    /// Exits per event that L0, or the outer KVM, took.
    pub l0_exits: f64,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the event.
    pub event: &'static str,
    /// For people.
    pub title: &'static str,
    /// By name of the set-up; those that were measured.
    #[serde(flatten)]
    pub cells: BTreeMap<&'static str, Cell>,
}

/// What it takes to enter nested and to leave, per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Switch {
    /// Times that every CPU went in and out.
    pub cycles: u64,
    /// CPUs.
    pub cpus: u64,
    /// Ticks to enter, average.
    pub enter_ticks: u64,
    /// Ticks to leave, average.
    pub leave_ticks: u64,
    /// Longest time to enter.
    pub enter_max: u64,
    /// Longest time to leave.
    pub leave_max: u64,
}

/// All of it: `target/bench/vmexit.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// What ran the machines; only in `bochs` is a tick an instruction.
    pub platform: String,
    /// Model of the CPUs.
    pub cpu_model: String,
    /// The table.
    pub vmexit: Vec<Row>,
    /// Entering and leaving, on the machine with one CPU, with a guest.
    pub switch: Option<Switch>,
    /// Bytes of L0's image.
    pub l0_image_bytes: u64,
    /// What could not be measured, and why.
    pub errors: Vec<String>,
}

impl Table {
    fn put(&mut self, event: &Event, set_up: SetUp, cell: Cell) {
        let known = self.vmexit.iter_mut().find(|row| row.event == event.name);
        if let Some(row) = known {
            row.cells.insert(set_up.name(), cell);
            return;
        }
        self.vmexit.push(Row {
            event: event.name,
            title: event.title,
            cells: [(set_up.name(), cell)].into(),
        });
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "ticks of the guest's TSC (median), exits of the guest and of what is below its host, per event"
        )?;
        write!(f, "{:<34}", "")?;
        for set_up in SetUp::ALL {
            write!(f, "{:>25}", set_up.title())?;
        }
        for row in &self.vmexit {
            write!(f, "\n{:<34}", row.title)?;
            for set_up in SetUp::ALL {
                let text = row.cells.get(set_up.name()).map_or_else(
                    || "-".to_owned(),
                    |cell| {
                        let Cell {
                            ticks,
                            guest_exits,
                            l0_exits,
                            ..
                        } = cell;
                        format!("{ticks} {guest_exits:.2} {l0_exits:.2}")
                    },
                );
                write!(f, "{text:>25}")?;
            }
        }
        if let Some(switch) = self.switch {
            write!(
                f,
                "\nper CPU, average of {}: enter nested {} ticks (longest {}), leave {} (longest {})",
                switch.cycles, switch.enter_ticks, switch.enter_max, switch.leave_ticks, switch.leave_max
            )?;
        }
        for error in &self.errors {
            write!(f, "\nnot measured: {error}")?;
        }
        Ok(())
    }
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct VmexitArgs {
    /// Set-ups to compare.
    pub set_ups: Vec<SetUp>,
    /// Rows of the table.
    pub events: Vec<Event>,
    /// How often each event is measured, but for its limit.
    pub iterations: u32,
    /// Times to enter and leave nested.
    pub cycles: u32,
    /// The machines; `cpus` is each event's own.
    pub bed: BedArgs,
}

/// Measures. What fails is noted in the table, and the rest goes on; `save` gets the table after each machine, so that
/// an hour's work is not lost with the last.
///
/// # Errors
/// Those of `save`.
pub fn measure(args: &VmexitArgs, save: impl Fn(&Table) -> Result<()>) -> Result<Table> {
    let mut table = Table {
        platform: args.bed.platform.to_string(),
        cpu_model: args.bed.cpu_model.clone(),
        ..Table::default()
    };
    for cpus in [1, 2] {
        if !args.events.iter().any(|event| event.cpus == cpus) {
            continue;
        }
        for set_ups in machines(&args.set_ups) {
            let bed = BedArgs {
                cpus,
                ..args.bed.clone()
            };
            if let Err(error) = on_machine(&mut table, set_ups, &bed, args) {
                let names: Vec<_> = set_ups.iter().map(|set_up| set_up.title()).collect();
                let names = names.join(" and ");
                table.errors.push(format!("{names} with {cpus} CPUs: {error:#}"));
            }
            save(&table)?;
        }
    }
    Ok(table)
}

/// Native and nested follow each other on one machine.
fn machines(set_ups: &[SetUp]) -> Vec<&[SetUp]> {
    set_ups
        .chunk_by(|first, second| (*first, *second) == (SetUp::LocumNative, SetUp::LocumNested))
        .collect()
}

fn on_machine(table: &mut Table, set_ups: &[SetUp], args: &BedArgs, how: &VmexitArgs) -> Result<()> {
    let first = *set_ups.first().context("no set-up")?;
    let mut bed = Bed::boot(first, args)?;
    start_guest(bed.run(), args.cpus)?;
    for set_up in set_ups {
        if bed.set_up() != *set_up {
            bed.nest()?;
        }
        for event in how.events.iter().filter(|event| event.cpus == args.cpus) {
            bed.step(event.title);
            let cell = measure_event(bed.run(), *set_up, event, how.iterations.min(event.limit))?;
            table.put(event, *set_up, cell);
            let Cell {
                ticks,
                guest_exits,
                l0_exits,
                ..
            } = cell;
            bed.step(&format!(
                "{}: {ticks} ticks, {guest_exits:.2} and {l0_exits:.2} exits",
                event.title
            ));
        }
        if *set_up == SetUp::LocumNative && args.cpus == 1 {
            table.switch = Some(switch(&mut bed, how.cycles)?);
            table.l0_image_bytes = bed.run().status()?.image_bytes;
        }
    }
    bed.power_off()
}

/// Starts the guest that measures itself.
///
/// # Errors
/// It does not come up; with what it and QEMU said.
pub fn start_guest(run: &mut Run, cpus: u32) -> Result<()> {
    run.progress.step("starting the guest");
    run.sh(&format!(
        "CPUS={cpus} setsid /guest/measure.sh m >/run/m.qemu 2>&1 </dev/null &"
    ))?;
    let up = run.sh(
        "for i in $(seq 600); do [ -S /run/m.serial ] && break; sleep 0.1; done; \
            lab-guest measure --socket /run/m.serial",
    );
    let Err(error) = up else { return Ok(()) };
    // The machine may be gone; then the error says so.
    let said = run.sh("cat /run/m.qemu /run/m.log").unwrap_or_default();
    Err(error.context(format!("what QEMU and the guest said:\n{said}")))
}

/// What `lab-guest measure` prints, as far as the lab reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Measured {
    iterations: u32,
    min: u64,
    median: u64,
}

/// What `count` events cost on a machine of this set-up.
///
/// # Errors
/// There are fewer than 8, or a host or the guest does not answer.
pub fn measure_event(run: &mut Run, set_up: SetUp, event: &Event, count: u32) -> Result<Cell> {
    ensure!(count >= 8, "{}: measure it at least 8 times", event.name);
    let mut runs = Vec::new();
    let mut counts = bed::counts(run, set_up)?;
    // Whatever else the guest's kernel or the host has to do only adds exits: of two alike runs the quieter counts.
    for count in [count / 4, count, count / 4, count] {
        let measured = order(run, event, count)?;
        let now = bed::counts(run, set_up)?;
        let since = now.since(&counts);
        counts = now;
        runs.push(Course {
            measured,
            guest_exits: since.guest_total(),
            l0_exits: since.below_total,
        });
    }
    Cell::from_runs(&runs).with_context(|| format!("{}: nothing was measured", event.name))
}

/// One run of many events.
#[derive(Debug, Clone, Copy)]
struct Course {
    measured: Measured,
    guest_exits: u64,
    l0_exits: u64,
}

impl Cell {
    /// Sums up runs of two lengths. `None` unless there are two lengths.
    fn from_runs(runs: &[Course]) -> Option<Self> {
        let lengths = runs.iter().map(|run| run.measured.iterations);
        let (least, most) = (lengths.clone().min()?, lengths.max()?);
        let alike = |length| runs.iter().filter(move |run| run.measured.iterations == length);
        let rate = |exits: fn(&Course) -> u64| {
            let (few, many) = (alike(least).map(exits).min()?, alike(most).map(exits).min()?);
            (least < most).then(|| per_event(few, many, most - least))
        };
        Some(Cell {
            ticks: alike(most).map(|run| run.measured.median).min()?,
            ticks_min: runs.iter().map(|run| run.measured.min).min()?,
            guest_exits: rate(|run| run.guest_exits)?,
            l0_exits: rate(|run| run.l0_exits)?,
        })
    }
}

/// The slope between two runs, the second of which had `more` events.
fn per_event(few: u64, many: u64, more: u32) -> f64 {
    (many as f64 - few as f64).max(0.0) / f64::from(more)
}

fn order(run: &mut Run, event: &Event, count: u32) -> Result<Measured> {
    let name = event.name;
    run.json(&format!("lab-guest measure --socket /run/m.serial {name}:{count}"))
        .with_context(|| format!("measuring {name}"))
}

/// What `locum cycle --json` prints: ticks are sums over all CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Cycles {
    cycles: u64,
    enter_ticks: u64,
    leave_ticks: u64,
    enter_max: u64,
    leave_max: u64,
}

fn switch(bed: &mut Bed, count: u32) -> Result<Switch> {
    bed.step("entering and leaving nested");
    let cpus = bed.run().status()?.cpus.len() as u64;
    let cycles: Cycles = bed.run().json(&format!("locum cycle {count} --json"))?;
    let single = (cycles.cycles * cpus).max(1);
    Ok(Switch {
        cycles: cycles.cycles,
        cpus,
        enter_ticks: cycles.enter_ticks / single,
        leave_ticks: cycles.leave_ticks / single,
        enter_max: cycles.enter_max,
        leave_max: cycles.leave_max,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn native_and_nested_share_a_machine() {
        assert_eq!(
            machines(&SetUp::ALL),
            [
                &[SetUp::Kvm][..],
                &[SetUp::LocumNative, SetUp::LocumNested],
                &[SetUp::NestedKvm]
            ]
        );
        assert_eq!(machines(&[SetUp::LocumNested]).len(), 1);
    }

    #[test]
    fn events_are_found_by_name() {
        assert_eq!(find("ipi").map(|event| event.cpus), Ok(2));
        assert!(find("hlt").is_err_and(|text| text.contains("cpuid")));
    }

    #[test]
    fn exits_are_the_slope_between_two_lengths() {
        let run = |iterations, guest_exits, l0_exits| Course {
            measured: Measured {
                iterations,
                min: 1,
                median: 2,
            },
            guest_exits,
            l0_exits,
        };
        // 50 exits of overhead in each run, 3 per event; some work of the guest's kernel in two of them.
        let (short, long) = (run(100, 350, 20), run(400, 1250, 20));
        let runs = [run(100, 900, 20), long, short, run(400, 1300, 25)];
        let cell = Cell::from_runs(&runs).expect("two lengths");
        assert_eq!((cell.guest_exits, cell.l0_exits), (3.0, 0.0));
        assert_eq!(Cell::from_runs(&[short, short]), None);
        assert_eq!(per_event(10, 4, 300), 0.0);
    }

    #[test]
    fn rows_have_a_member_per_set_up() {
        let mut table = Table::default();
        let cell = Cell {
            ticks: 1188,
            ticks_min: 1180,
            guest_exits: 1.0,
            l0_exits: 2.0,
        };
        table.put(&EVENTS[0], SetUp::Kvm, cell);
        table.put(&EVENTS[0], SetUp::LocumNested, cell);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["vmexit"][0]["event"], "cpuid");
        assert_eq!(json["vmexit"][0]["locum_nested"]["l0_exits"], 2.0);
        assert_eq!(table.vmexit.len(), 1);
        let text = table.to_string();
        assert!(text.contains("1188 1.00 2.00"), "{text}");
    }

    #[test]
    fn the_guests_line_is_read() {
        let line = r#"{"event":"cpuid","iterations":9,"min":1,"median":2,"mean":3,"max":4,"empty":6}"#;
        let measured: Measured = serde_json::from_str(line).unwrap();
        assert_eq!((measured.iterations, measured.median), (9, 2));
    }
}
