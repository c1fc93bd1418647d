//! Single events that leave a guest, and what one of them costs.
//!
//! A guest measures itself (`lab_guest::measure`, /guest/measure.sh): ticks are medians over many events, seen by the
//! guest's TSC. Exits are read around two runs of different length, so that what starting, asking and printing costs
//! falls out; what is left of the host's timer in them makes a few hundredths.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{exits::Below, run::Run};

/// One kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
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

/// Every one that is measured.
pub(crate) const EVENTS: &[Event] = &[
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
pub(crate) fn find(name: &str) -> Result<Event, String> {
    let found = EVENTS.iter().find(|event| event.name == name);
    found.copied().ok_or_else(|| {
        let names: Vec<_> = EVENTS.iter().map(|event| event.name).collect();
        format!("give one of {}", names.join(", "))
    })
}

/// What one event costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Price {
    /// Median, in ticks of the guest's TSC.
    pub ticks: u64,
    /// The cheapest.
    pub ticks_min: u64,
    /// Exits of the guest per event.
    pub guest_exits: f64,
    /// Exits per event that L0, or the outer KVM, took.
    pub l0_exits: f64,
}

/// What `lab-guest measure` prints, as far as the lab reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
struct Measured {
    iterations: u32,
    min: u64,
    median: u64,
}

impl Run {
    /// Starts the guest that measures itself.
    ///
    /// # Errors
    /// It does not come up; with what it and QEMU said.
    pub(crate) fn start_measuring_guest(&mut self, cpus: u32) -> Result<()> {
        self.progress.step("starting the guest");
        self.sh(&format!(
            "CPUS={cpus} setsid /guest/measure.sh m >/run/m.qemu 2>&1 </dev/null &"
        ))?;
        let up = self.sh(
            "for i in $(seq 600); do [ -S /run/m.serial ] && break; sleep 0.1; done; \
             lab-guest measure --socket /run/m.serial",
        );
        let Err(error) = up else { return Ok(()) };
        // The machine may be gone; then the error says so.
        let said = self.sh("cat /run/m.qemu /run/m.log").unwrap_or_default();
        Err(error.context(format!("what QEMU and the guest said:\n{said}")))
    }

    /// What `count` events cost that guest.
    ///
    /// # Errors
    /// There are fewer than 8, or a host or the guest does not answer.
    pub(crate) fn measure(&mut self, event: &Event, count: u32, below: Below) -> Result<Price> {
        ensure!(count >= 8, "{}: measure it at least 8 times", event.name);
        let mut courses = Vec::new();
        let mut counts = self.exits(below)?;
        // Whatever else the guest's kernel or the host has to do only adds exits: of two alike runs the quieter counts.
        for count in [count / 4, count, count / 4, count] {
            let measured = self.order(event, count)?;
            let now = self.exits(below)?;
            let since = now.since(&counts);
            counts = now;
            courses.push(Course {
                measured,
                guest_exits: since.guest_total(),
                l0_exits: since.below_total,
            });
        }
        Price::of(&courses).with_context(|| format!("{}: nothing was measured", event.name))
    }

    fn order(&mut self, event: &Event, count: u32) -> Result<Measured> {
        let name = event.name;
        self.json(&format!("lab-guest measure --socket /run/m.serial {name}:{count}"))
            .with_context(|| format!("measuring {name}"))
    }
}

/// One run of many events.
#[derive(Debug, Clone, Copy)]
struct Course {
    measured: Measured,
    guest_exits: u64,
    l0_exits: u64,
}

impl Price {
    /// Sums up runs of two lengths. `None` unless there are two lengths.
    fn of(runs: &[Course]) -> Option<Self> {
        let lengths = runs.iter().map(|run| run.measured.iterations);
        let (least, most) = (lengths.clone().min()?, lengths.max()?);
        let alike = |length| runs.iter().filter(move |run| run.measured.iterations == length);
        let rate = |exits: fn(&Course) -> u64| {
            let (few, many) = (alike(least).map(exits).min()?, alike(most).map(exits).min()?);
            (least < most).then(|| per_event(few, many, most - least))
        };
        Some(Price {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let price = Price::of(&runs).expect("two lengths");
        assert_eq!((price.guest_exits, price.l0_exits), (3.0, 0.0));
        assert_eq!(Price::of(&[short, short]), None);
        assert_eq!(per_event(10, 4, 300), 0.0);
    }

    #[test]
    fn the_guests_line_is_read() {
        let line = r#"{"event":"cpuid","iterations":9,"min":1,"median":2,"mean":3,"max":4,"empty":6}"#;
        let measured: Measured = serde_json::from_str(line).unwrap();
        assert_eq!((measured.iterations, measured.median), (9, 2));
    }
}
