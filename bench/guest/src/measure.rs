//! Micro-benchmarks that a guest runs on itself: what one event that leaves it costs, in ticks of its TSC.
//!
//! The guest is told by its command line what to measure (`lab.measure=`, see [`Step`]) and prints one line of JSON
//! ([`orders::Measured`]) for each. With `console` it goes on to take orders from its console, one `EVENT[:COUNT]` per line, so
//! that a host can read its own counters before and after each event: [`client`] is the host's side.
//!
//! In the lab's emulator ticks are instructions: what a tick costs in time is not told by it. Everything runs in user
//! mode as root, with the ports of the machine (iopl) and `/dev/mem`.

pub mod client;
mod events;
pub mod orders;
mod timing;

use anyhow::{Context, Result, bail};
use events::Bench;
use orders::{Event, Line, Step};
use std::io::BufRead;
use std::time::Duration;

/// From an order to its first event.
const SETTLE: Duration = Duration::from_millis(100);

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
    Ok(())
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
