//! The successor's firmware: ACPI tables and memory map, made from this host's own.

use std::ops::Range;

use anyhow::{Result, ensure};
use firmware_shim::PhysMem;
use firmware_shim::acpi::{HostFirmware, HostTables, Locm, Machine, Rsdp, SUCCESSOR_KEEPS, successor_tables};
use firmware_shim::e820::{E820Map, SuccessorMemory, for_successor};
use locum_abi::status::NO_OWNER;
use locum_abi::{FAMILY, Header};
use partitioner::Plan;

use super::Placed;
use crate::acpi::Tables;
use crate::guest::pool;
use crate::inventory::memmap;
use crate::l0;
use crate::sysroot::SysRoot;

/// Most bytes that the tables made by us take.
const MADE: usize = 64 << 10;

/// The successor's tables as pieces to copy, and the address of their RSDP.
///
/// The machine's tables are passed on where they lie if `memory` shows them; else this host's copies go into the slot's
/// table area along with what is made.
///
/// # Errors
/// If this host's tables are damaged, or the area is too small.
pub fn acpi(
    sys: &SysRoot,
    memory: &dyn PhysMem,
    header: &Header,
    header_address: u64,
    plan: &Plan,
) -> Result<(Vec<Placed>, u64)> {
    let slot = &header.slots[plan.successor()];
    ensure!(
        slot.tables != 0 && slot.tables_size != 0,
        "L0 gives the successor's slot no area for tables: update L0"
    );
    let cpus: Vec<u32> = plan.cpus.iter().map(|cpu| cpu.apic.0).collect();
    let status = l0::memory::status(memory, header)?;
    let managed: Vec<u32> = status
        .cpus
        .iter()
        .take(status.cpu_count as usize)
        .filter(|cpu| cpu.owner != NO_OWNER)
        .map(|cpu| cpu.apic_id)
        .collect();
    let host = HostFirmware {
        cpus: &cpus,
        managed: &managed,
        mailbox: slot.mailbox,
        reset_vector: slot.reset_vector,
        locm: Locm {
            header_page: header_address,
            abi_revision: FAMILY,
        },
    };
    let mut made = vec![0; MADE.min(usize::try_from(slot.tables_size)?)];
    let mut pieces = Vec::new();
    let in_place = Rsdp::read(memory, header.machine_rsdp)
        .and_then(|rsdp| Machine::open(memory, &rsdp).and_then(|machine| machine.madt().map(|_| rsdp)));
    let tables: HostTables = match in_place {
        Ok(rsdp) => successor_tables(&Machine::open(memory, &rsdp)?, &host, slot.tables, &mut made)?,
        Err(error) => {
            tracing::debug!("the machine's own tables cannot be seen ({error}); this host's are copied");
            let base = slot.tables + made.len() as u64;
            let copies = Tables::read(sys, base, |signature| SUCCESSOR_KEEPS.contains(&signature))?;
            let tables = successor_tables(&copies.machine()?, &host, slot.tables, &mut made)?;
            pieces.extend(
                copies
                    .kept(base)
                    .map(|(at, bytes)| Placed::bytes("ACPI table", at, bytes.to_vec())),
            );
            tables
        }
    };
    made.truncate(tables.len);
    pieces.push(Placed::bytes("ACPI tables", slot.tables, made));
    let end = pieces
        .iter()
        .map(|piece| piece.at + piece.bytes.len() as u64)
        .max()
        .unwrap_or(0);
    ensure!(
        end <= slot.tables + slot.tables_size,
        "the successor's ACPI tables need {} bytes, L0 has an area of {}: the machine's SSDTs are too large for it",
        end - slot.tables,
        slot.tables_size
    );
    Ok((pieces, tables.rsdp))
}

/// The successor's memory map.
///
/// # Errors
/// If `/sys/firmware/memmap` cannot be read or contradicts the plan.
pub fn memory_map(sys: &SysRoot, header: &Header, plan: &Plan) -> Result<E820Map> {
    let slot = &header.slots[plan.successor()];
    let machine = E820Map::from_firmware(memmap::ranges(sys)?.iter().copied())?;
    let blocks: Vec<Range<u64>> = plan.memory.iter().map(|range| range.start()..range.end()).collect();
    let slice = slot.low_slice..slot.low_slice + slot.low_slice_size;
    let pools: Vec<Range<u64>> = pool::pieces(header)
        .iter()
        .map(|range| range.start()..range.end())
        .collect();
    Ok(for_successor(
        &machine,
        &SuccessorMemory {
            blocks: &blocks,
            slices: &[slice],
            pools: &pools,
            firmware: header.shared..header.shared + header.shared_size,
        },
    )?)
}
