//! The successor's firmware: ACPI tables and memory map, made from this host's own.

use std::ops::Range;

use anyhow::{Result, ensure};
use firmware_shim::PhysMem;
use firmware_shim::acpi::{
    BuildError, HostFirmware, HostTables, Locm, Machine, Rsdp, SUCCESSOR_KEEPS, successor_tables,
};
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
    let blank: Vec<Range<u64>> = header
        .blank()
        .map(|range| range.start..range.start.saturating_add(range.size))
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
        blank: (!blank.is_empty()).then_some(&blank),
    };
    let mut made = vec![0; MADE.min(usize::try_from(slot.tables_size)?)];
    let mut pieces = Vec::new();
    let in_place = Rsdp::read(memory, header.machine_rsdp)
        .and_then(|rsdp| Machine::open(memory, &rsdp).and_then(|machine| machine.madt().map(|_| rsdp)));
    let tables: HostTables = match in_place {
        Ok(rsdp) => make(&Machine::open(memory, &rsdp)?, &host, slot.tables, &mut made)?,
        Err(error) => {
            tracing::debug!("the machine's own tables cannot be seen ({error}); this host's are copied");
            let base = slot.tables + made.len() as u64;
            let copies = Tables::read(sys, base, |signature| SUCCESSOR_KEEPS.contains(&signature))?;
            let tables = make(&copies.machine()?, &host, slot.tables, &mut made)?;
            pieces.extend(
                copies
                    .kept(base)
                    .map(|(at, bytes)| Placed::bytes("ACPI table", at, bytes.to_vec())),
            );
            tables
        }
    };
    let sources = tables.error_sources;
    if sources.kept + sources.left_out > 0 {
        tracing::info!(
            "of the firmware's error sources the successor hears {} once it reigns, {} not",
            sources.kept,
            sources.left_out
        );
    }
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

/// Makes the tables at `at`; without the firmware's error sources if there is no room for them.
fn make<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    host: &HostFirmware<'_>,
    at: u64,
    out: &mut [u8],
) -> Result<HostTables, BuildError> {
    match successor_tables(machine, host, at, out) {
        Err(error @ BuildError::TooSmall { .. }) if host.blank.is_some() => {
            tracing::warn!("{error}: the successor goes without the firmware's error sources (HEST)");
            successor_tables(machine, &HostFirmware { blank: None, ..*host }, at, out)
        }
        tables => tables,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tables;

    #[test]
    fn error_sources_do_not_stand_in_the_way_of_a_refresh() {
        const REGISTER: u64 = 0x7000_0000;
        const AT: u64 = 0x94_0000;
        let dir = tempfile::tempdir().unwrap();
        tables::write(dir.path(), &[0, 1]);
        tables::write_hest(dir.path(), REGISTER);
        let own = Tables::read(&SysRoot::at(dir.path()), u64::MAX, |_| false).unwrap();
        let blank = REGISTER..REGISTER + 0x1000;
        let host = HostFirmware {
            cpus: &[0],
            managed: &[0, 1],
            mailbox: 0x82_0000,
            reset_vector: 0x83_0000,
            locm: Locm {
                header_page: 0x80_0000,
                abi_revision: FAMILY,
            },
            blank: Some(std::slice::from_ref(&blank)),
        };
        let mut out = vec![0; 4096];
        let machine = own.machine().unwrap();
        let tables = make(&machine, &host, AT, &mut out).unwrap();
        assert!(tables.hest > AT);
        assert_eq!((tables.error_sources.kept, tables.error_sources.left_out), (1, 0));
        let smaller = make(&machine, &host, AT, &mut out[..tables.len - 16]).unwrap();
        assert_eq!((smaller.hest, smaller.error_sources.kept), (0, 0));
        assert!(make(&machine, &host, AT, &mut out[..smaller.len - 1]).is_err());
    }
}
