//! What the machine's AML (its DSDT and SSDTs) uses: operation regions, and where interrupts of PCI devices go.
//!
//! AML is a program. To list what it declares it must be run, by the interpreter of the crate `acpi`, which panics on
//! what it does not know (release 6.1.1 gives up on AccessAs, index fields and Match) and may loop for ever. So it runs
//! in a process of its own ([`child`]), which has limits on time and memory and touches no hardware ([`interpreter`]).
//! Where that process dies, what it had found until then counts, and the table is named as unread.
//!
//! # What is not known
//! - Regions that a method declares when it runs.
//! - Where a region lies whose address the firmware computes from memory, which here reads as zero
//!   ([`crate::inventory::firmware`] tells such addresses from others).

mod child;
mod files;
mod interpreter;
pub(crate) mod listing;

use std::collections::BTreeMap;

use crate::sysroot::SysRoot;
use files::{DIR, DSDT, tables};
pub use interpreter::main;
#[cfg(test)]
use listing::Route;
use listing::{Line, Outcome};
pub use listing::{Listing, Region, Routing, Space, Wire};

/// How often the process is started again without what it died of.
const TRIES: usize = 5;

/// Lists what the AML of this host's tables uses.
pub fn list(sys: &SysRoot) -> Listing {
    if tables(sys).first().is_none_or(|name| name != DSDT) {
        return Listing {
            unread: vec![format!("{DSDT}: not in /{DIR}")],
            ..Listing::default()
        };
    }
    gather(|skip| interpret(sys, skip))
}

#[cfg(not(test))]
fn interpret(sys: &SysRoot, skip: &[String]) -> Outcome {
    /// The program that runs, even if its file was replaced since.
    const ITSELF: &str = "/proc/self/exe";
    /// How long the process may take for all tables; real ones take a fraction of a second.
    const LIMIT: std::time::Duration = std::time::Duration::from_secs(10);
    child::run(sys, ITSELF, skip, LIMIT)
}

/// The program that runs unit tests is not `locum`: there the interpreter runs within.
#[cfg(test)]
fn interpret(sys: &SysRoot, skip: &[String]) -> Outcome {
    interpreter::outcome(sys, skip)
}

/// Runs the interpreter until it comes to its end, each time without what it died of before.
fn gather(mut run: impl FnMut(&[String]) -> Outcome) -> Listing {
    let mut skip: Vec<String> = Vec::new();
    let (mut regions, mut routing) = (BTreeMap::new(), BTreeMap::new());
    let mut deaths: Vec<String> = Vec::new();
    let failures = loop {
        let mut step = String::new();
        let mut failures = Vec::new();
        let outcome = run(&skip);
        for line in outcome.lines {
            match line {
                Line::Next(next) => step = next,
                Line::Failed(error) => failures.push((step.clone(), error)),
                Line::Region(region) => drop(regions.insert(region.path.clone(), region)),
                Line::Routing(table) => drop(routing.insert(table.bridge.clone(), table)),
                Line::End => {}
            }
        }
        let Some(died) = outcome.died else {
            break failures;
        };
        // What it said last is why it died.
        let last = failures.pop_if(|(failed, _)| *failed == step);
        deaths.push(format!("{step}: {}", last.map_or(died, |(_, error)| error)));
        if step == DSDT {
            deaths.push("the tables after it: not read, for they stand in it".to_owned());
            break failures;
        }
        if step.is_empty() || skip.contains(&step) || deaths.len() == TRIES {
            deaths.push("what comes after it: not read".to_owned());
            break failures;
        }
        skip.push(step);
    };
    let failures = failures.into_iter().map(|(step, error)| format!("{step}: {error}"));
    Listing {
        regions: regions.into_values().collect(),
        routing: routing.into_values().collect(),
        unread: deaths.into_iter().chain(failures).collect(),
    }
}

#[cfg(test)]
mod tests;
