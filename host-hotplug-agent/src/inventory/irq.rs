//! `/sys/kernel/irq`: which IOAPIC pins are in use, and by whom.

use std::collections::BTreeMap;

use partitioner::{Gsi, PciFunction, Pin};

use super::lines::Lines;
use super::pci;
use crate::sysroot::SysRoot;

/// All IOAPIC pins with their users other than `functions`.
pub fn pins(sys: &SysRoot, lines: &Lines<'_>, functions: &[PciFunction]) -> Vec<Pin> {
    let mut users: BTreeMap<u32, Vec<String>> = lines.pins().map(|gsi| (gsi, Vec::new())).collect();
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
        let actions = sys
            .read_optional(format!("sys/kernel/irq/{name}/actions"))
            .unwrap_or_default();
        // Of one that may be any of several pins, none is free.
        for gsi in lines.gsis(number) {
            let foreign = actions
                .split(',')
                .filter(|action| !action.is_empty() && !belongs(sys, action, gsi, functions))
                .map(str::to_owned);
            users.entry(gsi).or_default().extend(foreign);
        }
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
