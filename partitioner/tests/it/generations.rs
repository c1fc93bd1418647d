//! Refresh after refresh on the lab's machine.

use partitioner::{
    Action, CpuRequest, Event, Generation, Inventory, Loss, MemRange, MemoryRequest, Owner, Refresh, Request, Role,
    Slot, State, StayingPorts, plan,
};

use crate::{
    lab::{self, MIB, mem},
    machine::Machine,
};

/// Carries a refresh out from plan to end, both sides, and returns the successor's state.
fn refresh(machine: &mut Machine, mut incumbent: Refresh, inventory: &Inventory, request: &Request) -> Refresh {
    let slot = incumbent.generation().slot();
    incumbent
        .plan_for(inventory, request)
        .unwrap_or_else(|error| panic!("{error}"));
    incumbent.apply(Event::Start).unwrap();
    machine.run(&mut incumbent, |action| *action == Action::Entrust);
    assert_eq!(incumbent.state(), State::Handover);
    let mut successor = Refresh::take_over(incumbent.clone()).unwrap();
    machine.run(&mut incumbent, |_| false);
    assert_eq!(incumbent.state(), State::Retired);
    assert_eq!(incumbent.progress().done, incumbent.progress().total);
    assert!(machine.hosts[slot.index()].is_none());
    let total = successor.progress().total;
    let mut steps = 0;
    while let Some(action) = successor.next_action().cloned() {
        machine.perform(&successor, &action);
        steps += 1;
        successor.apply(Event::Done).unwrap();
    }
    assert_eq!(steps, total);
    assert_eq!((successor.state(), successor.role()), (State::Idle, Role::Incumbent));
    assert_eq!(successor.generation(), inventory.generation.next());
    let linux = machine.linux(slot.other());
    assert!(linux.nested.is_empty(), "still nested: {:?}", linux.nested);
    assert!(linux.sees.cpus.iter().all(|cpu| cpu.online));
    assert_eq!(linux.guests.len(), request.guests.len());
    successor
}

fn bytes(refresh: &Refresh) -> u64 {
    refresh.unreclaimed().iter().map(|left| left.range.len()).sum()
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn six_generations_lose_nothing() {
    let mut inventory = lab::inventory();
    let mut request = lab::request();
    let mut machine = Machine::of(&inventory, &request.guests);
    let mut state = Refresh::idle(Generation(0), vec![]);
    let block_0 = mem(10 * MIB, 128 * MIB);
    for generation in 0..6 {
        let gen_now = Generation(generation);
        let made = plan(&inventory, &request).unwrap_or_else(|error| panic!("{gen_now}: {error}"));
        if generation % 2 == 1 {
            assert_eq!(
                made.unreclaimed[0].range, block_0,
                "{gen_now} gives its successor what the last one left"
            );
            assert!(
                made.boot.contains(block_0),
                "and the successor boots there, so that blocks stay movable"
            );
            assert_eq!(made.unreclaimed_bytes(), 0);
        } else {
            assert_eq!(made.reclaim.unreclaimed[0].range, block_0);
        }
        state = refresh(&mut machine, state, &inventory, &request);
        assert_eq!(
            bytes(&state),
            if generation % 2 == 0 { 118 * MIB } else { 0 },
            "after {gen_now}"
        );

        // The next one: as many CPUs and as much memory, wherever it is; the other NIC; the other console.
        let next = state.generation();
        inventory = machine.inventory(next.slot(), state.unreclaimed(), 1024 * MIB);
        inventory.staying_ports = vec![StayingPorts {
            ports: lab::console(next),
            user: "the console".into(),
        }];
        request.cpus = CpuRequest::Count(2);
        request.memory = MemoryRequest::Size(512 * MIB);
        request.ports = vec![lab::console(next.next())];
        assert_eq!(inventory.functions.len(), 5);
        let ram: u64 = inventory.ram.iter().map(|range| range.len()).sum();
        let all = 0x6800_0000 - 10 * MIB;
        assert_eq!(
            ram + bytes(&state),
            all + if generation == 7 { 1 } else { 0 },
            "{next} has all there is"
        );
    }
    assert_eq!(state.generation(), Generation(6));
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn two_cpus_are_enough() {
    let mut inventory = lab::inventory();
    inventory.cpus.truncate(2);
    let mut request = lab::request();
    request.cpus = CpuRequest::Count(1);
    let mut machine = Machine::of(&inventory, &request.guests);
    let state = refresh(&mut machine, Refresh::idle(Generation(0), vec![]), &inventory, &request);
    assert_eq!(state.generation(), Generation(1));
}

/// What the successor could not add is nobody's, is reported, and serves the next successor.
#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn what_could_not_be_added_is_not_forgotten() {
    let inventory = lab::inventory();
    let request = lab::request();
    let mut machine = Machine::of(&inventory, &request.guests);
    let mut incumbent = Refresh::idle(Generation(0), vec![]);
    incumbent.plan_for(&inventory, &request).unwrap();
    incumbent.apply(Event::Start).unwrap();
    machine.run(&mut incumbent, |action| *action == Action::Entrust);
    let mut successor = Refresh::take_over(incumbent.clone()).unwrap();
    machine.run(&mut incumbent, |_| false);

    let bad = MemRange::with_len(3 * lab::BLOCK, lab::BLOCK).unwrap();
    machine.run(
        &mut successor,
        |action| matches!(action, Action::AddMemory { range, .. } if *range == bad),
    );
    successor.apply(Event::Failed("out of memory".into())).unwrap();
    machine.run(&mut successor, |action| matches!(action, Action::OnlineCpu(_)));
    successor.apply(Event::Failed("no answer".into())).unwrap();
    machine.run(&mut successor, |_| false);

    assert_eq!(successor.state(), State::Idle);
    assert_eq!(successor.losses()[0], Loss::Memory(bad));
    assert!(matches!(successor.losses()[1], Loss::Cpu(_)));
    assert!(successor.last_error().unwrap().contains("no answer"));
    assert_eq!(machine.owner_of(bad.start()), Some(Owner::Nobody));
    assert!(successor.unreclaimed().iter().any(|left| left.range == bad));

    let mut next = machine.inventory(Slot::Odd, successor.unreclaimed(), 1024 * MIB);
    next.staying_ports.clear();
    let request = Request {
        cpus: CpuRequest::Count(1),
        memory: MemoryRequest::Size(256 * MIB),
        ..request
    };
    let request = Request {
        ports: vec![lab::console(Generation(2))],
        ..request
    };
    let made = plan(&next, &request).unwrap();
    assert_eq!(
        made.blocks.len(),
        1,
        "two pieces for nothing, one block to reach the size"
    );
    assert_eq!(made.memory_bytes(), (118 + 128 + 128) * MIB);
}

/// An incumbent that neither powers off nor takes its guests back is taken by force, once.
#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn an_incumbent_that_hangs_is_taken() {
    let inventory = lab::inventory();
    let request = lab::request();
    let mut machine = Machine::of(&inventory, &request.guests);
    let mut incumbent = Refresh::idle(Generation(0), vec![]);
    incumbent.plan_for(&inventory, &request).unwrap();
    incumbent.apply(Event::Start).unwrap();
    machine.run(&mut incumbent, |action| *action == Action::Entrust);
    let mut successor = Refresh::take_over(incumbent).unwrap();
    let next = successor.apply(Event::Failed("no sign of it for 30 s".into())).unwrap();
    assert_eq!(next, Some(Action::TakeIncumbent));
    assert_eq!(successor.apply(Event::Failed("L0 is busy".into())).unwrap(), None);
    assert!(successor.summary().contains("stuck"), "{}", successor.summary());
    assert_eq!(successor.apply(Event::Retry).unwrap(), Some(Action::TakeIncumbent));
    machine.run(&mut successor, |_| false);
    assert_eq!(
        (successor.state(), successor.generation()),
        (State::Idle, Generation(1))
    );
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn whoever_was_told_of_it_goes_on_without_the_incumbent() {
    let inventory = lab::inventory();
    let request = Request {
        guests: vec!["one".into(), "two".into()],
        ..lab::request()
    };
    let first = |action: &Action| matches!(action, Action::MoveGuest(name) if name == "one");
    let second = |action: &Action| matches!(action, Action::MoveGuest(name) if name == "two");
    type When<'a> = &'a dyn Fn(&Action) -> bool;
    for (until, lost) in [(&first as When<'_>, &["one", "two"][..]), (&second, &["two"])] {
        let mut machine = Machine::of(&inventory, &request.guests);
        let mut incumbent = Refresh::idle(Generation(0), vec![]);
        incumbent.plan_for(&inventory, &request).unwrap();
        incumbent.apply(Event::Start).unwrap();
        machine.run(&mut incumbent, |action| *action == Action::AwaitSuccessor);
        // What it was told when it came up.
        let told = incumbent.to_send();
        machine.run(&mut incumbent, until);
        let losses: Vec<Loss> = lost.iter().map(|name| Loss::Left((*name).into())).collect();
        machine.hosts[Slot::Even.index()].as_mut().unwrap().guests.clear();
        let mut heir = Refresh::inherit(told, losses.clone(), "it died".into()).unwrap();
        let total = heir.progress().total;
        machine.run(&mut heir, |_| false);
        assert_eq!((heir.state(), heir.generation()), (State::Idle, Generation(1)));
        assert_eq!((heir.losses(), heir.last_error()), (losses.as_slice(), Some("it died")));
        assert_eq!(heir.progress().done, 0);
        assert!(total > 10, "nearly all is still to be reclaimed: {total}");
        let linux = machine.linux(Slot::Odd);
        assert!(linux.nested.is_empty() && linux.sees.cpus.iter().all(|cpu| cpu.online));
        assert_eq!(linux.guests.len(), 2 - lost.len());
        assert!(heir.losses()[0].to_string().contains("start it anew"));
    }
}
