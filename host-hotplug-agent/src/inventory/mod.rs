//! The machine as this host sees it, in the words of the plan.

pub mod firmware;
mod ioapic;
mod iomem;
pub mod irq;
pub mod lines;
pub mod memmap;
pub mod memory;
pub mod pages;
pub mod pci;
pub mod pins;
mod ram;
pub mod serial;

use anyhow::{Context, Result};
use locum_abi::{Header, Slot, Status};
use partitioner::{
    ApicId, Cpu, CpuNumber, Generation, Inventory, MemRange, NodeId, PortRange, StayingPorts, Unreclaimed,
};

pub use iomem::{indivisible, inside, ram as system_ram};
pub use ram::Ram;

use crate::acpi::{Interrupts, aml};
use crate::guest::pool::{self, Pool};
use crate::l0::view;
use crate::load;
use crate::sysroot::{SysRoot, parse_list};
use firmware::Ground;
use lines::Lines;

/// Takes stock.
///
/// # Errors
/// If sysfs, procfs or the ACPI tables cannot be read or contradict L0.
pub fn take(
    sys: &SysRoot,
    header: &Header,
    status: &Status,
    slot: Slot,
    unreclaimed: Vec<Unreclaimed>,
) -> Result<Inventory> {
    let madt = Interrupts::read(sys)?;
    let mut functions = pci::functions(sys)?;
    let listing = aml::list(sys);
    let lines = Lines::new(sys, &madt, &listing);
    for function in &mut functions {
        // Linux tells its own number.
        match function.gsi.map(|number| lines.gsi(number.0)).transpose() {
            Ok(gsi) => function.gsi = gsi,
            Err(why) => {
                function.gsi = None;
                function.busy.get_or_insert(why);
            }
        }
    }
    let pins = irq::pins(sys, &lines, &functions);
    let firmware = Ground::read(sys, &functions).staying(&listing.regions);
    let ram = Ram::read(sys)?;
    let mut blocks = memory::blocks(sys)?;
    let indivisible = iomem::indivisible(sys)?;
    for block in &mut blocks {
        block.foreign = ram.foreign(block.range).map(str::to_owned);
        block.removable &= !iomem::inside(&indivisible, block.range);
    }
    let range = |start, len| MemRange::with_len(start, len);
    let never_moves = [
        range(0, 1 << 20),
        range(header.private, header.private_size),
        range(header.shared, header.shared_size),
    ];
    Ok(Inventory {
        generation: Generation(u64::from(status.generation)),
        cpus: cpus(sys, &madt, status, slot)?,
        block_size: memory::block_size(sys)?,
        blocks,
        ram: merged(ram.own),
        spare: memory::spare(sys)?,
        functions,
        pins,
        staying_ports: staying_ports(sys, header, slot),
        firmware,
        unread_firmware: listing.unread,
        pool: pool::pieces(header),
        pool_nodes: Pool::of(header).nodes(sys),
        entry_reach: load::reach(header),
        never_moves: merged(never_moves.into_iter().flatten().collect()),
        unreclaimed,
    })
}

/// The CPUs that L0 says are this host's.
fn cpus(sys: &SysRoot, madt: &Interrupts, status: &Status, slot: Slot) -> Result<Vec<Cpu>> {
    let mut cpus = Vec::new();
    for cpu in view::used(status).iter().filter(|cpu| view::owner(cpu) == Some(slot)) {
        let number = madt
            .number(cpu.apic_id)
            .with_context(|| format!("L0 knows APIC {}, the MADT does not", cpu.apic_id))?;
        let dir = cpu_dir(number);
        // CPU 0 has no file `online`: it always is.
        let online = sys
            .read_optional(format!("{dir}/online"))
            .is_none_or(|text| text == "1");
        cpus.push(Cpu {
            apic: ApicId(cpu.apic_id),
            number: CpuNumber(number),
            online,
            node: NodeId(node_of(sys, &dir)),
            core: core(sys, &dir),
        });
    }
    cpus.sort_by_key(|cpu| cpu.number);
    Ok(cpus)
}

/// The core of a CPU that is online, by the lowest number of its threads.
fn core(sys: &SysRoot, dir: &str) -> Option<CpuNumber> {
    let threads = sys.read_optional(format!("{dir}/topology/thread_siblings_list"))?;
    parse_list(&threads)?.into_iter().min().map(CpuNumber)
}

/// Where the CPU is in sysfs.
pub fn cpu_dir(number: u32) -> String {
    format!("sys/devices/system/cpu/cpu{number}")
}

/// The node whose link a device has beside its files; 0 on machines without NUMA.
fn node_of(sys: &SysRoot, dir: &str) -> u32 {
    let names = sys.list(dir).unwrap_or_default();
    names
        .iter()
        .find_map(|name| name.strip_prefix("node")?.parse().ok())
        .unwrap_or(0)
}

/// Consoles of this host: the slot's own and those that the kernel writes to.
fn staying_ports(sys: &SysRoot, header: &Header, slot: Slot) -> Vec<StayingPorts> {
    const UART_PORTS: u16 = 8;
    let mut staying = Vec::new();
    let own = header.slots[slot].console_port;
    let mut push = |port: u64, user: String| {
        let Some(first) = u16::try_from(port).ok().filter(|&port| port != 0) else {
            return;
        };
        if let Some(ports) = PortRange::new(first, first.saturating_add(UART_PORTS - 1)) {
            staying.push(StayingPorts { ports, user });
        }
    };
    push(u64::from(own), "this host's console".to_owned());
    for name in sys.list("sys/class/tty").unwrap_or_default() {
        let dir = format!("sys/class/tty/{name}");
        if sys.read_optional(format!("{dir}/console")).as_deref() == Some("Y") {
            push(
                sys.read_number(format!("{dir}/port")).unwrap_or(0),
                format!("{name}, the console"),
            );
        }
    }
    staying
}

/// Adjacent and overlapping ranges as one.
fn merged(mut ranges: Vec<MemRange>) -> Vec<MemRange> {
    ranges.sort_unstable();
    let mut out: Vec<MemRange> = Vec::new();
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start() <= last.end() => {
                let end = last.end().max(range.end());
                *last = MemRange::new(last.start(), end).unwrap_or(*last);
            }
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests;
