//! What a host asks of a guest that measures, and what it is answered.

use anyhow::Result;
use serde::{Deserialize, Serialize};

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
    /// Says it on the console.
    ///
    /// # Errors
    /// It is no JSON.
    pub fn print(&self) -> Result<()> {
        println!("{}", serde_json::to_string(self)?);
        Ok(())
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
