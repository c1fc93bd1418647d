//! HEST, BERT, SPMI and their like: what a successor sees of them.

use crate::fixture::{Fixture, Ram, TABLES, firmware, put, server, sum, table, u16_at, u32_at, u64_at};
use firmware_shim::acpi::{
    AcpiError, ErrorSources, Hest, HostFirmware, HostTables, Machine, Rsdp, Signature, first_host_tables,
    successor_tables,
};
use std::ops::Range;

const HEST: u64 = 0x6f01_0000;
const FIRST: usize = 40;
/// Memory with registers, and where the boot error record is.
const BLANK: [Range<u64>; 2] = [0x6e00_0000..0x6e00_2000, 0x6e10_0000..0x6e11_0000];
const REGISTER: u64 = 0x6e00_0010;
const RECORD: u64 = 0x6e10_0100;

const POLLED: u8 = 0;
const EXTERNAL: u8 = 1;
const SCI: u8 = 3;
const NMI: u8 = 4;

/// A generic source of either version.
fn generic(version: u16, id: u16, space: u8, register: u64, notification: u8, interval: u32) -> Vec<u8> {
    let mut out = vec![0; if version == 2 { 92 } else { 64 }];
    put(&mut out, 0, &(8 + version).to_le_bytes());
    put(&mut out, 2, &id.to_le_bytes());
    put(&mut out, 4, &[0xff, 0xff, 0, 1]);
    put(&mut out, 20, &[space, 64, 0, 4]);
    put(&mut out, 24, &register.to_le_bytes());
    put(&mut out, 32, &[notification, 28]);
    put(&mut out, 36, &interval.to_le_bytes());
    put(&mut out, 60, &0x1000u32.to_le_bytes());
    if version == 2 {
        put(&mut out, 64, &[0, 64, 0, 4]);
        put(&mut out, 84, &1u64.to_le_bytes());
    }
    out
}

/// A corrected machine check with so many banks, which the firmware sees first.
fn corrected(banks: u8) -> Vec<u8> {
    let mut out = vec![0; 48];
    put(&mut out, 0, &[1, 0, 9, 0, 0, 0, 1, 1]);
    out[44] = banks;
    out.resize(48 + 28 * usize::from(banks), 0xbb);
    out
}

fn hest(sources: &[Vec<u8>]) -> Vec<u8> {
    let mut body = (sources.len() as u32).to_le_bytes().to_vec();
    body.extend(sources.concat());
    table(b"HEST", 1, &body)
}

fn bert(start: u64, len: u32) -> Vec<u8> {
    table(
        b"BERT",
        1,
        &[len.to_le_bytes().as_slice(), &start.to_le_bytes()].concat(),
    )
}

/// The server with further tables, from [`HEST`] on.
pub fn with(tables: &[Vec<u8>]) -> Fixture {
    let mut fixture = server();
    let mut root = fixture.ram.table(fixture.root).to_vec();
    for (index, bytes) in tables.iter().enumerate() {
        let at = HEST + index as u64 * 0x1_0000;
        fixture.ram.add(at, bytes.clone());
        root.extend(at.to_le_bytes());
    }
    let len = (root.len() as u32).to_le_bytes();
    put(&mut root, 4, &len);
    fixture.root = fixture.ram.add(0x6f00_e000, root);
    fixture.ram.reseal(fixture.root);
    let rsdp = fixture.ram.add(0x6f00_f000, crate::fixture::rsdp_v2(fixture.root));
    fixture.rsdp = rsdp;
    fixture
}

/// A machine with sources of all kinds and a boot error record.
pub fn machine() -> Fixture {
    with(&[
        hest(&[
            generic(1, 1, 0, REGISTER, SCI, 0),
            corrected(3),
            generic(2, 2, 0, REGISTER + 8, POLLED, 5000),
            generic(2, 3, 0, REGISTER + 16, NMI, 0),
            generic(1, 4, 0, 0x6e20_0000, SCI, 0),           // not blank
            generic(1, 5, 1, REGISTER, SCI, 0),              // a port
            generic(1, 6, 0, BLANK[0].end - 4, EXTERNAL, 0), // half in, half out
        ]),
        bert(RECORD, 0x1000),
        table(b"SPMI", 5, &[0; 29]),
        table(b"ERST", 1, &[0; 12]),
        table(b"EINJ", 1, &[0; 12]),
        table(b"PCCT", 1, &[0; 12]),
    ])
}

fn successor(fixture: &Fixture, blank: Option<&[Range<u64>]>) -> (Ram, HostTables) {
    let host = HostFirmware {
        blank,
        ..firmware(&[0])
    };
    let mut out = vec![0xaa; 8192];
    let tables = successor_tables(&fixture.machine(), &host, TABLES, &mut out).unwrap();
    out.truncate(tables.len);
    let mut ram = fixture.ram.clone();
    ram.add(TABLES, out);
    (ram, tables)
}

/// Names and addresses that a host's root table lists.
fn listed(ram: &Ram, tables: &HostTables) -> Vec<(String, u64)> {
    let rsdp = Rsdp::read(ram, tables.rsdp).unwrap();
    let machine = Machine::open(ram, &rsdp).unwrap();
    machine
        .tables()
        .map(|table| table.unwrap())
        .map(|table| (table.signature.to_string(), table.address))
        .collect()
}

#[test]
fn a_successor_polls_what_it_can_and_hears_of_nothing_else() {
    let fixture = machine();
    let (ram, tables) = successor(&fixture, Some(&BLANK));
    assert_eq!(tables.error_sources, ErrorSources { kept: 3, left_out: 3 });
    let (old, new) = (fixture.ram.table(HEST), ram.table(tables.hest));
    assert_eq!((&new[..4], sum(new), u32_at(new, 36)), (&b"HEST"[..], 0, 7));
    assert_eq!(new.len(), old.len());
    // Id: what it is told by, and how often it looks; whether it is enabled.
    let mut found = Vec::new();
    let mut at = FIRST;
    for _ in 0..7 {
        let len = match u16_at(new, at) {
            9 => 64,
            10 => 92,
            _ => {
                assert_eq!(new[at..at + 48 + 3 * 28], old[at..at + 48 + 3 * 28], "as it was");
                at += 48 + 3 * 28;
                continue;
            }
        };
        found.push((u16_at(new, at + 2), new[at + 32], u32_at(new, at + 36), new[at + 7]));
        let differs: Vec<usize> = (0..len).filter(|i| new[at + i] != old[at + i]).collect();
        assert!(differs.iter().all(|i| [7, 32, 36, 37].contains(i)), "{differs:?}");
        at += len;
    }
    assert_eq!(
        found,
        [
            (1, POLLED, 1000, 1),
            (2, POLLED, 5000, 1),
            (3, NMI, 0, 1),
            (4, SCI, 0, 0),
            (5, SCI, 0, 0),
            (6, EXTERNAL, 0, 0),
        ]
    );
}

#[test]
fn what_a_successor_lists_and_what_not() {
    let fixture = machine();
    let (ram, tables) = successor(&fixture, Some(&BLANK));
    let names = listed(&ram, &tables);
    let has = |name: &str| names.iter().filter(|(listed, _)| listed == name).count();
    assert_eq!([has("HEST"), has("BERT"), has("SPMI")], [1, 1, 1], "{names:?}");
    assert!(names.contains(&("HEST".to_owned(), tables.hest)), "its own: {names:?}");
    assert_eq!([has("ERST"), has("EINJ"), has("PCCT")], [0, 0, 0], "{names:?}");
    // Its boot error record would be another host's memory.
    let other = [BLANK[0].clone()];
    let (ram, tables) = successor(&fixture, Some(&other));
    let names = listed(&ram, &tables);
    assert!(!names.iter().any(|(name, _)| name == "BERT"), "{names:?}");
    // An L0 that shows nothing as blank.
    let (ram, tables) = successor(&fixture, None);
    let names = listed(&ram, &tables);
    assert!(!names.iter().any(|(name, _)| name == "HEST" || name == "BERT"));
    assert_eq!((tables.hest, tables.error_sources), (0, ErrorSources::default()));
}

#[test]
fn the_first_host_has_the_machines_own() {
    let fixture = machine();
    let mut out = vec![0; 8192];
    let tables = first_host_tables(&fixture.machine(), &firmware(&[0]), TABLES, &mut out).unwrap();
    let mut ram = fixture.ram.clone();
    ram.add(TABLES, out);
    let names = listed(&ram, &tables);
    for (index, name) in ["HEST", "BERT", "SPMI", "ERST", "EINJ", "PCCT"].iter().enumerate() {
        let at = HEST + index as u64 * 0x1_0000;
        assert!(names.contains(&((*name).to_owned(), at)), "{name}: {names:x?}");
    }
}

#[test]
fn l0_learns_what_is_to_be_blank() {
    let fixture = machine();
    let registers: Vec<_> = fixture.machine().hest().unwrap().unwrap().registers().collect();
    let eight = |at: u64| at..at + 8;
    assert_eq!(
        registers,
        [
            eight(REGISTER),
            eight(REGISTER + 8),
            eight(REGISTER + 16),
            eight(0x6e20_0000),
            eight(BLANK[0].end - 4)
        ],
        "a port is none of them"
    );
    let record = fixture.machine().boot_error_region();
    assert_eq!(record, Ok(Some(RECORD..RECORD + 0x1000)));
    assert_eq!(server().machine().boot_error_region(), Ok(None));
    assert!(server().machine().hest().unwrap().is_none());
}

#[test]
fn a_source_that_the_firmware_has_disabled_stays_so() {
    let mut off = generic(1, 1, 0, REGISTER, SCI, 0);
    off[7] = 0;
    let fixture = with(&[hest(&[off])]);
    let (ram, tables) = successor(&fixture, Some(&BLANK));
    assert_eq!(tables.error_sources, ErrorSources::default());
    assert_eq!(ram.table(tables.hest)[FIRST + 7], 0);
    assert_eq!(fixture.machine().hest().unwrap().unwrap().registers().count(), 0);
}

#[test]
fn damaged_tables_are_errors_and_left_out() {
    let mut unknown = generic(1, 1, 0, REGISTER, SCI, 0);
    unknown[0] = 12;
    let mut many = hest(&[generic(1, 1, 0, REGISTER, SCI, 0)]);
    many[36] = 2;
    let mut banks = hest(&[corrected(1)]);
    banks[FIRST + 44] = 2;
    for (bytes, error) in [
        (hest(&[unknown]), AcpiError::HestSource { offset: 40, kind: 12 }),
        (many, AcpiError::HestSource { offset: 104, kind: 0 }),
        (banks, AcpiError::HestSource { offset: 40, kind: 1 }),
    ] {
        let fixture = with(&[bytes]);
        assert_eq!(Hest::read(&fixture.ram, HEST).map(|_| ()), Err(error));
        let (ram, tables) = successor(&fixture, Some(&BLANK));
        assert_eq!(tables.hest, 0);
        assert!(!listed(&ram, &tables).iter().any(|(name, _)| name == "HEST"));
    }
    for (start, len) in [(RECORD, 0), (u64::MAX - 10, 11)] {
        let fixture = with(&[bert(start, len)]);
        let error = AcpiError::BootErrorRegion {
            start,
            len: u64::from(len),
        };
        assert_eq!(fixture.machine().boot_error_region(), Err(error));
        let everything = 0..u64::MAX;
        let (ram, tables) = successor(&fixture, Some(std::slice::from_ref(&everything)));
        assert!(!listed(&ram, &tables).iter().any(|(name, _)| name == "BERT"));
    }
    let fixture = with(&[bert(RECORD, 1)]);
    assert!(fixture.machine().find(Signature::BERT).is_some());
    assert_eq!(u64_at(fixture.ram.table(HEST), 40), RECORD);
}
