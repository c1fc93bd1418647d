//! Which IOAPIC pin an interrupt of Linux's is.
//!
//! Linux numbers its interrupts as it likes (`arch/x86/kernel/apic/io_apic.c`, `alloc_irq_from_domain()`). Those of the IOAPIC
//! that has the ISA interrupts have the numbers of their pins, and of the ISA interrupts; all others get the next number that
//! is free. A successor's ACPI is hardware-reduced and knows no ISA interrupts, so all of its numbers are such. What is sure
//! is the pin within its IOAPIC, `hwirq`.

use std::collections::BTreeSet;

use partitioner::Gsi;

use super::ioapic;
use crate::acpi::Interrupts;
use crate::acpi::aml::{Listing, Wire};
use crate::sysroot::SysRoot;

/// Pins that an IOAPIC is taken to have that the kernel's log does not tell of.
const PINS: u32 = 24;
/// Most pins that an IOAPIC can have: eight bits tell the last one.
const PINS_MAX: u32 = 256;

/// The machine's interrupt lines.
pub struct Lines<'a> {
    sys: &'a SysRoot,
    madt: &'a Interrupts,
    /// First pin of each IOAPIC, and the one behind its last.
    ioapics: Vec<(u32, u32)>,
    /// Pins that the firmware says something leads to.
    wired: BTreeSet<u32>,
}

impl<'a> Lines<'a> {
    /// As the firmware and the kernel's log tell them.
    pub fn new(sys: &'a SysRoot, madt: &'a Interrupts, listing: &Listing) -> Self {
        let told = ioapic::last_pins(sys);
        let bases = madt.gsi_bases.iter().enumerate();
        let ioapics = bases.map(|(index, &base)| {
            let next = madt.gsi_bases.get(index + 1).copied();
            let guess = next.unwrap_or(base.saturating_add(PINS));
            let end = told.get(&base).map_or(guess, |last| last.saturating_add(1));
            (base, end.min(next.unwrap_or(end)).min(base.saturating_add(PINS_MAX)))
        });
        let routes = listing.routing.iter().flat_map(|routing| &routing.routes);
        let wired = routes.filter_map(|route| match route.wire {
            Wire::Gsi(gsi) => Some(gsi),
            Wire::Link(_) => None,
        });
        Self {
            sys,
            madt,
            ioapics: ioapics.collect(),
            wired: wired.collect(),
        }
    }

    /// All pins.
    pub fn pins(&self) -> impl Iterator<Item = u32> {
        self.ioapics.iter().flat_map(|&(first, end)| first..end)
    }

    /// The pin of Linux's interrupt `number`. More than one if it is not known which, none if it is of no IOAPIC.
    pub fn gsis(&self, number: u32) -> Vec<u32> {
        let fixed = self.madt.gsi(number);
        let Some(pin) = self.hwirq(number) else {
            return vec![fixed];
        };
        let at = |&(first, end): &(u32, u32)| first.checked_add(pin).filter(|gsi| *gsi < end);
        let mut may_be: Vec<u32> = self.ioapics.iter().filter_map(at).collect();
        if may_be.len() > 1 {
            let legacy = self.ioapics.first().is_some_and(|&(_, end)| number < end);
            let sure = may_be.contains(&fixed) && legacy;
            may_be.retain(|gsi| if sure { *gsi == fixed } else { self.wired.contains(gsi) });
            if may_be.is_empty() {
                may_be = self.ioapics.iter().filter_map(at).collect();
            }
        }
        may_be
    }

    fn hwirq(&self, number: u32) -> Option<u32> {
        let hwirq = self.sys.read_number(format!("sys/kernel/irq/{number}/hwirq"));
        u32::try_from(hwirq.ok()?).ok()
    }

    /// As [`Self::gsis`], where it must be one.
    ///
    /// # Errors
    /// In words, which pins it may be.
    pub fn gsi(&self, number: u32) -> Result<Gsi, String> {
        match self.gsis(number).as_slice() {
            [gsi] => Ok(Gsi(*gsi)),
            [] => Err(format!("Linux's interrupt {number} is of no IOAPIC that the MADT has")),
            several => {
                let several: Vec<String> = several.iter().map(u32::to_string).collect();
                Err(format!(
                    "Linux's interrupt {number} is one of the pins {}, and nothing tells which",
                    several.join(", ")
                ))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acpi::aml::Routing;
    use crate::acpi::aml::listing::Route;
    use crate::testing::tree::Tree;

    fn madt(bases: &[u32]) -> Interrupts {
        Interrupts {
            gsi_bases: bases.to_vec(),
            overrides: vec![(0, 2)],
            ..Interrupts::default()
        }
    }

    fn with(irqs: &[(u32, u32)]) -> Tree {
        let tree = Tree::lab();
        for (number, pin) in irqs {
            tree.put(format!("sys/kernel/irq/{number}/hwirq"), format!("{pin}\n"));
        }
        tree
    }

    fn gsis(tree: &Tree, bases: &[u32], wired: &[u32], number: u32) -> Vec<u32> {
        let routes = wired.iter().map(|gsi| Route {
            device: 1,
            pin: 1,
            wire: Wire::Gsi(*gsi),
        });
        let listing = Listing {
            routing: vec![Routing {
                bridge: "PCI0".to_owned(),
                routes: routes.collect(),
            }],
            ..Listing::default()
        };
        Lines::new(&tree.sys(), &madt(bases), &listing).gsis(number)
    }

    #[test]
    fn a_successors_numbers_say_nothing() {
        // As seen: ttyS1 is interrupt 30 there.
        let tree = with(&[(30, 3), (27, 11)]);
        assert_eq!(gsis(&tree, &[0], &[], 30), [3]);
        assert_eq!(gsis(&tree, &[0], &[], 27), [11]);
        // Where Linux does not say: its number, as ever.
        assert_eq!(gsis(&tree, &[0], &[], 0), [2]);
        assert_eq!(gsis(&tree, &[0], &[], 11), [11]);
    }

    #[test]
    fn of_several_ioapics_the_firmware_tells_which() {
        let tree = with(&[(16, 16), (0, 2), (25, 8), (26, 9), (27, 30)]);
        let bases = [0, 24, 56];
        assert_eq!(
            gsis(&tree, &bases, &[], 16),
            [16],
            "the first one has the number of its pin"
        );
        assert_eq!(gsis(&tree, &bases, &[], 0), [2]);
        assert_eq!(gsis(&tree, &bases, &[32, 40], 25), [32]);
        assert_eq!(gsis(&tree, &bases, &[32, 40], 26), [9, 33, 65], "nothing tells");
        assert_eq!(gsis(&tree, &bases, &[], 27), [54], "the others have no such pin");
        let sys = tree.sys();
        let (madt, listing) = (madt(&bases), Listing::default());
        let lines = Lines::new(&sys, &madt, &listing);
        let told = lines.gsi(26).unwrap_err();
        assert!(told.contains("9, 33, 65"), "{told}");
    }
}
