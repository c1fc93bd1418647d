//! A host's set of tables, laid out in one buffer: RSDP, FADT, MADT, `LOCM`, for a successor the HEST, XSDT.

use super::error::{AcpiError, BuildError};
use super::errors::{ErrorSources, lies_in};
use super::fadt::FADT_REVISION_6_LEN;
use super::header::SdtHeader;
use super::locm::Locm;
use super::machine::Machine;
use super::madt_build::{self, Interrupts, Wakeup};
use super::rsdp::{RSDP_V2_LEN, Rsdp};
use super::signature::Signature;
use super::sink::Sink;
use crate::mem::PhysMem;
use core::ops::Range;

/// Tables of the machine that a successor sees as they are; any other describes hardware that it does not own or that
/// L0 hides. The DSDT comes by the FADT.
///
/// - SPMI names the management processor's registers. They are the incumbent's until it retires: till then they read as
///   all ones, by which Linux takes them for not there (`kcs_detect()`, `smic_detect()`, `bt_detect()` in
///   `drivers/char/ipmi`), and a driver that is loaded later finds them.
/// - The BERT is seen if what it names is among [`HostFirmware::blank`]. A HEST is made anew, see [`super::Hest`].
///
/// Left out for good are those whose registers are a protocol between one kernel and the firmware that Linux begins at
/// its boot, when the incumbent still uses it:
/// - ERST: commands by SMI, with state between them. Linux reads all records at boot (pstore), and believes from then
///   on what it saw.
/// - EINJ: the same, to make errors for tests.
/// - PCCT: one command at a time for each channel, in memory that both sides write. Linux asks for the limits of CPUs at
///   boot (CPPC), and would take the answer to the incumbent's command for its own.
pub const SUCCESSOR_KEEPS: [Signature; 6] = [
    Signature::SSDT,
    Signature::MCFG,
    Signature::SRAT,
    Signature::SLIT,
    Signature::SPMI,
    Signature::BERT,
];

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
    /// Memory that reads as zeroes for a successor until it reigns; `None`: it gets neither HEST nor BERT. A first host
    /// has the machine's own in any case.
    pub blank: Option<&'a [Range<u64>]>,
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
    /// The HEST that was made for a successor, 0 if there is none.
    pub hest: u64,
    /// Its error sources.
    pub error_sources: ErrorSources,
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
        blank: None,
    };
    const HIDDEN: [Signature; 4] = [Signature::FADT, Signature::MADT, Signature::DMAR, Signature::LOCM];
    layout(machine, &parts, |sig| !HIDDEN.contains(&sig), phys, out)
}

/// Makes a successor's tables: a hardware-reduced FADT, its MADT, `LOCM`, a HEST with those of the machine's error
/// sources that it can have, and of the machine's those in [`SUCCESSOR_KEEPS`], by address. A damaged HEST or BERT is left
/// out.
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
        blank: host.blank,
    };
    let boot_errors = machine.boot_error_region().ok().flatten();
    let bert = boot_errors.is_some_and(|region| lies_in(&region, host.blank.unwrap_or_default()));
    let keeps = |sig| SUCCESSOR_KEEPS.contains(&sig) && (sig != Signature::BERT || bert);
    layout(machine, &parts, keeps, phys, out)
}

struct Parts<'a> {
    fadt: [u8; FADT_REVISION_6_LEN],
    cpus: &'a [u32],
    managed: &'a [u32],
    interrupts: Interrupts,
    wakeup: Wakeup,
    locm: Locm,
    /// Given for a successor: it gets a HEST.
    blank: Option<&'a [Range<u64>]>,
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

    let (hest, error_sources) = match parts.blank {
        Some(blank) => write_hest(machine, blank, &mut out)?,
        None => (0, ErrorSources::default()),
    };

    let xsdt = out.align();
    write_xsdt(machine, keeps, [fadt, madt, locm, hest], &mut out)?;

    let oem_id = machine.root_header().oem_id;
    out.patch(0, &Rsdp::encode(oem_id, xsdt));
    Ok(HostTables {
        rsdp,
        xsdt,
        fadt,
        madt,
        locm,
        hest,
        error_sources,
        len: out.finish()?,
    })
}

/// A successor's HEST and its sources; 0 if the machine has none that can be read.
fn write_hest<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    blank: &[Range<u64>],
    out: &mut Sink<'_>,
) -> Result<(u64, ErrorSources), BuildError> {
    let Ok(Some(hest)) = machine.hest() else {
        return Ok((0, ErrorSources::default()));
    };
    let address = out.align();
    let sources = hest.write(blank, out)?;
    Ok((address, sources))
}

/// Our FADT first, as firmware does, then the machine's tables in its order, then the rest of ours.
fn write_xsdt<M: PhysMem + ?Sized>(
    machine: &Machine<'_, M>,
    keeps: impl Fn(Signature) -> bool,
    [fadt, madt, locm, hest]: [u64; 4],
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
    if hest != 0 {
        out.u64(hest);
    }
    out.close(table);
    Ok(())
}
