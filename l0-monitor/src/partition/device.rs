//! Devices that both hosts reach through L0 while two run. Decisions were made before: here they are carried out.
//!
//! PCI configuration and IOAPICs are reached through an index register and a window, which two CPUs must not mix up:
//! each kind has a lock for its two accesses. The partition's lock is never held when one of them is taken.

use arrayvec::ArrayVec;
use locum_abi::{Event, GRANTABLE_FUNCTIONS};
use spin::{Mutex, MutexGuard};

use super::io_filter::{PCI_ADDRESS, PCI_DATA, Verdict, dropped};
use super::ioapic::{ENTRY, IoApic, MASKED, SELECT, VERSION, WINDOW, last_pin};
use super::owners::IOAPIC_PINS;
use crate::machine::MAX_IOAPICS;
use crate::shared;
use crate::vmx::Hardware;
use crate::vmx::exit::IoAccess;

static PCI_CYCLE: Mutex<()> = Mutex::new(());
static IOAPIC_WINDOW: Mutex<()> = Mutex::new(());

/// No access that takes two steps is half done while this is held.
pub(crate) struct Devices(#[expect(dead_code, reason = "held, not used")] [MutexGuard<'static, ()>; 2]);

/// Waits for such accesses and keeps others out.
pub(crate) fn lock() -> Devices {
    Devices([PCI_CYCLE.lock(), IOAPIC_WINDOW.lock()])
}

/// Class code 06h: bridges (PCI code and ID assignment specification 1.11, 1.7).
const CLASS_BRIDGE: u32 = 6;
/// Offset of the register whose upper byte is the class code (PCI local bus specification 3.0, 6.1).
const CLASS_REGISTER: u32 = 8;
/// The cycle is one of configuration (3.2.2.3.2).
const ENABLED: u32 = 1 << 31;
/// Offset of vendor and device id; all ones where there is no function.
const VENDOR: u32 = 0;
/// Offset of the register whose third byte is the header type.
const HEADER: u32 = 0xc;
/// In that register: the device has other functions than the first.
const MULTI_FUNCTION: u32 = 1 << 23;
/// Offset of the command register, in port 0xCF8's format.
const COMMAND: u32 = ENABLED | 4;
const BUS_MASTER: u32 = 1 << 2;
const INTX_DISABLE: u32 = 1 << 10;

/// What a host left in registers that two hosts can't share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latches {
    /// Port 0xCF8.
    pub(crate) pci_address: u32,
    /// Index register of each IOAPIC.
    pub(crate) ioapics: ArrayVec<u32, MAX_IOAPICS>,
    /// Where each is.
    pub(super) addresses: ArrayVec<u64, MAX_IOAPICS>,
}

/// What a host had that is being stopped, of which the hardware must be told.
#[derive(Clone, Debug)]
pub(crate) struct Silence {
    /// PCI functions.
    pub(crate) functions: Functions,
    /// IOAPICs, and which pins of each (bit n: pin n).
    pub(crate) pins: ArrayVec<(IoApic, [u64; IOAPIC_PINS / 64]), MAX_IOAPICS>,
}

/// PCI functions of segment 0.
#[derive(Clone, Debug)]
pub(crate) enum Functions {
    /// These.
    Only(ArrayVec<u16, GRANTABLE_FUNCTIONS>),
    /// All that are there but these, and but bridges: what is behind those may be another's.
    AllBut(ArrayVec<u16, GRANTABLE_FUNCTIONS>),
}

/// Reads the latches.
pub(crate) fn latches(hw: &mut impl Hardware, ioapics: &[IoApic]) -> Latches {
    Latches {
        pci_address: hw.port_in(PCI_ADDRESS, 4),
        ioapics: ioapics
            .iter()
            .map(|ioapic| hw.read_phys(ioapic.address + SELECT, 4) as u32)
            .collect(),
        addresses: ioapics.iter().map(|ioapic| ioapic.address).collect(),
    }
}

/// Puts them back: what two hosts could not share belongs to one again.
pub(crate) fn restore(hw: &mut impl Hardware, _: &Devices, latches: &Latches) {
    hw.port_out(PCI_ADDRESS, 4, latches.pci_address);
    for (address, index) in latches.addresses.iter().zip(&latches.ioapics) {
        hw.write_phys(address + SELECT, 4, (*index).into());
    }
}

/// Makes a port access.
pub(crate) fn port(hw: &mut impl Hardware, io: IoAccess, value: u32) -> Verdict {
    if io.input {
        return Verdict::Value(hw.port_in(io.port, io.size));
    }
    hw.port_out(io.port, io.size, value);
    Verdict::Done
}

/// What a host may do with a function's configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rights {
    /// All: it is its own.
    All,
    /// All, but for a bridge, which it may read: it writes its crash dump. A kernel that boots switches off the interrupt
    /// routers there that it finds no use for, by AML (Linux `acpi_pci_link_add`), and the other host's devices need them.
    AllButBridges,
    /// It may read a bridge, and nothing else: it is the other host's.
    Bridges,
}

/// A configuration cycle. Both hosts may read bridges (class 06h: host, ISA, PM): AML looks there for the interrupt
/// routers. Everything else of the other partition reads as all ones.
pub(crate) fn pci(hw: &mut impl Hardware, address: u32, rights: Rights, io: IoAccess, value: u32) -> Verdict {
    let refused = |value: u32| {
        shared::trace(Event::PciDenied {
            address,
            offset: (io.port - PCI_DATA) as u8,
            write: (!io.input).then_some(value),
        });
        dropped(io)
    };
    if rights == Rights::Bridges && !io.input {
        return refused(value);
    }
    let cycle = PCI_CYCLE.lock();
    // Where it matters whether it is a bridge: what that must be.
    let wanted = match rights {
        Rights::Bridges => Some(true),
        Rights::AllButBridges if !io.input => Some(false),
        Rights::AllButBridges | Rights::All => None,
    };
    if let Some(wanted) = wanted {
        hw.port_out(PCI_ADDRESS, 4, address & !0xff | CLASS_REGISTER);
        if (hw.port_in(PCI_DATA + 3, 1) == CLASS_BRIDGE) != wanted {
            drop(cycle);
            return refused(value);
        }
    }
    hw.port_out(PCI_ADDRESS, 4, address);
    port(hw, io, value)
}

/// A 32-bit access to memory or a register, as it is.
pub(crate) fn direct(hw: &mut impl Hardware, address: u64, write: Option<u32>) -> u32 {
    match write {
        Some(value) => {
            hw.write_phys(address, 4, value.into());
            0
        }
        None => hw.read_phys(address, 4) as u32,
    }
}

/// An access to a register of the IOAPIC at `base`.
pub(crate) fn ioapic(hw: &mut impl Hardware, base: u64, index: u32, write: Option<u32>) -> u32 {
    let _window = IOAPIC_WINDOW.lock();
    hw.write_phys(base + SELECT, 4, index.into());
    match write {
        Some(value) => {
            hw.write_phys(base + WINDOW, 4, value.into());
            0
        }
        None => hw.read_phys(base + WINDOW, 4) as u32,
    }
}

/// Ends the DMA and the interrupts of what a stopped host had.
pub(crate) fn silence(hw: &mut impl Hardware, silence: &Silence) {
    match &silence.functions {
        Functions::Only(functions) => functions.iter().for_each(|function| silence_function(hw, *function)),
        Functions::AllBut(kept) => {
            for device in 0..=u16::MAX >> 3 {
                silence_device(hw, device << 3, kept);
            }
        }
    }
    for (found, pins) in &silence.pins {
        let last = last_pin(ioapic(hw, found.address, VERSION, None));
        for pin in 0..=last {
            if pins[pin as usize / 64] >> (pin % 64) & 1 != 0 {
                ioapic(hw, found.address, ENTRY + 2 * pin, Some(MASKED));
            }
        }
    }
}

fn silence_function(hw: &mut impl Hardware, function: u16) {
    let _cycle = PCI_CYCLE.lock();
    hw.port_out(PCI_ADDRESS, 4, COMMAND | u32::from(function) << 8);
    let command = hw.port_in(PCI_DATA, 2);
    hw.port_out(PCI_DATA, 2, command & !BUS_MASTER | INTX_DISABLE);
}

/// The functions of the device whose first one is `first`.
fn silence_device(hw: &mut impl Hardware, first: u16, kept: &[u16]) {
    // As buses are scanned: what has no function 0 is not there, and says there whether it has others.
    if config(hw, first, VENDOR) == !0 {
        return;
    }
    let last = if config(hw, first, HEADER) & MULTI_FUNCTION != 0 {
        7
    } else {
        0
    };
    for function in first..=first + last {
        let there = config(hw, function, VENDOR) != !0;
        if there && config(hw, function, CLASS_REGISTER) >> 24 != CLASS_BRIDGE && !kept.contains(&function) {
            silence_function(hw, function);
        }
    }
}

/// A register of a function's configuration space.
fn config(hw: &mut impl Hardware, function: u16, register: u32) -> u32 {
    let _cycle = PCI_CYCLE.lock();
    hw.port_out(PCI_ADDRESS, 4, ENABLED | u32::from(function) << 8 | register);
    hw.port_in(PCI_DATA, 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nested::model::Model;

    /// Function, class code and header type of a small machine: a host bridge, a bridge to bus 1, a device with two
    /// functions, one with a single one that decodes the other seven, too, and a card behind the bridge.
    const MACHINE: [(u16, u32, u32); 6] = [
        (0x0000, 6, 0),
        (0x0010, 6, 1),
        (0x0018, 1, 0x80),
        (0x001a, 3, 0x80),
        (0x0020, 2, 0),
        (0x0100, 2, 0),
    ];

    fn machine() -> Model {
        let mut hw = Model::new(0, 0);
        for (function, class, header) in MACHINE {
            let at = |register: u32| ENABLED | u32::from(function) << 8 | register;
            hw.pci.insert(at(VENDOR), 0x1234_8086);
            hw.pci.insert(at(COMMAND & 0xff), 0x0007);
            hw.pci.insert(at(CLASS_REGISTER), class << 24);
            hw.pci.insert(at(HEADER), header << 16);
        }
        hw.pci.insert(ENABLED | 0x21 << 8 | VENDOR, 0x1234_8086);
        hw.pci.insert(ENABLED | 0x21 << 8 | (COMMAND & 0xff), 0x0007);
        hw
    }

    #[test]
    fn a_host_that_dumps_leaves_bridges_as_they_are() {
        const LINE: u32 = 0x3c;
        let access = |function: u32, rights, input| {
            let mut hw = machine();
            let address = ENABLED | function << 8 | LINE;
            hw.pci.insert(address, 0x10b);
            let io = IoAccess {
                port: PCI_DATA,
                size: 4,
                input,
                string: false,
            };
            let verdict = pci(&mut hw, address, rights, io, 0x80);
            (verdict, hw.pci.get(&address).copied())
        };
        let (bridge, device) = (0x10, 0x20);
        let (done, kept, written) = (Verdict::Done, Some(0x10b), Some(0x80));
        let read = Verdict::Value(0x10b);
        assert_eq!(access(bridge, Rights::All, false), (done, written));
        assert_eq!(access(bridge, Rights::AllButBridges, false), (done, kept));
        assert_eq!(access(bridge, Rights::AllButBridges, true), (read, kept));
        assert_eq!(access(device, Rights::AllButBridges, false), (done, written));
        assert_eq!(access(bridge, Rights::Bridges, false), (done, kept));
        assert_eq!(access(bridge, Rights::Bridges, true), (read, kept));
        assert_eq!(access(device, Rights::Bridges, true), (Verdict::Value(!0), kept));
    }

    fn silenced(functions: Functions) -> std::vec::Vec<u16> {
        let mut hw = machine();
        silence(
            &mut hw,
            &Silence {
                functions,
                pins: ArrayVec::new(),
            },
        );
        let commands = hw.pci.iter().filter(|(address, _)| *address & 0xff == COMMAND & 0xff);
        let silent = commands.filter(|(_, command)| *command & BUS_MASTER == 0);
        let mut functions: std::vec::Vec<_> = silent
            .inspect(|(_, command)| assert_eq!(**command, 3 | INTX_DISABLE))
            .map(|(address, _)| (address >> 8 & 0xffff) as u16)
            .collect();
        functions.sort_unstable();
        functions
    }

    #[test]
    fn what_a_stopped_host_had_is_silenced_and_nothing_else() {
        let listed: ArrayVec<u16, GRANTABLE_FUNCTIONS> = [0x0020].into_iter().collect();
        assert_eq!(silenced(Functions::Only(listed.clone())), [0x0020]);
        assert_eq!(silenced(Functions::AllBut(listed)), [0x0018, 0x001a, 0x0100]);
    }
}
