//! Exactly one owner, whatever is called in whatever order: owners, memory map and EPT against references that know every
//! thing by itself. What fails is shrunk to the shortest course of calls.

use std::vec::Vec;

use firmware_shim::acpi::EcamRegion;
use locum_abi::{Errno, GRANTABLE_FUNCTIONS, GRANTABLE_PINS, PAGE_SIZE, Slot};
use proptest::prelude::*;

use super::ept::{Ept, Stretch, Table};
use super::memory::{Access, END, Kind, Map};
use super::owners::{Owners, Resource};
use crate::arch::paging;
use crate::id::CpuIndex;
use crate::machine::mtrr::MemoryType;

/// Pages that the reference of memory knows one by one; nothing else is given.
const PAGES: usize = 48;
/// Where a window of configuration space begins. The pages of functions 0 to 7 are the last of the reference; those of others
/// follow.
const ECAM: u64 = 0x20_0000;
/// The first page.
const ORIGIN: u64 = ECAM - (PAGES as u64 - 8) * PAGE_SIZE;
const CPUS: usize = 4;
const PORTS: u16 = 40;
const PINS: u16 = 6;
/// More than can be given.
const FUNCTIONS: u16 = GRANTABLE_FUNCTIONS as u16 + 8;

/// What can be called.
#[derive(Clone, Debug)]
enum Call {
    Give(Resource, Slot),
    GiveAll(Slot),
    /// L0's own changes: what is fixed.
    Set(usize, usize, Kind),
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(Slot::Even), Just(Slot::Odd)]
}

fn pages() -> impl Strategy<Value = (usize, usize)> {
    (0..=PAGES, 0..=PAGES)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        slot().prop_map(Kind::Host),
        slot().prop_map(Kind::Readable),
        slot().prop_map(Kind::Blank),
        Just(Kind::Monitor),
        Just(Kind::Shared),
        Just(Kind::ReadOnly),
    ]
}

fn resource() -> impl Strategy<Value = Resource> {
    let address = |page: usize| ORIGIN + page as u64 * PAGE_SIZE;
    prop_oneof![
        (0..CPUS).prop_map(|cpu| Resource::Cpu(CpuIndex::new(cpu).unwrap())),
        pages().prop_map(move |(start, end)| Resource::Memory(address(start), address(end))),
        (0..PORTS, 0..PORTS).prop_map(|(first, last)| Resource::Ports(first, last)),
        (0..PINS).prop_map(Resource::Pin),
        Just(Resource::Pin(GRANTABLE_PINS as u16)),
        (0..FUNCTIONS).prop_map(Resource::Pci),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        30 => (resource(), slot()).prop_map(|(resource, from)| Call::Give(resource, from)),
        1 => slot().prop_map(Call::GiveAll),
        3 => (pages(), kind()).prop_map(|((start, end), kind)| Call::Set(start, end, kind)),
    ]
}

/// Every single thing, and whose it is.
struct Reference {
    reigning: Slot,
    cpus: [Slot; CPUS],
    pages: [Kind; PAGES],
    ports: [Slot; PORTS as usize],
    pins: [Slot; PINS as usize],
    functions: [Slot; FUNCTIONS as usize],
}

impl Reference {
    const fn new() -> Self {
        Self {
            reigning: Slot::Even,
            cpus: [Slot::Even; CPUS],
            pages: [Kind::Host(Slot::Even); PAGES],
            ports: [Slot::Even; PORTS as usize],
            pins: [Slot::Even; PINS as usize],
            functions: [Slot::Even; FUNCTIONS as usize],
        }
    }

    fn give(&mut self, resource: Resource, from: Slot) -> Result<(), Errno> {
        let to = from.other();
        let one = |owner: &mut Slot| {
            let right = *owner == from;
            if right {
                *owner = to;
            }
            right.then_some(()).ok_or(Errno::NotOwner)
        };
        match resource {
            Resource::Cpu(cpu) => one(&mut self.cpus[cpu.get()]),
            Resource::Pin(gsi) if gsi >= PINS => Err(Errno::Argument),
            Resource::Pin(gsi) => one(&mut self.pins[usize::from(gsi)]),
            Resource::Memory(start, end) => {
                let number = |address: u64| ((address - ORIGIN) / PAGE_SIZE) as usize;
                let pages = number(start)..number(end);
                let all = self.pages.get_mut(pages).filter(|pages| !pages.is_empty());
                let all = all.filter(|pages| pages.iter().all(|kind| *kind == Kind::Host(from)));
                all.ok_or(Errno::NotOwner)?.fill(Kind::Host(to));
                Ok(())
            }
            Resource::Ports(first, last) => {
                // No port: nothing changes, and nobody minds.
                let all = self.ports.get_mut(first.into()..=last.into()).unwrap_or_default();
                if all.iter().any(|owner| *owner != from) {
                    return Err(Errno::NotOwner);
                }
                all.fill(to);
                Ok(())
            }
            Resource::Pci(function) => {
                let number = usize::from(function);
                if self.functions[number] != from {
                    return Err(Errno::NotOwner);
                }
                let given = self.functions.iter().filter(|owner| **owner != self.reigning).count();
                if from == self.reigning && given == GRANTABLE_FUNCTIONS {
                    return Err(Errno::NoSpace);
                }
                if number < 8 {
                    let page = ECAM + u64::from(function) * PAGE_SIZE;
                    self.give(Resource::Memory(page, page + PAGE_SIZE), from)?;
                }
                self.functions[number] = to;
                Ok(())
            }
        }
    }

    fn give_all(&mut self, to: Slot) {
        let from = to.other();
        for kind in &mut self.pages {
            *kind = match *kind {
                Kind::Host(owner) if owner == from => Kind::Host(to),
                Kind::Readable(owner) if owner == from => Kind::Readable(to),
                Kind::Blank(owner) if owner == from => Kind::Blank(to),
                other => other,
            };
        }
        let pages = self.pages;
        *self = Self {
            reigning: to,
            cpus: [to; CPUS],
            pages,
            ports: [to; PORTS as usize],
            pins: [to; PINS as usize],
            functions: [to; FUNCTIONS as usize],
        };
    }

    fn is(&self, owners: &Owners) {
        assert_eq!(owners.reigning(), self.reigning);
        for (number, owner) in self.cpus.iter().enumerate() {
            assert_eq!(owners.cpu(CpuIndex::new(number).unwrap()), *owner, "CPU {number}");
        }
        for (number, kind) in self.pages.iter().enumerate() {
            let start = ORIGIN + number as u64 * PAGE_SIZE;
            assert_eq!(owners.memory.at(start).0, *kind, "page {number}");
            assert_eq!(
                owners.memory.at(start + PAGE_SIZE - 1).0,
                *kind,
                "page {number}, its end"
            );
        }
        for port in 0..PORTS {
            let owner = self.ports[usize::from(port)];
            assert_eq!(owners.port(port), owner, "port {port}");
            for slot in Slot::ALL {
                let exits = owners.io_bitmap_byte(slot, port) >> (port & 7) & 1 != 0;
                assert_eq!(exits, owner != slot, "port {port} for {slot:?}");
            }
        }
        assert_eq!(owners.port(PORTS), self.reigning, "what nobody gave");
        for (number, owner) in self.pins.iter().enumerate() {
            assert_eq!(owners.pin(number as u32), *owner, "pin {number}");
            for slot in Slot::ALL {
                assert_eq!(
                    owners.pins_of(0, slot)[0] >> number & 1 != 0,
                    *owner == slot,
                    "pin {number}"
                );
            }
        }
        for (number, owner) in self.functions.iter().enumerate() {
            assert_eq!(owners.pci(number as u16), *owner, "function {number}");
        }
    }
}

/// The memory map's reference has no pages beyond the last one; a map must not either.
fn limits(owners: &Owners) {
    assert!(
        !owners.memory.all(0, END + PAGE_SIZE, |_| true),
        "beyond the address space"
    );
}

/// Rights on the pages that the reference of the EPT knows: some beside the borders of 2 MiB and 1 GiB.
const WINDOWS: [u64; 4] = [0, 0x20_0000 - 8 * PAGE_SIZE, 0x3fff_8000, 0x4060_0000 - 8 * PAGE_SIZE];
const WINDOW: u64 = 16;
/// Most pages of a change: beyond a table, where nobody interprets this test.
const CHANGED: u64 = if cfg!(miri) { 8 } else { 600 };
/// Most calls and changes of a course.
const CALLS: usize = if cfg!(miri) { 8 } else { 120 };
const CHANGES: usize = if cfg!(miri) { 4 } else { 24 };

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Full)]
}

/// A kind of memory with such rights for the host in the even slot, of two.
const fn with_access(access: Access) -> Kind {
    match access {
        Access::None => Kind::Monitor,
        Access::Read => Kind::ReadOnly,
        Access::Full => Kind::Shared,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 400 }))]

    #[test]
    fn everything_has_the_owner_that_was_given_it(calls in prop::collection::vec(call(), 1..CALLS)) {
        let mut owners = Owners::new();
        owners.ecam.push(EcamRegion { base: ECAM, segment: 0, first_bus: 0, last_bus: 0 });
        let mut reference = Reference::new();
        for call in calls {
            match call {
                Call::Give(resource, from) => {
                    let right = reference.give(resource, from);
                    assert_eq!(owners.give(resource, from), right, "{resource:?} from {from:?}");
                }
                Call::GiveAll(to) => {
                    reference.give_all(to);
                    owners.give_all(to);
                }
                Call::Set(start, end, kind) => {
                    let address = |page: usize| ORIGIN + page as u64 * PAGE_SIZE;
                    owners.memory.set(address(start), address(end), kind).unwrap();
                    if let Some(pages) = reference.pages.get_mut(start..end) {
                        pages.fill(kind);
                    }
                }
            }
            reference.is(&owners);
            limits(&owners);
        }
    }

    #[test]
    fn an_ept_has_the_rights_of_the_map_or_less(
        changes in prop::collection::vec((0..4_usize, 0..WINDOW, 1..CHANGED, access()), 1..CHANGES),
        tables in 4..24_usize,
        large_1g in any::<bool>(),
    ) {
        let store: Vec<Table> = (0..tables).map(|_| Table::new()).collect();
        let mut ept = Ept::new(&store, large_1g);
        let mut map = Map::new();
        let mut full = ept.update(0, 3 << 30, &stretch(&map)).is_err();
        for (window, first, pages, access) in changes {
            let start = WINDOWS[window] + first * PAGE_SIZE;
            let end = start + pages * PAGE_SIZE;
            map.set(start, end, with_access(access)).unwrap();
            full |= ept.update(start, end, &stretch(&map)).is_err();
            for window in WINDOWS {
                for page in 0..WINDOW + CHANGED {
                    let address = window + page * PAGE_SIZE;
                    let right = map.at(address).0.access(Slot::Even, false);
                    let (entry, span) = ept.lookup(address);
                    let has = match entry & 7 {
                        0 => Access::None,
                        5 => Access::Read,
                        7 => Access::Full,
                        other => panic!("{address:#x}: rights {other}"),
                    };
                    // Where tables have run out, nothing is mapped; and never is more.
                    assert!(has == right || (full && has == Access::None), "{address:#x}: {has:?}, not {right:?}");
                    if has != Access::None {
                        assert_eq!(entry & paging::ADDRESS, address & !(span - 1), "{address:#x}");
                    }
                }
            }
        }
    }
}

fn stretch(map: &Map) -> impl Fn(u64) -> Stretch {
    |address| {
        let (kind, end) = map.at(address);
        Stretch {
            repeated: false,
            access: kind.access(Slot::Even, false),
            memory_type: MemoryType::WriteBack,
            offset: 0,
            end,
        }
    }
}
