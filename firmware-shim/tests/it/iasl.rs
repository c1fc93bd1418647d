//! ACPICA's compiler as an independent reader: it disassembles every table, and what it compiles from that is the same
//! table.

use crate::fixture::sum;
use crate::host_tables::{all, built};
use std::path::Path;
use std::process::Command;

fn iasl(args: &[&str], dir: &Path) -> String {
    let output = Command::new("iasl")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|error| panic!("iasl: {error}; install the package acpica-tools"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "iasl {args:?} failed:\n{text}");
    text
}

/// The table's source by `iasl -d`, without warnings.
fn disassemble(table: &[u8], dir: &Path) -> String {
    std::fs::write(dir.join("t.dat"), table).unwrap();
    let said = iasl(&["-d", "t.dat"], dir);
    for complaint in ["Warning", "Error", "Incorrect checksum", "Invalid"] {
        assert!(!said.contains(complaint), "{said}");
    }
    std::fs::read_to_string(dir.join("t.dsl")).unwrap()
}

/// The table compiled again from its source. `iasl` puts its own name as the creator, so that part is left out.
fn recompiles(table: &[u8], dir: &Path) {
    let said = iasl(&["t.dsl"], dir);
    assert!(said.contains(" 0 Errors"), "{said}");
    let again = std::fs::read(dir.join("t.aml")).unwrap();
    assert_eq!(again.len(), table.len());
    const CHECKSUM: usize = 9;
    const CREATOR: std::ops::Range<usize> = 28..36;
    let differs: Vec<usize> = (0..table.len())
        .filter(|at| *at != CHECKSUM && !CREATOR.contains(at) && again[*at] != table[*at])
        .collect();
    assert!(differs.is_empty(), "bytes {differs:?} differ");
}

/// The value of a field in a disassembly: "Name : value".
fn field<'a>(source: &'a str, name: &str) -> &'a str {
    source
        .lines()
        .filter_map(|line| line.split_once(" : "))
        .find(|(left, _)| left.trim_end().ends_with(name))
        .map_or_else(|| panic!("no {name} in\n{source}"), |(_, right)| right.trim())
}

/// A copy of the MADT without its last entry, the wakeup structure, which `iasl` knows only since 2021.
fn without_wakeup(madt: &[u8]) -> Vec<u8> {
    let (kept, wakeup) = madt.split_at(madt.len() - 24);
    assert_eq!(wakeup[..2], [0x10, 24]);
    let mut table = kept.to_vec();
    let len = table.len() as u32;
    table[4..8].copy_from_slice(&len.to_le_bytes());
    table[9] = 0;
    table[9] = 0u8.wrapping_sub(sum(&table));
    table
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no processes")]
fn iasl_makes_the_same_tables_again() {
    for (name, fixture, build) in all() {
        println!("{name}");
        let (ram, tables) = built(&fixture, build, &[0]);
        let dir = tempfile::tempdir().unwrap();
        let madt = without_wakeup(ram.table(tables.madt));
        for table in [ram.table(tables.fadt), ram.table(tables.xsdt), &madt] {
            disassemble(table, dir.path());
            recompiles(table, dir.path());
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no processes")]
fn iasl_sees_the_flags_that_linux_acts_on() {
    for (name, fixture, build) in all() {
        println!("{name}");
        let (ram, tables) = built(&fixture, build, &[0]);
        let dir = tempfile::tempdir().unwrap();
        let source = disassemble(ram.table(tables.fadt), dir.path());
        let successor = name.ends_with("successor");
        let absent = if successor { "1" } else { "0" };
        assert_eq!(field(&source, "Revision"), "06");
        assert_eq!(field(&source, "FADT Minor Revision"), "05");
        assert_eq!(field(&source, "Use APIC Physical Destination Mode (V4)"), "1");
        assert_eq!(field(&source, "Use APIC Cluster Model (V4)"), "0");
        assert_eq!(field(&source, "Hardware Reduced (V5)"), absent);
        assert_eq!(field(&source, "VGA Not Present (V4)"), absent);
        assert_eq!(field(&source, "CMOS RTC Not Present (V5)"), absent);
    }
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no processes")]
fn iasl_finds_nothing_strange_but_what_it_cannot_know() {
    let (_, fixture, build) = all().remove(0);
    let (ram, tables) = built(&fixture, build, &[0]);
    let dir = tempfile::tempdir().unwrap();

    // Old versions stop at the wakeup structure: it must be all that they stop at.
    let madt = disassemble(ram.table(tables.madt), dir.path());
    let strange: Vec<&str> = madt.lines().filter(|line| line.starts_with("**** ")).collect();
    let old = ["**** Unknown MADT subtable type 0x10"];
    assert!(strange.is_empty() || strange == old, "{strange:?}");

    let locm = disassemble(ram.table(tables.locm), dir.path());
    assert_eq!(field(&locm, "Table Length"), "00000034");
    assert!(locm.contains("Unknown ACPI table signature [LOCM]"), "{locm}");
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no processes")]
fn iasl_compiles_the_same_rsdp() {
    let (_, fixture, build) = all().remove(0);
    let (ram, tables) = built(&fixture, build, &[0]);
    let dir = tempfile::tempdir().unwrap();
    let source = format!(
        "Signature : \"RSD PTR \"\nChecksum : 00\nOem ID : \"BOCHS \"\nRevision : 02\nRSDT Address : 00000000\n\
         Length : 00000024\nXSDT Address : {:016X}\nExtended Checksum : 00\nReserved : 000000\n",
        tables.xsdt
    );
    std::fs::write(dir.path().join("r.dsl"), source).unwrap();
    iasl(&["r.dsl"], dir.path());
    let theirs = std::fs::read(dir.path().join("r.aml")).unwrap();
    assert_eq!(theirs, ram.at(tables.rsdp)[..36]);
}

#[test]
#[cfg_attr(miri, ignore = "Miri starts no processes")]
#[should_panic(expected = "Incorrect checksum")]
fn iasl_would_see_a_wrong_checksum() {
    let (_, fixture, build) = all().remove(0);
    let (ram, tables) = built(&fixture, build, &[0]);
    let dir = tempfile::tempdir().unwrap();
    let mut fadt = ram.table(tables.fadt).to_vec();
    fadt[9] ^= 1;
    disassemble(&fadt, dir.path());
}
