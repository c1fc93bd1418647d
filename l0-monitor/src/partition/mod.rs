//! The partition: who owns which CPU, page, port, pin and PCI function, and how the CPU is made to enforce it.
//!
//! [`Owners`](owners::Owners) and [`Map`](memory::Map) say who owns what; everything else here is derived from them:
//! one [EPT](ept) and one pair of I/O bitmaps per slot, and the filters for what two hosts must share
//! ([PCI configuration and power ports](io_filter), [IOAPICs](ioapic)). Owners change in [`owners::Owners::give`] and
//! [`owners::Owners::give_all`] and nowhere else.
//!
//! While only one host exists, it owns everything but L0's memory, and nothing is filtered.

pub mod ept;
pub mod io_filter;
pub mod ioapic;
pub mod memory;
pub mod owners;
mod pages;

use core::sync::atomic::{AtomicU32, Ordering};

use firmware_shim::e820::MemoryType;
use locum_abi::{CpuMode, Errno, Event, Grant, HostState, PerSlot, Slot};
use spin::Mutex;

use crate::boot::Machine;
use crate::cpu::{self, CpuIndex};
use crate::shared::{self, layout};
use crate::vmx::Hardware;
use crate::vmx::exit::IoAccess;
use ept::{Ept, Stretch};
use io_filter::{IoFilter, Verdict};
use ioapic::IoApic;
use memory::{Access, Kind, Map};
use owners::{Owners, Resource};

const PAGE: u64 = 4096;
const LAPIC_PAGE: u64 = 0xfee0_0000;
/// Where Intel's chipsets have the HPET (IA-PC HPET specification 1.0a, 2.3.1). A successor has no HPET table, but the
/// machine's AML names the device, and Linux' driver for that waits for the counter to move: it may read.
const HPET_PAGE: u64 = 0xfed0_0000;
/// Start of what both hosts may read below 1 MiB: what follows the slices, with the EBDA at its end. Kernels look for
/// firmware tables there.
const EBDA: u64 = 0x9_0000;
const VGA: u64 = 0xa_0000;
const BIOS: u64 = 0xc_0000;
const MIB: u64 = 0x10_0000;
const MAX_IOAPICS: usize = 8;

/// Changes of each slot's EPT that took rights away. A CPU compares it with what it saw last and flushes.
static EPT_CHANGES: PerSlot<AtomicU32> = PerSlot::new(AtomicU32::new(0), AtomicU32::new(0));

struct State {
    owners: Owners,
    epts: PerSlot<Ept<'static>>,
    io: IoFilter,
    ioapics: [IoApic; MAX_IOAPICS],
    ioapic_count: usize,
    /// Two hosts run, or one is dead and not yet cleared away.
    two: bool,
    /// End of the memory that is mapped eagerly.
    mapped_end: u64,
}

static STATE: Mutex<State> = Mutex::new(State {
    owners: Owners::new(),
    epts: PerSlot::new(Ept::new(&[], false), Ept::new(&[], false)),
    io: IoFilter {
        pci_address: PerSlot::new(0, 0),
        pm1: [0; 2],
    },
    ioapics: [IoApic {
        address: 0,
        gsi_base: 0,
        index: PerSlot::new(0, 0),
    }; MAX_IOAPICS],
    ioapic_count: 0,
    two: false,
    mapped_end: 0,
});

/// The map as it is when the first host starts.
fn first_map(machine: &Machine) -> Result<Map, memory::Full> {
    let mut map = Map::new();
    map.set(layout::PRIVATE_BASE, layout::BASE, Kind::Monitor)?;
    let read_only_end = layout::BASE + core::mem::offset_of!(layout::Region, slots) as u64;
    map.set(layout::BASE, read_only_end, Kind::ReadOnly)?;
    map.set(read_only_end, layout::BASE + layout::SIZE, Kind::Shared)?;
    // Kernels look all over low memory for what firmware and other kernels may have left there.
    map.set(PAGE, EBDA, Kind::Readable(Slot::Even))?;
    map.set(EBDA, VGA, Kind::ReadOnly)?;
    map.set(BIOS, MIB, Kind::ReadOnly)?;
    map.set(LAPIC_PAGE, LAPIC_PAGE + PAGE, Kind::Shared)?;
    map.set(HPET_PAGE, HPET_PAGE + PAGE, Kind::Readable(Slot::Even))?;
    // Both read the machine's tables, and AML writes what it keeps there.
    for range in machine.e820.entries() {
        if matches!(range.kind, MemoryType::AcpiReclaim | MemoryType::AcpiNvs) {
            let (start, end) = (range.start & !(PAGE - 1), range.end.next_multiple_of(PAGE));
            map.set(start, end, Kind::Shared)?;
        }
    }
    if let Some(pool) = machine.pool {
        map.set(pool.start, pool.end, Kind::Shared)?;
    }
    for ioapic in machine.ioapics() {
        let page = ioapic.address & !(PAGE - 1);
        map.set(page, page + PAGE, Kind::IoApic)?;
    }
    Ok(map)
}

/// Gives everything to the first host. Called once at boot.
///
/// # Errors
/// [`memory::Full`] if the machine is too fragmented for the list of ranges.
pub fn init(machine: &Machine) -> Result<(), memory::Full> {
    let mut state = STATE.lock();
    state.owners.memory = first_map(machine)?;
    state.io.pm1 = machine.pm1_control;
    state.ioapic_count = 0;
    for found in machine.ioapics() {
        let at = state.ioapic_count;
        if let Some(place) = state.ioapics.get_mut(at) {
            *place = IoApic {
                address: found.address,
                gsi_base: found.gsi_base,
                index: PerSlot::default(),
            };
            state.ioapic_count += 1;
        }
    }
    state.mapped_end = machine.memory_end().max(4 << 30);
    Ok(())
}

/// Tells the partition whether EPT has 1 GiB pages and builds the tables of the host in `slot`, unless they exist.
pub fn prepare(slot: Slot, large_1g: bool) {
    let mut state = STATE.lock();
    if state.epts[slot].pointer() & !0xfff == 0 {
        state.epts[slot] = Ept::new(pages::ept_tables(slot), large_1g);
        state.rebuild(slot);
        state.write_bitmaps();
    }
}

impl State {
    fn sole(&self) -> bool {
        !self.two
    }

    /// Derives a slot's EPT for `start..end`.
    fn map(&mut self, slot: Slot, start: u64, end: u64) {
        let sole = self.sole();
        let map = &self.owners.memory;
        let successor_zero = if sole || slot == self.owners.reigning() {
            None
        } else {
            Some(shared::page_zero(slot))
        };
        let stretch = |address: u64| {
            let (kind, run) = map.at(address);
            let (memory_type, type_end) = crate::boot::memory_type(address);
            let mut s = Stretch {
                access: kind.access(slot, sole),
                memory_type,
                offset: 0,
                end: run.min(type_end),
            };
            if let Some(page) = successor_zero
                && address < PAGE
            {
                s = Stretch {
                    access: Access::Full,
                    memory_type: 6,
                    offset: page,
                    end: PAGE,
                };
            }
            s
        };
        if self.epts[slot].update(start, end, &stretch).is_err() {
            log::error!("EPT of the {slot:?} slot: out of tables at {start:#x}..{end:#x}");
        }
        EPT_CHANGES[slot].fetch_add(1, Ordering::Release);
    }

    fn rebuild(&mut self, slot: Slot) {
        let end = self.mapped_end;
        self.map(slot, 0, end);
    }

    /// Byte by byte, straight into the CPU's pages: L0's stacks have no room for whole bitmaps.
    fn write_bitmaps(&self) {
        for slot in Slot::ALL {
            pages::set_io_bitmap(slot, |byte| {
                if self.two {
                    self.owners.io_bitmap_byte(slot, byte) | self.io.filtered_byte(byte)
                } else {
                    0
                }
            });
        }
    }
}

/// EPT pointer of a slot.
pub fn ept_pointer(slot: Slot) -> u64 {
    STATE.lock().epts[slot].pointer()
}

/// Number of changes of a slot's EPT.
pub fn ept_changes(slot: Slot) -> u32 {
    EPT_CHANGES[slot].load(Ordering::Acquire)
}

/// Physical addresses of a slot's I/O bitmaps A and B.
pub fn io_bitmaps(slot: Slot) -> [u64; 2] {
    pages::io_bitmap_addresses(slot)
}

/// Physical address of the MSR bitmap: nothing exits, or with `bsp` only reads of IA32_APIC_BASE.
pub fn msr_bitmap(bsp: bool) -> u64 {
    pages::msr_bitmap(bsp)
}

/// Whether L0 may touch these bytes for the host in `slot`.
pub fn may_touch(slot: Slot, address: u64, bytes: u64) -> bool {
    let state = STATE.lock();
    let sole = state.sole();
    // L0's own page table maps what is mapped eagerly, and no more.
    let end = address.checked_add(bytes).filter(|end| *end <= state.mapped_end);
    end.is_some_and(|end| {
        state.owners.memory.all(address, end, |k| {
            k != Kind::IoApic && k.access(slot, sole) == Access::Full
        })
    })
}

/// The owner of a CPU.
pub fn cpu_owner(cpu: CpuIndex) -> Option<Slot> {
    Some(STATE.lock().owners.cpu(cpu))
}

/// Whether a CPU of the host in `slot` is nested: those that come up then are nested too.
pub fn slot_is_nested(slot: Slot) -> bool {
    cpu::all().any(|c| shared::status().cpu(c).mode() == CpuMode::Nested && cpu_owner(c) == Some(slot))
}

/// Whether every CPU of the host in `slot` is nested or parked: what it does is filtered.
pub fn slot_is_wholly_nested(slot: Slot) -> bool {
    cpu::all().all(|c| shared::status().cpu(c).mode() != CpuMode::Native || cpu_owner(c) != Some(slot))
}

/// Slot of the reigning host.
pub fn reigning() -> Slot {
    STATE.lock().owners.reigning()
}

/// Whether two hosts run.
pub fn two_hosts() -> bool {
    STATE.lock().two
}

fn publish_cpu(cpu: CpuIndex) {
    shared::status().cpu(cpu).set_owner(cpu_owner(cpu));
}

/// Gives a resource of the host in `from` to the other slot.
///
/// # Errors
/// Those of [`Owners::give`]; [`Errno::State`] if the other host runs; [`Errno::NotParked`].
pub fn grant(grant: Grant, from: Slot) -> Result<(), Errno> {
    let resource = Resource::new(grant, cpu::index_of_apic)?;
    {
        let mut state = STATE.lock();
        if state.two {
            return Err(Errno::State);
        }
        if let Resource::Cpu(cpu) = resource
            && shared::status().cpu(cpu).mode() != CpuMode::Parked
        {
            return Err(Errno::NotParked);
        }
        state.owners.give(resource, from)?;
        if let Resource::Memory(start, end) = resource {
            state.map(from, start, end);
        }
    }
    shared::status().host(from.other()).set_state(HostState::Preparing);
    if let Resource::Cpu(cpu) = resource {
        publish_cpu(cpu);
    }
    shared::trace(Event::Owner {
        grant,
        to: from.other(),
    });
    Ok(())
}

/// Makes two hosts of one: filters on, the successor's EPT built. `entry` and `zero_page` are where it will start.
///
/// # Errors
/// [`Errno::State`] if two hosts run already; [`Errno::NotOwner`] if an address is not the successor's;
/// [`Errno::NoSpace`].
pub fn begin_two(hw: &mut impl Hardware, from: Slot, large_1g: bool, addresses: [u64; 2]) -> Result<(), Errno> {
    let to = from.other();
    let mut guard = STATE.lock();
    let state = &mut *guard;
    if state.two {
        return Err(Errno::State);
    }
    if !addresses.iter().all(|a| state.owners.memory.at(*a).0 == Kind::Host(to)) {
        return Err(Errno::NotOwner);
    }
    let (slice, size) = shared::low_slice(to);
    state
        .owners
        .memory
        .set(slice, slice + size, Kind::Readable(to))
        .map_err(|_| Errno::NoSpace)?;
    // The host may have a configuration cycle half done: its address is in the real register.
    let latch = hw.port_in(0xcf8, 4);
    state.io.pci_address = PerSlot::new(latch, latch);
    for i in 0..state.ioapic_count {
        if let Some(ioapic) = state.ioapics.get_mut(i) {
            let index = hw.read_phys(ioapic.address, 4) as u32;
            ioapic.index = PerSlot::new(index, index);
        }
    }
    state.two = true;
    state.epts[to] = Ept::new(pages::ept_tables(to), large_1g);
    state.epts[to].clear();
    state.rebuild(to);
    state.rebuild(from);
    state.write_bitmaps();
    Ok(())
}

/// Silences what an aborted host had: its functions may still have DMA and interrupts under way, into memory and to
/// CPUs that are about to change hands.
fn silence(hw: &mut impl Hardware, state: &State, gone: Slot) {
    const COMMAND: u32 = 0x8000_0004;
    const BUS_MASTER: u32 = 1 << 2;
    const INTX_DISABLE: u32 = 1 << 10;
    for function in state.owners.other_functions() {
        hw.port_out(0xcf8, 4, COMMAND | u32::from(*function) << 8);
        let command = hw.port_in(0xcfc, 2);
        hw.port_out(0xcfc, 2, command & !BUS_MASTER | INTX_DISABLE);
    }
    for ioapic in state.ioapics.iter().take(state.ioapic_count) {
        ioapic.mask(hw, &state.owners, gone);
    }
}

/// What two hosts could not share goes back to the one that stays, `to`.
fn restore_latches(hw: &mut impl Hardware, state: &State, to: Slot) {
    hw.port_out(0xcf8, 4, state.io.pci_address[to]);
    for ioapic in state.ioapics.iter().take(state.ioapic_count) {
        hw.write_phys(ioapic.address, 4, ioapic.index[to].into());
    }
}

/// Undoes [`begin_two`]: the host in `from` goes on alone, what it granted stays granted.
pub fn cancel_two(hw: &mut impl Hardware, from: Slot) {
    let mut state = STATE.lock();
    restore_latches(hw, &state, from);
    state.two = false;
    state.rebuild(from);
    state.write_bitmaps();
}

/// Makes one host of two: everything belongs to the host in `to`.
pub fn end_two(hw: &mut impl Hardware, to: Slot) {
    {
        let mut guard = STATE.lock();
        let state = &mut *guard;
        let was_two = state.two;
        if was_two && to == state.owners.reigning() {
            silence(hw, state, to.other());
        }
        state.owners.give_all(to);
        state.two = false;
        if was_two {
            restore_latches(hw, state, to);
        }
        state.rebuild(to);
        // The other's tables lose all rights: nothing that is late can use them.
        state.rebuild(to.other());
        state.write_bitmaps();
    }
    cpu::all().for_each(publish_cpu);
}

/// Serves a port access of the host in `slot`.
pub fn port(hw: &mut impl Hardware, slot: Slot, io: IoAccess, value: u32) -> Verdict {
    let mut guard = STATE.lock();
    let state = &mut *guard;
    let mut untraced = state.io;
    let verdict = untraced.access(hw, &state.owners, slot, io, value);
    state.io = untraced;
    verdict
}

/// Serves an access to an IOAPIC's page, if `address` is in one while two hosts run. See [`IoApic::access`].
pub fn ioapic(hw: &mut impl Hardware, slot: Slot, address: u64, write: Option<u32>) -> Option<u32> {
    let mut guard = STATE.lock();
    let state = &mut *guard;
    let count = state.ioapic_count;
    let ioapic = state
        .ioapics
        .iter_mut()
        .take(count)
        .find(|i| i.address & !0xfff == address & !0xfff)?;
    let offset = address - ioapic.address.min(address);
    Some(ioapic.access(hw, &state.owners, slot, offset, write))
}

/// True if an IOAPIC's registers are in the page of `address`.
pub fn is_ioapic(address: u64) -> bool {
    STATE.lock().owners.memory.at(address).0 == Kind::IoApic
}

/// Whether the host in `slot` may make the access that EPT refused: then it is mapped now (memory beyond what is mapped
/// eagerly, or an entry that was being rebuilt), and the access can be made again.
pub fn allow(slot: Slot, address: u64, write: bool) -> bool {
    let mut state = STATE.lock();
    let sole = state.sole();
    let access = state.owners.memory.at(address).0.access(slot, sole);
    if access == Access::None || (write && access == Access::Read) {
        return false;
    }
    let mapped = |state: &State| state.epts[slot].lookup(address).0 != 0;
    if !mapped(&state) {
        let start = address & !((2 << 20) - 1);
        state.map(slot, start, start + (2 << 20));
    }
    mapped(&state)
}

/// Whether there is memory at `address`: a wild access to it is a host's end. What else a host may not touch are
/// devices that AML still tells a successor about.
pub fn is_memory(address: u64) -> bool {
    crate::boot::machine()
        .ram()
        .any(|range| (range.start..range.end).contains(&address))
        || address < VGA
}
