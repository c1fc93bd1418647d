//! Who owns what and which hosts there are, and what is derived from that for the CPUs: EPTs and I/O bitmaps.

use core::ops::Range;

use arrayvec::ArrayVec;
use locum_abi::{HostState, PAGE_SIZE, PerSlot, Slot, Will};

use super::device::Latches;
use super::ept::{Ept, Exhausted, Stretch};
use super::io_filter::IoFilter;
use super::ioapic::IoApic;
use super::memory::{self, Access, Kind};
use super::owners::Owners;
use super::{Violation, pages};
use crate::arch::paging::{LARGE_PAGE, page_of};
use crate::id::{self, CpuIndex};
use crate::machine::mtrr::MemoryType;
use crate::machine::{self, MAX_IOAPICS, Span};
use crate::shared;
use crate::shared::layout::Place;
use crate::stage::{self, Stage};

/// What the lock of [`super::Partition`] guards.
#[derive(Debug)]
pub(super) struct State {
    pub(super) owners: Owners,
    pub(super) hosts: PerSlot<HostState>,
    pub(super) generation: u32,
    /// Two hosts run, or one is dead and not yet cleared away.
    pub(super) two: bool,
    pub(super) epts: PerSlot<Ept<'static>>,
    pub(super) io: IoFilter,
    pub(super) ioapics: ArrayVec<IoApic, MAX_IOAPICS>,
    /// There are more than these.
    pub(super) too_many_ioapics: bool,
    /// The reigning host has begun to retire.
    pub(super) retiring: bool,
    /// What becomes of the machine when the reigning host cannot go on beside another.
    pub(super) will: Will,
    /// End of the memory that is mapped from the start.
    pub(super) mapped_end: u64,
    pub(super) l0: Place,
    pub(super) low_slices: PerSlot<Span>,
}

impl State {
    /// Whether another host runs beside the one in `slot`: one that is dead, or only writes a dump, counts as little as
    /// none.
    pub(super) fn is_beside_another(&self, slot: Slot) -> bool {
        self.two && self.hosts[slot.other()] == HostState::Running
    }

    /// Whether the host in `slot` runs, if only its crash kernel.
    pub(super) fn is_alive(&self, slot: Slot) -> bool {
        matches!(self.hosts[slot], HostState::Running | HostState::Dumping)
    }

    /// Whether the host in `slot` has begun to retire.
    pub(super) fn retires(&self, slot: Slot) -> bool {
        self.retiring && self.owners.reigning() == slot
    }

    /// Whether another host goes on if the one in `slot` dies, be it to write its dump. Else the machine is reset.
    pub(super) fn has_heir(&self, slot: Slot) -> bool {
        self.two && self.is_alive(slot.other()) && (self.owners.reigning() != slot || self.will != Will::Reset)
    }

    /// What the host in `slot` left in the registers that two hosts can't share.
    pub(super) fn latches(&self, slot: Slot) -> Latches {
        Latches {
            pci_address: self.io.pci_address[slot],
            ioapics: self.ioapics.iter().map(|ioapic| ioapic.index[slot]).collect(),
            addresses: self.ioapics.iter().map(|ioapic| ioapic.address).collect(),
        }
    }

    /// Everything belongs to the host in `to`; the other one is `then`.
    pub(super) fn give_all(&mut self, to: Slot, then: HostState) -> (Result<(), Exhausted>, Result<(), Exhausted>) {
        let gone = to.other();
        if self.two && self.owners.reigning() == gone {
            self.generation = self.generation.wrapping_add(1);
            shared::status().set_generation(self.generation);
        }
        self.owners.give_all(to);
        self.two = false;
        self.retiring = false;
        self.will = Will::Pass;
        // The other's tables lose all rights: nothing that is late can use them.
        let built = (self.rebuild(to), self.rebuild(gone));
        self.write_bitmaps();
        for cpu in id::all() {
            shared::status().cpu(cpu).set_owner(Some(to));
        }
        self.set_host(gone, then);
        built
    }

    pub(super) fn set_host(&mut self, slot: Slot, state: HostState) {
        self.hosts[slot] = state;
        shared::status().host(slot).set_state(state);
    }

    pub(super) fn cpus(&self, slot: Slot) -> impl Iterator<Item = CpuIndex> {
        id::all().filter(move |cpu| self.owners.cpu(*cpu) == slot)
    }

    /// Whether every CPU of the host in `slot` is nested or parked: what it does is filtered.
    pub(super) fn is_wholly_nested(&self, slot: Slot) -> bool {
        self.cpus(slot)
            .all(|cpu| !matches!(stage::of(cpu), Stage::Native | Stage::Starting))
    }

    /// What the host in `slot` has at fixed places becomes its own: trampoline slice, and what L0 has for it.
    pub(super) fn set_fixed_memory(&mut self, slot: Slot) -> Result<(), memory::Full> {
        let Span { start, end } = self.low_slices[slot];
        let area = self.l0.slot_area(slot);
        self.owners.memory.set(start, end, Kind::Readable(slot))?;
        self.owners.memory.set(area.start, area.end, Kind::Host(slot))
    }

    /// Derives a slot's EPT for `start..end`.
    pub(super) fn map(&mut self, slot: Slot, start: u64, end: u64) -> Result<(), Exhausted> {
        self.map_with_zeroes(slot, start, end, 0..0)
    }

    /// As [`Self::map`], but in `zeroes`, memory that is not the host's reads as zeroes.
    fn map_with_zeroes(&mut self, slot: Slot, start: u64, end: u64, zeroes: Range<u64>) -> Result<(), Exhausted> {
        let sole = !self.two;
        let map = &self.owners.memory;
        let own_zero = !sole && slot != self.owners.reigning();
        let stretch = |address: u64| {
            if own_zero && address < PAGE_SIZE {
                return Stretch {
                    access: Access::Full,
                    memory_type: MemoryType::WriteBack,
                    offset: shared::page_zero(slot),
                    repeated: false,
                    end: PAGE_SIZE,
                };
            }
            let (kind, run) = map.at(address);
            let memory_end = machine::memory_end(address);
            let zeroed = zeroes.contains(&address) && memory_end > address && kind.access(slot, sole) == Access::None;
            if kind == Kind::Blank(slot.other()) || zeroed {
                let page = page_of(address);
                return Stretch {
                    access: Access::Read,
                    memory_type: MemoryType::WriteBack,
                    offset: pages::zeroes().wrapping_sub(page),
                    repeated: true,
                    // A large page may be all zeroes, or some pages of it.
                    end: match zeroed {
                        true => run.min(memory_end).min(zeroes.end).max(page + PAGE_SIZE),
                        false => page + PAGE_SIZE,
                    },
                };
            }
            let (memory_type, type_end) = machine::memory_type(address);
            Stretch {
                access: kind.access(slot, sole),
                memory_type,
                offset: 0,
                repeated: false,
                end: match zeroes.start {
                    border if address < border => run.min(type_end).min(border),
                    _ => run.min(type_end),
                },
            }
        };
        if self.epts[slot].is_empty() {
            return Ok(());
        }
        let built = self.epts[slot].update(start, end, &stretch);
        let tables = PerSlot::from_fn(|slot| self.epts[slot].tables_below());
        shared::status().set_usage(self.owners.memory.stretches(), tables);
        built
    }

    pub(super) fn rebuild(&mut self, slot: Slot) -> Result<(), Exhausted> {
        let end = self.mapped_end;
        self.map(slot, 0, end)
    }

    /// Byte by byte, straight into the CPU's pages: L0's stacks have no room for whole bitmaps.
    pub(super) fn write_bitmaps(&self) {
        for slot in Slot::ALL {
            pages::set_io_bitmap(slot, |port| {
                if self.two {
                    self.owners.io_bitmap_byte(slot, port) | self.io.filtered_byte(port)
                } else {
                    0
                }
            });
        }
    }

    pub(super) fn violation(
        &mut self,
        slot: Slot,
        address: u64,
        write: bool,
    ) -> (Violation, Option<Result<(), Exhausted>>) {
        let kind = self.owners.memory.at(address).0;
        if self.two && kind == Kind::IoApic {
            return (Violation::IoApic, None);
        }
        let access = kind.access(slot, !self.two);
        let allowed = access == Access::Full || (access == Access::Read && !write);
        let mut built = None;
        if allowed {
            // Memory beyond what is mapped from the start, a large page at once, or an entry that was being rebuilt.
            if !self.epts[slot].maps(address) {
                let start = address & !(LARGE_PAGE - 1);
                built = Some(self.map(slot, start, start + LARGE_PAGE));
            }
            if self.epts[slot].maps(address) {
                return (Violation::Retry, built);
            }
        }
        if self.hosts[slot] == HostState::Dumping {
            // Its crash kernel reads what the list that it was given says, which may be older than the partition.
            if !write && machine::is_memory(address) {
                let start = address & !(LARGE_PAGE - 1);
                let end = start + LARGE_PAGE;
                built = Some(self.map_with_zeroes(slot, start, end, start..end));
                if self.epts[slot].maps(address) {
                    return (Violation::Retry, built);
                }
            }
            return (Violation::Refused, built);
        }
        // What else a host may not touch are devices that AML still tells a successor about.
        let on_trial = self.two && self.owners.reigning() != slot;
        if on_trial && machine::is_memory(address) {
            (Violation::Fatal, built)
        } else {
            (Violation::Refused, built)
        }
    }
}
