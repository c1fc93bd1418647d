//! What holds for any machine and any wish.

use std::cell::Cell;

use partitioner::{
    Action, Event, Inventory, MemoryRequest, Owner, Partition, Plan, PlanError, Refresh, Request, Resource, State, plan,
};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use crate::{arbitrary, machine::Machine};

/// Runs `test` on many machines and wishes; at least every tenth must have a plan, or the test says nothing.
fn for_all(cases: u32, test: impl Fn(&Inventory, &Request, Option<Plan>) -> Result<(), TestCaseError>) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let (tried, planned) = (Cell::new(0), Cell::new(0));
    let outcome = TestRunner::new(config).run(&arbitrary::both(), |(inventory, request)| {
        let made = plan(&inventory, &request).ok();
        tried.set(tried.get() + 1);
        planned.set(planned.get() + u32::from(made.is_some()));
        test(&inventory, &request, made)
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
    println!("{} of {} had a plan", planned.get(), tried.get());
    assert!(planned.get() * 10 > tried.get(), "{} of {}", planned.get(), tried.get());
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn no_resource_has_two_owners() {
    for_all(2000, |inventory, request, made| {
        let Some(made) = made else { return Ok(()) };
        let mut partition = Partition::of(inventory).unwrap();
        let (incumbent, successor) = (Owner::Host(made.incumbent()), Owner::Host(made.successor()));
        let before = partition.clone();
        let grants = made.grants();
        grants.iter().for_each(|&grant| partition.transfer(grant).unwrap());

        // The parts of the plan are disjoint: each is granted once, so all undone gives what was.
        let count = partition.owned_by(successor).len();
        prop_assert!(count > 0);
        let is = |resource, owner| partition.owner(resource) == Some(owner);
        prop_assert!(made.cpus.iter().all(|cpu| is(Resource::Cpu(cpu.apic), successor)));
        prop_assert!(made.kept_cpus.iter().all(|cpu| is(Resource::Cpu(cpu.apic), incumbent)));
        prop_assert!(made.memory.iter().all(|&range| is(Resource::Memory(range), successor)));
        prop_assert!(
            inventory
                .pool
                .iter()
                .all(|&range| is(Resource::Memory(range), Owner::Pool))
        );
        prop_assert!(
            inventory
                .never_moves
                .iter()
                .all(|&range| is(Resource::Memory(range), Owner::Monitor))
        );
        prop_assert!(
            made.reclaim
                .blocks
                .iter()
                .all(|block| is(Resource::Memory(block.range), incumbent))
        );
        prop_assert_eq!(
            partition.owned_by(Owner::Nobody),
            vec![],
            "the successor gets all of it"
        );

        prop_assert!(request.boot.fits(made.boot) && made.boot.end() <= inventory.entry_reach);
        prop_assert!(made.memory.iter().any(|range| range.contains(made.boot)));
        match &request.memory {
            MemoryRequest::Size(bytes) => prop_assert!(made.memory_bytes() >= *bytes),
            MemoryRequest::Blocks(ranges) => {
                prop_assert!(
                    ranges
                        .iter()
                        .all(|range| made.memory.iter().any(|m| m.contains(*range)))
                );
            }
        }
        for grant in grants.iter().rev() {
            partition.transfer(grant.reversed()).unwrap();
        }
        prop_assert_eq!(partition, before);
        Ok(())
    });
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn carried_out_it_ends_with_the_successor_owning_all() {
    for_all(500, |inventory, request, made| {
        let Some(made) = made else { return Ok(()) };
        let mut machine = Machine::of(inventory, &request.guests);
        let mut incumbent = Refresh::idle(inventory.generation, inventory.unreclaimed.clone());
        incumbent.plan_for(inventory, request).unwrap();
        incumbent.apply(Event::Start).unwrap();
        machine.run(&mut incumbent, |action| *action == Action::Entrust);
        let mut successor = Refresh::take_over(incumbent.clone()).unwrap();
        machine.run(&mut incumbent, |_| false);
        machine.run(&mut successor, |_| false);
        prop_assert_eq!(successor.state(), State::Idle);
        let sees = machine.inventory(made.successor(), successor.unreclaimed(), 0);
        let bytes = |inventory: &Inventory| {
            let never = |range: &partitioner::MemRange| {
                inventory
                    .never_moves
                    .iter()
                    .map(|n| n.end().min(range.end()).saturating_sub(n.start().max(range.start())))
                    .sum::<u64>()
            };
            let ram: u64 = inventory.ram.iter().map(|range| range.len() - never(range)).sum();
            ram + inventory.unreclaimed.iter().map(|left| left.range.len()).sum::<u64>()
        };
        prop_assert_eq!(bytes(&sees), bytes(inventory), "no byte is forgotten");
        prop_assert_eq!(&sees.functions, &inventory.functions);
        prop_assert_eq!(sees.online_cpus().count(), inventory.online_cpus().count());
        prop_assert!(Partition::of(&sees).is_ok());
        Ok(())
    });
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn undone_at_any_step_it_leaves_no_trace() {
    for_all(500, |inventory, request, made| {
        if made.is_none() {
            return Ok(());
        }
        let fresh = Machine::of(inventory, &request.guests);
        for stop in 0_u32.. {
            let mut machine = fresh.clone();
            let mut refresh = Refresh::idle(inventory.generation, inventory.unreclaimed.clone());
            refresh.plan_for(inventory, request).unwrap();
            refresh.apply(Event::Start).unwrap();
            let left = Cell::new(stop);
            machine.run(&mut refresh, |action| {
                let over = left.get() == 0 || *action == Action::PowerOff;
                left.set(left.get().saturating_sub(1));
                over
            });
            if refresh.state() == State::Retired {
                break;
            }
            refresh.apply(Event::Abort("the operator".into())).unwrap();
            machine.run(&mut refresh, |_| false);
            prop_assert_eq!(refresh.state(), State::Idle);
            prop_assert_eq!(refresh.unreclaimed(), &inventory.unreclaimed);
            prop_assert_eq!(machine.tidy(), fresh.clone().tidy());
        }
        Ok(())
    });
}

/// What a refusal says could be had, can be had.
#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn the_remedy_works() {
    for_all(2000, |inventory, request, _| {
        let mut request = request.clone();
        request.boot.kernel_init = 0;
        match plan(inventory, &request) {
            Err(PlanError::TooMuchMemory { could, .. }) => {
                request.memory = MemoryRequest::Size(could);
                let again = plan(inventory, &request);
                prop_assert!(
                    matches!(
                        again,
                        Ok(_) | Err(PlanError::TooSmallToBoot { longest: 0, .. } | PlanError::OutOfReach { .. })
                    ),
                    "{:?}",
                    again
                );
            }
            Err(PlanError::LastCpu { online, .. }) if online > 1 => {
                request.cpus = partitioner::CpuRequest::Count(online - 1);
                let again = plan(inventory, &request);
                prop_assert!(!matches!(again, Err(PlanError::LastCpu { .. })), "{:?}", again);
            }
            Err(error) => {
                let text = error.to_string();
                prop_assert!(
                    !text.contains("inconsistent") && !text.contains("also belongs"),
                    "{}",
                    text
                );
            }
            Ok(_) => {}
        }
        Ok(())
    });
}
