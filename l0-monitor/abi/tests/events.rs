//! The words that records of the trace ring have carried since the first release.

use locum_abi::{Errno, Event, Grant, Op, Slot, StopReason, TraceKind, TraceRecord, Will};

/// One event of each kind, with the words that L0 has written for it since the first release.
const EVENTS: [(Event, u16, u32, u64, u64); 32] = [
    (Event::Boot { cpus: 4 }, 1, 4, 0, 0),
    (Event::Park { from_nested: true }, 2, 1, 0, 0),
    (
        Event::Wake {
            nested: true,
            entry: 0x1000,
            zero_page: 0x2000,
        },
        3,
        1,
        0x1000,
        0x2000,
    ),
    (
        Event::MailboxRefused {
            command: 1,
            apic_id: 7,
            vector: 0x9_8000,
        },
        4,
        1,
        7,
        0x9_8000,
    ),
    (
        Event::Enter {
            in_vmx: true,
            vmcs: Some(0x5000),
        },
        5,
        1,
        0x5000,
        0,
    ),
    (
        Event::Leave {
            in_vmx: false,
            vmcs: None,
            given_back: 3,
        },
        6,
        0,
        !0,
        3,
    ),
    (
        Event::CallRefused {
            errno: Errno::State,
            op: Some(Op::Start),
            argument: 5,
        },
        7,
        4,
        Op::Start as u64,
        5,
    ),
    (
        Event::CallRefused {
            errno: Errno::Frame,
            op: None,
            argument: 0x7000,
        },
        7,
        10,
        0,
        0x7000,
    ),
    (
        Event::Owner {
            grant: Grant::Ports {
                first: 0x2f8,
                last: 0x2ff,
            },
            to: Slot::Odd,
        },
        8,
        0x1_0003,
        0x2f8,
        8,
    ),
    (
        Event::HostStart {
            slot: Slot::Odd,
            entry: 0x10_0000,
            zero_page: 0x9000,
        },
        9,
        1,
        0x10_0000,
        0x9000,
    ),
    (
        Event::HostDead {
            slot: Slot::Odd,
            reason: StopReason::WildAccess,
            detail: [1, 2],
        },
        10,
        0x1_0002,
        1,
        2,
    ),
    (Event::HostRetired { slot: Slot::Even }, 11, 0, 0, 0),
    (Event::CpuTaken { slot: Slot::Odd }, 12, 1, 0, 0),
    (
        Event::PortDenied {
            port: 0x3f8,
            size: 1,
            write: Some(0x41),
        },
        13,
        0x101_03f8,
        0x41,
        0,
    ),
    (
        Event::PortDenied {
            port: 0x3f8,
            size: 4,
            write: None,
        },
        13,
        0x4_03f8,
        0,
        0,
    ),
    (Event::PinDenied { gsi: 11, value: 0x31 }, 14, 0x100_000b, 0x31, 0),
    (
        Event::PciDenied {
            address: 0x8000_1804,
            offset: 2,
            write: Some(7),
        },
        15,
        0x8000_1804,
        0x100_0002,
        7,
    ),
    (
        Event::PciDenied {
            address: 0x8000_1804,
            offset: 0,
            write: None,
        },
        15,
        0x8000_1804,
        0,
        0,
    ),
    (
        Event::Inject {
            vector: 14,
            error: 2,
            rip: 0x8000,
        },
        16,
        0x2_000e,
        0x8000,
        0,
    ),
    (
        Event::MemoryDenied {
            qualification: 2,
            address: 0xfed0_0000,
            rip: 9,
        },
        17,
        2,
        0xfed0_0000,
        9,
    ),
    (
        Event::VmxFail {
            instruction: 23,
            rflags: 0x40,
            field: 0x681e,
        },
        18,
        23,
        0x40,
        0x681e,
    ),
    (
        Event::PowerFiltered {
            port: 0xb004,
            value: 0x2000,
        },
        19,
        0xb004,
        0x2000,
        0,
    ),
    (
        Event::Fault {
            vector: 14,
            rip: 0x10_0000,
            detail: 8,
        },
        20,
        14,
        0x10_0000,
        8,
    ),
    (
        Event::VmcsChecked {
            same: true,
            field: None,
            vmcs: 0x5000,
            difference: 0,
        },
        21,
        1,
        0x5000,
        0,
    ),
    (
        Event::VmcsChecked {
            same: false,
            field: Some(0x681e),
            vmcs: 0x5000,
            difference: 2,
        },
        21,
        0x681e_0002,
        0x5000,
        2,
    ),
    (
        Event::VmcsChecked {
            same: false,
            field: None,
            vmcs: 0x5000,
            difference: 2,
        },
        21,
        0,
        0x5000,
        2,
    ),
    (
        Event::FieldTrapped {
            field: 0x681e,
            write: true,
            times: 64,
        },
        22,
        0x8000_681e,
        64,
        0,
    ),
    (
        Event::FieldTrapped {
            field: 0x4002,
            write: false,
            times: 1,
        },
        22,
        0x4002,
        1,
        0,
    ),
    (
        Event::MachineCheck {
            to_host: true,
            status: 5,
        },
        23,
        1,
        5,
        0,
    ),
    (
        Event::MachineCheckBank {
            bank: 9,
            status: 0xbe00_0000_0080_0400,
            address: 0x1234_5000,
        },
        24,
        9,
        0xbe00_0000_0080_0400,
        0x1234_5000,
    ),
    (
        Event::Will {
            slot: Slot::Odd,
            will: Will::Yield,
        },
        25,
        1,
        2,
        0,
    ),
    (Event::HostDumps { slot: Slot::Odd }, 26, 1, 0, 0),
];

#[test]
fn every_kind_keeps_its_words() {
    for (event, kind, a, b, c) in EVENTS {
        let (encoded, ..) = event.encode();
        assert_eq!(event.encode(), (encoded, a, b, c), "{event:?}");
        assert_eq!(encoded as u16, kind, "{event:?}");
        let record = TraceRecord {
            tsc: 0,
            kind,
            cpu: 0,
            a,
            b,
            c,
        };
        assert_eq!(Event::decode(&record), Some(event));
    }
    for kind in TraceKind::ALL.iter().filter(|kind| **kind != TraceKind::None) {
        assert!(EVENTS.iter().any(|(_, raw, ..)| *raw == *kind as u16), "{kind:?}");
    }
}

#[test]
fn records_of_a_later_release_tell_nothing() {
    for (kind, a) in [(0, 0), (27, 0), (25, 2), (8, 9), (9, 2), (10, 99)] {
        let record = TraceRecord {
            tsc: 0,
            kind,
            cpu: 0,
            a,
            b: 0,
            c: 0,
        };
        assert_eq!(Event::decode(&record), None, "{kind} {a}");
    }
}
