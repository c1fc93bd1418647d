//! IOAPIC registers while two hosts run: every pin has one owner, and each host has its own index register.
//!
//! Register layout: Intel 82093AA datasheet, 3.1 and 3.2.

use locum_abi::{Event, PerSlot, Slot};

use super::owners::Owners;
use crate::vmx::Hardware;

const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
const EOI: u64 = 0x40;
const VERSION: u32 = 1;
const FIRST_ENTRY: u32 = 0x10;
const MASKED: u32 = 1 << 16;

/// One IOAPIC.
#[derive(Clone, Copy, Debug, Default)]
pub struct IoApic {
    /// Physical address of its registers.
    pub address: u64,
    /// GSI of its pin 0.
    pub gsi_base: u32,
    /// Index register as each host left it.
    pub index: PerSlot<u32>,
}

impl IoApic {
    /// Serves a 32-bit access of the host in `slot` at `offset` in the page: `write` is what it stores. Returns what a
    /// load gives.
    pub fn access(
        &mut self,
        hw: &mut impl Hardware,
        owners: &Owners,
        slot: Slot,
        offset: u64,
        write: Option<u32>,
    ) -> u32 {
        let index = &mut self.index[slot];
        match (offset, write) {
            (SELECT, Some(value)) => {
                *index = value & 0xff;
                0
            }
            (SELECT, None) => *index,
            (WINDOW, write) => {
                let index = *index;
                self.window(hw, owners, slot, index, write)
            }
            // Directed EOI ends interrupts by vector, which hosts choose independently; only the own pins' remote IRR
            // would have to be cleared. Version 0x11, which Linux sees here, has no such register.
            (EOI, _) => 0,
            _ => !0,
        }
    }

    /// Masks the pins of the host in `slot`.
    pub fn mask(&self, hw: &mut impl Hardware, owners: &Owners, slot: Slot) {
        hw.write_phys(self.address + SELECT, 4, VERSION.into());
        let last = hw.read_phys(self.address + WINDOW, 4) as u32 >> 16 & 0xff;
        for pin in (0..=last).filter(|p| owners.pin(self.gsi_base + p) == Some(slot)) {
            hw.write_phys(self.address + SELECT, 4, (FIRST_ENTRY + 2 * pin).into());
            hw.write_phys(self.address + WINDOW, 4, MASKED.into());
        }
    }

    fn window(&self, hw: &mut impl Hardware, owners: &Owners, slot: Slot, index: u32, write: Option<u32>) -> u32 {
        let pin = index.checked_sub(FIRST_ENTRY).map(|i| self.gsi_base + i / 2);
        let own = pin.map_or(slot == owners.reigning(), |gsi| owners.pin(gsi) == Some(slot));
        match write {
            Some(value) if own => {
                hw.write_phys(self.address + SELECT, 4, index.into());
                hw.write_phys(self.address + WINDOW, 4, value.into());
                0
            }
            Some(value) => {
                // Linux masks every pin when it starts; only an attempt to use one is worth a record.
                if index & 1 == 0 && value & MASKED == 0 {
                    hw.trace(Event::PinDenied {
                        gsi: pin.unwrap_or(0),
                        value,
                    });
                }
                0
            }
            None if own || pin.is_none() => {
                hw.write_phys(self.address + SELECT, 4, index.into());
                hw.read_phys(self.address + WINDOW, 4) as u32
            }
            None if index & 1 == 0 => MASKED,
            None => 0,
        }
    }
}
