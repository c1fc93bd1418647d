//! A model of the machine: what L0 enforces and what each Linux uses. It knows nothing of `Partition` and refuses an
//! action that hardware, L0 or Linux would refuse, so a wrong order of actions cannot pass.

use std::collections::{BTreeMap, BTreeSet};

use partitioner::{
    Action, ApicId, Bar, BlockState, Cpu, CpuNumber, Event, Inventory, MemRange, MemoryBlock,
    Owner, PciAddress, Plan, Refresh, Resource, Role, Slot, Transfer, Unreclaimed,
};

/// One Linux, and what it uses.
#[derive(Clone, Debug, PartialEq)]
pub struct Linux {
    pub sees: Inventory,
    /// What it had before it gave it away, so that it finds it again as it was.
    past: Inventory,
    pub nested: BTreeSet<ApicId>,
    pub guests: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// All physical memory that has an owner, in pieces that do not overlap.
    memory: BTreeMap<u64, (u64, Owner)>,
    cpus: BTreeMap<ApicId, Owner>,
    functions: BTreeMap<PciAddress, Owner>,
    ports: Vec<Owner>,
    pins: BTreeMap<u32, Owner>,
    pub hosts: [Option<Linux>; 2],
    /// Every PCI function there is, as first seen.
    all: Inventory,
    loaded: bool,
}

impl Machine {
    pub fn of(inventory: &Inventory, guests: &[String]) -> Self {
        let host = Owner::Host(inventory.generation.slot());
        let mut memory = BTreeMap::new();
        let never: Vec<MemRange> = inventory.never_moves.clone();
        let own = |range: &MemRange| {
            never
                .iter()
                .fold(vec![(range.start(), range.end())], |pieces, never| {
                    let cut = |(start, end): (u64, u64)| {
                        [
                            (start, end.min(never.start())),
                            (start.max(never.end()), end),
                        ]
                        .into_iter()
                        .filter(|(s, e)| s < e)
                    };
                    pieces.into_iter().flat_map(cut).collect()
                })
        };
        let mut put =
            |start: u64, end: u64, owner| assert_eq!(memory.insert(start, (end, owner)), None);
        inventory
            .ram
            .iter()
            .flat_map(own)
            .for_each(|(start, end)| put(start, end, host));
        inventory
            .never_moves
            .iter()
            .for_each(|r| put(r.start(), r.end(), Owner::Monitor));
        inventory
            .pool
            .iter()
            .for_each(|r| put(r.start(), r.end(), Owner::Pool));
        inventory
            .unreclaimed
            .iter()
            .for_each(|l| put(l.range.start(), l.range.end(), Owner::Nobody));
        let pages: BTreeSet<u64> = inventory
            .functions
            .iter()
            .flat_map(|f| f.pages())
            .flat_map(|r| (r.start()..r.end()).step_by(4096))
            .collect();
        pages
            .into_iter()
            .for_each(|page| put(page, page + 4096, host));
        let sees = inventory.clone();
        let guests = guests.iter().cloned().collect();
        let linux = Linux {
            past: sees.clone(),
            sees,
            nested: BTreeSet::new(),
            guests,
        };
        let mut hosts = [None, None];
        hosts[inventory.generation.slot().index()] = Some(linux);
        Self {
            memory,
            cpus: inventory.cpus.iter().map(|cpu| (cpu.apic, host)).collect(),
            functions: inventory
                .functions
                .iter()
                .map(|f| (f.address, host))
                .collect(),
            ports: vec![host; 0x1_0000],
            pins: inventory.pins.iter().map(|pin| (pin.gsi.0, host)).collect(),
            hosts,
            all: inventory.clone(),
            loaded: false,
        }
    }

    pub fn linux(&self, slot: Slot) -> &Linux {
        self.hosts[slot.index()].as_ref().expect("the host runs")
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
        match action {
            Action::RemoveMemory { range, online } => self.remove_memory(slot, *range, *online),
            Action::AddMemory { range, online } => self.add_memory(slot, *range, *online),
            Action::OfflineCpu(apic) => self.switch_cpu(slot, *apic, false),
            Action::OnlineCpu(apic) => self.switch_cpu(slot, *apic, true),
            Action::RemovePci(address) => {
                let sees = &mut self.host(slot).sees;
                let function = sees
                    .functions
                    .iter()
                    .find(|f| f.address == *address)
                    .expect("the function is there");
                assert!(function.busy.is_none() && !function.bridge);
                sees.functions.retain(|f| f.address != *address);
            }
            Action::AddPci(address) => {
                assert_eq!(self.functions[address], Owner::Host(slot));
                let function = self
                    .all
                    .functions
                    .iter()
                    .find(|f| f.address == *address)
                    .cloned();
                let sees = &mut self.host(slot).sees;
                assert!(
                    sees.functions.iter().all(|f| f.address != *address),
                    "{address} is there already"
                );
                sees.functions.extend(function);
                sees.functions.sort_by_key(|f| f.address);
            }
            Action::LoadSuccessor => {
                assert!(
                    self.host(slot).nested.is_empty(),
                    "nested, it might not reach that memory"
                );
                assert!(!std::mem::replace(&mut self.loaded, true));
            }
            Action::WipeSuccessor => {
                assert!(self.hosts[slot.other().index()].is_none(), "it runs");
                assert!(std::mem::replace(&mut self.loaded, false));
            }
            Action::EnterNested(apic) => {
                self.runs_on(slot, *apic);
                assert!(
                    self.host(slot).nested.insert(*apic),
                    "{apic} is nested already"
                );
            }
            Action::LeaveNested(apic) => {
                self.runs_on(slot, *apic);
                assert!(
                    self.hosts[slot.other().index()].is_none(),
                    "unprotected from the other host"
                );
                assert!(
                    self.host(slot).nested.remove(apic),
                    "{apic} is native already"
                );
            }
            Action::Transfer(transfer) => self.transfer(slot, plan, *transfer),
            Action::StartSuccessor => self.start_successor(plan),
            Action::StopSuccessor => {
                let gone = self.hosts[slot.other().index()].take().expect("it runs");
                assert!(
                    gone.guests.is_empty(),
                    "guests die with it: {:?}",
                    gone.guests
                );
            }
            Action::MoveGuest(name) => self.move_guest(name, slot, slot.other()),
            Action::ReturnGuest(name) => self.move_guest(name, slot.other(), slot),
            Action::AwaitSuccessor | Action::Entrust => {
                assert!(self.hosts[slot.other().index()].is_some())
            }
            Action::PowerOff => self.power_off(slot),
            Action::AwaitIncumbentGone => assert!(self.hosts[slot.other().index()].is_none()),
            Action::TakeIncumbent => self.power_off(slot.other()),
        }
    }

    pub fn power_off(&mut self, slot: Slot) {
        self.loaded = false;
        let gone = self.hosts[slot.index()].take().expect("it runs");
        assert!(
            gone.guests.is_empty(),
            "guests die with it: {:?}",
            gone.guests
        );
    }

    /// The successor dies with all its guests.
    pub fn kill(&mut self, slot: Slot) {
        self.hosts[slot.index()] = None;
    }

    fn host(&mut self, slot: Slot) -> &mut Linux {
        self.hosts[slot.index()].as_mut().expect("the host runs")
    }

    fn runs_on(&self, slot: Slot, apic: ApicId) {
        assert!(
            self.linux(slot)
                .sees
                .cpu(apic)
                .is_some_and(|cpu| cpu.online),
            "{apic} is not online"
        );
    }

    fn move_guest(&mut self, name: &str, from: Slot, to: Slot) {
        assert!(self.host(from).guests.remove(name), "{name} is not there");
        assert!(self.host(to).guests.insert(name.into()));
    }

    fn remove_memory(&mut self, slot: Slot, range: MemRange, online: bool) {
        let sees = &mut self.host(slot).sees;
        let block = sees
            .blocks
            .iter()
            .find(|block| block.range == range)
            .expect("the block is there");
        assert!(block.removable);
        assert_eq!(block.is_online(), online);
        if online {
            sees.spare = sees
                .spare
                .checked_sub(range.len())
                .expect("more than it can do without");
        }
        sees.blocks.retain(|block| block.range != range);
        sees.ram = cut(&sees.ram, range);
    }

    fn add_memory(&mut self, slot: Slot, range: MemRange, online: bool) {
        assert!(
            self.owned(range, Owner::Host(slot)),
            "{range} is not its own"
        );
        let host = self.host(slot);
        assert_eq!(range.len(), host.sees.block_size);
        assert!(
            host.sees
                .blocks
                .iter()
                .all(|block| !block.range.overlaps(range)),
            "{range} is there already"
        );
        let state = if online {
            BlockState::Online
        } else {
            BlockState::Offline
        };
        let known = host
            .past
            .blocks
            .iter()
            .find(|block| block.range == range)
            .cloned();
        let fresh = MemoryBlock {
            range,
            state,
            removable: true,
            free: 0,
            node: partitioner::NodeId(0),
        };
        let block = known.unwrap_or(fresh);
        assert_eq!(block.state, state);
        if online {
            host.sees.spare += range.len();
        }
        host.sees.blocks.push(block);
        host.sees.blocks.sort_by_key(|block| block.range);
        host.sees.ram = join(&host.sees.ram, range);
    }

    fn switch_cpu(&mut self, slot: Slot, apic: ApicId, online: bool) {
        assert_eq!(self.cpus[&apic], Owner::Host(slot));
        let host = self.host(slot);
        let cpu = host
            .sees
            .cpus
            .iter_mut()
            .find(|cpu| cpu.apic == apic)
            .expect("Linux knows the CPU");
        assert_ne!(cpu.number, CpuNumber(0), "the boot CPU");
        assert_ne!(cpu.online, online);
        cpu.online = online;
        // A CPU that comes up in a host that is being watched comes up nested.
        if online && !host.nested.is_empty() {
            host.nested.insert(apic);
        }
    }

    fn transfer(&mut self, slot: Slot, plan: &Plan, Transfer { resource, from, to }: Transfer) {
        let watched = |linux: &Linux| {
            linux
                .sees
                .online_cpus()
                .all(|cpu| linux.nested.contains(&cpu.apic))
        };
        assert!(
            self.hosts.iter().flatten().all(watched),
            "nobody enforces it on a native CPU"
        );
        if from == Owner::Host(slot.other()) || to == Owner::Host(slot.other()) {
            assert!(
                self.hosts[slot.other().index()].is_none(),
                "from or to a host that runs"
            );
        }
        match resource {
            Resource::Cpu(apic) => assert_eq!(self.cpus.insert(apic, to), Some(from)),
            Resource::Function(address) => {
                assert_eq!(self.functions.insert(address, to), Some(from))
            }
            Resource::Pin(gsi) => assert_eq!(self.pins.insert(gsi.0, to), Some(from)),
            Resource::Ports(range) => {
                for port in range.first()..=range.last() {
                    assert_eq!(
                        std::mem::replace(&mut self.ports[usize::from(port)], to),
                        from
                    );
                }
            }
            Resource::Memory(range) => {
                assert!(self.owned(range, from), "{range} is not {from}'s alone");
                assert!(plan.boot.len() > 0);
                self.split(range.start());
                self.split(range.end());
                for (_, (_, owner)) in self.memory.range_mut(range.start()..range.end()) {
                    *owner = to;
                }
            }
        }
    }

    fn split(&mut self, at: u64) {
        if let Some((_, piece)) = self.memory.range_mut(..at).next_back()
            && at < piece.0
        {
            let (end, owner) = *piece;
            piece.0 = at;
            self.memory.insert(at, (end, owner));
        }
    }

    pub fn owner_of(&self, at: u64) -> Option<Owner> {
        self.memory
            .range(..=at)
            .next_back()
            .filter(|(_, (end, _))| at < *end)
            .map(|(_, (_, owner))| *owner)
    }

    fn owned(&self, range: MemRange, owner: Owner) -> bool {
        let mut at = range.start();
        while at < range.end() {
            match self.memory.range(..=at).next_back() {
                Some((_, &(end, who))) if at < end && who == owner => at = end,
                _ => return false,
            }
        }
        true
    }

    /// The successor's Linux as it comes up: on its own memory, CPUs and functions, and what both see.
    fn start_successor(&mut self, plan: &Plan) {
        assert!(self.loaded, "nothing to start");
        let slot = plan.successor();
        assert!(self.hosts[slot.index()].is_none());
        let own = Owner::Host(slot);
        plan.memory
            .iter()
            .for_each(|&range| assert!(self.owned(range, own)));
        plan.cpus
            .iter()
            .for_each(|cpu| assert_eq!(self.cpus[&cpu.apic], own));
        let firsts = plan.cpus.iter().map(|cpu| (cpu, true));
        let firsts: Vec<(&Cpu, bool)> = firsts
            .chain(
                self.all
                    .cpus
                    .iter()
                    .filter(|cpu| !plan.cpus.iter().any(|c| c.apic == cpu.apic))
                    .map(|c| (c, false)),
            )
            .collect();
        let cpus = firsts.iter().zip(0..).map(|(&(cpu, online), number)| Cpu {
            number: CpuNumber(number),
            online,
            ..cpu.clone()
        });
        let size = self.all.block_size;
        let starts: BTreeSet<u64> = plan
            .memory
            .iter()
            .flat_map(|r| (r.start() / size * size..r.end()).step_by(size as usize))
            .collect();
        let blocks = starts
            .iter()
            .filter_map(|&start| MemRange::with_len(start, size))
            .map(|range| MemoryBlock {
                range,
                state: BlockState::Online,
                removable: false,
                free: 0,
                node: partitioner::NodeId(0),
            });
        let functions = self
            .all
            .functions
            .iter()
            .filter(|f| f.bridge || self.functions[&f.address] == own);
        let sees = Inventory {
            generation: plan.generation.next(),
            cpus: cpus.collect(),
            blocks: blocks.collect(),
            ram: plan.memory.clone(),
            spare: 0,
            functions: functions.cloned().collect(),
            unreclaimed: Vec::new(),
            ..self.all.clone()
        };
        let past = Inventory {
            blocks: Vec::new(),
            ..sees.clone()
        };
        let nested = plan.cpus.iter().map(|cpu| cpu.apic).collect();
        self.hosts[slot.index()] = Some(Linux {
            sees,
            past,
            nested,
            guests: BTreeSet::new(),
        });
    }

    /// No host uses what it does not own.
    fn check(&self) {
        for linux in self.hosts.iter().flatten() {
            let own = Owner::Host(linux.sees.generation.slot());
            for cpu in linux.sees.online_cpus() {
                assert_eq!(self.cpus[&cpu.apic], own, "{}", cpu.apic);
            }
            for &range in linux.sees.ram.iter() {
                for piece in linux
                    .sees
                    .never_moves
                    .iter()
                    .fold(vec![range], |pieces, &never| cut(&pieces, never))
                {
                    assert!(self.owned(piece, own), "{piece}");
                }
            }
            for function in linux.sees.functions.iter().filter(|f| !f.bridge) {
                assert_eq!(self.functions[&function.address], own, "{function}");
                for bar in &function.bars {
                    match bar {
                        Bar::Memory(range) => {
                            assert!(self.owned(range.to_pages(), own), "{function}")
                        }
                        Bar::Ports(ports) => {
                            assert!(
                                (ports.first()..=ports.last())
                                    .all(|p| self.ports[usize::from(p)] == own)
                            )
                        }
                    }
                }
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
        for (&start, &(end, owner)) in &self.memory {
            let range = MemRange::new(start, end).unwrap();
            assert_eq!(
                partition.owner(Resource::Memory(range)),
                Some(owner),
                "{range}"
            );
        }
        for (&apic, &owner) in &self.cpus {
            assert_eq!(partition.owner(Resource::Cpu(apic)), Some(owner));
        }
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
    pub fn tidy(mut self) -> Self {
        let mut tidy: Vec<(u64, u64, Owner)> = Vec::new();
        for (start, (end, owner)) in self.memory {
            match tidy.last_mut() {
                Some(last) if last.1 == start && last.2 == owner => last.1 = end,
                _ => tidy.push((start, end, owner)),
            }
        }
        self.memory = tidy
            .into_iter()
            .map(|(start, end, owner)| (start, (end, owner)))
            .collect();
        self
    }
}

fn cut(ranges: &[MemRange], out: MemRange) -> Vec<MemRange> {
    let pieces = |range: &MemRange| {
        [
            MemRange::new(range.start(), range.end().min(out.start())),
            MemRange::new(range.start().max(out.end()), range.end()),
        ]
    };
    ranges.iter().flat_map(pieces).flatten().collect()
}

fn join(ranges: &[MemRange], new: MemRange) -> Vec<MemRange> {
    let mut sorted: Vec<MemRange> = ranges.iter().copied().chain([new]).collect();
    sorted.sort();
    let mut joined: Vec<MemRange> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(last) if last.end() == range.start() => {
                *last = MemRange::new(last.start(), range.end()).unwrap()
            }
            _ => joined.push(range),
        }
    }
    joined
}
