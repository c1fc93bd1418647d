//! A host's MADT: all CPUs of the machine enabled, its own first, and the wakeup structure.

use super::sink::Sink;
use super::{
    BuildError, Cpu, Madt, MadtEntry, PCAT_COMPAT, SdtHeader, Signature, WAKEUP_VERSION_1,
};
use crate::PhysMem;

/// Revision of the MADT in ACPI 6.5.
const REVISION: u8 = 6;

/// The mailbox is one page (ACPI 6.5, 5.2.12.19).
const MAILBOX_ALIGN: u64 = 4096;

/// Which interrupts a host's MADT describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// All of the machine's, dual 8259 included.
    Legacy,
    /// Those that a hardware-reduced host can have.
    ///
    /// Linux then has no legacy IRQs (`nr_legacy_irqs() == 0`), and no ISA IRQ is looked up by number. An override only fixes a
    /// pin's trigger mode and polarity, from the start and for good. Those of the timer (0), the RTC (8) and the SCI belong to
    /// devices that the host does not have; the timer's would even be taken for the SCI's, whose number is 0 here
    /// (`acpi_parse_int_src_ovr`). IOAPIC pins wired to NMI stay with the host that has the platform.
    HardwareReduced {
        /// The machine's SCI.
        sci: u16,
    },
}

impl Interrupts {
    const TIMER: u8 = 0;
    const RTC: u8 = 8;

    fn keeps(self, entry: &MadtEntry) -> bool {
        match (entry, self) {
            (
                MadtEntry::IoApic { .. }
                | MadtEntry::LocalApicNmi { .. }
                | MadtEntry::LocalX2ApicNmi { .. }
                | MadtEntry::LocalApicAddress { .. },
                _,
            )
            | (MadtEntry::InterruptOverride { .. } | MadtEntry::NmiSource { .. }, Self::Legacy) => {
                true
            }
            (MadtEntry::InterruptOverride { source, .. }, Self::HardwareReduced { sci }) => {
                ![Self::TIMER, Self::RTC].contains(source) && u16::from(*source) != sci
            }
            _ => false,
        }
    }
}

/// Where a host's CPUs are woken, and where they go when it gives them up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wakeup {
    pub mailbox: u64,
    pub reset_vector: u64,
}

/// Appends the table. `own` are the APIC ids of the host's CPUs, its boot CPU first.
pub(crate) fn write<M: PhysMem + ?Sized>(
    machine: &Madt<'_, M>,
    own: &[u32],
    interrupts: Interrupts,
    wakeup: Wakeup,
    out: &mut Sink<'_>,
) -> Result<(), BuildError> {
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
        Interrupts::HardwareReduced { .. } => machine.flags() & !PCAT_COMPAT,
    });
    for (index, &apic_id) in own.iter().enumerate() {
        if own.iter().take(index).any(|&earlier| earlier == apic_id) {
            return Err(BuildError::DuplicateCpu(apic_id));
        }
        enabled_cpu(machine, apic_id)?.entry().write(out);
    }
    for cpu in machine.cpus() {
        let cpu = cpu?;
        if cpu.enabled() && !own.contains(&cpu.apic_id) {
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

fn enabled_cpu<M: PhysMem + ?Sized>(
    machine: &Madt<'_, M>,
    apic_id: u32,
) -> Result<Cpu, BuildError> {
    for cpu in machine.cpus() {
        let cpu = cpu?;
        if cpu.apic_id == apic_id && cpu.enabled() {
            return Ok(cpu);
        }
    }
    Err(BuildError::UnknownCpu(apic_id))
}
