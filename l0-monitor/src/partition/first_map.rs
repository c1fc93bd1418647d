//! Whose memory is whose when the first host starts.

use firmware_shim::e820::MemoryType as RangeType;
use locum_abi::{PAGE_SIZE, Slot};

use super::memory::{self, Kind, Map};
use crate::arch::paging::page_of;
use crate::machine::Machine;

const LAPIC_PAGE: u64 = 0xfee0_0000;
/// Where Intel's chipsets have the HPET (IA-PC HPET specification 1.0a, 2.3.1). A successor has no HPET table, but the
/// machine's AML names the device, and Linux' driver for that waits for the counter to move: it may read.
const HPET_PAGE: u64 = 0xfed0_0000;
const VGA: u64 = 0xa_0000;
pub(super) const BIOS: u64 = 0xc_0000;
pub(super) const MIB: u64 = 0x10_0000;

/// The map as it is when the first host starts.
pub(super) fn first_map(machine: &Machine) -> Result<Map, memory::Full> {
    let mut map = Map::new();
    let l0 = machine.l0;
    for (range, kind) in [
        (l0.private(), Kind::Monitor),
        (l0.readable(), Kind::ReadOnly),
        (l0.slot_area(Slot::Even), Kind::Host(Slot::Even)),
        (l0.slot_area(Slot::Odd), Kind::Host(Slot::Even)),
        (l0.channels(), Kind::Shared),
    ] {
        map.set(range.start, range.end, kind)?;
    }
    // Kernels look all over low memory for what firmware and other kernels may have left there. What follows the
    // slices, with the EBDA at its end, nobody needs to write.
    let slices_end = Slot::ALL.map(|slot| machine.low_slices[slot].end).into_iter().max();
    let low_end = slices_end.unwrap_or(0).clamp(PAGE_SIZE, VGA);
    map.set(PAGE_SIZE, low_end, Kind::Readable(Slot::Even))?;
    map.set(low_end, VGA, Kind::ReadOnly)?;
    map.set(BIOS, MIB, Kind::ReadOnly)?;
    map.set(LAPIC_PAGE, LAPIC_PAGE + PAGE_SIZE, Kind::Shared)?;
    map.set(HPET_PAGE, HPET_PAGE + PAGE_SIZE, Kind::Readable(Slot::Even))?;
    // Both read the machine's tables, and AML writes what it keeps there.
    for range in machine.e820.entries() {
        if matches!(range.kind, RangeType::AcpiReclaim | RangeType::AcpiNvs) {
            let (start, end) = (page_of(range.start), range.end.next_multiple_of(PAGE_SIZE));
            map.set(start, end, Kind::Shared)?;
        }
    }
    for range in &machine.blank {
        map.set(range.start, range.end, Kind::Blank(Slot::Even))?;
    }
    for piece in &machine.pool {
        map.set(piece.start, piece.end, Kind::Shared)?;
    }
    for ioapic in &machine.ioapics {
        let page = page_of(ioapic.address);
        map.set(page, page + PAGE_SIZE, Kind::IoApic)?;
    }
    Ok(map)
}
