//! A model of the machine: what L0 enforces and what each Linux uses. It knows nothing of `Partition` and refuses an
//! action that hardware, L0 or Linux would refuse, so a wrong order of actions cannot pass.

use std::collections::{BTreeMap, BTreeSet};

use partitioner::{
    Action, ApicId, Event, Inventory, MemRange, Owner, PciAddress, Plan, Refresh, Resource, Role, Slot, Transfer,
    Unreclaimed,
};

use crate::{
    linux::{Linux, cut},
    pieces::Pieces,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    memory: Pieces,
    ports: Pieces,
    cpus: BTreeMap<ApicId, Owner>,
    functions: BTreeMap<PciAddress, Owner>,
    pins: BTreeMap<u32, Owner>,
    pub hosts: [Option<Linux>; 2],
    /// All there is, as first seen.
    all: Inventory,
    loaded: bool,
}

impl Machine {
    pub fn of(all: &Inventory, guests: &[String]) -> Self {
        let host = Owner::Host(all.generation.slot());
        let mut memory = Pieces::default();
        let mut put = |range: &MemRange, owner| memory.put(range.start(), range.end(), owner);
        own_ram(all).iter().for_each(|range| put(range, host));
        all.never_moves.iter().for_each(|range| put(range, Owner::Monitor));
        all.pool.iter().for_each(|range| put(range, Owner::Pool));
        all.unreclaimed.iter().for_each(|left| put(&left.range, Owner::Nobody));
        let bars = all.functions.iter().flat_map(|function| function.pages());
        let pages: BTreeSet<u64> = bars
            .flat_map(|range| (range.start()..range.end()).step_by(4096))
            .collect();
        pages.into_iter().for_each(|page| memory.put(page, page + 4096, host));
        let mut ports = Pieces::default();
        ports.put(0, 0x1_0000, host);
        let mut hosts = [None, None];
        hosts[all.generation.slot().index()] = Some(Linux::native(all.clone(), guests));
        Self {
            memory,
            ports,
            cpus: all.cpus.iter().map(|cpu| (cpu.apic, host)).collect(),
            functions: all.functions.iter().map(|function| (function.address, host)).collect(),
            pins: all.pins.iter().map(|pin| (pin.gsi.0, host)).collect(),
            hosts,
            all: all.clone(),
            loaded: false,
        }
    }

    pub fn linux(&self, slot: Slot) -> &Linux {
        self.hosts[slot.index()].as_ref().expect("the host runs")
    }

    fn host(&mut self, slot: Slot) -> &mut Linux {
        self.hosts[slot.index()].as_mut().expect("the host runs")
    }

    fn runs(&self, slot: Slot) -> bool {
        self.hosts[slot.index()].is_some()
    }

    pub fn owner_of(&self, at: u64) -> Option<Owner> {
        self.memory.at(at).map(|(_, owner)| owner)
    }

    /// What the host's agent would observe now, and what it could do without.
    pub fn inventory(&self, slot: Slot, unreclaimed: &[Unreclaimed], spare: u64) -> Inventory {
        Inventory {
            unreclaimed: unreclaimed.to_vec(),
            spare,
            ..self.linux(slot).sees.clone()
        }
    }

    /// The same machine whatever pieces its memory is counted in.
    pub fn tidy(self) -> Self {
        Self {
            memory: self.memory.tidy(),
            ports: self.ports.tidy(),
            ..self
        }
    }

    /// Performs what `refresh` asks for, as its agent would, and checks the whole machine.
    pub fn perform(&mut self, refresh: &Refresh, action: &Action) {
        let plan = refresh.plan().expect("an action belongs to a plan");
        let slot = match refresh.role() {
            Role::Incumbent => plan.incumbent(),
            Role::Successor => plan.successor(),
        };
        self.act(slot, plan, action);
        self.check();
    }

    /// Performs and reports until nothing is left to do, or `stop` says so.
    pub fn run(&mut self, refresh: &mut Refresh, stop: impl Fn(&Action) -> bool) {
        while let Some(action) = refresh.next_action().cloned() {
            if stop(&action) {
                break;
            }
            self.perform(refresh, &action);
            refresh
                .apply(Event::Done)
                .unwrap_or_else(|error| panic!("{action}: {error}"));
            self.agrees_with(refresh);
        }
    }

    fn act(&mut self, slot: Slot, plan: &Plan, action: &Action) {
        let own = Owner::Host(slot);
        let other = slot.other();
        match action {
            Action::RemoveMemory { range, online } => self.host(slot).remove_memory(*range, *online),
            Action::AddMemory { range, online } => {
                assert!(
                    self.memory.owned(range.start(), range.end(), own),
                    "{range} is not its own"
                );
                self.host(slot).add_memory(*range, *online);
            }
            Action::OfflineCpu(apic) => self.host(slot).switch_cpu(*apic, false),
            Action::OnlineCpu(apic) => {
                assert_eq!(self.cpus[apic], own);
                self.host(slot).switch_cpu(*apic, true);
            }
            Action::RemovePci(address) => self.host(slot).remove_function(*address),
            Action::AddPci(address) => {
                assert_eq!(self.functions[address], own);
                let function = self
                    .all
                    .functions
                    .iter()
                    .find(|function| function.address == *address)
                    .cloned();
                self.host(slot)
                    .find_function(function.expect("there is such a function"));
            }
            Action::LoadSuccessor => {
                assert!(
                    self.host(slot).nested.is_empty(),
                    "nested, it might not reach that memory"
                );
                assert!(!std::mem::replace(&mut self.loaded, true));
            }
            Action::WipeSuccessor => {
                assert!(!self.runs(other));
                assert!(std::mem::replace(&mut self.loaded, false));
            }
            Action::EnterNested(apic) => {
                assert!(self.linux(slot).runs_on(*apic), "{apic} is offline");
                assert!(self.host(slot).nested.insert(*apic), "{apic} is nested already");
            }
            Action::LeaveNested(apic) => {
                assert!(self.linux(slot).runs_on(*apic), "{apic} is offline");
                assert!(!self.runs(other), "unprotected from the other host");
                assert!(self.host(slot).nested.remove(apic), "{apic} is native already");
            }
            Action::Transfer(transfer) => self.transfer(slot, *transfer),
            Action::StartSuccessor => {
                assert!(self.loaded && !self.runs(other));
                // What it uses is checked to be its own, as after every action.
                self.hosts[other.index()] = Some(Linux::booted(&self.all, plan));
            }
            Action::StopSuccessor => self.power_off(other),
            Action::PowerOff | Action::TakeIncumbent => {
                let gone = if *action == Action::PowerOff { slot } else { other };
                self.power_off(gone);
                self.loaded = false;
            }
            Action::MoveGuest(name) => self.move_guest(name, slot, other),
            Action::ReturnGuest(name) => self.move_guest(name, other, slot),
            Action::AwaitSuccessor | Action::Entrust => assert!(self.runs(other)),
            Action::AwaitIncumbentGone => assert!(!self.runs(other)),
        }
    }

    fn power_off(&mut self, slot: Slot) {
        let gone = self.hosts[slot.index()].take().expect("it runs");
        assert!(gone.guests.is_empty(), "guests die with it: {:?}", gone.guests);
    }

    /// A host dies with all its guests.
    pub fn kill(&mut self, slot: Slot) {
        self.hosts[slot.index()] = None;
    }

    fn move_guest(&mut self, name: &str, from: Slot, to: Slot) {
        assert!(self.host(from).guests.remove(name), "{name} is not there");
        assert!(self.host(to).guests.insert(name.into()));
    }

    fn transfer(&mut self, slot: Slot, Transfer { resource, from, to }: Transfer) {
        assert!(
            to == Owner::Nobody || self.hosts.iter().flatten().all(Linux::all_nested),
            "nobody enforces it on a native CPU"
        );
        let other = Owner::Host(slot.other());
        assert!(
            !(from == other || to == other) || !self.runs(slot.other()),
            "from or to a host that runs"
        );
        match resource {
            Resource::Cpu(apic) => assert_eq!(self.cpus.insert(apic, to), Some(from)),
            Resource::Function(address) => {
                assert_eq!(self.functions.insert(address, to), Some(from))
            }
            Resource::Pin(gsi) => assert_eq!(self.pins.insert(gsi.0, to), Some(from)),
            Resource::Ports(range) => self
                .ports
                .give(range.first().into(), u64::from(range.last()) + 1, from, to),
            Resource::Memory(range) => self.memory.give(range.start(), range.end(), from, to),
        }
    }

    /// No host uses what it does not own.
    fn check(&self) {
        for linux in self.hosts.iter().flatten() {
            let own = Owner::Host(linux.slot());
            for cpu in linux.sees.online_cpus() {
                assert_eq!(self.cpus[&cpu.apic], own, "{}", cpu.apic);
            }
            let ram = own_ram(&linux.sees);
            let functions = || linux.sees.functions.iter().filter(|function| !function.bridge);
            for range in ram.into_iter().chain(functions().flat_map(|function| function.pages())) {
                assert!(self.memory.owned(range.start(), range.end(), own), "{range}");
            }
            for range in functions().flat_map(|function| function.ports()) {
                assert!(
                    self.ports.owned(range.first().into(), u64::from(range.last()) + 1, own),
                    "{range}"
                );
            }
            for function in functions() {
                assert_eq!(self.functions[&function.address], own, "{function}");
                if let Some(gsi) = function.gsi.filter(|_| function.driver.is_some()) {
                    assert_eq!(self.pins[&gsi.0], own, "{function}");
                }
            }
        }
    }

    /// The partition in the agent's state is the one that L0 enforces.
    fn agrees_with(&self, refresh: &Refresh) {
        let Some(partition) = refresh.partition() else {
            return;
        };
        for (start, end, owner) in self.memory.iter() {
            let range = MemRange::new(start, end).unwrap();
            assert_eq!(partition.owner(Resource::Memory(range)), Some(owner), "{range}");
        }
        for (&apic, &owner) in &self.cpus {
            assert_eq!(partition.owner(Resource::Cpu(apic)), Some(owner));
        }
    }
}

fn own_ram(inventory: &Inventory) -> Vec<MemRange> {
    inventory
        .never_moves
        .iter()
        .fold(inventory.ram.clone(), |ram, &never| cut(&ram, never))
}
