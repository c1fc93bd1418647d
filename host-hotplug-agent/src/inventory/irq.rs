//! `/sys/kernel/irq`: which IOAPIC pins are in use, and by whom.

use std::collections::BTreeMap;

use partitioner::{Gsi, PciFunction, Pin};

use super::{ioapic, pci};
use crate::acpi::Interrupts;
use crate::sysroot::SysRoot;

/// Pins that an IOAPIC is taken to have that the kernel's log does not tell of.
const PINS: u32 = 24;

/// Most pins that an IOAPIC can have: eight bits tell the last one.
const PINS_MAX: u32 = 256;

/// All IOAPIC pins with their users other than `functions`.
pub fn pins(sys: &SysRoot, madt: &Interrupts, functions: &[PciFunction]) -> Vec<Pin> {
    let gsi_bases = &madt.gsi_bases;
    let mut users: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let told = ioapic::last_pins(sys);
    for (index, &base) in gsi_bases.iter().enumerate() {
        let next = gsi_bases.get(index + 1).copied();
        let guess = next.unwrap_or(base.saturating_add(PINS));
        let end = told.get(&base).map_or(guess, |last| last.saturating_add(1));
        for gsi in base..end.min(next.unwrap_or(end)).min(base.saturating_add(PINS_MAX)) {
            users.entry(gsi).or_default();
        }
    }
    for function in functions {
        if let Some(gsi) = function.gsi {
            users.entry(gsi.0).or_default();
        }
    }
    for name in sys.list("sys/kernel/irq").unwrap_or_default() {
        let chip = sys
            .read_optional(format!("sys/kernel/irq/{name}/chip_name"))
            .unwrap_or_default();
        let (Ok(number), true) = (name.parse::<u32>(), chip.contains("IO-APIC")) else {
            continue;
        };
        let gsi = madt.gsi(number);
        let actions = sys
            .read_optional(format!("sys/kernel/irq/{name}/actions"))
            .unwrap_or_default();
        let foreign = actions
            .split(',')
            .filter(|action| !action.is_empty() && !belongs(sys, action, gsi, functions))
            .map(str::to_owned);
        users.entry(gsi).or_default().extend(foreign);
    }
    users
        .into_iter()
        .map(|(gsi, users)| Pin { gsi: Gsi(gsi), users })
        .collect()
}

/// Whether a handler of that name was set up by one of the functions: drivers name it after themselves or after their
/// network interface.
fn belongs(sys: &SysRoot, action: &str, gsi: u32, functions: &[PciFunction]) -> bool {
    let on_pin = functions.iter().filter(|function| function.gsi == Some(Gsi(gsi)));
    on_pin.into_iter().any(|function| {
        function
            .driver
            .as_deref()
            .is_some_and(|driver| action.starts_with(driver))
            || pci::interfaces(sys, &pci::dir(function.address))
                .iter()
                .any(|name| action.starts_with(name.as_str()))
    })
}
