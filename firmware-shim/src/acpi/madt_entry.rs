//! Entries of the MADT (ACPI 6.5, 5.2.12.2 ff.): decoded into values, and written.

use super::sink::Sink;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

/// Local APIC flag: the CPU is ready for use.
pub const LAPIC_ENABLED: u32 = 1 << 0;
/// Local APIC flag: the CPU may be enabled later (ACPI 6.3).
pub const LAPIC_ONLINE_CAPABLE: u32 = 1 << 1;
/// Version of the wakeup structure that has a reset vector (ACPI 6.5).
pub const WAKEUP_VERSION_1: u16 = 1;

/// Longest entry in bytes: the length is one byte.
pub(crate) const MAX_ENTRY_LEN: usize = 255;

/// One entry. Flags of interrupts are MPS INTI flags: polarity in bits 0-1, trigger mode in bits 2-3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MadtEntry {
    /// Type 0: a CPU.
    LocalApic {
        /// ACPI processor UID.
        uid: u8,
        /// APIC id, 0xFF invalid.
        apic_id: u8,
        /// [`LAPIC_ENABLED`], [`LAPIC_ONLINE_CAPABLE`].
        flags: u32,
    },
    /// Type 1: an IOAPIC.
    IoApic {
        /// Its APIC id.
        id: u8,
        /// Physical address of its registers.
        address: u32,
        /// Global system interrupt of its pin 0.
        gsi_base: u32,
    },
    /// Type 2: an ISA interrupt that is not where, or not as, ISA has it.
    InterruptOverride {
        /// 0, ISA.
        bus: u8,
        /// ISA IRQ.
        source: u8,
        /// Global system interrupt.
        gsi: u32,
        /// MPS INTI flags.
        flags: u16,
    },
    /// Type 3: an IOAPIC pin wired to NMI.
    NmiSource {
        /// MPS INTI flags.
        flags: u16,
        /// Global system interrupt.
        gsi: u32,
    },
    /// Type 4: a local APIC pin wired to NMI.
    LocalApicNmi {
        /// ACPI processor UID, 0xFF for all.
        uid: u8,
        /// MPS INTI flags.
        flags: u16,
        /// Local interrupt pin, 0 or 1.
        lint: u8,
    },
    /// Type 5: the local APIC's address, if it is not the 32-bit one of the table.
    LocalApicAddress {
        /// Physical address.
        address: u64,
    },
    /// Type 9: a CPU with an APIC id above 254, or any on some firmware.
    LocalX2Apic {
        /// x2APIC id, 0xFFFFFFFF invalid.
        apic_id: u32,
        /// [`LAPIC_ENABLED`], [`LAPIC_ONLINE_CAPABLE`].
        flags: u32,
        /// ACPI processor UID.
        uid: u32,
    },
    /// Type 10: as type 4, with a wide UID.
    LocalX2ApicNmi {
        /// MPS INTI flags.
        flags: u16,
        /// ACPI processor UID, 0xFFFFFFFF for all.
        uid: u32,
        /// Local interrupt pin, 0 or 1.
        lint: u8,
    },
    /// Type 16: multiprocessor wakeup (ACPI 6.5, 5.2.12.19).
    Wakeup {
        /// 0, or [`WAKEUP_VERSION_1`].
        version: u16,
        /// Physical address of the 4 KiB mailbox.
        mailbox: u64,
        /// Physical address that an offlined CPU jumps to; 0 in version 0.
        reset_vector: u64,
    },
    /// Any other type.
    Other {
        /// Its type.
        kind: u8,
        /// Its length in bytes.
        len: u8,
    },
}

impl MadtEntry {
    /// Decodes an entry from its bytes, type and length byte included; `None` if its type asks for more of them, which
    /// is two at the least.
    pub(crate) fn decode(raw: &[u8]) -> Option<Self> {
        let kind = u8_at(raw, 0);
        let (min, entry) = match kind {
            0 => (
                8,
                Self::LocalApic {
                    uid: u8_at(raw, 2),
                    apic_id: u8_at(raw, 3),
                    flags: u32_at(raw, 4),
                },
            ),
            1 => (
                12,
                Self::IoApic {
                    id: u8_at(raw, 2),
                    address: u32_at(raw, 4),
                    gsi_base: u32_at(raw, 8),
                },
            ),
            2 => (
                10,
                Self::InterruptOverride {
                    bus: u8_at(raw, 2),
                    source: u8_at(raw, 3),
                    gsi: u32_at(raw, 4),
                    flags: u16_at(raw, 8),
                },
            ),
            3 => (
                8,
                Self::NmiSource {
                    flags: u16_at(raw, 2),
                    gsi: u32_at(raw, 4),
                },
            ),
            4 => (
                6,
                Self::LocalApicNmi {
                    uid: u8_at(raw, 2),
                    flags: u16_at(raw, 3),
                    lint: u8_at(raw, 5),
                },
            ),
            5 => (
                12,
                Self::LocalApicAddress {
                    address: u64_at(raw, 4),
                },
            ),
            9 => (
                16,
                Self::LocalX2Apic {
                    apic_id: u32_at(raw, 4),
                    flags: u32_at(raw, 8),
                    uid: u32_at(raw, 12),
                },
            ),
            10 => (
                12,
                Self::LocalX2ApicNmi {
                    flags: u16_at(raw, 2),
                    uid: u32_at(raw, 4),
                    lint: u8_at(raw, 8),
                },
            ),
            16 => (
                16,
                Self::Wakeup {
                    version: u16_at(raw, 2),
                    mailbox: u64_at(raw, 8),
                    reset_vector: u64_at(raw, 16),
                },
            ),
            _ => (
                2,
                Self::Other {
                    kind,
                    len: u8_at(raw, 1),
                },
            ),
        };
        (raw.len() >= min).then_some(entry)
    }

    /// Appends the entry. [`Self::Other`] has no contents to write and appends nothing.
    pub(crate) fn write(&self, out: &mut Sink<'_>) {
        match *self {
            Self::LocalApic { uid, apic_id, flags } => {
                out.bytes(&[0, 8, uid, apic_id]);
                out.u32(flags);
            }
            Self::IoApic { id, address, gsi_base } => {
                out.bytes(&[1, 12, id, 0]);
                out.u32(address);
                out.u32(gsi_base);
            }
            Self::InterruptOverride {
                bus,
                source,
                gsi,
                flags,
            } => {
                out.bytes(&[2, 10, bus, source]);
                out.u32(gsi);
                out.u16(flags);
            }
            Self::NmiSource { flags, gsi } => {
                out.bytes(&[3, 8]);
                out.u16(flags);
                out.u32(gsi);
            }
            Self::LocalApicNmi { uid, flags, lint } => {
                out.bytes(&[4, 6, uid]);
                out.u16(flags);
                out.bytes(&[lint]);
            }
            Self::LocalApicAddress { address } => {
                out.bytes(&[5, 12, 0, 0]);
                out.u64(address);
            }
            Self::LocalX2Apic { apic_id, flags, uid } => {
                out.bytes(&[9, 16, 0, 0]);
                out.u32(apic_id);
                out.u32(flags);
                out.u32(uid);
            }
            Self::LocalX2ApicNmi { flags, uid, lint } => {
                out.bytes(&[10, 12]);
                out.u16(flags);
                out.u32(uid);
                out.bytes(&[lint, 0, 0, 0]);
            }
            Self::Wakeup {
                version,
                mailbox,
                reset_vector,
            } => {
                out.bytes(&[16, 24]);
                out.u16(version);
                out.u32(0);
                out.u64(mailbox);
                out.u64(reset_vector);
            }
            Self::Other { .. } => {}
        }
    }
}
