//! Abort at every step: what was done is undone in reverse, and the machine is as it was.

use partitioner::{Action, Event, Generation, Loss, Refresh, Refused, Slot, State};

use crate::{lab, machine::Machine};

/// A refresh of the lab's machine after `steps` actions; `None` if it is over before.
pub fn after(steps: usize) -> Option<(Machine, Refresh)> {
    let (inventory, request) = (lab::inventory(), lab::request());
    let mut machine = Machine::of(&inventory, &request.guests);
    let mut refresh = Refresh::idle(Generation(0), vec![]);
    refresh.plan_for(&inventory, &request).unwrap();
    refresh.apply(Event::Start).unwrap();
    for _ in 0..steps {
        let action = refresh.next_action().cloned()?;
        if action == Action::PowerOff {
            return None;
        }
        machine.perform(&refresh, &action);
        refresh.apply(Event::Done).unwrap();
    }
    Some((machine, refresh))
}

fn fresh() -> Machine {
    Machine::of(&lab::inventory(), &lab::request().guests)
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn abort_at_every_step_undoes_all_in_reverse() {
    let steps = (0..)
        .map_while(after)
        .filter(|(_, refresh)| refresh.state() < State::Retired)
        .count();
    assert!(steps > 25, "only {steps} steps");
    for step in 0..steps {
        for event in [Event::Abort("the operator".into()), Event::Failed("a cause".into())] {
            let (mut machine, mut refresh) = after(step).unwrap();
            let expected: Vec<Action> = refresh.done().iter().rev().filter_map(Action::undo).collect();
            refresh.apply(event.clone()).unwrap();
            let mut undone = Vec::new();
            while let Some(action) = refresh.next_action().cloned() {
                machine.perform(&refresh, &action);
                undone.push(action);
                refresh.apply(Event::Done).unwrap();
            }
            assert_eq!(undone, expected, "step {step}");
            assert_eq!(machine.tidy(), fresh().tidy(), "step {step}, {event:?}");
            assert_eq!((refresh.state(), refresh.generation()), (State::Idle, Generation(0)));
            assert!(refresh.last_error().is_some() && refresh.losses().is_empty());
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn after_the_point_of_no_return_there_is_no_abort() {
    let last = (0..).map_while(after).last().unwrap().1;
    assert_eq!(last.next_action(), Some(&Action::PowerOff));
    let mut refresh = last.clone();
    assert_eq!(
        refresh.apply(Event::Abort("too late".into())),
        Err(Refused::PointOfNoReturn)
    );
    assert_eq!(refresh, last);
}

/// The successor dies at any moment, even when it is in charge already: the guests in it are lost, nothing else is.
#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn a_dead_successor_costs_its_guests_only() {
    let mut died = 0;
    for (mut machine, mut refresh) in (0..).map_while(after) {
        let running = refresh.done().contains(&Action::StartSuccessor);
        let there: Vec<Loss> = machine.hosts[1]
            .iter()
            .flat_map(|l| l.guests.iter().cloned().map(Loss::Guest))
            .collect();
        let result = refresh.apply(Event::SuccessorDied("triple fault".into()));
        if !running {
            assert_eq!(result, Err(Refused::NoSuccessor));
            continue;
        }
        died += 1;
        // L0 has stopped its CPUs; taking them once more does no harm, and is what the list says.
        let Some(Action::StopSuccessor) = result.unwrap() else {
            panic!("not stopped first")
        };
        machine.kill(Slot::Odd);
        refresh.apply(Event::Done).unwrap();
        machine.run(&mut refresh, |_| false);
        assert_eq!(refresh.losses(), there);
        let mut guests = fresh();
        let left = guests.hosts[0].as_mut().unwrap();
        left.guests.retain(|name| !there.contains(&Loss::Guest(name.clone())));
        assert_eq!(machine.tidy(), guests.tidy());
    }
    assert_eq!(died, 5, "waiting, two guests, entrusting, powering off");
}

/// While going back, what is only missing is reported; what others depend on is waited for.
#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn a_failure_on_the_way_back() {
    let (_, ready) = (0..)
        .map_while(after)
        .find(|(_, r)| r.state() == State::Handover)
        .unwrap();
    let undos = ready.done().iter().filter_map(Action::undo).count();
    for bad in 0..undos {
        let mut refresh = ready.clone();
        let mut next = refresh.apply(Event::Abort("the operator".into())).unwrap();
        for _ in 0..bad {
            next = refresh.apply(Event::Done).unwrap();
        }
        let failing = next.unwrap();
        let after = refresh.apply(Event::Failed("a cause".into())).unwrap();
        match failing {
            Action::ReturnGuest(_) | Action::StopSuccessor | Action::Transfer(_) => {
                assert_eq!(after, None);
                assert!(refresh.summary().contains("a cause"));
                assert_eq!(refresh.apply(Event::Done), Err(Refused::NothingPending));
                assert_eq!(refresh.apply(Event::Retry).unwrap(), Some(failing));
            }
            _ => assert_eq!(refresh.losses().len(), 1, "{failing}"),
        }
        while refresh.next_action().is_some() {
            refresh.apply(Event::Done).unwrap();
        }
        assert_eq!(refresh.state(), State::Idle, "{}", refresh.summary());
    }
}

#[cfg(feature = "serde")]
#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn the_state_survives_being_written_down_at_every_step() {
    for (_, refresh) in (0..).map_while(after) {
        let text = serde_json::to_string(&refresh).unwrap();
        assert_eq!(serde_json::from_str::<Refresh>(&text).unwrap(), refresh);
        if refresh.next_action() == Some(&Action::Entrust) {
            let successor = Refresh::take_over(serde_json::from_str(&text).unwrap()).unwrap();
            let text = serde_json::to_string(&successor).unwrap();
            assert_eq!(serde_json::from_str::<Refresh>(&text).unwrap(), successor);
        }
    }
    let inventory = serde_json::to_string(&lab::inventory()).unwrap();
    assert_eq!(
        serde_json::from_str::<partitioner::Inventory>(&inventory).unwrap(),
        lab::inventory()
    );
    assert!(serde_json::from_str::<partitioner::MemRange>("\"0x2-0x1\"").is_err());
}
