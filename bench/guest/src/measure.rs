//! Micro-benchmarks that a guest runs on itself: what one event that leaves it costs, in ticks of its TSC.
//!
//! The guest is told by its command line what to measure (`lab.measure=`, see [`Step`]) and prints one line of JSON
//! ([`Measured`]) for each. With `console` it goes on to take orders from its console, one `EVENT[:COUNT]` per line, so
//! that a host can read its own counters before and after each event: [`client`] is the host's side.
//!
//! In the lab's emulator ticks are instructions: what a tick costs in time is not told by it. Everything runs in user
//! mode as root, with the ports of the machine (iopl) and `/dev/mem`.

pub mod client;
mod events;
mod timing;

use crate::guest::setup;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::BufRead;
use std::time::Duration;

pub use events::Bench;

/// Something that makes a guest exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Nothing: what reading the TSC twice takes. Its own row is not reduced by itself.
    Empty,
    /// CPUID leaf 0: the cheapest exit that KVM always handles itself.
    Cpuid,
    /// VMCALL in user mode: the exit is taken, KVM looks at the privilege level and answers `-EPERM`.
    Vmcall,
    /// IN from a port that KVM emulates: the ELCR of its PIC.
    PioKernel,
    /// IN from a port where nothing is: the exit goes on to QEMU.
    PioUser,
    /// Load from KVM's own IOAPIC.
    MmioKernel,
    /// Load from a virtio-mmio device of QEMU.
    MmioUser,
    /// First touch of a page of RAM, an EPT violation that KVM resolves with a fresh page of the host. The guest's own
    /// page tables map it already.
    Ept,
    /// Interrupt from this vCPU to another that spins, until it has answered: `membarrier(2)` with one other thread.
    Ipi,
    /// Timer interrupt: what it takes away from a program that spins, exits to inject and to arm the next included.
    Timer,
}

impl Event {
    /// All of them; in this order they are best read.
    pub const ALL: [Event; 10] = [
        Event::Empty,
        Event::Cpuid,
        Event::Vmcall,
        Event::PioKernel,
        Event::PioUser,
        Event::MmioKernel,
        Event::MmioUser,
        Event::Ept,
        Event::Ipi,
        Event::Timer,
    ];

    /// Its name on the command line and in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Event::Empty => "empty",
            Event::Cpuid => "cpuid",
            Event::Vmcall => "vmcall",
            Event::PioKernel => "pio_kernel",
            Event::PioUser => "pio_user",
            Event::MmioKernel => "mmio_kernel",
            Event::MmioUser => "mmio_user",
            Event::Ept => "ept",
            Event::Ipi => "ipi",
            Event::Timer => "timer",
        }
    }

    fn find(name: &str) -> Option<Self> {
        Event::ALL.into_iter().find(|event| event.name() == name)
    }
}

/// How often an event is measured if nobody says.
pub const COUNT: u32 = 1000;

/// From an order to its first event.
const SETTLE: Duration = Duration::from_millis(100);

/// What a guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Measure an event so many times: `EVENT` or `EVENT:COUNT`; `all` or `all:COUNT` is every event.
    Measure(Event, u32),
    /// Take orders from the console until it is closed: `console`. The last step.
    Console,
}

impl Step {
    /// Reads a list such as `cpuid:5000,timer:50,console`.
    ///
    /// # Errors
    /// A sentence that names the word that is wrong and what it should be.
    pub fn parse(list: &str) -> Result<Vec<Self>, String> {
        let mut steps = Vec::new();
        for word in list.split(',') {
            let (name, count) = word.split_once(':').unwrap_or((word, ""));
            let count = match count {
                "" => COUNT,
                digits => (digits.parse().ok().filter(|count| *count > 0))
                    .ok_or_else(|| format!("{word}: give a count of at least 1"))?,
            };
            match (name, Event::find(name)) {
                ("console", _) => steps.push(Step::Console),
                ("all", _) => steps.extend(Event::ALL.map(|event| Step::Measure(event, count))),
                (_, Some(event)) => steps.push(Step::Measure(event, count)),
                _ => {
                    let known = Event::ALL.map(Event::name).join(", ");
                    return Err(format!("{word}: give one of {known}, all, console"));
                }
            }
        }
        Ok(steps)
    }
}

/// What an event cost: TSC ticks of one, less `empty`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    /// What was measured.
    pub event: Event,
    /// How often.
    pub iterations: u32,
    /// The cheapest.
    pub min: u64,
    /// As many were cheaper as dearer.
    pub median: u64,
    /// The average; interrupts of the guest and of its host are in it.
    pub mean: u64,
    /// The dearest.
    pub max: u64,
    /// What was subtracted: median of as many empty measurements, just before.
    pub empty: u64,
}

impl Measured {
    /// Sums up ticks of single events. `None` without any.
    #[must_use]
    pub fn new(event: Event, mut ticks: Vec<u64>, empty: u64) -> Option<Self> {
        ticks.sort_unstable();
        let (min, max) = (*ticks.first()?, *ticks.last()?);
        let median = *ticks.get(ticks.len() / 2)?;
        let mean = ticks.iter().sum::<u64>() / ticks.len() as u64;
        Some(Measured {
            event,
            iterations: u32::try_from(ticks.len()).ok()?,
            min: min.saturating_sub(empty),
            median: median.saturating_sub(empty),
            mean: mean.saturating_sub(empty),
            max: max.saturating_sub(empty),
            empty,
        })
    }
}

/// A line of the guest's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// An event was measured.
    Measured(Measured),
    /// An order cannot be carried out; the text says why.
    Error {
        /// Why.
        error: String,
    },
    /// The guest waits for orders; also the answer to an empty line.
    Ready {
        /// CPUs of the guest.
        cpus: usize,
    },
}

impl Line {
    fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
    }
}

/// Carries out the steps, in the guest's first process.
///
/// # Errors
/// The machine is not what the benchmarks need. An event that cannot be measured is a [`Line::Error`] instead.
pub fn run(steps: &[Step]) -> Result<()> {
    let mut bench = Bench::new()?;
    for step in steps {
        match step {
            Step::Measure(event, count) => answer(&mut bench, *event, *count).print()?,
            Step::Console => take_orders(&mut bench)?,
        }
    }
    setup::reboot()
}

fn take_orders(bench: &mut Bench) -> Result<()> {
    let ready = Line::Ready {
        cpus: bench.cpus().len(),
    };
    ready.print()?;
    for line in std::io::stdin().lock().lines() {
        let line = line.context("cannot read the console")?;
        if line.trim().is_empty() {
            ready.print()?;
            continue;
        }
        match Step::parse(line.trim()) {
            Ok(steps) => {
                // The kernel still echoes the order, a character per interrupt, maybe on the other CPU.
                std::thread::sleep(SETTLE);
                for step in steps {
                    if let Step::Measure(event, count) = step {
                        answer(bench, event, count).print()?;
                    }
                }
            }
            Err(error) => Line::Error { error }.print()?,
        }
    }
    bail!("the console was closed")
}

fn answer(bench: &mut Bench, event: Event, count: u32) -> Line {
    match bench.measure(event, count) {
        Ok(measured) => Line::Measured(measured),
        Err(error) => Line::Error {
            error: format!("{}: {error:#}", event.name()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_steps() {
        let steps = Step::parse("cpuid:7,ept,console").expect("a good list");
        assert_eq!(
            steps,
            [
                Step::Measure(Event::Cpuid, 7),
                Step::Measure(Event::Ept, COUNT),
                Step::Console
            ]
        );
        assert_eq!(Step::parse("all:2").map(|all| all.len()), Ok(10));
        for wrong in ["cpuid:0", "cpuid:x", "hlt", ""] {
            assert!(Step::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_are_those_of_json() {
        for event in Event::ALL {
            let json = serde_json::to_string(&event).expect("a name");
            assert_eq!(json, format!("{:?}", event.name()));
        }
    }

    #[test]
    fn ticks_are_summed_up_less_the_empty_loop() {
        let measured = Measured::new(Event::Cpuid, vec![9, 5, 105, 6, 5], 4).expect("five");
        let Measured {
            min, median, mean, max, ..
        } = measured;
        assert_eq!((min, median, mean, max), (1, 2, 22, 101));
        assert_eq!(Measured::new(Event::Cpuid, Vec::new(), 4), None);
    }

    #[test]
    fn lines_are_told_apart() {
        let measured = Measured::new(Event::Ipi, vec![5], 0).expect("one");
        for line in [
            Line::Measured(measured),
            Line::Error { error: "x".into() },
            Line::Ready { cpus: 2 },
        ] {
            let json = serde_json::to_string(&line).expect("JSON");
            assert_eq!(serde_json::from_str::<Line>(&json).expect("a line"), line);
        }
    }
}
