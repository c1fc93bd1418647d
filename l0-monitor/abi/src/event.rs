//! What a record of the trace ring tells, with the words `a`, `b` and `c` that carry it.

use crate::raw::from_raw;
use crate::{Errno, Grant, Op, Slot, StopReason, TraceRecord, Will};

/// What a [`TraceRecord`] tells. Its words are encoded and decoded by [`Event`], and nowhere else.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceKind {
    /// Never written.
    None = 0,
    /// [`Event::Boot`].
    Boot = 1,
    /// [`Event::Park`].
    Park = 2,
    /// [`Event::Wake`].
    Wake = 3,
    /// [`Event::MailboxRefused`].
    MailboxRefused = 4,
    /// [`Event::Enter`].
    Enter = 5,
    /// [`Event::Leave`].
    Leave = 6,
    /// [`Event::CallRefused`].
    CallRefused = 7,
    /// [`Event::Owner`].
    Owner = 8,
    /// [`Event::HostStart`].
    HostStart = 9,
    /// [`Event::HostDead`].
    HostDead = 10,
    /// [`Event::HostRetired`].
    HostRetired = 11,
    /// [`Event::CpuTaken`].
    CpuTaken = 12,
    /// [`Event::PortDenied`].
    PortDenied = 13,
    /// [`Event::PinDenied`].
    PinDenied = 14,
    /// [`Event::PciDenied`].
    PciDenied = 15,
    /// [`Event::Inject`].
    Inject = 16,
    /// [`Event::MemoryDenied`].
    MemoryDenied = 17,
    /// [`Event::VmxFail`].
    VmxFail = 18,
    /// [`Event::PowerFiltered`].
    PowerFiltered = 19,
    /// [`Event::Fault`].
    Fault = 20,
    /// [`Event::VmcsChecked`].
    VmcsChecked = 21,
    /// [`Event::FieldTrapped`].
    FieldTrapped = 22,
    /// [`Event::MachineCheck`].
    MachineCheck = 23,
    /// [`Event::MachineCheckBank`].
    MachineCheckBank = 24,
    /// [`Event::Will`].
    Will = 25,
    /// [`Event::HostDumps`].
    HostDumps = 26,
}

from_raw!(TraceKind: u16 {
    None, Boot, Park, Wake, MailboxRefused, Enter, Leave, CallRefused, Owner, HostStart, HostDead, HostRetired, CpuTaken,
    PortDenied, PinDenied, PciDenied, Inject, MemoryDenied, VmxFail, PowerFiltered, Fault, VmcsChecked, FieldTrapped,
    MachineCheck, MachineCheckBank, Will, HostDumps,
});

/// Something that L0 did, saw or refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// L0 booted.
    Boot {
        /// CPUs that it manages.
        cpus: u32,
    },
    /// A CPU parked.
    Park {
        /// It came from nested mode.
        from_nested: bool,
    },
    /// A parked CPU started.
    Wake {
        /// It comes up nested.
        nested: bool,
        /// Where.
        entry: u64,
        /// RSI there: the zero page of a host's boot CPU, else 0.
        zero_page: u64,
    },
    /// A mailbox command was not for an owned, parked CPU.
    MailboxRefused {
        /// The command.
        command: u16,
        /// Whom it was for.
        apic_id: u32,
        /// Where that CPU was to start.
        vector: u64,
    },
    /// Native to nested.
    Enter {
        /// The CPU was in VMX operation.
        in_vmx: bool,
        /// Address of the current VMCS, if there was one.
        vmcs: Option<u64>,
    },
    /// Nested to native.
    Leave {
        /// The host is in VMX operation.
        in_vmx: bool,
        /// Address of the host's current VMCS, if it has one.
        vmcs: Option<u64>,
        /// Adopted VMCSs that were written back.
        given_back: u64,
    },
    /// A call was refused.
    CallRefused {
        /// Why.
        errno: Errno,
        /// The operation, none if the native entry was called.
        op: Option<Op>,
        /// The first argument.
        argument: u64,
    },
    /// A resource changed its owner.
    Owner {
        /// The resource.
        grant: Grant,
        /// Who owns it now.
        to: Slot,
    },
    /// A host started.
    HostStart {
        /// Its slot.
        slot: Slot,
        /// Entry point.
        entry: u64,
        /// Zero page.
        zero_page: u64,
    },
    /// A host died.
    HostDead {
        /// Its slot.
        slot: Slot,
        /// Why.
        reason: StopReason,
        /// The first two of [`crate::HostStatus::detail`].
        detail: [u64; 2],
    },
    /// A host retired.
    HostRetired {
        /// Its slot.
        slot: Slot,
    },
    /// A CPU was taken from a dead host.
    CpuTaken {
        /// The host's slot.
        slot: Slot,
    },
    /// Access to a port of the other partition.
    PortDenied {
        /// Port.
        port: u16,
        /// 1, 2 or 4 bytes.
        size: u8,
        /// OUT's value; an IN without it.
        write: Option<u32>,
    },
    /// A write to an IOAPIC pin of the other partition.
    PinDenied {
        /// Global system interrupt.
        gsi: u32,
        /// What would have been the low word of its redirection entry.
        value: u32,
    },
    /// PCI configuration access to the other partition.
    PciDenied {
        /// Port 0xCF8 of the host.
        address: u32,
        /// Which of the ports from 0xCFC on, 0 to 3.
        offset: u8,
        /// What was to be written; a read without it.
        write: Option<u32>,
    },
    /// An exception was injected into a host.
    Inject {
        /// Vector.
        vector: u8,
        /// Error code, 0 if the exception has none.
        error: u16,
        /// Where.
        rip: u64,
    },
    /// Memory access denied without consequence.
    MemoryDenied {
        /// Exit qualification (SDM vol. 3C, table "Exit Qualification for EPT Violations").
        qualification: u32,
        /// Physical address.
        address: u64,
        /// Where.
        rip: u64,
    },
    /// A VMREAD or VMWRITE of L0 itself failed: a bug of L0's.
    VmxFail {
        /// The basic exit reason that stands for the instruction: 23 VMREAD, 25 VMWRITE.
        instruction: u16,
        /// RFLAGS with the outcome.
        rflags: u64,
        /// Encoding of the field.
        field: u64,
    },
    /// The host's power-off or reset was filtered.
    PowerFiltered {
        /// Port.
        port: u16,
        /// Value.
        value: u32,
    },
    /// L0 took an exception that it should not.
    Fault {
        /// Vector.
        vector: u8,
        /// Where.
        rip: u64,
        /// CR2 of a page fault, else the error code.
        detail: u64,
    },
    /// A VMCS was given back. Only with L0's argument `check=vmcs`, and if neither host nor guest changed it meanwhile.
    VmcsChecked {
        /// It is as it was before.
        same: bool,
        /// Encoding of the field that is not, if it is one alone.
        field: Option<u32>,
        /// Its address.
        vmcs: u64,
        /// The sum of all fields, less what it was before, modulo 2^32 - 5: for one field, how much more it holds now.
        difference: u64,
    },
    /// The host's VMREADs or VMWRITEs of one field exited again.
    FieldTrapped {
        /// Encoding.
        field: u32,
        /// VMWRITE.
        write: bool,
        /// Times since boot, a power of two: only these leave a record.
        times: u64,
    },
    /// A machine check came while L0 ran.
    MachineCheck {
        /// It was handed to the host whose CPU this is, which finds all that the CPU tells; else L0 answered it.
        to_host: bool,
        /// IA32_MCG_STATUS as it was (SDM vol. 3B, "IA32_MCG_STATUS MSR").
        status: u64,
    },
    /// What a bank said when L0 answered a machine check. The record follows that of the check, of the same CPU.
    MachineCheckBank {
        /// Number of the bank.
        bank: u8,
        /// IA32_MCi_STATUS, its bit 63 (VAL) set.
        status: u64,
        /// IA32_MCi_ADDR; 0 if the bank has none.
        address: u64,
    },
    /// The reigning host said what becomes of the machine when it cannot go on.
    Will {
        /// Its slot.
        slot: Slot,
        /// What it said.
        will: Will,
    },
    /// A host has panicked, and its crash kernel begins to write a dump.
    HostDumps {
        /// Its slot.
        slot: Slot,
    },
}

/// "None" where a word holds an address.
const NO_ADDRESS: u64 = !0;
/// In `a`, next to smaller things: a write.
const WRITE: u32 = 1 << 24;
/// In `a` of [`Event::FieldTrapped`]: VMWRITE.
const VMWRITE: u32 = 1 << 31;
/// In `a` of [`Event::VmcsChecked`]: it is as it was.
const SAME: u32 = 1;
/// In `a` of [`Event::VmcsChecked`]: the upper 16 bits are the encoding of the one field that is not.
const ONE_FIELD: u32 = 1 << 1;

impl Event {
    /// Kind and words of a record.
    #[must_use]
    pub fn encode(self) -> (TraceKind, u32, u64, u64) {
        use TraceKind as K;
        match self {
            Self::Boot { cpus } => (K::Boot, cpus, 0, 0),
            Self::Park { from_nested } => (K::Park, from_nested.into(), 0, 0),
            Self::Wake {
                nested,
                entry,
                zero_page,
            } => (K::Wake, nested.into(), entry, zero_page),
            Self::MailboxRefused {
                command,
                apic_id,
                vector,
            } => (K::MailboxRefused, command.into(), apic_id.into(), vector),
            Self::Enter { in_vmx, vmcs } => (K::Enter, in_vmx.into(), vmcs.unwrap_or(NO_ADDRESS), 0),
            Self::Leave {
                in_vmx,
                vmcs,
                given_back,
            } => (K::Leave, in_vmx.into(), vmcs.unwrap_or(NO_ADDRESS), given_back),
            Self::CallRefused { errno, op, argument } => {
                (K::CallRefused, errno as u32, op.map_or(0, |op| op as u64), argument)
            }
            Self::Owner { grant, to } => {
                let [kind, b, c] = grant.encode();
                (K::Owner, kind as u32 | to.raw() << 16, b, c)
            }
            Self::HostStart { slot, entry, zero_page } => (K::HostStart, slot.raw(), entry, zero_page),
            Self::HostDead { slot, reason, detail } => {
                (K::HostDead, reason as u32 | slot.raw() << 16, detail[0], detail[1])
            }
            Self::HostRetired { slot } => (K::HostRetired, slot.raw(), 0, 0),
            Self::CpuTaken { slot } => (K::CpuTaken, slot.raw(), 0, 0),
            Self::PortDenied { port, size, write } => {
                let a = u32::from(port) | u32::from(size) << 16 | flag(write.is_some(), WRITE);
                (K::PortDenied, a, write.unwrap_or(0).into(), 0)
            }
            Self::PinDenied { gsi, value } => (K::PinDenied, gsi | WRITE, value.into(), 0),
            Self::PciDenied { address, offset, write } => {
                let b = u64::from(offset) | u64::from(flag(write.is_some(), WRITE));
                (K::PciDenied, address, b, write.unwrap_or(0).into())
            }
            Self::Inject { vector, error, rip } => (K::Inject, u32::from(vector) | u32::from(error) << 16, rip, 0),
            Self::MemoryDenied {
                qualification,
                address,
                rip,
            } => (K::MemoryDenied, qualification, address, rip),
            Self::VmxFail {
                instruction,
                rflags,
                field,
            } => (K::VmxFail, instruction.into(), rflags, field),
            Self::PowerFiltered { port, value } => (K::PowerFiltered, port.into(), value.into(), 0),
            Self::Fault { vector, rip, detail } => (K::Fault, vector.into(), rip, detail),
            Self::VmcsChecked {
                same,
                field,
                vmcs,
                difference,
            } => {
                let a = field.map_or(0, |field| field << 16 | ONE_FIELD) | flag(same, SAME);
                (K::VmcsChecked, a, vmcs, difference)
            }
            Self::FieldTrapped { field, write, times } => (K::FieldTrapped, field | flag(write, VMWRITE), times, 0),
            Self::MachineCheck { to_host, status } => (K::MachineCheck, to_host.into(), status, 0),
            Self::MachineCheckBank { bank, status, address } => (K::MachineCheckBank, bank.into(), status, address),
            Self::HostDumps { slot } => (K::HostDumps, slot.raw(), 0, 0),
            Self::Will { slot, will } => (K::Will, slot.raw(), will as u64, 0),
        }
    }

    /// What a record tells; `None` if it was never written, or by an L0 of a later release.
    #[must_use]
    pub fn decode(record: &TraceRecord) -> Option<Self> {
        let TraceRecord { a, b, c, .. } = *record;
        let low = a as u16;
        let high = a >> 16;
        let vmcs = (b != NO_ADDRESS).then_some(b);
        Some(match TraceKind::from_raw(record.kind)? {
            TraceKind::None => return None,
            TraceKind::Boot => Self::Boot { cpus: a },
            TraceKind::Park => Self::Park { from_nested: a != 0 },
            TraceKind::Wake => Self::Wake {
                nested: a != 0,
                entry: b,
                zero_page: c,
            },
            TraceKind::MailboxRefused => Self::MailboxRefused {
                command: low,
                apic_id: b as u32,
                vector: c,
            },
            TraceKind::Enter => Self::Enter { in_vmx: a != 0, vmcs },
            TraceKind::Leave => Self::Leave {
                in_vmx: a != 0,
                vmcs,
                given_back: c,
            },
            TraceKind::CallRefused => Self::CallRefused {
                errno: Errno::from_raw(a)?,
                op: Op::from_raw(b),
                argument: c,
            },
            TraceKind::Owner => Self::Owner {
                grant: Grant::decode([low.into(), b, c]).ok()?,
                to: Slot::from_raw(high)?,
            },
            TraceKind::HostStart => Self::HostStart {
                slot: Slot::from_raw(a)?,
                entry: b,
                zero_page: c,
            },
            TraceKind::HostDead => Self::HostDead {
                slot: Slot::from_raw(high)?,
                reason: StopReason::from_raw(low.into())?,
                detail: [b, c],
            },
            TraceKind::HostRetired => Self::HostRetired {
                slot: Slot::from_raw(a)?,
            },
            TraceKind::CpuTaken => Self::CpuTaken {
                slot: Slot::from_raw(a)?,
            },
            TraceKind::PortDenied => Self::PortDenied {
                port: low,
                size: high as u8,
                write: (a & WRITE != 0).then_some(b as u32),
            },
            TraceKind::PinDenied => Self::PinDenied {
                gsi: a & !WRITE,
                value: b as u32,
            },
            TraceKind::PciDenied => Self::PciDenied {
                address: a,
                offset: b as u8,
                write: (b & u64::from(WRITE) != 0).then_some(c as u32),
            },
            TraceKind::Inject => Self::Inject {
                vector: low as u8,
                error: high as u16,
                rip: b,
            },
            TraceKind::MemoryDenied => Self::MemoryDenied {
                qualification: a,
                address: b,
                rip: c,
            },
            TraceKind::VmxFail => Self::VmxFail {
                instruction: low,
                rflags: b,
                field: c,
            },
            TraceKind::PowerFiltered => Self::PowerFiltered {
                port: low,
                value: b as u32,
            },
            TraceKind::Fault => Self::Fault {
                vector: low as u8,
                rip: b,
                detail: c,
            },
            TraceKind::VmcsChecked => Self::VmcsChecked {
                same: a & SAME != 0,
                field: (a & ONE_FIELD != 0).then_some(high),
                vmcs: b,
                difference: c,
            },
            TraceKind::FieldTrapped => Self::FieldTrapped {
                field: a & !VMWRITE,
                write: a & VMWRITE != 0,
                times: b,
            },
            TraceKind::MachineCheck => Self::MachineCheck {
                to_host: a != 0,
                status: b,
            },
            TraceKind::MachineCheckBank => Self::MachineCheckBank {
                bank: low as u8,
                status: b,
                address: c,
            },
            TraceKind::HostDumps => Self::HostDumps {
                slot: Slot::from_raw(a)?,
            },
            TraceKind::Will => Self::Will {
                slot: Slot::from_raw(a)?,
                will: Will::from_raw(b)?,
            },
        })
    }
}

const fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}
