//! The vmexit table: what single events cost a guest, under each set-up.
//!
//! Machines have one CPU, where a tick is an instruction; only the IPI needs two. How an event is measured: [`crate::steps::events`].

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::bed::{Bed, BedArgs, SetUp};
use crate::steps::events::{Event, Price};

/// One row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Name of the event.
    pub event: &'static str,
    /// For people.
    pub title: &'static str,
    /// By name of the set-up; those that were measured.
    #[serde(flatten)]
    pub prices: BTreeMap<&'static str, Price>,
}

/// What it takes to enter nested and to leave, per CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Switch {
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
pub(crate) struct Table {
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
    fn put(&mut self, event: &Event, set_up: SetUp, price: Price) {
        let known = self.vmexit.iter_mut().find(|row| row.event == event.name);
        if let Some(row) = known {
            row.prices.insert(set_up.name(), price);
            return;
        }
        self.vmexit.push(Row {
            event: event.name,
            title: event.title,
            prices: [(set_up.name(), price)].into(),
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
                let text = row.prices.get(set_up.name()).map_or_else(
                    || "-".to_owned(),
                    |price| {
                        let Price {
                            ticks,
                            guest_exits,
                            l0_exits,
                            ..
                        } = price;
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
pub(crate) struct VmexitArgs {
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
pub(crate) fn measure(args: &VmexitArgs, save: impl Fn(&Table) -> Result<()>) -> Result<Table> {
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
    bed.run().start_measuring_guest(args.cpus)?;
    for set_up in set_ups {
        if bed.set_up() != *set_up {
            bed.nest()?;
        }
        for event in how.events.iter().filter(|event| event.cpus == args.cpus) {
            bed.step(event.title);
            let price = bed
                .run()
                .measure(event, how.iterations.min(event.limit), set_up.below())?;
            table.put(event, *set_up, price);
            let Price {
                ticks,
                guest_exits,
                l0_exits,
                ..
            } = price;
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
    fn rows_have_a_member_per_set_up() {
        let mut table = Table::default();
        let price = Price {
            ticks: 1188,
            ticks_min: 1180,
            guest_exits: 1.0,
            l0_exits: 2.0,
        };
        table.put(&crate::steps::events::EVENTS[0], SetUp::Kvm, price);
        table.put(&crate::steps::events::EVENTS[0], SetUp::LocumNested, price);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["vmexit"][0]["event"], "cpuid");
        assert_eq!(json["vmexit"][0]["locum_nested"]["l0_exits"], 2.0);
        assert_eq!(table.vmexit.len(), 1);
        let text = table.to_string();
        assert!(text.contains("1188 1.00 2.00"), "{text}");
    }
}
