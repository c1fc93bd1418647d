//! One host becomes two, and two become one: by retirement, by an abort, or by a death.

use core::ops::Range;

use locum_abi::{Errno, Event, HostState, PerSlot, Slot, StopReason, Will};

use super::device::{self, Functions, Latches, Silence};
use super::ept::Ept;
use super::memory::Kind;
use super::{Partition, pages};
use crate::id::{self, CpuIndex};
use crate::machine::Span;
use crate::shared;
use crate::stage::{self, Step};
use crate::vmx::Hardware;

/// Ranges of memory that a host has at fixed places.
const FIXED_RANGES: usize = 2;
/// How often the registers that two hosts can't share are written until they are what their host left: it may go on
/// writing them meanwhile.
const LATCH_TRIES: usize = 64;

/// Who is left when a host has died.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Survivor {
    /// The other host.
    Other,
    /// Nobody: the machine is reset, as it would be natively.
    None,
}

/// Overwrites what the host in `gone` left in the shared region and in its slice below 1 MiB. Bounded: less than 1 MiB in
/// all.
fn wipe(hw: &mut impl Hardware, gone: Slot, slice: Range<u64>) {
    shared::wipe_channels();
    shared::wipe_slot(gone, pages::kept_page_zero);
    for address in slice.step_by(8) {
        hw.write_phys(address, 8, 0);
    }
}

impl Partition {
    /// Makes two hosts of one, for the host in `from`: filters on, the successor's EPT built. It will start on `cpu` at
    /// the first of `addresses` with its zero page at the second. `latches` is what the incumbent left in the registers
    /// that two hosts can't share.
    ///
    /// # Errors
    /// [`Errno::State`] if two hosts run already, or a CPU of `from` is not nested; [`Errno::NotOwner`] if the CPU or
    /// an address is not the successor's; [`Errno::NotParked`]; [`Errno::NoSpace`], also if there are more IOAPICs than
    /// can be filtered.
    pub(crate) fn begin_two(
        &self,
        from: Slot,
        cpu: CpuIndex,
        large_1g: bool,
        addresses: [u64; 2],
        latches: &Latches,
    ) -> Result<(), Errno> {
        let to = from.other();
        let (own, other) = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            if state.two || !state.is_wholly_nested(from) {
                return Err(Errno::State);
            }
            let mine = |address: &u64| state.owners.memory.at(*address).0 == Kind::Host(to);
            if state.owners.cpu(cpu) != to || !addresses.iter().all(mine) {
                return Err(Errno::NotOwner);
            }
            if state.too_many_ioapics || !state.owners.memory.has_room_for(FIXED_RANGES) {
                return Err(Errno::NoSpace);
            }
            stage::take(cpu, Step::Claim).map_err(|_| Errno::NotParked)?;
            state.set_fixed_memory(to).map_err(|_| Errno::NoSpace)?;
            state.io.pci_address = PerSlot::new(latches.pci_address, latches.pci_address);
            for (ioapic, latch) in state.ioapics.iter_mut().zip(&latches.ioapics) {
                ioapic.index = PerSlot::new(*latch, *latch);
            }
            state.two = true;
            state.epts[to] = Ept::new(pages::ept_tables(to), large_1g);
            state.epts[to].clear();
            let built = (state.rebuild(from), state.rebuild(to));
            state.write_bitmaps();
            // What an earlier host left there must not reach this one: before it runs, under the lock.
            shared::clear_channels();
            shared::clear_mailbox(to, shared::mailbox(to).head);
            let host = shared::status().host(to);
            host.set_generation(state.generation.wrapping_add(1));
            host.set_reason(StopReason::None, [0; 3], id::apic_id(cpu));
            state.set_host(to, HostState::Running);
            built
        };
        self.changed(from, own);
        self.changed(to, other);
        Ok(())
    }

    /// What the registers hold now that two hosts can't share: the incumbent may have a configuration cycle half done.
    pub(crate) fn read_latches(&self, hw: &mut impl Hardware) -> Latches {
        let ioapics = self.state.lock().ioapics.clone();
        device::latches(hw, &ioapics)
    }

    /// The host in `slot` has panicked, and its crash kernel is about to write a dump.
    ///
    /// # Errors
    /// [`Errno::State`] if no other host runs, or this one does not.
    pub(crate) fn begin_dump(&self, slot: Slot) -> Result<(), Errno> {
        {
            let mut state = self.state.lock();
            if state.hosts[slot] != HostState::Running || !state.is_beside_another(slot) {
                return Err(Errno::State);
            }
            state.set_host(slot, HostState::Dumping);
        }
        shared::trace(Event::HostDumps { slot });
        Ok(())
    }

    /// Declares the host in `slot` dead, and tells who is left; `None` if it was not alive. What it has stays as it is
    /// until the other host takes it.
    pub(crate) fn declare_dead(
        &self,
        slot: Slot,
        reason: StopReason,
        detail: [u64; 3],
        apic_id: u32,
    ) -> Option<Survivor> {
        let mut state = self.state.lock();
        if !state.is_alive(slot) {
            return None;
        }
        shared::status().host(slot).set_reason(reason, detail, apic_id);
        state.set_host(slot, HostState::Dead);
        Some(if state.has_heir(slot) {
            Survivor::Other
        } else {
            Survivor::None
        })
    }

    /// The host in `slot` ends by itself, and leaves all that it has to the other one; whether it was alive until now.
    ///
    /// # Errors
    /// [`Errno::State`] if nobody goes on without it.
    pub(crate) fn leave_to_heir(&self, slot: Slot, detail: [u64; 3], apic_id: u32) -> Result<bool, Errno> {
        let mut state = self.state.lock();
        if !state.has_heir(slot) {
            return Err(Errno::State);
        }
        let lives = state.is_alive(slot);
        if lives {
            shared::status()
                .host(slot)
                .set_reason(StopReason::PoweredOff, detail, apic_id);
            state.set_host(slot, HostState::Dead);
        }
        Ok(lives)
    }

    /// The reigning host, in `slot`, says what becomes of the machine when it cannot go on.
    ///
    /// # Errors
    /// [`Errno::State`] if it does not reign, or yields while no other host runs.
    pub(crate) fn set_will(&self, slot: Slot, will: Will) -> Result<(), Errno> {
        {
            let mut state = self.state.lock();
            let reigns = state.owners.reigning() == slot && state.hosts[slot] == HostState::Running;
            if !reigns || (will == Will::Yield && !state.is_beside_another(slot)) {
                return Err(Errno::State);
            }
            state.will = will;
        }
        shared::trace(Event::Will { slot, will });
        Ok(())
    }

    /// The host in `slot` wants the other one stopped: from here on that one is dead, and starts no CPU.
    ///
    /// # Errors
    /// [`Errno::State`] if there is none; if the host that asks is dead itself; or if the successor asks, unless the
    /// incumbent is dead already, writes a dump, or yields.
    pub(crate) fn condemn(&self, slot: Slot) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let other = slot.other();
        if state.hosts[slot] != HostState::Running {
            return Err(Errno::State);
        }
        let succeeds = state.two && state.owners.reigning() == other;
        // One that is about to retire is gone in a moment.
        let yields = state.will == Will::Yield && !state.retires(other);
        match state.hosts[other] {
            HostState::Absent | HostState::Retired => Err(Errno::State),
            HostState::Preparing | HostState::Running if succeeds && !yields => Err(Errno::State),
            HostState::Preparing | HostState::Running | HostState::Dumping => {
                shared::status().host(other).set_reason(StopReason::Aborted, [0; 3], 0);
                state.set_host(other, HostState::Dead);
                Ok(())
            }
            HostState::Dead => Ok(()),
        }
    }

    /// The host in `slot` is going to retire: from here on it starts no CPU.
    ///
    /// # Errors
    /// [`Errno::State`] unless it reigns and lives, and the other host runs.
    pub(crate) fn begin_retiring(&self, slot: Slot) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let reigns = state.owners.reigning() == slot && state.hosts[slot] == HostState::Running;
        if !reigns || !state.is_beside_another(slot) {
            return Err(Errno::State);
        }
        state.retiring = true;
        Ok(())
    }

    /// It does not retire after all.
    pub(crate) fn cancel_retiring(&self) {
        self.state.lock().retiring = false;
    }

    /// Makes one host of two, when all CPUs of the host that goes are parked: everything belongs to the host in `to`,
    /// and the other one is `then`. What it left in L0's memory and in its slice is overwritten first; its own memory is for
    /// the agent to clear, block by block.
    ///
    /// # Errors
    /// [`Errno::State`] if the host in `to` does not run (any more); nothing has changed then.
    pub(crate) fn end_two(&self, hw: &mut impl Hardware, to: Slot, then: HostState) -> Result<(), Errno> {
        let gone = to.other();
        let was_two = self.state.lock().two;
        // One that retires has silenced its devices itself.
        if was_two && then != HostState::Retired {
            device::silence(hw, &self.silence(gone));
        }
        // While these are held, no filtered access is half done; and the registers are what `to` left when it ends.
        let devices = device::lock();
        let mut latches = self.state.lock().latches(to);
        for _ in 0..LATCH_TRIES {
            if was_two {
                device::restore(hw, &devices, &latches);
            }
            let mut state = self.state.lock();
            let now = state.latches(to);
            if was_two && now != latches {
                latches = now;
                continue;
            }
            if state.hosts[to] != HostState::Running {
                return Err(Errno::State);
            }
            if was_two {
                let Span { start, end } = state.low_slices[gone];
                wipe(hw, gone, start..end);
            }
            let (own, other) = state.give_all(to, then);
            drop(state);
            drop(devices);
            self.changed(to, own);
            self.changed(gone, other);
            return Ok(());
        }
        Err(Errno::Timeout)
    }

    /// What a stopped host had: its functions may still have DMA and interrupts under way, into memory and to CPUs that
    /// are about to change hands.
    fn silence(&self, gone: Slot) -> Silence {
        let state = self.state.lock();
        let listed = state.owners.other_functions().iter().copied().collect();
        Silence {
            functions: if gone == state.owners.reigning() {
                Functions::AllBut(listed)
            } else {
                Functions::Only(listed)
            },
            pins: state
                .ioapics
                .iter()
                .map(|ioapic| (*ioapic, state.owners.pins_of(ioapic.gsi_base, gone)))
                .collect(),
        }
    }
}
