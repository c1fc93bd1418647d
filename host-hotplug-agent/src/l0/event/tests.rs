use locum_abi::{Errno, Event, Grant, Op, Slot, StopReason, TraceKind, Will};
use serde_json::json;

use super::*;

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
