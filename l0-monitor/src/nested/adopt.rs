//! Adoption: KVM's VMCS runs in place, with L0's host-state area in it and the host's own in a side table.
//!
//! A VMCS is adopted when it becomes current, and given back (*unadopted*) on VMCLEAR, on VMXOFF, when the table has no room,
//! when L0 leaves, and when its host ends there. Between the two, VMREAD and VMWRITE of a replaced field act on the side table.
//! Nothing else in the VMCS is ever changed.

use arrayvec::ArrayVec;
use locum_abi::Event;

use crate::nested::fingerprint::{self, Fingerprint};
use crate::nested::host_area::HostArea;
use crate::vmx::{Hardware, VmxStatus};

/// How many VMCSs one CPU can have adopted: that of every virtual CPU that ran on it since it last moved.
pub(crate) const CAPACITY: usize = 128;

/// One adopted VMCS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Its physical address.
    pub(crate) phys: u64,
    /// The host's values of the replaced fields.
    pub(crate) area: HostArea,
    /// From before the adoption; none if it was not taken, or the VMCS was used since.
    pub(crate) fingerprint: Option<Fingerprint>,
}

/// The side table of one CPU.
#[derive(Debug)]
pub(crate) struct Adopted {
    /// Position of the entry used last: nearly every look-up is for it.
    last: usize,
    /// Who gives up its place next when the table is full.
    victim: usize,
    entries: ArrayVec<Entry, CAPACITY>,
}

impl Adopted {
    /// An empty table.
    pub(crate) const fn new() -> Self {
        Self {
            last: 0,
            victim: 0,
            entries: ArrayVec::new_const(),
        }
    }

    /// Number of adopted VMCSs.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry of the VMCS at `phys`.
    pub(crate) fn find(&mut self, phys: u64) -> Option<&mut Entry> {
        if self.entries.get(self.last).is_none_or(|entry| entry.phys != phys) {
            self.last = self.entries.iter().position(|entry| entry.phys == phys)?;
        }
        self.entries.get_mut(self.last)
    }

    /// Adopts the current VMCS, which is at `phys`: the host's area goes to the table, `own` into the VMCS. Nothing
    /// happens if it is adopted already. Changes the current VMCS only if the table is full: the next victim is given
    /// back then.
    ///
    /// # Errors
    /// That of the VMPTRLD that failed; nothing is adopted then.
    pub(crate) fn adopt(&mut self, hw: &mut impl Hardware, phys: u64, own: &HostArea) -> Result<(), VmxStatus> {
        if self.find(phys).is_some() {
            return Ok(());
        }
        let area = HostArea::read(hw);
        if let Some(victim) = self.victim() {
            // Whether it is the same is told only of those that are given back when their time has come.
            self.give_back(hw, victim);
            let status = hw.vmptrld(phys);
            if !status.ok() {
                return Err(status);
            }
        }
        let fingerprint = fingerprint::enabled().then(|| Fingerprint::take(hw));
        own.write(hw);
        self.last = self.entries.len();
        self.entries.push(Entry {
            phys,
            area,
            fingerprint,
        });
        Ok(())
    }

    /// Address of the entry that has to make room, if the table is full.
    fn victim(&mut self) -> Option<u64> {
        if !self.entries.is_full() {
            return None;
        }
        self.victim = (self.victim + 1) % CAPACITY;
        self.entries.get(self.victim).map(|entry| entry.phys)
    }

    /// Makes the VMCS at `phys` current, writes the host's values back and forgets it, if it was adopted. Tells whether
    /// it is as it was, if that was to be checked.
    pub(crate) fn give_back(&mut self, hw: &mut impl Hardware, phys: u64) -> Option<Event> {
        let entry = *self.find(phys)?;
        let mut checked = None;
        if hw.vmptrld(phys).ok() {
            entry.area.write(hw);
            if let Some(before) = entry.fingerprint {
                let now = Fingerprint::take(hw);
                checked = Some(Event::VmcsChecked {
                    same: now == before,
                    field: now.field_that_differs(before).map(|field| field.0),
                    vmcs: phys,
                    difference: now.above(before),
                });
            }
        }
        self.entries.swap_remove(self.last);
        checked
    }

    /// Addresses of all adopted VMCSs.
    #[cfg(feature = "fuzz")]
    pub(crate) fn addresses(&self) -> impl Iterator<Item = u64> {
        self.entries.iter().map(|entry| entry.phys)
    }

    /// Address of any adopted VMCS.
    pub(crate) fn any(&self) -> Option<u64> {
        self.entries.last().map(|entry| entry.phys)
    }
}
