//! Two hosts on four CPUs that call, write their mailboxes, give CPUs up, die and are stopped in any order: a fuzz target.
//!
//! What takes a CPU several steps under L0 (to stop the other host, to retire) is several steps here, too, with those of
//! other CPUs between them. The stages are L0's own; what a CPU does between them is reduced to where it stands.

use arbitrary::{Result, Unstructured};
use firmware_shim::e820::{E820Map, MemoryType as RangeType};
use locum_abi::mailbox::{NOOP, TEST, WAKEUP};
use locum_abi::{Errno, Grant, HostState, PAGE_SIZE, PerSlot, Slot, StopReason};
use spin::Once;

use super::memory::Kind;
use super::*;
use crate::fuzz::STEPS;
use crate::machine::{self, IoApic as FoundIoApic};
use crate::nested::model::Model;
use crate::park::{self, Start, WAKEUP_LIMIT};
use crate::shared::MailboxWords;

/// CPUs of the machine. Their APIC ids are their numbers doubled.
const CPUS: usize = 4;
/// Pages that are granted, at the border of two large ones.
const PAGES: usize = 24;
const FIRST_PAGE: u64 = 0x4820_0000 - 8 * PAGE_SIZE;
/// Pins, functions and ports that are.
const PINS: usize = 26;
const FUNCTIONS: usize = 12;
const PORTS: usize = 20;
const FIRST_PORT: u16 = 0x2f0;
const IOAPIC: u64 = 0xfec0_0000;
const L0: Place = Place::new(0x20_0000);

fn machine() -> Machine {
    let mut machine = Machine::EMPTY;
    machine.l0 = L0;
    machine.low_slices = PerSlot::from_fn(|slot| Span {
        start: 0x1_0000 + 0x4_0000 * u64::from(slot.raw()),
        end: 0x3_0000 + 0x4_0000 * u64::from(slot.raw()),
    });
    let mut e820 = E820Map::new();
    let filled = e820
        .set(0..0xa_0000, RangeType::Usable)
        .and_then(|()| e820.set(0x10_0000..0x8000_0000, RangeType::Usable));
    assert!(filled.is_ok());
    machine.e820 = e820;
    machine.ioapics.push(FoundIoApic {
        address: IOAPIC,
        gsi_base: 0,
        pins: 24,
    });
    machine
}

/// What a CPU is in the middle of, inside L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Stopping,
    Retiring,
}

/// Who owns what, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reference {
    cpus: [Slot; CPUS],
    pages: [Slot; PAGES],
    pins: [Slot; PINS],
    functions: [Slot; FUNCTIONS],
    ports: [Slot; PORTS],
}

impl Reference {
    const fn all(slot: Slot) -> Self {
        Self {
            cpus: [slot; CPUS],
            pages: [slot; PAGES],
            pins: [slot; PINS],
            functions: [slot; FUNCTIONS],
            ports: [slot; PORTS],
        }
    }

    /// All that a grant names, if it is accounted for here.
    fn named(&mut self, grant: Grant) -> Option<&mut [Slot]> {
        match grant {
            Grant::Cpu { apic_id } => self.cpus.get_mut(apic_id as usize / 2).map(core::slice::from_mut),
            Grant::Memory { start, end } => {
                let page = |at: u64| usize::try_from(at.checked_sub(FIRST_PAGE)? / PAGE_SIZE).ok();
                self.pages.get_mut(page(start)?..page(end)?)
            }
            Grant::Pci { function } => self.functions.get_mut(usize::from(function)).map(core::slice::from_mut),
            Grant::Ports { first, last } => {
                let port = |at: u16| at.checked_sub(FIRST_PORT).map(usize::from);
                self.ports.get_mut(port(first)?..=port(last)?)
            }
            Grant::Pin { gsi } => self.pins.get_mut(gsi as usize).map(core::slice::from_mut),
        }
    }
}

struct World {
    partition: Partition,
    hw: Model,
    /// Host that runs on each CPU, or ran there last.
    running: [Slot; CPUS],
    busy: [Option<Busy>; CPUS],
    reference: Reference,
    /// The machine was reset.
    over: bool,
}

fn cpu(number: usize) -> CpuIndex {
    CpuIndex::new(number % CPUS).unwrap_or(CpuIndex::FIRST)
}

fn take(cpu: CpuIndex, step: Step) {
    assert_eq!(stage::take(cpu, step), Ok(()), "{cpu:?} {step:?}");
}

impl World {
    fn new() -> Self {
        static KNOWN: Once<()> = Once::new();
        KNOWN.call_once(|| {
            id::register((0..CPUS as u32).map(|number| 2 * number));
            machine::publish(machine());
        });
        let partition = Partition::new();
        assert!(partition.init(&machine()).is_ok());
        for slot in Slot::ALL {
            let mut tables = Ept::new(pages::ept_tables(slot), true);
            tables.clear();
            shared::set_mailbox(slot, MailboxWords { head: 0, vector: 0 });
        }
        for number in 0..CPUS {
            let stands = if number == 0 { Stage::Native } else { Stage::Parked };
            stage::put(cpu(number), stands);
        }
        Self {
            partition,
            hw: Model::default(),
            running: [Slot::Even; CPUS],
            busy: [None; CPUS],
            reference: Reference::all(Slot::Even),
            over: false,
        }
    }

    fn hosts(&self) -> PerSlot<HostState> {
        let state = self.partition.state.lock();
        PerSlot::from_fn(|slot| state.hosts[slot])
    }

    fn step(&mut self, u: &mut Unstructured<'_>) -> Result<()> {
        let number = u.int_in_range(0..=CPUS - 1)?;
        let cpu = cpu(number);
        let slot = self.running[number];
        match stage::of(cpu) {
            Stage::Parked | Stage::Claimed | Stage::Starting => self.look(number),
            Stage::Native => match u.int_in_range(0..=3)? {
                0 => {
                    // The module loads the tables first; a CPU that enters finds them, or has them made.
                    self.partition.prepare(slot, true);
                    take(cpu, Step::Enter);
                }
                1 => self.give_up(number, Step::Offline),
                _ => Self::mailbox(slot, u)?,
            },
            Stage::Nested | Stage::InitSent => match self.busy[number] {
                Some(Busy::Stopping) => self.stop(number),
                Some(Busy::Retiring) => self.retire(number),
                None => self.nested(number, u)?,
            },
            stands => panic!("{cpu:?} stands at {stands:?}"),
        }
        Ok(())
    }

    /// A parked CPU looks for what it is to do.
    fn look(&mut self, number: usize) {
        let cpu = cpu(number);
        let Some((start, mode)) = park::look(&self.partition, cpu) else {
            return;
        };
        self.running[number] = start.slot;
        match mode {
            StartMode::Native => take(cpu, Step::RunNative),
            StartMode::Nested => {
                self.partition.prepare(start.slot, true);
                take(cpu, Step::RunNested);
            }
        }
    }

    /// A CPU leaves its host. One to which INIT was sent takes it.
    fn give_up(&mut self, number: usize, step: Step) {
        let cpu = cpu(number);
        if stage::of(cpu) == Stage::InitSent {
            take(cpu, Step::Init);
        } else {
            take(cpu, step);
        }
        take(cpu, Step::Settle);
    }

    fn mailbox(slot: Slot, u: &mut Unstructured<'_>) -> Result<()> {
        let command = *u.choose(&[WAKEUP, WAKEUP, WAKEUP, TEST, NOOP, 3])?;
        let apic_id = u.int_in_range(0..=2 * CPUS as u32)?;
        shared::set_mailbox(
            slot,
            MailboxWords {
                head: u64::from(command) | u64::from(apic_id) << 32,
                vector: *u.choose(&[0x9_8000, 0x9_8000, WAKEUP_LIMIT])?,
            },
        );
        Ok(())
    }

    fn grant(u: &mut Unstructured<'_>) -> Result<Grant> {
        Ok(match u.int_in_range(0..=5)? {
            0 => Grant::Cpu {
                apic_id: u.int_in_range(0..=2 * CPUS as u32)?,
            },
            1 | 2 => {
                let first: u64 = u.int_in_range(0..=PAGES as u64 - 1)?;
                let last = u.int_in_range(first..=PAGES as u64 - 1)?;
                Grant::Memory {
                    start: FIRST_PAGE + first * PAGE_SIZE,
                    end: FIRST_PAGE + (last + 1) * PAGE_SIZE,
                }
            }
            3 => Grant::Pci {
                function: u.int_in_range(0..=FUNCTIONS as u16 - 1)?,
            },
            4 => {
                let first = u.int_in_range(0..=PORTS as u16 - 1)?;
                let last = u.int_in_range(first..=PORTS as u16 - 1)?;
                Grant::Ports {
                    first: FIRST_PORT + first,
                    last: FIRST_PORT + last,
                }
            }
            _ => Grant::Pin {
                gsi: *u.choose(&[0, 9, 10, 24, PINS as u32 - 1, 1024])?,
            },
        })
    }

    /// A nested CPU does something.
    fn nested(&mut self, number: usize, u: &mut Unstructured<'_>) -> Result<()> {
        let cpu = cpu(number);
        let slot = self.running[number];
        if stage::of(cpu) == Stage::InitSent && u.arbitrary()? {
            // Back in non-root, where the INIT has come.
            self.give_up(number, Step::Park);
            return Ok(());
        }
        match u.int_in_range(0..=15)? {
            0 => {
                if self.partition.leave(cpu, slot).is_ok() {
                    assert_eq!(stage::of(cpu), Stage::Native);
                }
            }
            1..=4 => {
                let grant = Self::grant(u)?;
                let had = self
                    .reference
                    .named(grant)
                    .map(|named| named.iter().all(|owner| *owner == slot));
                let result = self.partition.grant(grant, slot);
                if result.is_ok() {
                    assert_eq!(had, Some(true), "{grant:x?} was not all {slot:?}'s");
                    for owner in self.reference.named(grant).into_iter().flatten() {
                        *owner = slot.other();
                    }
                } else if result == Err(Errno::NotOwner) {
                    assert_eq!(had, Some(false), "{grant:x?}");
                }
            }
            5 | 6 => self.start(slot, u)?,
            7 => {
                if self.partition.condemn(slot).is_ok() {
                    self.busy[number] = Some(Busy::Stopping);
                }
            }
            8 => {
                if self.partition.begin_retiring(slot).is_ok() {
                    self.busy[number] = Some(Busy::Retiring);
                }
            }
            9 => self.give_up(number, Step::Park),
            10 => self.die(number),
            11 | 12 => Self::mailbox(slot, u)?,
            _ => self.touch(slot, u)?,
        }
        Ok(())
    }

    fn start(&mut self, slot: Slot, u: &mut Unstructured<'_>) -> Result<()> {
        let boot = cpu(u.arbitrary()?);
        let page = |u: &mut Unstructured<'_>| Ok(FIRST_PAGE + u.int_in_range(0..=PAGES as u64)? * PAGE_SIZE);
        let addresses = [page(u)?, page(u)?];
        let latches = self.partition.read_latches(&mut self.hw);
        if self.partition.begin_two(slot, boot, true, addresses, &latches).is_ok() {
            let [rip, rsi] = addresses;
            assert_eq!(self.reference.cpus[boot.get()], slot.other());
            park::command(
                boot,
                Start {
                    rip,
                    rsi,
                    slot: slot.other(),
                },
            );
        }
        Ok(())
    }

    fn die(&mut self, number: usize) {
        let slot = self.running[number];
        match self.partition.declare_dead(slot, StopReason::TripleFault, [0; 3], 0) {
            Some(Survivor::None) => self.over = true,
            Some(Survivor::Other) | None => self.give_up(number, Step::Park),
        }
    }

    /// The other host is condemned: its CPUs are taken, until all are idle.
    fn stop(&mut self, number: usize) {
        let slot = self.running[number];
        let others = self.partition.cpus(slot.other());
        for other in others.iter().copied() {
            let _ = stage::take(other, Step::SendInit);
        }
        if others.iter().copied().all(stage::is_idle) {
            self.busy[number] = None;
            self.end(slot, HostState::Absent);
        }
    }

    /// All of its host's CPUs but this one are parked, or the time is over.
    fn retire(&mut self, number: usize) {
        let slot = self.running[number];
        let mut others = self.partition.cpus(slot);
        others.retain(|other| *other != cpu(number));
        self.busy[number] = None;
        if others.iter().copied().all(stage::is_idle) && self.end(slot.other(), HostState::Retired) {
            self.give_up(number, Step::Park);
        } else {
            self.partition.cancel_retiring();
        }
    }

    fn end(&mut self, to: Slot, then: HostState) -> bool {
        let before = self.hosts();
        let ended = self.partition.end_two(&mut self.hw, to, then).is_ok();
        if ended {
            self.reference = Reference::all(to);
        } else {
            assert_eq!(before[to.other()], self.hosts()[to.other()], "nothing has changed");
        }
        ended
    }

    /// A host touches a page, a port or the IOAPIC.
    fn touch(&mut self, slot: Slot, u: &mut Unstructured<'_>) -> Result<()> {
        let two = self.partition.state.lock().two;
        match u.int_in_range(0..=3)? {
            0 | 1 => {
                let page = u.int_in_range(0..=PAGES - 1)?;
                let address = FIRST_PAGE + page as u64 * PAGE_SIZE;
                let own = self.reference.pages[page] == slot;
                assert_eq!(self.partition.may_touch(slot, address, 8), own);
                let violation = self.partition.violation(slot, address, u.arbitrary()?);
                assert_eq!(violation == Violation::Retry, own, "{violation:?}");
            }
            2 => {
                let index = u.int_in_range(0..=PORTS - 1)?;
                let io = IoAccess {
                    port: FIRST_PORT + index as u16,
                    size: 1,
                    input: true,
                    string: false,
                };
                // The model's devices answer with ones, and so does nobody: it must not panic.
                self.partition.port(&mut self.hw, slot, io, 0);
            }
            _ => {
                let pin = u.int_in_range(0..=23_u32)?;
                let (select, window) = (IOAPIC, IOAPIC + 0x10);
                self.partition.ioapic(&mut self.hw, slot, select, Some(0x10 + 2 * pin));
                let marker: u16 = u.arbitrary()?;
                let mark = u32::from(marker) << 16 | 0x31;
                self.hw.put(window, 0);
                self.partition.ioapic(&mut self.hw, slot, window, Some(mark));
                let written = self.hw.read_phys(window, 4) as u32 == mark;
                let own = !two || self.reference.pins[pin as usize] == slot;
                assert_eq!(written, own, "pin {pin}");
            }
        }
        Ok(())
    }

    /// What holds after every step.
    fn check(&self) {
        let state = self.partition.state.lock();
        let owners = &state.owners;
        for number in 0..CPUS {
            let (cpu, slot) = (cpu(number), self.running[number]);
            assert_eq!(owners.cpu(cpu), self.reference.cpus[number], "{cpu:?}");
            if matches!(stage::of(cpu), Stage::Native | Stage::Nested | Stage::InitSent) {
                assert_eq!(owners.cpu(cpu), slot, "{cpu:?} runs a host that it is not of");
                assert!(
                    !matches!(state.hosts[slot], HostState::Absent | HostState::Retired),
                    "{cpu:?} runs a host that is gone"
                );
            }
            if stage::of(cpu) == Stage::Native {
                assert!(!state.two, "{cpu:?} is native beside another host");
            }
        }
        for (page, owner) in self.reference.pages.iter().enumerate() {
            let address = FIRST_PAGE + page as u64 * PAGE_SIZE;
            assert_eq!(owners.memory.at(address).0, Kind::Host(*owner), "{address:#x}");
            for slot in Slot::ALL {
                let (entry, _) = state.epts[slot].lookup(address);
                // A host that was never nested has no tables; one may have less than its rights until it asks.
                assert!(entry & 7 == 0 || slot == *owner, "{slot:?} reaches {address:#x}");
            }
        }
        for (gsi, owner) in self.reference.pins.iter().enumerate() {
            assert_eq!(owners.pin(gsi as u32), *owner, "pin {gsi}");
        }
        for (function, owner) in self.reference.functions.iter().enumerate() {
            assert_eq!(owners.pci(function as u16), *owner, "function {function}");
        }
        for (index, owner) in self.reference.ports.iter().enumerate() {
            let port = FIRST_PORT + index as u16;
            assert_eq!(owners.port(port), *owner, "port {port:#x}");
            for slot in Slot::ALL {
                let exits = owners.io_bitmap_byte(slot, port & !7) >> (port & 7) & 1 != 0;
                assert_eq!(exits, slot != *owner, "port {port:#x} of {slot:?}");
            }
        }
        let l0 = L0.private().start;
        for slot in Slot::ALL {
            assert_eq!(state.epts[slot].lookup(l0).0 & 7, 0, "{slot:?} reaches L0");
        }
    }
}

/// Whatever hosts do, everything has exactly one owner, and a CPU runs a host only while it is that host's.
pub(crate) fn partition(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let mut world = World::new();
    for _ in 0..STEPS {
        if world.over || u.is_empty() || world.step(&mut u).is_err() {
            break;
        }
        world.check();
    }
}
