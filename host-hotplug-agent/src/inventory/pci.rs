//! `/sys/bus/pci/devices`: functions, what they decode, and who uses them.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use partitioner::{Bar, Gsi, MemRange, PciAddress, PciFunction, PortRange};

use crate::sysroot::SysRoot;

const DIR: &str = "sys/bus/pci/devices";
/// `IORESOURCE_IO` and `IORESOURCE_MEM` (Linux `include/linux/ioport.h`).
const FLAG_IO: u64 = 0x100;
const FLAG_MEM: u64 = 0x200;
/// Base class of bridges (PCI Code and ID Assignment Specification).
const BRIDGE: u32 = 0x06;
/// Above it Linux numbers domains that no firmware knows.
const LAST_SEGMENT: u32 = 0xffff;
/// BARs 0 to 5 and the expansion ROM; later lines are bridge windows.
const OWN_RESOURCES: usize = 7;

/// Every PCI function of this host.
///
/// # Errors
/// If a function's files cannot be read.
pub fn functions(sys: &SysRoot) -> Result<Vec<PciFunction>> {
    if !sys.exists(DIR) {
        return Ok(Vec::new());
    }
    let mut functions = Vec::new();
    for name in sys.list(DIR)? {
        functions.push(function(sys, &name).with_context(|| format!("PCI function {name}"))?);
    }
    note_endpoints(sys, &mut functions);
    Ok(functions)
}

/// Where the function is in sysfs.
pub fn dir(address: PciAddress) -> String {
    format!("{DIR}/{address}")
}

/// Its name in the ACPI namespace, if the firmware's code knows the function: `\_SB_.PCI0.NIC1`.
pub fn acpi_path(sys: &SysRoot, address: PciAddress) -> Option<String> {
    sys.read_optional(format!("{}/firmware_node/path", dir(address)))
}

fn function(sys: &SysRoot, name: &str) -> Result<PciFunction> {
    let dir = format!("{DIR}/{name}");
    let address: PciAddress = name.parse()?;
    let class = u32::try_from(sys.read_number(format!("{dir}/class"))?)?;
    let mut bars = Vec::new();
    for line in sys.read(format!("{dir}/resource"))?.lines().take(OWN_RESOURCES) {
        bars.extend(bar(line));
    }
    let irq = sys.read_number(format!("{dir}/irq")).unwrap_or(0);
    let msi = sys.list(format!("{dir}/msi_irqs")).is_ok_and(|irqs| !irqs.is_empty());
    // A made-up domain has no interrupt lines (`drivers/pci/controller/vmd.c`).
    let lines = address.segment() <= LAST_SEGMENT && !msi;
    Ok(PciFunction {
        address,
        class,
        driver: sys.link_name(format!("{dir}/driver")),
        busy: busy(sys, &dir),
        bridge: class >> 16 == BRIDGE,
        bars,
        gsi: u32::try_from(irq)
            .ok()
            .filter(|&irq| irq != 0 && irq != 0xff && lines)
            .map(Gsi),
        behind: None,
    })
}

/// Notes behind which function of segment 0 those of other domains lie: as sysfs nests them, else by whose registers
/// theirs are among.
fn note_endpoints(sys: &SysRoot, functions: &mut [PciFunction]) {
    let endpoints: Vec<PciFunction> = functions.iter().filter(|f| f.movable() && !f.bridge).cloned().collect();
    for function in functions.iter_mut().filter(|function| !function.movable()) {
        let address = function.address;
        let place = fs::canonicalize(sys.path(dir(address))).unwrap_or_default();
        let above: Vec<PciAddress> = place
            .iter()
            .filter_map(|name| name.to_str()?.parse().ok())
            .filter(|above: &PciAddress| above.segment() != address.segment())
            .collect();
        let among = |endpoint: &&PciFunction| {
            let holds = |page: MemRange| endpoint.pages().any(|own| own.contains(page));
            function.pages().next().is_some() && function.pages().all(holds)
        };
        function.behind = match above.last() {
            Some(above) => Some(*above),
            None => endpoints.iter().find(among).map(|endpoint| endpoint.address),
        };
    }
}

/// A line of `resource`: first and last address, flags.
fn bar(line: &str) -> Option<Bar> {
    let mut words = line
        .split_whitespace()
        .map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16));
    let (start, last, flags) = (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
    if start == 0 {
        return None;
    }
    if flags & FLAG_MEM != 0 {
        MemRange::new(start, last.checked_add(1)?).map(Bar::Memory)
    } else if flags & FLAG_IO != 0 {
        PortRange::new(start.try_into().ok()?, last.try_into().ok()?).map(Bar::Ports)
    } else {
        None
    }
}

/// Who uses the function, as far as that shows.
fn busy(sys: &SysRoot, dir: &str) -> Option<String> {
    for name in interfaces(sys, dir) {
        let flags = sys.read_number(format!("{dir}/net/{name}/flags")).unwrap_or(0);
        if flags & 1 != 0 {
            return Some(format!("network interface {name} is up (`ip link set {name} down`)"));
        }
    }
    mounted_disk(sys, dir)
}

/// Network interfaces of the function.
pub fn interfaces(sys: &SysRoot, dir: &str) -> Vec<String> {
    sys.list(format!("{dir}/net")).unwrap_or_default()
}

/// A disk or partition of the function that is mounted or used for swap.
fn mounted_disk(sys: &SysRoot, dir: &str) -> Option<String> {
    let here = fs::canonicalize(sys.path(dir)).ok()?;
    let mounts = sys.read_optional("proc/self/mountinfo").unwrap_or_default();
    let swaps = sys.read_optional("proc/swaps").unwrap_or_default();
    for disk in sys.list("sys/class/block").unwrap_or_default() {
        let Ok(place) = fs::canonicalize(sys.path(format!("sys/class/block/{disk}"))) else {
            continue;
        };
        if !place.starts_with(&here) {
            continue;
        }
        let number = sys
            .read_optional(Path::new("sys/class/block").join(&disk).join("dev"))
            .unwrap_or_default();
        if !number.is_empty()
            && mounts
                .lines()
                .any(|line| line.split_whitespace().nth(2) == Some(number.as_str()))
        {
            return Some(format!("/dev/{disk} is mounted (`umount /dev/{disk}`)"));
        }
        if swaps
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&format!("/dev/{disk}")))
        {
            return Some(format!("/dev/{disk} is swap space (`swapoff /dev/{disk}`)"));
        }
        if sys
            .list(format!("sys/class/block/{disk}/holders"))
            .is_ok_and(|holders| !holders.is_empty())
        {
            return Some(format!("/dev/{disk} is held by another device (dm or md)"));
        }
    }
    None
}
