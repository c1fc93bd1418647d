//! IOAPIC registers while two hosts run: every pin has one owner, and each host has its own index register.
//!
//! Register layout: Intel 82093AA datasheet, 3.1 and 3.2.

use locum_abi::{PerSlot, Slot};

use super::owners::Owners;

/// Offset of the index register.
pub(crate) const SELECT: u64 = 0x00;
/// Offset of the register through which the chosen one is reached.
pub(crate) const WINDOW: u64 = 0x10;
/// Offset of the EOI register.
const EOI: u64 = 0x40;
/// Index of the version register.
pub(crate) const VERSION: u32 = 1;
/// Index of pin 0's redirection entry; each takes two.
pub(crate) const ENTRY: u32 = 0x10;
/// Redirection entry: masked.
pub(crate) const MASKED: u32 = 1 << 16;

/// Last pin of an IOAPIC with this version register (82093AA data sheet, 3.2.2).
pub(crate) const fn last_pin(version: u32) -> u32 {
    version >> 16 & 0xff
}

/// One IOAPIC.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IoApic {
    /// Physical address of its registers.
    pub(crate) address: u64,
    /// GSI of its pin 0.
    pub(crate) gsi_base: u32,
    /// Index register as each host left it.
    pub(crate) index: PerSlot<u32>,
}

/// What a host's access comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoApicRule {
    /// A load gives this; a store is done or dropped.
    Answer(u32),
    /// A store that would have used another host's pin.
    Denied {
        /// The pin.
        gsi: u32,
        /// What was to be stored.
        value: u32,
    },
    /// The access is made as it is: there is one host.
    Direct,
    /// The access is made, to this register.
    Window {
        /// The IOAPIC's address.
        base: u64,
        /// Which register.
        index: u32,
    },
}

impl IoApic {
    /// An IOAPIC whose index register nobody has used.
    pub(crate) const fn new(address: u64, gsi_base: u32) -> Self {
        Self {
            address,
            gsi_base,
            index: PerSlot::new(0, 0),
        }
    }

    /// Decides about a 32-bit access of the host in `slot` at a physical address in this IOAPIC's page.
    pub(crate) fn rule(&mut self, owners: &Owners, slot: Slot, address: u64, write: Option<u32>) -> IoApicRule {
        let index = &mut self.index[slot];
        match (address.wrapping_sub(self.address), write) {
            (SELECT, Some(value)) => {
                *index = value & 0xff;
                IoApicRule::Answer(0)
            }
            (SELECT, None) => IoApicRule::Answer(*index),
            (WINDOW, write) => {
                let index = *index;
                self.window(owners, slot, index, write)
            }
            // Directed EOI ends interrupts by vector, which hosts choose independently; only the own pins' remote IRR
            // would have to be cleared. Version 0x11, which Linux sees here, has no such register.
            (EOI, _) => IoApicRule::Answer(0),
            _ => IoApicRule::Answer(!0),
        }
    }

    fn window(&self, owners: &Owners, slot: Slot, index: u32, write: Option<u32>) -> IoApicRule {
        let through = IoApicRule::Window {
            base: self.address,
            index,
        };
        let Some(pin) = index.checked_sub(ENTRY) else {
            // Identity and version are for all to read; the reigning host may write.
            let allowed = write.is_none() || slot == owners.reigning();
            return if allowed { through } else { IoApicRule::Answer(0) };
        };
        let gsi = self.gsi_base.saturating_add(pin / 2);
        let low_word = pin % 2 == 0;
        if owners.pin(gsi) == slot {
            return through;
        }
        match write {
            // Linux masks every pin when it starts; only an attempt to use one is worth a record.
            Some(value) if low_word && value & MASKED == 0 => IoApicRule::Denied { gsi, value },
            Some(_) => IoApicRule::Answer(0),
            None => IoApicRule::Answer(if low_word { MASKED } else { 0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::owners::Resource;
    use super::*;

    const BASE: u64 = 0xfec0_0000;

    fn access(ioapic: &mut IoApic, owners: &Owners, slot: Slot, index: u32, write: Option<u32>) -> IoApicRule {
        let select = ioapic.rule(owners, slot, BASE + SELECT, Some(index));
        assert_eq!(select, IoApicRule::Answer(0));
        ioapic.rule(owners, slot, BASE + WINDOW, write)
    }

    #[test]
    fn every_pin_has_one_owner() {
        let mut owners = Owners::new();
        owners.give(Resource::Pin(11), Slot::Even).unwrap();
        let mut ioapic = IoApic::new(BASE, 0);
        let entry = ENTRY + 2 * 11;
        let through = |index| IoApicRule::Window { base: BASE, index };
        assert_eq!(
            access(&mut ioapic, &owners, Slot::Odd, entry, Some(0x31)),
            through(entry)
        );
        let denied = IoApicRule::Denied { gsi: 11, value: 0x31 };
        assert_eq!(access(&mut ioapic, &owners, Slot::Even, entry, Some(0x31)), denied);
        let quiet = access(&mut ioapic, &owners, Slot::Even, entry, Some(MASKED));
        assert_eq!(quiet, IoApicRule::Answer(0));
        let read = access(&mut ioapic, &owners, Slot::Even, entry, None);
        assert_eq!(read, IoApicRule::Answer(MASKED));
        let read = access(&mut ioapic, &owners, Slot::Even, entry + 1, None);
        assert_eq!(read, IoApicRule::Answer(0));
    }

    #[test]
    fn hosts_do_not_see_each_others_index() {
        let owners = Owners::new();
        let mut ioapic = IoApic::new(BASE, 24);
        access(&mut ioapic, &owners, Slot::Even, 0x12, None);
        access(&mut ioapic, &owners, Slot::Odd, VERSION, None);
        let index = ioapic.rule(&owners, Slot::Even, BASE + SELECT, None);
        assert_eq!(index, IoApicRule::Answer(0x12));
    }

    #[test]
    fn only_the_reigning_host_writes_what_is_no_pins() {
        let owners = Owners::new();
        let mut ioapic = IoApic::new(BASE, 0);
        let through = IoApicRule::Window { base: BASE, index: 0 };
        assert_eq!(access(&mut ioapic, &owners, Slot::Even, 0, Some(1)), through);
        assert_eq!(
            access(&mut ioapic, &owners, Slot::Odd, 0, Some(1)),
            IoApicRule::Answer(0)
        );
        assert_eq!(access(&mut ioapic, &owners, Slot::Odd, 0, None), through);
    }
}
