//! Every event in every state that can be reached, and no surprise.

use std::collections::{BTreeMap, VecDeque};

use partitioner::{
    Action, Course, CpuNumber, CpuRequest, Event, Generation, MemoryRequest, Partition, Refresh, Request, Role, State,
    plan,
};

use crate::lab;

const NAMES: [&str; 7] = ["plan", "start", "done", "failed", "abort", "died", "retry"];

fn events() -> [Event; 7] {
    let inventory = lab::inventory();
    let request = Request {
        cpus: CpuRequest::List(vec![CpuNumber(3)]),
        memory: MemoryRequest::Blocks(vec![lab::mem(0x6000_0000, 0x6800_0000)]),
        functions: vec![],
        ports: vec![],
        guests: vec!["redis".into()],
        ..lab::request()
    };
    // Small, so that all that can go wrong can be walked: two CPUs, one block each, no PCI.
    let mut inventory = inventory;
    inventory.cpus.retain(|cpu| [0, 3].contains(&cpu.number.0));
    inventory.blocks.retain(|block| block.range.start() >= 0x5800_0000);
    inventory.ram = vec![lab::mem(0x5800_0000, 0x6800_0000)];
    inventory.functions.clear();
    inventory.pins.clear();
    let made = plan(&inventory, &request).unwrap();
    [
        Event::Plan(Box::new((made, Partition::of(&inventory).unwrap()))),
        Event::Start,
        Event::Done,
        Event::Failed("a cause".into()),
        Event::Abort("the operator".into()),
        Event::SuccessorDied("triple fault".into()),
        Event::Retry,
    ]
}

/// The events that make sense, written down independently of the machine.
fn expected(refresh: &Refresh) -> Vec<&'static str> {
    let started = refresh.done().contains(&Action::StartSuccessor);
    let died = if started { &["died"][..] } else { &[] };
    let others: &[&str] = match (refresh.role(), refresh.state(), refresh.course()) {
        // The plan at hand is for generation 0.
        (Role::Incumbent, State::Idle, Course::Resting) if refresh.generation().0 > 0 => &[],
        (Role::Incumbent, State::Idle, Course::Resting) => &["plan"],
        (Role::Incumbent, State::Planned, Course::Resting) => &["plan", "start", "abort"],
        (Role::Incumbent, State::Retired, Course::Running) => &["done", "failed"],
        (Role::Incumbent, State::Retired, Course::Resting) => &[],
        (Role::Incumbent, _, Course::Running) => &["done", "failed", "abort"],
        (Role::Incumbent, _, Course::Aborting(_)) => &["done", "failed"],
        (Role::Incumbent, _, Course::Stuck { .. }) => &["retry"],
        (Role::Successor, State::Idle, Course::Resting) => &[],
        (Role::Successor, State::Handover, Course::Running) => &["done", "failed", "abort"],
        (Role::Successor, State::Handover, Course::Stuck { .. }) => &["abort", "retry"],
        (Role::Successor, State::Retired | State::Dormant, Course::Running) => &["done", "failed"],
        (Role::Successor, State::Retired | State::Dormant, Course::Stuck { .. }) => &["retry"],
        (role, state, course) => panic!("not reachable: {role:?} {state:?} {course:?}"),
    };
    let mut all: Vec<_> = others.iter().chain(died).copied().collect();
    all.sort();
    all
}

#[test]
#[cfg_attr(miri, ignore = "too many steps for an interpreter")]
fn every_event_in_every_reachable_state() {
    let events = events();
    let mut seen: BTreeMap<String, Refresh> = BTreeMap::new();
    let mut todo = VecDeque::from([Refresh::idle(Generation(0), vec![])]);
    let mut pairs = 0;
    while let Some(refresh) = todo.pop_front() {
        if seen.insert(format!("{refresh:?}"), refresh.clone()).is_some() {
            continue;
        }
        let mut accepted = Vec::new();
        for (event, name) in events.iter().zip(NAMES) {
            let mut next = refresh.clone();
            pairs += 1;
            match next.apply(event.clone()) {
                Ok(action) => {
                    accepted.push(name);
                    assert_eq!(action.as_ref(), next.next_action());
                    todo.push_back(next);
                }
                Err(refused) => {
                    assert_eq!(next, refresh, "{name} was refused ({refused}) but changed something");
                    assert!(refused.to_string().contains([':', ',']), "no remedy: {refused}");
                }
            }
        }
        accepted.sort();
        assert_eq!(accepted, expected(&refresh), "{}", refresh.summary());
        match Refresh::take_over(refresh.clone()) {
            Ok(successor) => {
                assert_eq!(refresh.next_action(), Some(&Action::Entrust));
                todo.push_back(successor);
            }
            Err(_) => assert_ne!(refresh.next_action(), Some(&Action::Entrust)),
        }
        // With a successor there is an heir.
        let started = refresh.role() == Role::Incumbent && refresh.done().contains(&Action::StartSuccessor);
        match Refresh::inherit(refresh, vec![], "the incumbent died".into()) {
            Ok(heir) => {
                assert!(started, "{}", heir.summary());
                assert_eq!(heir.next_action(), Some(&Action::TakeIncumbent));
                todo.push_back(heir);
            }
            Err(refused) => {
                assert!(!started);
                assert!(refused.to_string().contains("report it"), "{refused}");
            }
        }
    }
    let states = |role| {
        seen.values()
            .filter(move |r| r.role() == role)
            .map(|r| r.state() as usize)
    };
    let reached: std::collections::BTreeSet<usize> = states(Role::Incumbent).chain(states(Role::Successor)).collect();
    assert_eq!(reached.len(), 8, "every state is reached");
    println!("{} states, {pairs} pairs", seen.len());

    // From everywhere there is an end.
    for mut refresh in seen.into_values() {
        for _ in 0..100 {
            let event = match refresh.course() {
                Course::Stuck { .. } => Event::Retry,
                Course::Resting => break,
                _ => Event::Done,
            };
            refresh.apply(event).unwrap();
        }
        assert_eq!(*refresh.course(), Course::Resting, "{}", refresh.summary());
        assert!(matches!(refresh.state(), State::Idle | State::Planned | State::Retired));
    }
}

#[test]
fn a_plan_of_another_host_is_refused() {
    let [planned, ..] = events();
    let mut refresh = Refresh::idle(Generation(2), vec![]);
    let error = refresh.apply(planned).unwrap_err().to_string();
    assert!(error.contains("plan again"), "{error}");
}

#[test]
fn a_new_plan_forgets_the_last_failure() {
    let [planned, start, ..] = events();
    let mut refresh = Refresh::idle(Generation(0), vec![]);
    refresh.apply(planned.clone()).unwrap();
    refresh.apply(start).unwrap();
    refresh.apply(Event::Done).unwrap();
    refresh.apply(Event::Failed("a cause".into())).unwrap();
    refresh.apply(Event::Failed("another".into())).unwrap();
    assert_eq!(refresh.state(), State::Idle);
    assert!(refresh.last_error().unwrap().ends_with("another"));
    assert_eq!(refresh.losses().len(), 1, "the memory that did not come back");
    refresh.apply(planned).unwrap();
    assert_eq!((refresh.last_error(), refresh.losses().len()), (None, 0));
}

#[test]
fn a_refresh_from_end_to_end() {
    let [planned, start, ..] = events();
    let mut incumbent = Refresh::idle(Generation(0), vec![]);
    incumbent.apply(planned).unwrap();
    let mut states = vec![incumbent.state()];
    incumbent.apply(start).unwrap();
    while incumbent.next_action() != Some(&Action::Entrust) {
        incumbent.apply(Event::Done).unwrap();
        states.push(incumbent.state());
    }
    let mut successor = Refresh::take_over(incumbent).unwrap();
    while successor.next_action().is_some() {
        successor.apply(Event::Done).unwrap();
        states.push(successor.state());
    }
    states.dedup();
    let way = [
        State::Planned,
        State::Offloaded,
        State::Nested,
        State::SuccessorUp,
        State::Handover,
        State::Retired,
        State::Dormant,
        State::Idle,
    ];
    assert_eq!(states, way);
    assert_eq!(successor.generation(), Generation(1));
}

/// An older agent became native last. What it wrote down in the midst of its reclaim has all of that pending.
#[test]
#[cfg(feature = "serde")]
fn what_an_older_agent_had_begun_to_reclaim_is_not_begun_again() {
    let [planned, start, ..] = events();
    let mut incumbent = Refresh::idle(Generation(0), vec![]);
    incumbent.apply(planned).unwrap();
    incumbent.apply(start).unwrap();
    while incumbent.next_action() != Some(&Action::Entrust) {
        incumbent.apply(Event::Done).unwrap();
    }
    let mut successor = Refresh::take_over(incumbent).unwrap();
    let reclaims = |action: &Action| {
        matches!(
            action,
            Action::AddMemory { .. } | Action::OnlineCpu(_) | Action::AddPci(_)
        )
    };
    let mut reclaim = Vec::new();
    let mut new = successor.clone();
    while let Some(action) = new.next_action().cloned() {
        if reclaims(&action) {
            reclaim.push(action);
        }
        new.apply(Event::Done).unwrap();
    }
    while !matches!(successor.next_action(), Some(Action::LeaveNested(_))) {
        successor.apply(Event::Done).unwrap();
    }
    for failed in [false, true] {
        let mut written = serde_json::to_value(&successor).unwrap();
        written["pending"] = serde_json::to_value(&reclaim).unwrap();
        let mut old: Refresh = serde_json::from_value(written).unwrap();
        assert_eq!(old.state(), State::Retired);
        let mut asked = Vec::new();
        while let Some(action) = old.next_action().cloned() {
            let event = match failed && reclaims(&action) {
                true => Event::Failed("no more".into()),
                false => Event::Done,
            };
            asked.extend(reclaims(&action).then_some(action));
            old.apply(event).unwrap();
        }
        assert_eq!(asked, reclaim, "each once");
        assert_eq!((old.state(), old.generation()), (State::Idle, Generation(1)));
    }
    // And the state that came after it.
    let mut written = serde_json::to_value(&successor).unwrap();
    written["state"] = "reclaimed".into();
    written["pending"] = serde_json::json!([{ "leave_nested": 3 }]);
    let mut old: Refresh = serde_json::from_value(written).unwrap();
    assert!(matches!(old.next_action(), Some(Action::LeaveNested(_))));
    old.apply(Event::Done).unwrap();
    assert_eq!(old.state(), State::Idle);
}
