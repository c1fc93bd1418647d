//! The SRAT.

use crate::fixture::{Ram, table};
use firmware_shim::acpi::{AcpiError, NodeMemory, Srat};
use proptest::prelude::*;

const AT: u64 = 0x7ff0_0000;
const FIRST: u32 = 48;

const ENABLED: u32 = 1;
const HOTPLUG: u32 = 2;
const NON_VOLATILE: u32 = 4;

/// A memory affinity structure; its reserved bytes are not zero.
fn memory(domain: u32, base: u64, len: u64, flags: u32) -> Vec<u8> {
    let mut out = vec![1, 40];
    out.extend(domain.to_le_bytes());
    out.extend([0xaa; 2]);
    out.extend(base.to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend([0xaa; 4]);
    out.extend(flags.to_le_bytes());
    out.extend([0xaa; 8]);
    out
}

fn cpu() -> Vec<u8> {
    let mut out = vec![0, 16];
    out.resize(16, 0);
    out
}

fn x2apic() -> Vec<u8> {
    let mut out = vec![2, 24];
    out.resize(24, 0xff);
    out
}

fn ram(revision: u8, entries: &[Vec<u8>]) -> Ram {
    let mut body = vec![0; 12];
    body[0] = 1;
    for entry in entries {
        body.extend(entry);
    }
    let mut ram = Ram::default();
    ram.add(AT, table(b"SRAT", revision, &body));
    ram
}

fn read(revision: u8, entries: &[Vec<u8>]) -> Result<Vec<(u32, u64, u64)>, AcpiError> {
    let ram = ram(revision, entries);
    let srat = Srat::read(&ram, AT)?;
    Ok(srat
        .memory()
        .map(|NodeMemory { domain, range }| (domain, range.start, range.end))
        .collect())
}

#[test]
fn memory_of_two_sockets() {
    let entries = [
        cpu(),
        x2apic(),
        memory(0, 0, 0x8000_0000, ENABLED),
        memory(0, 0x1_0000_0000, 0x17_4000_0000, ENABLED),
        memory(0x1_0001, 0x18_4000_0000, 0x18_0000_0000, ENABLED | HOTPLUG),
        cpu(),
    ];
    let wanted = [
        (0, 0, 0x8000_0000),
        (0, 0x1_0000_0000, 0x18_4000_0000),
        (0x1_0001, 0x18_4000_0000, 0x30_4000_0000),
    ];
    assert_eq!(read(3, &entries).unwrap(), wanted);
    let [a, b, (_, start, end)] = wanted;
    assert_eq!(
        read(1, &entries).unwrap(),
        [a, b, (1, start, end)],
        "domains of one byte"
    );
}

#[test]
fn what_is_no_ram_is_left_out() {
    let entries = [
        memory(0, 0, 0x8000_0000, 0),
        memory(1, 0x1_0000_0000, 0x1_0000_0000, HOTPLUG),
        memory(2, 0x10_8000_0000, 0x3f_0000_0000, ENABLED | NON_VOLATILE),
        // Firmware of machines whose devices bring memory lists nodes of none.
        memory(3, 0, 0, ENABLED | HOTPLUG),
        memory(4, u64::MAX, 0x1000, ENABLED),
    ];
    assert_eq!(read(3, &entries).unwrap(), []);
    let wraps = [memory(5, 0xffff_ffff_ffff_f000, 0x10_0000, ENABLED)];
    assert_eq!(read(3, &wraps).unwrap(), [(5, 0xffff_ffff_ffff_f000, u64::MAX)]);
}

#[test]
fn malformed_entries_are_errors() {
    let malformed = |entries: &[Vec<u8>]| read(3, entries).unwrap_err();
    let at = |offset, kind, len| AcpiError::SratEntry { offset, kind, len };
    assert_eq!(malformed(&[vec![0, 0]]), at(FIRST, 0, 0), "no way to the next");
    assert_eq!(malformed(&[cpu(), vec![7, 1]]), at(FIRST + 16, 7, 1));
    let mut short = memory(0, 0, 0x1000, ENABLED);
    short[1] = 39;
    assert_eq!(malformed(&[short]), at(FIRST, 1, 39));
    let cut = memory(0, 0, 0x1000, ENABLED)[..30].to_vec();
    assert_eq!(malformed(&[cut]), at(FIRST, 1, 40));
    let mut long = cpu();
    long[1] = 17;
    assert_eq!(malformed(&[long]), at(FIRST, 0, 17));
}

#[test]
fn a_byte_behind_the_last_entry_is_passed_over() {
    let entries = [memory(0, 0, 0x1000, ENABLED), vec![1]];
    assert_eq!(read(3, &entries).unwrap(), [(0, 0, 0x1000)]);
    assert_eq!(read(3, &[]).unwrap(), []);
}

#[test]
fn longer_entries_are_read() {
    let mut entry = memory(1, 0x1000, 0x1000, ENABLED);
    entry[1] = 48;
    entry.resize(48, 0xaa);
    let entries = [entry, memory(2, 0x2000, 0x1000, ENABLED)];
    assert_eq!(read(3, &entries).unwrap(), [(1, 0x1000, 0x2000), (2, 0x2000, 0x3000)]);
}

#[test]
fn other_tables_and_short_ones_are_refused() {
    let mut ram = Ram::default();
    ram.add(AT, table(b"SLIT", 1, &[0; 12]));
    ram.add(AT + 0x1000, table(b"SRAT", 1, &[0; 11]));
    assert!(matches!(Srat::read(&ram, AT), Err(AcpiError::WrongSignature { .. })));
    assert!(matches!(
        Srat::read(&ram, AT + 0x1000),
        Err(AcpiError::Length { len: 47, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_are_a_srat_or_refused(body in prop::collection::vec(0u8..50, 12..300), revision in 0u8..4) {
        let mut ram = Ram::default();
        ram.add(AT, table(b"SRAT", revision, &body));
        if let Ok(srat) = Srat::read(&ram, AT) {
            for memory in srat.memory() {
                prop_assert!(memory.range.start < memory.range.end);
            }
        }
    }
}
