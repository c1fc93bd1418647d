//! Adoption: KVM's VMCS runs in place, with L0's host-state area in it and the host's own in a side table.
//!
//! A VMCS is adopted when it becomes current, and given back (*unadopted*) on VMCLEAR and when L0 leaves. Between the
//! two, VMREAD and VMWRITE of a replaced field act on the side table. Nothing else in the VMCS is ever changed.

use locum_abi::Event;

use crate::nested::check;
use crate::nested::host_area::HostArea;
use crate::vmx::{Hardware, VmxStatus};

/// How many VMCSs one CPU can have adopted: that of every virtual CPU that ran on it since it last moved.
pub const CAPACITY: usize = 128;

/// One adopted VMCS.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its physical address.
    pub phys: u64,
    /// The host's values of the replaced fields.
    pub area: HostArea,
    /// [`check::fingerprint`] from before the adoption; 0 if it was not taken, or the VMCS was used since.
    pub fingerprint: u64,
}

/// The side table of one CPU.
#[derive(Debug)]
pub struct Adopted {
    len: usize,
    /// Position of the entry used last: nearly every look-up is for it.
    last: usize,
    /// Who gives up its place next when the table is full.
    victim: usize,
    entries: [Entry; CAPACITY],
}

impl Adopted {
    /// An empty table.
    pub const fn new() -> Self {
        Self {
            len: 0,
            last: 0,
            victim: 0,
            entries: [Entry {
                phys: 0,
                area: HostArea::ZERO,
                fingerprint: 0,
            }; CAPACITY],
        }
    }

    /// Number of adopted VMCSs.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if there is none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of the VMCS at `phys`.
    pub fn find(&mut self, phys: u64) -> Option<&mut Entry> {
        let last = self.last;
        let entries = self.entries.get_mut(..self.len)?;
        if entries.get(last).is_none_or(|e| e.phys != phys) {
            self.last = entries.iter().position(|e| e.phys == phys)?;
        }
        entries.get_mut(self.last)
    }

    /// Adopts the current VMCS, which is at `phys`: the host's area goes to the table, `own` into the VMCS. Nothing
    /// happens if it is adopted already. Changes the current VMCS only if the table is full: the oldest entry is given
    /// back then.
    ///
    /// # Errors
    /// That of a VMREAD or VMPTRLD that failed; nothing is adopted then.
    pub fn adopt(&mut self, hw: &mut impl Hardware, phys: u64, own: &HostArea) -> Result<(), VmxStatus> {
        if self.find(phys).is_some() {
            return Ok(());
        }
        let area = HostArea::read(hw)?;
        if self.len == CAPACITY {
            self.victim = (self.victim + 1) % CAPACITY;
            let victim = self.entries.get(self.victim).map_or(0, |e| e.phys);
            self.give_back(hw, victim);
            let status = hw.vmptrld(phys);
            if !status.ok() {
                return Err(status);
            }
        }
        let fingerprint = if check::enabled() { check::fingerprint(hw) } else { 0 };
        own.write(hw);
        if let Some(free) = self.entries.get_mut(self.len) {
            *free = Entry {
                phys,
                area,
                fingerprint,
            };
            self.last = self.len;
            self.len += 1;
        }
        Ok(())
    }

    /// Makes the VMCS at `phys` current, writes the host's values back and forgets it. False if it was not adopted.
    pub fn give_back(&mut self, hw: &mut impl Hardware, phys: u64) -> bool {
        let Some(entry) = self.find(phys).copied() else {
            return false;
        };
        if hw.vmptrld(phys).ok() {
            entry.area.write(hw);
            if entry.fingerprint != 0 {
                let now = check::fingerprint(hw);
                let difference = now ^ entry.fingerprint;
                hw.trace(Event::VmcsChecked {
                    same: difference == 0,
                    vmcs: phys,
                    difference,
                });
            }
        }
        self.len -= 1;
        self.entries.swap(self.last, self.len);
        true
    }

    /// Gives every VMCS back; returns how many. The current VMCS is any of them afterwards.
    pub fn give_back_all(&mut self, hw: &mut impl Hardware) -> usize {
        let count = self.len;
        while let Some(phys) = self
            .len
            .checked_sub(1)
            .and_then(|i| self.entries.get(i))
            .map(|e| e.phys)
        {
            self.give_back(hw, phys);
        }
        count
    }

    /// Address of any adopted VMCS.
    pub fn any(&self) -> Option<u64> {
        self.entries.get(..self.len)?.last().map(|e| e.phys)
    }
}

impl Default for Adopted {
    fn default() -> Self {
        Self::new()
    }
}
