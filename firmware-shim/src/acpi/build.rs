//! A host's set of tables, laid out in one buffer: RSDP, FADT, MADT, `LOCM`, XSDT.

use super::error::{AcpiError, BuildError};
use super::fadt::FADT_REVISION_6_LEN;
use super::header::SdtHeader;
use super::locm::Locm;
use super::machine::Machine;
use super::madt_build::{self, Interrupts, Wakeup};
use super::rsdp::{RSDP_V2_LEN, Rsdp};
use super::signature::Signature;
use super::sink::Sink;
use crate::mem::PhysMem;

/// Tables of the machine that a successor sees as they are; any other describes hardware that it does not own or that
/// L0 hides. The DSDT comes by the FADT.
pub const SUCCESSOR_KEEPS: [Signature; 4] = [Signature::SSDT, Signature::MCFG, Signature::SRAT, Signature::SLIT];

/// What a host's tables say beyond the machine's own.
#[derive(Clone, Copy, Debug)]
pub struct HostFirmware<'a> {
    /// APIC ids of the host's CPUs, its boot CPU first; the other CPUs follow in the machine's order.
    pub cpus: &'a [u32],
    /// APIC ids of all CPUs that L0 manages. Others of the machine are left out: nobody would answer when a host wakes
    /// one.
    pub managed: &'a [u32],
    /// Physical address of the host's wakeup mailbox, one page, aligned to 4 KiB.
    pub mailbox: u64,
    /// Physical address that a CPU given up by the host jumps to.
    pub reset_vector: u64,
    /// Contents of the `LOCM` table.
    pub locm: Locm,
}

/// Where the tables made are, all physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTables {
    /// The RSDP, for `acpi_rsdp_addr` in the zero page: the start of the buffer.
    pub rsdp: u64,
    /// The XSDT.
    pub xsdt: u64,
    /// The FADT.
    pub fadt: u64,
    /// The MADT.
    pub madt: u64,
    /// The `LOCM` table.
    pub locm: u64,
    /// Bytes of the buffer that are used.
    pub len: usize,
}

/// Makes the first host's tables: the machine's by address, in its order, but for the FADT and MADT (replaced), the
/// DMAR (hidden: one owner cannot have the remapping units of both partitions) and `LOCM` (added).
///
/// `out` is overwritten; its first byte will live at physical address `phys`, a multiple of 16.
///
/// # Errors
/// [`BuildError`]; the contents of `out` are then not to be used.
pub fn first_host_tables<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    host: &HostFirmware<'_>,
    phys: u64,
    out: &mut [u8],
) -> Result<HostTables, BuildError> {
    let fadt = machine.fadt()?;
    let parts = Parts {
        fadt: fadt.for_first_host(),
        cpus: host.cpus,
        managed: host.managed,
        interrupts: Interrupts::Legacy,
        wakeup: Wakeup {
            mailbox: host.mailbox,
            reset_vector: host.reset_vector,
        },
        locm: host.locm,
    };
    const HIDDEN: [Signature; 4] = [Signature::FADT, Signature::MADT, Signature::DMAR, Signature::LOCM];
    layout(machine, &parts, |sig| !HIDDEN.contains(&sig), phys, out)
}

/// Makes a successor's tables: a hardware-reduced FADT, its MADT, `LOCM`, and of the machine's those in
/// [`SUCCESSOR_KEEPS`], by address.
///
/// `machine` is the machine's own set, not that of the incumbent. `out` is overwritten; its first byte will live at
/// physical address `phys`, a multiple of 16.
///
/// # Errors
/// [`BuildError`]; the contents of `out` are then not to be used.
pub fn successor_tables<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    host: &HostFirmware<'_>,
    phys: u64,
    out: &mut [u8],
) -> Result<HostTables, BuildError> {
    let fadt = machine.fadt()?;
    let parts = Parts {
        fadt: fadt.for_successor(),
        cpus: host.cpus,
        managed: host.managed,
        interrupts: Interrupts::HardwareReduced,
        wakeup: Wakeup {
            mailbox: host.mailbox,
            reset_vector: host.reset_vector,
        },
        locm: host.locm,
    };
    layout(machine, &parts, |sig| SUCCESSOR_KEEPS.contains(&sig), phys, out)
}

struct Parts<'a> {
    fadt: [u8; FADT_REVISION_6_LEN],
    cpus: &'a [u32],
    managed: &'a [u32],
    interrupts: Interrupts,
    wakeup: Wakeup,
    locm: Locm,
}

fn layout<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    parts: &Parts<'_>,
    keeps: impl Fn(Signature) -> bool,
    phys: u64,
    out: &mut [u8],
) -> Result<HostTables, BuildError> {
    let mut out = Sink::new(out, phys)?;
    let rsdp = out.align();
    out.skip(RSDP_V2_LEN);

    let fadt = out.align();
    out.bytes(&parts.fadt);

    let madt = out.align();
    let cpus = madt_build::Cpus {
        own: parts.cpus,
        managed: parts.managed,
    };
    madt_build::write(&machine.madt()?, cpus, parts.interrupts, parts.wakeup, &mut out)?;

    let locm = out.align();
    parts.locm.write(&mut out);

    let xsdt = out.align();
    write_xsdt(machine, keeps, [fadt, madt, locm], &mut out)?;

    let oem_id = machine.root_header().oem_id;
    out.patch(0, &Rsdp::encode(oem_id, xsdt));
    Ok(HostTables {
        rsdp,
        xsdt,
        fadt,
        madt,
        locm,
        len: out.finish()?,
    })
}

/// Our FADT first, as firmware does, then the machine's tables in its order, then the rest of ours.
fn write_xsdt<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    keeps: impl Fn(Signature) -> bool,
    [fadt, madt, locm]: [u64; 3],
    out: &mut Sink<'_>,
) -> Result<(), AcpiError> {
    let table = out.open(&SdtHeader {
        signature: Signature::XSDT,
        revision: 1,
        ..*machine.root_header()
    });
    out.u64(fadt);
    out.u64(madt);
    // What cannot be read is left out: it could be one that hosts must not see.
    for entry in machine.tables().filter_map(Result::ok) {
        if keeps(entry.signature) {
            out.u64(entry.address);
        }
    }
    out.u64(locm);
    out.close(table);
    Ok(())
}
