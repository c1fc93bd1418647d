//! What trace records tell: for operators in words, for programs as fields. The one place that has words for events.

use locum_abi::{Event, Grant, Slot, TraceKind, Will};
use serde_json::{Value, json};

use super::{names, vmcs};

/// The kind in one word.
pub(super) fn kind(kind: TraceKind) -> &'static str {
    match kind {
        TraceKind::None => "none",
        TraceKind::Boot => "boot",
        TraceKind::Park => "park",
        TraceKind::Wake => "wake",
        TraceKind::MailboxRefused => "mailbox-refused",
        TraceKind::Enter => "enter",
        TraceKind::Leave => "leave",
        TraceKind::CallRefused => "hypercall-refused",
        TraceKind::Owner => "owner",
        TraceKind::HostStart => "host-start",
        TraceKind::HostDead => "host-dead",
        TraceKind::HostRetired => "host-retired",
        TraceKind::CpuTaken => "cpu-taken",
        TraceKind::PortDenied => "port-denied",
        TraceKind::PinDenied => "pin-denied",
        TraceKind::PciDenied => "pci-denied",
        TraceKind::Inject => "inject",
        TraceKind::MemoryDenied => "mem-denied",
        TraceKind::VmxFail => "vmx-fail",
        TraceKind::PowerFiltered => "power-filtered",
        TraceKind::Fault => "fault",
        TraceKind::VmcsChecked => "vmcs-checked",
        TraceKind::FieldTrapped => "field-trapped",
        TraceKind::MachineCheck => "machine-check",
        TraceKind::MachineCheckBank => "machine-check-bank",
        TraceKind::Will => "will",
        TraceKind::HostDumps => "host-dumps",
    }
}

/// The event in words, told by the CPU `apic_id`.
pub(super) fn words(event: Event, apic_id: u16) -> String {
    match event {
        Event::Boot { cpus } => format!("L0 booted on {cpus} CPUs"),
        Event::Park { from_nested: true } => "parked, from nested mode".to_owned(),
        Event::Park { from_nested: false } => "parked".to_owned(),
        Event::Wake {
            nested,
            entry,
            zero_page,
        } => format!(
            "woken {} at {entry:#x}{}",
            if nested { "nested" } else { "native" },
            at_zero_page(zero_page)
        ),
        Event::MailboxRefused {
            command,
            apic_id,
            vector,
        } => format!(
            "refused {}: APIC {apic_id} is not this host's, or not parked",
            mailbox_command(command, vector)
        ),
        Event::Enter { in_vmx, vmcs } => format!("became nested; {}", vmx(in_vmx, vmcs)),
        Event::Leave {
            in_vmx,
            vmcs,
            given_back,
        } => format!("became native; {}, {given_back} VMCSs given back", vmx(in_vmx, vmcs)),
        Event::CallRefused {
            errno,
            op: Some(op),
            argument,
        } => format!(
            "refused {}: {} (first argument {argument:#x})",
            names::op(op),
            names::why(errno)
        ),
        Event::CallRefused {
            errno,
            op: None,
            argument,
        } => format!("refused to enter: {} (frame at {argument:#x})", names::why(errno)),
        Event::Owner { grant, to } => format!("{} is now {}'s", names::grant(grant), host(to)),
        Event::HostStart { slot, entry, zero_page } => {
            format!("{} starts at {entry:#x}{}", host(slot), at_zero_page(zero_page))
        }
        Event::HostDead { slot, reason, detail } => {
            format!("{} died: {}", host(slot), names::death(reason, detail, apic_id.into()))
        }
        Event::HostRetired { slot } => format!("{} retired", host(slot)),
        Event::HostDumps { slot } => format!("{} has panicked and writes a dump", host(slot)),
        Event::Will { slot, will } => match will {
            Will::Pass => format!("if {} dies, {} goes on", host(slot), host(slot.other())),
            Will::Reset => format!("if {} dies, the machine is reset", host(slot)),
            Will::Yield => format!("{} may be taken by {}", host(slot), host(slot.other())),
        },
        Event::CpuTaken { slot } => format!("taken from {}, which is dead", host(slot)),
        Event::PortDenied { port, size, write } => match write {
            Some(value) => format!("denied OUT {port:#x} ({}, {value:#x})", bytes(size)),
            None => format!("denied IN {port:#x} ({})", bytes(size)),
        },
        Event::PinDenied { gsi, value } => format!("denied a write to IOAPIC pin {gsi} (low word {value:#x})"),
        Event::PciDenied { address, offset, write } => {
            let register = (address & 0xfc) + u32::from(offset);
            let place = format!("PCI function {}, register {register:#x}", pci_function(address));
            match write {
                Some(value) => format!("denied a write to {place} ({value:#x})"),
                None => format!("denied a read of {place}"),
            }
        }
        Event::Inject { vector, error, rip } => format!(
            "injected {} into the host at RIP {rip:#x} (error code {error:#x})",
            names::exception(vector)
        ),
        Event::MemoryDenied {
            qualification,
            address,
            rip,
        } => format!(
            "denied {} memory at {address:#x} from RIP {rip:#x}",
            match qualification & 7 {
                access if access & 2 != 0 => "a write to",
                access if access & 4 != 0 => "an instruction fetch from",
                _ => "a read of",
            }
        ),
        Event::VmxFail {
            instruction,
            rflags,
            field,
        } => format!(
            "{} of {} by L0 failed (RFLAGS {rflags:#x}): a bug of L0's, please report it",
            match instruction {
                23 => "VMREAD".to_owned(),
                25 => "VMWRITE".to_owned(),
                other => format!("instruction {other}"),
            },
            vmcs::field(field as u32)
        ),
        Event::PowerFiltered { port, value } => {
            format!("kept OUT {port:#x} ({value:#x}), a power-off or reset, from the machine")
        }
        Event::Fault { vector, rip, detail } => format!(
            "L0 took {} at RIP {rip:#x} ({} {detail:#x}): a bug of L0's, please report it",
            names::exception(vector),
            if vector == PAGE_FAULT { "CR2" } else { "error code" }
        ),
        Event::VmcsChecked { same: true, vmcs, .. } => format!("VMCS {vmcs:#x} was given back as it was"),
        Event::VmcsChecked {
            same: false,
            field: Some(field),
            vmcs,
            difference,
        } => format!(
            "VMCS {vmcs:#x} was given back changed: {} by {difference:#x}",
            vmcs::field(field)
        ),
        Event::VmcsChecked {
            same: false,
            field: None,
            vmcs,
            ..
        } => format!("VMCS {vmcs:#x} was given back with several fields changed"),
        Event::FieldTrapped { field, write, times } => format!(
            "{} of {} exited {times} times so far",
            if write { "VMWRITE" } else { "VMREAD" },
            vmcs::field(field)
        ),
        Event::MachineCheck { to_host, status } => format!(
            "a machine check came while L0 ran (IA32_MCG_STATUS {status:#x}); {}",
            if to_host {
                "handed to the host"
            } else {
                "answered, no host ran here"
            }
        ),
        Event::MachineCheckBank { bank, status, address } => format!(
            "bank {bank} says {} error: IA32_MC{bank}_STATUS {status:#x}, address {address:#x}",
            if status & MCI_STATUS_UC != 0 {
                "an uncorrected"
            } else {
                "a corrected"
            }
        ),
    }
}

/// The event as fields of a JSON object. Slots are numbers, as in `locum status`.
pub(super) fn fields(event: Event) -> Value {
    match event {
        Event::Boot { cpus } => json!({ "cpus": cpus }),
        Event::Park { from_nested } => json!({ "from_nested": from_nested }),
        Event::Wake {
            nested,
            entry,
            zero_page,
        } => json!({ "nested": nested, "entry": entry, "zero_page": zero_page }),
        Event::MailboxRefused {
            command,
            apic_id,
            vector,
        } => json!({ "command": command, "for_apic_id": apic_id, "vector": vector }),
        Event::Enter { in_vmx, vmcs } => json!({ "in_vmx": in_vmx, "vmcs": vmcs }),
        Event::Leave {
            in_vmx,
            vmcs,
            given_back,
        } => json!({ "in_vmx": in_vmx, "vmcs": vmcs, "given_back": given_back }),
        Event::CallRefused { errno, op, argument } => {
            json!({ "errno": errno as u32, "why": names::why(errno), "op": op.map(names::op), "argument": argument })
        }
        Event::Owner { grant, to } => {
            let mut fields = resource(grant);
            fields["to"] = to.raw().into();
            fields
        }
        Event::HostStart { slot, entry, zero_page } => {
            json!({ "slot": slot.raw(), "entry": entry, "zero_page": zero_page })
        }
        Event::HostDead { slot, reason, detail } => {
            json!({ "slot": slot.raw(), "reason": names::reason(reason), "detail": detail })
        }
        Event::HostRetired { slot } | Event::HostDumps { slot } | Event::CpuTaken { slot } => {
            json!({ "slot": slot.raw() })
        }
        Event::Will { slot, will } => json!({ "slot": slot.raw(), "will": names::will(will) }),
        Event::PortDenied { port, size, write } => json!({ "port": port, "size": size, "write": write }),
        Event::PinDenied { gsi, value } => json!({ "gsi": gsi, "value": value }),
        Event::PciDenied { address, offset, write } => {
            let register = (address & 0xfc) + u32::from(offset);
            json!({ "function": pci_function(address), "register": register, "write": write })
        }
        Event::Inject { vector, error, rip } => json!({ "vector": vector, "error": error, "rip": rip }),
        Event::MemoryDenied {
            qualification,
            address,
            rip,
        } => json!({ "qualification": qualification, "address": address, "rip": rip }),
        Event::VmxFail {
            instruction,
            rflags,
            field,
        } => json!({ "instruction": instruction, "rflags": rflags, "field": field }),
        Event::PowerFiltered { port, value } => json!({ "port": port, "value": value }),
        Event::Fault { vector, rip, detail } => json!({ "vector": vector, "rip": rip, "detail": detail }),
        Event::VmcsChecked {
            same,
            field,
            vmcs,
            difference,
        } => {
            let name = field.and_then(vmcs::name);
            json!({ "same": same, "field": field, "name": name, "vmcs": vmcs, "difference": difference })
        }
        Event::FieldTrapped { field, write, times } => {
            json!({ "field": field, "name": vmcs::name(field), "write": write, "times": times })
        }
        Event::MachineCheck { to_host, status } => json!({ "to_host": to_host, "mcg_status": status }),
        Event::MachineCheckBank { bank, status, address } => {
            json!({ "bank": bank, "mci_status": status, "mci_address": address })
        }
    }
}

fn resource(grant: Grant) -> Value {
    match grant {
        Grant::Cpu { apic_id } => json!({ "resource": "cpu", "granted_apic_id": apic_id }),
        Grant::Memory { start, end } => json!({ "resource": "memory", "start": start, "end": end }),
        Grant::Pci { function } => json!({ "resource": "pci", "function": names::pci_function(function) }),
        Grant::Ports { first, last } => json!({ "resource": "ports", "first": first, "last": last }),
        Grant::Pin { gsi } => json!({ "resource": "pin", "gsi": gsi }),
    }
}

const PAGE_FAULT: u8 = 14;
/// Of IA32_MCi_STATUS, UC: the error was not corrected (SDM vol. 3B, "IA32_MCi_STATUS MSRS").
const MCI_STATUS_UC: u64 = 1 << 61;

fn host(slot: Slot) -> &'static str {
    match slot {
        Slot::Even => "the even host",
        Slot::Odd => "the odd host",
    }
}

fn at_zero_page(address: u64) -> String {
    match address {
        0 => String::new(),
        address => format!(", zero page at {address:#x}"),
    }
}

fn mailbox_command(command: u16, vector: u64) -> String {
    match command {
        locum_abi::mailbox::WAKEUP => format!("a mailbox wakeup at {vector:#x}"),
        locum_abi::mailbox::TEST => "a mailbox test".to_owned(),
        command => format!("mailbox command {command}"),
    }
}

fn vmx(in_vmx: bool, vmcs: Option<u64>) -> String {
    match (in_vmx, vmcs) {
        (false, _) => "the host is not in VMX operation".to_owned(),
        (true, None) => "the host has no current VMCS".to_owned(),
        (true, Some(vmcs)) => format!("the host's current VMCS is {vmcs:#x}"),
    }
}

fn bytes(size: u8) -> String {
    match size {
        1 => "1 byte".to_owned(),
        size => format!("{size} bytes"),
    }
}

/// The function that a value of port 0xCF8 selects.
fn pci_function(address: u32) -> String {
    names::pci_function((address >> 8) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use locum_abi::{Errno, Op, StopReason};

    /// One event at least of each kind, with what an operator reads.
    const TOLD: &[(Event, &str)] = &[
        (Event::Boot { cpus: 4 }, "L0 booted on 4 CPUs"),
        (Event::Park { from_nested: true }, "parked, from nested mode"),
        (
            Event::Wake {
                nested: true,
                entry: 0x9_8000,
                zero_page: 0,
            },
            "woken nested at 0x98000",
        ),
        (
            Event::Wake {
                nested: false,
                entry: 0x10_0200,
                zero_page: 0x9000,
            },
            "woken native at 0x100200, zero page at 0x9000",
        ),
        (
            Event::MailboxRefused {
                command: 1,
                apic_id: 7,
                vector: 0x9_8000,
            },
            "refused a mailbox wakeup at 0x98000: APIC 7 is not this host's, or not parked",
        ),
        (
            Event::Enter {
                in_vmx: true,
                vmcs: Some(0x5000),
            },
            "became nested; the host's current VMCS is 0x5000",
        ),
        (
            Event::Leave {
                in_vmx: true,
                vmcs: None,
                given_back: 3,
            },
            "became native; the host has no current VMCS, 3 VMCSs given back",
        ),
        (
            Event::CallRefused {
                errno: Errno::NotOwner,
                op: Some(Op::Grant),
                argument: 1,
            },
            "refused grant: the caller does not own the resource (first argument 0x1)",
        ),
        (
            Event::CallRefused {
                errno: Errno::Frame,
                op: None,
                argument: 0x7000,
            },
            "refused to enter: the frame is not what L0 expects (frame at 0x7000)",
        ),
        (
            Event::Owner {
                grant: Grant::Memory {
                    start: 0x4800_0000,
                    end: 0x5000_0000,
                },
                to: Slot::Odd,
            },
            "memory 0x48000000-0x50000000 (128 MiB) is now the odd host's",
        ),
        (
            Event::HostStart {
                slot: Slot::Odd,
                entry: 0x10_0200,
                zero_page: 0x9000,
            },
            "the odd host starts at 0x100200, zero page at 0x9000",
        ),
        (
            Event::HostDead {
                slot: Slot::Odd,
                reason: StopReason::TripleFault,
                detail: [0xdead, 0],
            },
            "the odd host died: triple fault at RIP 0xdead on APIC 3",
        ),
        (Event::HostRetired { slot: Slot::Even }, "the even host retired"),
        (
            Event::HostDumps { slot: Slot::Even },
            "the even host has panicked and writes a dump",
        ),
        (
            Event::Will {
                slot: Slot::Even,
                will: Will::Pass,
            },
            "if the even host dies, the odd host goes on",
        ),
        (
            Event::Will {
                slot: Slot::Odd,
                will: Will::Reset,
            },
            "if the odd host dies, the machine is reset",
        ),
        (
            Event::Will {
                slot: Slot::Even,
                will: Will::Yield,
            },
            "the even host may be taken by the odd host",
        ),
        (
            Event::CpuTaken { slot: Slot::Odd },
            "taken from the odd host, which is dead",
        ),
        (
            Event::PortDenied {
                port: 0x3f8,
                size: 1,
                write: Some(0x41),
            },
            "denied OUT 0x3f8 (1 byte, 0x41)",
        ),
        (
            Event::PortDenied {
                port: 0x3f8,
                size: 4,
                write: None,
            },
            "denied IN 0x3f8 (4 bytes)",
        ),
        (
            Event::PinDenied { gsi: 11, value: 0x31 },
            "denied a write to IOAPIC pin 11 (low word 0x31)",
        ),
        (
            Event::PciDenied {
                address: 0x8000_1804,
                offset: 2,
                write: Some(7),
            },
            "denied a write to PCI function 0000:00:03.0, register 0x6 (0x7)",
        ),
        (
            Event::Inject {
                vector: 13,
                error: 0,
                rip: 0x8000,
            },
            "injected #GP into the host at RIP 0x8000 (error code 0x0)",
        ),
        (
            Event::MemoryDenied {
                qualification: 0x182,
                address: 0xfed0_0000,
                rip: 9,
            },
            "denied a write to memory at 0xfed00000 from RIP 0x9",
        ),
        (
            Event::VmxFail {
                instruction: 23,
                rflags: 0x40,
                field: 0x681e,
            },
            "VMREAD of guest RIP by L0 failed (RFLAGS 0x40): a bug of L0's, please report it",
        ),
        (
            Event::PowerFiltered {
                port: 0xb004,
                value: 0x2000,
            },
            "kept OUT 0xb004 (0x2000), a power-off or reset, from the machine",
        ),
        (
            Event::Fault {
                vector: 14,
                rip: 0x10_0000,
                detail: 8,
            },
            "L0 took #PF at RIP 0x100000 (CR2 0x8): a bug of L0's, please report it",
        ),
        (
            Event::VmcsChecked {
                same: true,
                field: None,
                vmcs: 0x5000,
                difference: 0,
            },
            "VMCS 0x5000 was given back as it was",
        ),
        (
            Event::VmcsChecked {
                same: false,
                field: Some(0x681e),
                vmcs: 0x5000,
                difference: 2,
            },
            "VMCS 0x5000 was given back changed: guest RIP by 0x2",
        ),
        (
            Event::VmcsChecked {
                same: false,
                field: None,
                vmcs: 0x5000,
                difference: 2,
            },
            "VMCS 0x5000 was given back with several fields changed",
        ),
        (
            Event::FieldTrapped {
                field: 0x6800,
                write: false,
                times: 64,
            },
            "VMREAD of guest CR0 exited 64 times so far",
        ),
        (
            Event::MachineCheck {
                to_host: false,
                status: 5,
            },
            "a machine check came while L0 ran (IA32_MCG_STATUS 0x5); answered, no host ran here",
        ),
        (
            Event::MachineCheckBank {
                bank: 9,
                status: 0xbe00_0000_0080_0400,
                address: 0x1234_5000,
            },
            "bank 9 says an uncorrected error: IA32_MC9_STATUS 0xbe00000000800400, address 0x12345000",
        ),
    ];

    #[test]
    fn every_kind_has_words() {
        for (event, expected) in TOLD {
            assert_eq!(words(*event, 3), *expected);
        }
        for kind in TraceKind::ALL.iter().filter(|kind| **kind != TraceKind::None) {
            let told = TOLD.iter().any(|(event, _)| event.encode().0 == *kind);
            assert!(told, "no test of {kind:?}");
        }
    }

    #[test]
    fn every_kind_has_a_name_and_fields_of_its_own() {
        let names: std::collections::BTreeSet<_> = TraceKind::ALL.iter().map(|all| kind(*all)).collect();
        assert_eq!(names.len(), TraceKind::ALL.len());
        for (event, _) in TOLD {
            let fields = fields(*event);
            let fields = fields.as_object().unwrap();
            assert!(!fields.is_empty(), "{event:?}");
            for taken in ["number", "tsc", "apic_id", "kind"] {
                assert!(!fields.contains_key(taken), "{event:?} has a second `{taken}`");
            }
        }
    }

    #[test]
    fn programs_read_numbers_and_names() {
        let owner = Event::Owner {
            grant: Grant::Ports {
                first: 0x2f8,
                last: 0x2ff,
            },
            to: Slot::Odd,
        };
        assert_eq!(
            fields(owner),
            json!({ "resource": "ports", "first": 0x2f8, "last": 0x2ff, "to": 1 })
        );
        let trapped = Event::FieldTrapped {
            field: 0x6800,
            write: true,
            times: 2,
        };
        assert_eq!(
            fields(trapped),
            json!({ "field": 0x6800, "name": "guest CR0", "write": true, "times": 2 })
        );
        let refused = Event::CallRefused {
            errno: Errno::State,
            op: Some(Op::Start),
            argument: 5,
        };
        let refused = fields(refused);
        assert_eq!((&refused["errno"], &refused["op"]), (&json!(4), &json!("start")));
    }
}
