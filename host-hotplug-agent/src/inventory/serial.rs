//! The interrupt of a serial port (`drivers/tty/serial/serial_core.c`: `port` and `irq` of each line in sysfs).

use partitioner::{Gsi, Inventory};

use super::lines::Lines;
use crate::acpi::Interrupts;
use crate::acpi::aml::Listing;
use crate::sysroot::SysRoot;

/// Where Linux lists terminals, serial lines among them.
const TERMINALS: &str = "sys/class/tty";

/// What becomes of the interrupt of a serial port that goes to the successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// Linux knows of no line there, or polls it.
    None,
    /// Nobody else has it: it can go along.
    Free(Gsi),
    /// It stays, for this is on the same pin.
    Shared(Gsi, String),
}

/// The interrupt of the serial line whose first I/O port is `port`.
///
/// # Errors
/// If the ACPI tables cannot be read, and there is such a line.
pub fn line(sys: &SysRoot, inventory: &Inventory, port: u16) -> anyhow::Result<Line> {
    let lines = sys.list(TERMINALS).unwrap_or_default();
    let on_port = |name: &String| {
        let told = sys.read_optional(format!("{TERMINALS}/{name}/port"));
        told.and_then(|text| u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()) == Some(port)
    };
    let Some(name) = lines.into_iter().filter(|name| name.starts_with("ttyS")).find(on_port) else {
        return Ok(Line::None);
    };
    let irq = sys.read_number(format!("{TERMINALS}/{name}/irq"))?;
    let Some(number) = u32::try_from(irq).ok().filter(|&irq| irq != 0) else {
        return Ok(Line::None);
    };
    let madt = Interrupts::read(sys)?;
    // It is of the IOAPIC that has all ISA interrupts, the first one.
    let lines = Lines::new(sys, &madt, &Listing::default());
    let Some(gsi) = lines.gsis(number).first().copied().map(Gsi) else {
        return Ok(Line::None);
    };
    let pin = inventory.pins.iter().find(|pin| pin.gsi == gsi);
    let user = pin.map_or(Some("an IOAPIC that is not there"), |pin| {
        pin.users.first().map(String::as_str)
    });
    let function = || {
        let mut functions = inventory.functions.iter();
        let function = functions.find(|function| function.gsi == Some(gsi))?;
        Some(function.to_string())
    };
    let other = user.map(str::to_owned).or_else(function);
    Ok(other.map_or(Line::Free(gsi), |other| Line::Shared(gsi, other)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::tests::inventory;
    use crate::testing::tree::Tree;

    fn with_lines() -> Tree {
        let tree = Tree::lab();
        for (name, port, irq) in [("ttyS0", "0x3F8", 4), ("ttyS1", "0x2F8", 3), ("ttyS2", "0x3E8", 0)] {
            tree.put(format!("sys/class/tty/{name}/port"), format!("{port}\n"));
            tree.put(format!("sys/class/tty/{name}/irq"), format!("{irq}\n"));
        }
        tree.put("sys/class/tty/tty0/dev", "4:0\n");
        tree
    }

    fn of(tree: &Tree, port: u16) -> Line {
        line(&tree.sys(), &inventory(tree), port).unwrap()
    }

    #[test]
    fn the_interrupt_of_a_port_is_what_linux_says() {
        let tree = with_lines();
        assert_eq!(of(&tree, 0x2f8), Line::Free(Gsi(3)));
        assert_eq!(of(&tree, 0x3f8), Line::Free(Gsi(4)));
        // One that is polled, one that is not there.
        assert_eq!(of(&tree, 0x3e8), Line::None);
        assert_eq!(of(&tree, 0x2e8), Line::None);
        assert_eq!(of(&Tree::lab(), 0x2f8), Line::None);
    }

    #[test]
    fn an_interrupt_that_another_has_stays() {
        let tree = with_lines();
        tree.put("sys/kernel/irq/4/chip_name", "IO-APIC\n");
        tree.put("sys/kernel/irq/4/actions", "ttyS2\n");
        assert_eq!(of(&tree, 0x3f8), Line::Shared(Gsi(4), "ttyS2".to_owned()));
        tree.function("0000:00:05.0", "0x020000", 3, None, "");
        let Line::Shared(gsi, who) = of(&tree, 0x2f8) else {
            panic!("a function is on that line");
        };
        assert_eq!(gsi, Gsi(3));
        assert!(who.contains("00:05.0"), "{who}");
    }
}
