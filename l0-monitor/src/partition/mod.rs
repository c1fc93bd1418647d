//! The partition: who owns which CPU, page, port, pin and PCI function, and how the CPU is made to enforce it.
//!
//! [`Owners`](owners::Owners) and [`Map`](memory::Map) say who owns what; everything else here is derived from them:
//! one [EPT](ept) and one pair of I/O bitmaps per slot, and what two hosts must share ([ports and PCI
//! configuration](io_filter), [IOAPICs](ioapic)). Owners change in [`owners::Owners::give`] and
//! [`owners::Owners::give_all`] and nowhere else.
//!
//! While only one host exists, it owns everything but L0's memory, and nothing is filtered. How one becomes two, and two
//! one, is in [`hosts`].
//!
//! # The lock
//! All of it, and the states of the two hosts, is behind one lock. Each method of [`Partition`] takes it once, decides,
//! and returns a value; what follows from that (an access to a device, a wait for another CPU, an entry into a guest)
//! is done without it. Only memory is touched under the lock: tables of L0's and the status page. Devices whose
//! registers take two accesses have a lock of their own ([`device`]), and no CPU ever holds both.

mod device;
pub(crate) mod ept;
mod first_map;
#[cfg(feature = "fuzz")]
pub(crate) mod fuzz;
mod hosts;
pub(crate) mod io_filter;
pub(crate) mod ioapic;
pub(crate) mod memory;
pub(crate) mod owners;
mod pages;
#[cfg(test)]
mod properties;
mod state;
#[cfg(test)]
mod tests;

use core::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use locum_abi::{Errno, Event, Grant, HostState, PerSlot, Slot, Will};
use spin::Mutex;

use crate::arch::paging::page_of;
use crate::id::{self, CpuIndex};
use crate::machine::{Machine, Span};
use crate::shared;
use crate::shared::layout::Place;
use crate::stage::{self, Stage, Step};
use crate::vmx::Hardware;
use crate::vmx::exit::IoAccess;
use device::Rights;
use ept::{Ept, Exhausted};
use first_map::first_map;
pub(crate) use hosts::Survivor;
use io_filter::{IoFilter, PortRule, Verdict};
use ioapic::{IoApic, IoApicRule};
use memory::{Access, Kind};
use owners::{Owners, Resource};
use state::State;

/// Notes what page 0 holds, for hosts that see a page of their own there. Called once at boot, when each slot's page is a
/// copy of it.
pub(crate) fn keep_page_zero() {
    pages::keep_page_zero(Slot::Even);
}

/// The partition of this machine.
pub(crate) static PARTITION: Partition = Partition::new();

/// Owners, hosts, and what enforces them. See the module.
#[derive(Debug)]
pub(crate) struct Partition {
    state: Mutex<State>,
    /// Changes of each slot's EPT. A CPU compares it with what it saw last and flushes.
    ept_changes: PerSlot<AtomicU32>,
}

/// How a woken CPU comes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StartMode {
    /// In VMX root, L0 dormant.
    Native,
    /// In VMX non-root.
    Nested,
}

/// What an access that EPT refused comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// The host may make it: it is mapped now, and is made again.
    Retry,
    /// Registers of an IOAPIC, which are filtered.
    IoApic,
    /// A device, or memory that the reigning host lost: loads give ones, stores are dropped.
    Refused,
    /// Memory that a successor does not own: the end of it.
    Fatal,
}

/// What the CPU needs to enforce a host's rights, as physical addresses for a VMCS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Enforcement {
    /// EPT pointer.
    pub(crate) eptp: u64,
    /// I/O bitmaps A and B.
    pub(crate) io_bitmaps: [u64; 2],
    /// MSR bitmap.
    pub(crate) msr_bitmap: u64,
}

impl Partition {
    const fn new() -> Self {
        Self {
            state: Mutex::new(State {
                owners: Owners::new(),
                hosts: PerSlot::new(HostState::Absent, HostState::Absent),
                generation: 0,
                two: false,
                epts: PerSlot::new(Ept::NONE, Ept::NONE),
                io: IoFilter::NONE,
                ioapics: ArrayVec::new_const(),
                too_many_ioapics: false,
                retiring: false,
                will: Will::Pass,
                l0: Place::new(0),
                low_slices: PerSlot::new(Span::EMPTY, Span::EMPTY),
                mapped_end: 0,
            }),
            ept_changes: PerSlot::new(AtomicU32::new(0), AtomicU32::new(0)),
        }
    }

    /// Gives everything to the first host, which is about to run. Called once at boot.
    ///
    /// # Errors
    /// [`memory::Full`] if the machine is too fragmented for the list of ranges.
    pub(crate) fn init(&self, machine: &Machine) -> Result<(), memory::Full> {
        let map = first_map(machine)?;
        let mut state = self.state.lock();
        state.owners.memory = map;
        state.io.pm1 = machine.pm1_control;
        state.ioapics = machine
            .ioapics
            .iter()
            .map(|found| IoApic::new(found.address, found.gsi_base))
            .collect();
        state.too_many_ioapics = machine.too_many_ioapics;
        state.owners.ecam = machine.ecam.clone();
        (state.l0, state.low_slices) = (machine.l0, machine.low_slices);
        state.mapped_end = machine.memory_end().max(4 << 30);
        state.set_host(Slot::Even, HostState::Running);
        Ok(())
    }

    /// Builds the tables of the host in `slot`, unless they exist. `large_1g`: EPT has 1 GiB pages.
    pub(crate) fn prepare(&self, slot: Slot, large_1g: bool) {
        let built = {
            let mut state = self.state.lock();
            if !state.epts[slot].is_empty() {
                return;
            }
            state.epts[slot] = Ept::new(pages::ept_tables(slot), large_1g);
            let built = state.rebuild(slot);
            state.write_bitmaps();
            built
        };
        self.changed(slot, built);
    }

    /// What a VMCS of the host in `slot` gets. With `bsp`, reads of IA32_APIC_BASE exit, besides those MSRs that always do.
    pub(crate) fn enforcement(&self, slot: Slot, bsp: bool) -> Enforcement {
        Enforcement {
            eptp: self.ept_pointer(slot),
            io_bitmaps: pages::io_bitmap_addresses(slot),
            msr_bitmap: pages::msr_bitmap(bsp),
        }
    }

    /// Addresses of a slot's I/O bitmaps: others whenever [`Self::ept_changes`] has moved on.
    pub(crate) fn io_bitmaps(&self, slot: Slot) -> [u64; 2] {
        pages::io_bitmap_addresses(slot)
    }

    /// EPT pointer of a slot.
    pub(crate) fn ept_pointer(&self, slot: Slot) -> u64 {
        self.state.lock().epts[slot].pointer()
    }

    /// Number of changes of a slot's EPT.
    #[inline(always)]
    pub(crate) fn ept_changes(&self, slot: Slot) -> u32 {
        self.ept_changes[slot].load(Ordering::Acquire)
    }

    /// Counts a change of a slot's EPT, and tells if it ran out of tables.
    fn changed(&self, slot: Slot, result: Result<(), Exhausted>) {
        self.ept_changes[slot].fetch_add(1, Ordering::Release);
        if result.is_err() {
            log::error!(
                "the EPT of the host in slot {} is out of tables: it can't reach some of its memory",
                slot.raw()
            );
        }
    }

    /// Whether L0 may touch these bytes for the host in `slot`.
    pub(crate) fn may_touch(&self, slot: Slot, address: u64, bytes: u64) -> bool {
        let state = self.state.lock();
        // L0's own page table maps what is mapped from the start, and no more.
        let end = address.checked_add(bytes).filter(|end| *end <= state.mapped_end);
        end.is_some_and(|end| {
            state.owners.memory.all(address, end, |kind| {
                kind != Kind::IoApic && kind.access(slot, !state.two) == Access::Full
            })
        })
    }

    /// The owner of a CPU.
    pub(crate) fn owner(&self, cpu: CpuIndex) -> Slot {
        self.state.lock().owners.cpu(cpu)
    }

    /// CPUs that the host in `slot` owns.
    pub(crate) fn cpus(&self, slot: Slot) -> ArrayVec<CpuIndex, { locum_abi::MAX_CPUS }> {
        self.state.lock().cpus(slot).collect()
    }

    /// How `cpu`, which is in [`Stage::Starting`], comes up in the host of `slot`; `None` if that host does not own it
    /// any more, or does not run. Whoever stops a host declares it dead under the lock and looks at the CPUs
    /// afterwards, so one of the two sees the other.
    pub(crate) fn start_mode(&self, cpu: CpuIndex, slot: Slot) -> Option<StartMode> {
        let state = self.state.lock();
        let stops = state.retires(slot) || !state.is_alive(slot);
        if stops || state.owners.cpu(cpu) != slot {
            return None;
        }
        let nested = |cpu| matches!(stage::of(cpu), Stage::Nested | Stage::InitSent);
        let nested = state.two || state.cpus(slot).any(nested);
        Some(if nested { StartMode::Nested } else { StartMode::Native })
    }

    /// Gives a resource of the host in `from` to the other slot.
    ///
    /// # Errors
    /// Those of [`Resource::new`] and [`Owners::give`]; [`Errno::State`] if the other host runs, or a CPU of `from` is
    /// not nested; [`Errno::NotParked`].
    pub(crate) fn grant(&self, grant: Grant, from: Slot) -> Result<(), Errno> {
        let resource = Resource::new(grant, id::index_of_apic)?;
        let to = from.other();
        let mut built = None;
        {
            let mut state = self.state.lock();
            if state.two || !state.is_wholly_nested(from) {
                return Err(Errno::State);
            }
            if let Resource::Cpu(cpu) = resource
                && !stage::is_parked(cpu)
            {
                return Err(Errno::NotParked);
            }
            state.owners.give(resource, from)?;
            match resource {
                Resource::Memory(start, end) => built = Some(state.map(from, start, end)),
                Resource::Pci(function) => {
                    built = state
                        .owners
                        .ecam_page(function)
                        .map(|(start, end)| state.map(from, start, end));
                }
                Resource::Cpu(cpu) => shared::status().cpu(cpu).set_owner(Some(to)),
                _ => {}
            }
            state.set_host(to, HostState::Preparing);
        }
        if let Some(result) = built {
            self.changed(from, result);
        }
        shared::trace(Event::Owner { grant, to });
        Ok(())
    }

    /// Takes [`Step::Leave`] for a CPU of the host in `slot`.
    ///
    /// # Errors
    /// [`Errno::State`] while there is another host, or one is being prepared: what this one does must be filtered.
    pub(crate) fn leave(&self, cpu: CpuIndex, slot: Slot) -> Result<(), Errno> {
        let state = self.state.lock();
        let alone = matches!(state.hosts[slot.other()], HostState::Absent | HostState::Retired);
        if state.two || !alone {
            return Err(Errno::State);
        }
        stage::take(cpu, Step::Leave).map_err(|_| Errno::State)
    }

    /// Serves a port access of the host in `slot`: an IN or OUT, not a string instruction. `value` is what an OUT
    /// writes.
    pub(crate) fn port(&self, hw: &mut impl Hardware, slot: Slot, io: IoAccess, value: u32) -> Verdict {
        let (rule, dumps) = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            // One that waited for the lock while the other host ended, or whose other host does not go on without it, is as
            // if alone.
            let rule = state.io.rule(&state.owners, slot, io, value);
            let rule = match rule {
                _ if !state.two => PortRule::Direct,
                PortRule::Answer(Verdict::Power) if !state.has_heir(slot) => PortRule::Direct,
                rule => rule,
            };
            (rule, state.hosts[slot] == HostState::Dumping)
        };
        match rule {
            PortRule::Answer(verdict) => verdict,
            PortRule::Direct => device::port(hw, io, value),
            PortRule::Pci { address, own } => {
                let rights = match (own, dumps) {
                    (true, false) => Rights::All,
                    (true, true) => Rights::AllButBridges,
                    (false, _) => Rights::Bridges,
                };
                device::pci(hw, address, rights, io, value)
            }
            PortRule::Denied => {
                shared::trace(Event::PortDenied {
                    port: io.port,
                    size: io.size,
                    write: (!io.input).then_some(value & io_filter::ones(io.size)),
                });
                io_filter::dropped(io)
            }
        }
    }

    /// What an access of the host in `slot` comes to that its EPT refused.
    pub(crate) fn violation(&self, slot: Slot, address: u64, write: bool) -> Violation {
        let (decision, built) = {
            let mut state = self.state.lock();
            state.violation(slot, address, write)
        };
        if let Some(result) = built {
            self.changed(slot, result);
        }
        decision
    }

    /// Serves a 32-bit access of the host in `slot` to the registers of an IOAPIC: `write` is what it stores. Returns
    /// what a load gives.
    pub(crate) fn ioapic(&self, hw: &mut impl Hardware, slot: Slot, address: u64, write: Option<u32>) -> u32 {
        let rule = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let page = |ioapic: &&mut IoApic| page_of(ioapic.address) == page_of(address);
            match state.ioapics.iter_mut().find(page) {
                _ if !state.two => IoApicRule::Direct,
                Some(ioapic) => ioapic.rule(&state.owners, slot, address, write),
                None => IoApicRule::Answer(!0),
            }
        };
        match rule {
            IoApicRule::Answer(value) => value,
            IoApicRule::Denied { gsi, value } => {
                shared::trace(Event::PinDenied { gsi, value });
                0
            }
            IoApicRule::Direct => device::direct(hw, address, write),
            IoApicRule::Window { base, index } => device::ioapic(hw, base, index, write),
        }
    }
}
