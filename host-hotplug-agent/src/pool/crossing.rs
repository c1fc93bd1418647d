//! The guests of a refresh in the pool's table: entered before it begins, crossing while their state is on its way.

use std::cell::LazyCell;

use locum_abi::HostState;
use locum_abi::pool::PoolState;

use super::Keeper;
use super::table::{ClaimError, Entry, Uuid};
use crate::error::Refusal;
use crate::guest::Spec;
use crate::guest::pool::Pool;
use crate::l0::view;
use crate::machine::Machine;
use crate::refresh::Agent;

impl Keeper<'_> {
    /// The entries of a guest's RAM. Where there is none yet, the range and nothing.
    ///
    /// # Errors
    /// If another guest has some of it.
    fn of_guest(&self, spec: &Spec) -> Result<Vec<(partitioner::MemRange, Option<Entry>)>, Refusal> {
        let entries = self
            .extents
            .entries()
            .map_err(|why| refused(spec, &ClaimError::from(why)))?;
        let uuid = spec.uuid.as_deref().and_then(Uuid::parse).unwrap_or_default();
        let ranges = spec.ram.iter().filter_map(crate::guest::Ram::range);
        // Looking at all processes is dear, and hardly ever needed.
        let all = LazyCell::new(|| self.seen());
        let mut his = Vec::new();
        for range in ranges {
            let overlapping = || entries.iter().filter(|entry| entry.extent.range.overlaps(range));
            let is_his = |entry: &&Entry| {
                let known = &entry.extent;
                let unnamed = !uuid.is_known() || !known.uuid.is_known();
                known.range == range && (known.uuid == uuid || unnamed || known.name == spec.name)
            };
            let stranger = overlapping().find(|entry| !is_his(entry) && !self.is_stale(entry, &all));
            if let Some(stranger) = stranger {
                let known = &stranger.extent;
                let problem = format!(
                    "its RAM at {range} overlaps {} of guest {} (UUID {})",
                    known.range, known.name, known.uuid
                );
                return Err(refused(spec, &problem));
            }
            his.push((range, overlapping().find(is_his).cloned()));
        }
        Ok(his)
    }
}

/// Looks whether all guests have their RAM for themselves. Nothing changes.
///
/// # Errors
/// [`Refusal::PoolTable`].
pub fn check(machine: &dyn Machine, guests: &[Spec]) -> Result<(), Refusal> {
    for (index, one) in guests.iter().enumerate() {
        let others = guests.iter().skip(index + 1);
        for other in others {
            let ranges = |spec: &Spec| -> Vec<_> { spec.ram.iter().filter_map(crate::guest::Ram::range).collect() };
            let theirs = ranges(other);
            if let Some(range) = ranges(one)
                .into_iter()
                .find(|range| theirs.iter().any(|other| other.overlaps(*range)))
            {
                let problem = format!("its RAM at {range} overlaps that of guest {}", other.name);
                return Err(refused(one, &problem));
            }
        }
    }
    match keeper(machine) {
        Some(keeper) => guests.iter().try_for_each(|spec| keeper.of_guest(spec).map(drop)),
        None => Ok(()),
    }
}

/// Enters those of the guests that were started by hand.
///
/// # Errors
/// [`Refusal::PoolTable`].
pub fn enter(machine: &dyn Machine, guests: &[Spec]) -> Result<(), Refusal> {
    let Some(keeper) = keeper(machine) else {
        return Ok(());
    };
    for spec in guests {
        for (range, entry) in keeper.of_guest(spec)? {
            let uuid = spec.uuid.as_deref().and_then(Uuid::parse).unwrap_or_default();
            if entry.is_none() {
                keeper
                    .enter(range, &spec.name, uuid, &keeper.seen())
                    .map_err(|error| refused(spec, &error))?;
            }
        }
    }
    Ok(())
}

/// Says of a guest's RAM that it is in use by this host, or on its way from it.
///
/// # Errors
/// If the table does not have it.
pub fn mark(machine: &dyn Machine, spec: &Spec, state: PoolState) -> Result<(), Refusal> {
    let Some(keeper) = keeper(machine) else {
        return Ok(());
    };
    for (range, entry) in keeper.of_guest(spec)? {
        let entry = entry.ok_or_else(|| refused(spec, &format!("the pool's table lacks its RAM at {range}")))?;
        if entry.state == state && entry.word.slot() == machine.facts().slot {
            continue;
        }
        let known = matches!(entry.state, PoolState::Used | PoolState::Crossing);
        let moved = known && keeper.extents.settle(&entry, state, machine.facts().slot).is_some();
        if !moved {
            return Err(refused(spec, &ClaimError::Contended));
        }
    }
    Ok(())
}

/// As [`mark`], where the guest runs already: what cannot be noted is told, and mended once the other host is gone.
pub fn runs_here(agent: &Agent, spec: &Spec) {
    if let Err(error) = mark(&*agent.machine, spec, PoolState::Used) {
        tracing::warn!("{error}");
    }
}

/// Brings to an end what was begun by those that are no more.
pub fn mend(machine: &dyn Machine) {
    drop(keeper(machine));
}

fn refused(spec: &Spec, problem: &dyn std::fmt::Display) -> Refusal {
    Refusal::PoolTable {
        guest: spec.name.clone(),
        problem: problem.to_string(),
    }
}

fn keeper(machine: &dyn Machine) -> Option<Keeper<'_>> {
    let facts = machine.facts();
    let extents = machine.extents()?;
    let other = machine.host(facts.slot.other()).ok();
    let other = other.and_then(|host| HostState::from_raw(host.state));
    let beside_another = other.is_none_or(view::is_there);
    match Keeper::new(
        machine.sys(),
        &Pool::of(&facts.header),
        extents,
        facts.slot,
        beside_another,
    ) {
        Ok(keeper) => Some(keeper),
        Err(error) => {
            tracing::warn!("the pool's table: {error:#}");
            None
        }
    }
}
