//! Finding out about the machine: ACPI tables, CPUs, memory, MTRRs.
#![expect(unsafe_code, reason = "reads registers of IOAPICs and copies the RSDP")]

use core::ops::Range;

use firmware_shim::PhysMem;
use firmware_shim::acpi::{self, AcpiError, Madt, MadtEntry, Rsdp};
use firmware_shim::e820::{self, low_slices_below};
use locum_abi::{MAX_CPUS, PerSlot};

use super::memory::{Identity, move_bytes};
use super::multiboot::Information;
use super::{BootError, blank, cmdline, platform, pool};
use crate::arch::{cpuid, lapic, msr};
use crate::machine::mtrr::Mtrrs;
use crate::machine::{self, IoApic, MAX_IOAPICS, Machine, Pool, Span};
use crate::partition::ioapic::{SELECT, VERSION, WINDOW, last_pin};
use crate::shared::layout;
use crate::{id, shared};

/// The machine's RSDP: what GRUB copied, put where it stays, or what is in the BIOS area.
pub(crate) fn find_rsdp(memory: &Identity, information: Information<'_>) -> Result<(u64, Rsdp), BootError> {
    let Some(copy) = information.rsdp() else {
        return Ok(Rsdp::find_in_bios_area(memory)?);
    };
    let rsdp = Rsdp::parse(copy)?;
    let address = shared::addresses().machine_rsdp;
    let len = copy.len().min(layout::RSDP_MAX);
    // SAFETY: the place in the shared region has room for it.
    unsafe { move_bytes(address, copy.as_ptr() as u64, len as u64) };
    Ok((address, rsdp))
}

/// Collects what is known of the machine, and registers its CPUs.
pub(crate) fn read_machine(
    memory: &Identity,
    information: Information<'_>,
    rsdp_address: u64,
    rsdp: &Rsdp,
    options: &cmdline::Options,
) -> Result<&'static Machine, BootError> {
    if information.boot_services_run() {
        return Err(BootError::Multiboot("EFI boot services still run"));
    }
    let tables = acpi::Machine::open(memory, rsdp)?;
    for table in tables.wrong_checksums() {
        log::warn!(
            "{} table at {:#x} has a wrong checksum; it is used all the same, as Linux does",
            table.signature,
            table.address
        );
    }
    for error in tables.unreadable() {
        log::warn!("an entry of the root table: {error}; it is left out");
    }
    let madt = tables.madt()?;
    let fadt = tables.fadt()?;
    register_cpus(&madt);
    let e820 = platform::memory_map(information)?;
    let [even, odd] = low_slices_below(&e820, bios_area(memory)?)?.map(|Range { start, end }| Span { start, end });
    let l0 = shared::place();
    let pool = options.pool.as_ref().map_or(Pool::new_const(), |wanted| {
        pool::choose(&e820, l0.all(), nodes(&tables), wanted)
    });
    let mut machine = Machine {
        e820,
        l0,
        low_slices: PerSlot::new(even, odd),
        mtrrs: Mtrrs::read(cpuid::max_phys_bits()),
        pool,
        pm1_control: [fadt.pm1a_control(), fadt.pm1b_control()]
            .map(|register| register.and_then(|r| r.port()).unwrap_or(0)),
        rsdp: rsdp_address,
        boot_apic_id: cpuid::apic_id(),
        ..Machine::EMPTY
    };
    add_ioapics(&mut machine, &madt);
    match tables.mcfg() {
        Ok(None) => {}
        Ok(Some(mcfg)) => {
            // No host can be given functions of other segments.
            let regions = mcfg.regions().filter_map(Result::ok);
            for region in regions.filter(|region| region.segment == 0) {
                if machine.ecam.try_push(region).is_err() {
                    log::warn!("PCI configuration window at {:#x} is one too many", region.base);
                }
            }
        }
        Err(error) => log::warn!("{error}; L0 goes without it, as Linux does"),
    }
    machine.blank = blank::choose(&machine.e820, error_sources(&tables), |at| machine.mtrrs.lookup(at).0);
    if tables.has_dmar() {
        if lapic::is_x2apic_locked(msr::read_safe) {
            return Err(BootError::LockedX2Apic);
        }
        log::warn!("DMA remapping (DMAR) is hidden from hosts: no device passthrough to guests");
    }
    Ok(machine::publish(machine))
}

/// Where Linux takes the BIOS' memory to begin.
fn bios_area(memory: &Identity) -> Result<u64, BootError> {
    let word = |at| {
        let mut word = [0; 2];
        memory.read(at, &mut word).map(|()| u16::from_le_bytes(word))
    };
    e820::bios_area(word).map_err(|error| BootError::Acpi(error.into()))
}

/// What a table tells; a damaged one counts as none, which the log says with what that means.
fn or_without<T>(told: Result<Option<T>, AcpiError>, without: &str) -> Option<T> {
    told.unwrap_or_else(|error| {
        log::warn!("{error}; {without}");
        None
    })
}

/// NUMA domains and their memory; none if the firmware does not tell.
fn nodes<'m>(tables: &acpi::Machine<'m, Identity>) -> impl Iterator<Item = (u32, Range<u64>)> + Clone + use<'m> {
    let srat = or_without(tables.srat(), "all memory counts as of one NUMA node, as for Linux");
    srat.into_iter()
        .flat_map(|srat| srat.memory())
        .map(|memory| (memory.domain, memory.range))
}

/// Where the firmware's error sources say whether there is a report.
fn error_sources<'m>(tables: &acpi::Machine<'m, Identity>) -> impl Iterator<Item = Range<u64>> + use<'m> {
    const WITHOUT: &str = "successors go without it";
    let hest = or_without(tables.hest(), WITHOUT);
    let record = or_without(tables.boot_error_region(), WITHOUT);
    hest.into_iter().flat_map(|hest| hest.registers()).chain(record)
}

/// Registers the CPUs that fit and says which do not: hosts never hear of those.
fn register_cpus(madt: &Madt<'_, Identity>) {
    let enabled = || {
        let cpus = madt.cpus().filter_map(Result::ok);
        cpus.filter(acpi::Cpu::enabled).map(|cpu| cpu.apic_id)
    };
    // The boot CPU first: it runs already, wherever the MADT lists it.
    let me = cpuid::apic_id();
    let mine = enabled().filter(|&id| id == me);
    let taken = id::register(mine.chain(enabled().filter(|&id| id != me)));
    let total = enabled().count();
    if taken < total {
        log::warn!(
            "{taken} of {total} CPUs are used: L0 manages {MAX_CPUS}, with APIC ids up to 254, each once; the others stay \
             off, and hosts do not see them"
        );
    }
}

fn add_ioapics(machine: &mut Machine, madt: &Madt<'_, Identity>) {
    for entry in madt.entries().filter_map(Result::ok) {
        let MadtEntry::IoApic { address, gsi_base, .. } = entry else {
            continue;
        };
        let address = u64::from(address);
        if address == 0 {
            log::warn!("an IOAPIC at address 0 is left out, as Linux does");
            continue;
        }
        let ioapic = IoApic {
            address,
            gsi_base,
            pins: ioapic_pins(address),
        };
        if machine.ioapics.try_push(ioapic).is_err() {
            machine.too_many_ioapics = true;
            log::error!("IOAPIC at {address:#x} is one too many for L0 ({MAX_IOAPICS}): refreshes will be refused");
        }
    }
}

/// Number of an IOAPIC's pins.
fn ioapic_pins(address: u64) -> u32 {
    // SAFETY: the MADT names this address as an IOAPIC's, and no host uses it yet.
    let version = unsafe {
        ((address + SELECT) as *mut u32).write_volatile(VERSION);
        ((address + WINDOW) as *const u32).read_volatile()
    };
    last_pin(version) + 1
}
