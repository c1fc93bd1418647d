//! A host's MADT: all CPUs that L0 manages enabled, the host's own first, and the wakeup structure.

use super::error::BuildError;
use super::header::SdtHeader;
use super::madt::{Cpu, Madt, PCAT_COMPAT};
use super::madt_entry::{MadtEntry, WAKEUP_VERSION_1};
use super::signature::Signature;
use super::sink::Sink;
use crate::mem::PhysMem;

/// Revision of the MADT in ACPI 6.5.
const REVISION: u8 = 6;

/// The mailbox is one page (ACPI 6.5, 5.2.12.19).
const MAILBOX_ALIGN: u64 = 4096;

/// Which interrupts a host's MADT describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// All of the machine's, dual 8259 included.
    Legacy,
    /// The IOAPICs without any ISA interrupt, for a hardware-reduced host.
    ///
    /// Linux then has no legacy IRQs (`nr_legacy_irqs() == 0`) and looks up no ISA IRQ by number, so that an override
    /// can do harm only: it fixes its pin's trigger mode and polarity before the first device asks for it, and a PCI
    /// link that says otherwise, as Bochs' do (active low links, active high overrides), gets -EBUSY
    /// (`mp_check_pin_attr` lets only a legacy IRQ be changed). That of the timer would even be taken for the SCI's,
    /// whose number is 0 here (`acpi_parse_int_src_ovr`). Without overrides a pin gets what its first device's `_CRS`
    /// or PCI link says.
    ///
    /// IOAPIC pins wired to NMI stay with the host that has the platform.
    HardwareReduced,
}

impl Interrupts {
    fn keeps(self, entry: &MadtEntry) -> bool {
        match entry {
            MadtEntry::IoApic { .. }
            | MadtEntry::LocalApicNmi { .. }
            | MadtEntry::LocalX2ApicNmi { .. }
            | MadtEntry::LocalApicAddress { .. } => true,
            MadtEntry::InterruptOverride { .. } | MadtEntry::NmiSource { .. } => self == Self::Legacy,
            MadtEntry::LocalApic { .. }
            | MadtEntry::LocalX2Apic { .. }
            | MadtEntry::Wakeup { .. }
            | MadtEntry::Other { .. } => false,
        }
    }
}

/// Where a host's CPUs are woken, and where they go when it gives them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wakeup {
    pub mailbox: u64,
    pub reset_vector: u64,
}

/// Which CPUs the table lists, as APIC ids.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpus<'a> {
    /// The host's, its boot CPU first.
    pub own: &'a [u32],
    /// All that there may be.
    pub managed: &'a [u32],
}

/// Appends the table.
pub(crate) fn write<M: PhysMem + ?Sized>(
    machine: &Madt<'_, M>,
    cpus: Cpus<'_>,
    interrupts: Interrupts,
    wakeup: Wakeup,
    out: &mut Sink<'_>,
) -> Result<(), BuildError> {
    let Cpus { own, managed } = cpus;
    if own.is_empty() {
        return Err(BuildError::NoCpu);
    }
    if !wakeup.mailbox.is_multiple_of(MAILBOX_ALIGN) {
        return Err(BuildError::Misaligned {
            what: "the wakeup mailbox",
            addr: wakeup.mailbox,
            align: MAILBOX_ALIGN,
        });
    }
    let table = out.open(&SdtHeader {
        signature: Signature::MADT,
        revision: REVISION,
        ..*machine.header()
    });
    out.u32(machine.local_apic_address());
    out.u32(match interrupts {
        Interrupts::Legacy => machine.flags(),
        Interrupts::HardwareReduced => machine.flags() & !PCAT_COMPAT,
    });
    for (index, &apic_id) in own.iter().enumerate() {
        if own.iter().take(index).any(|&earlier| earlier == apic_id) {
            return Err(BuildError::DuplicateCpu(apic_id));
        }
        enabled_cpu(machine, apic_id)?.entry().write(out);
    }
    for cpu in machine.cpus() {
        let cpu = cpu?;
        if cpu.enabled() && managed.contains(&cpu.apic_id) && !own.contains(&cpu.apic_id) {
            cpu.entry().write(out);
        }
    }
    for entry in machine.entries() {
        let entry = entry?;
        if interrupts.keeps(&entry) {
            entry.write(out);
        }
    }
    MadtEntry::Wakeup {
        version: WAKEUP_VERSION_1,
        mailbox: wakeup.mailbox,
        reset_vector: wakeup.reset_vector,
    }
    .write(out);
    out.close(table);
    Ok(())
}

fn enabled_cpu<M: PhysMem + ?Sized>(machine: &Madt<'_, M>, apic_id: u32) -> Result<Cpu, BuildError> {
    for cpu in machine.cpus() {
        let cpu = cpu?;
        if cpu.apic_id == apic_id && cpu.enabled() {
            return Ok(cpu);
        }
    }
    Err(BuildError::UnknownCpu(apic_id))
}
