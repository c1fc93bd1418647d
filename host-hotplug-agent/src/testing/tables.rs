//! ACPI tables as a fixture of `/sys/firmware/acpi/tables`.

use std::fs;
use std::path::Path;

/// AML as `tests/fixtures/aml/README.md` describes it.
pub const DSDT: &[u8] = include_bytes!("../../tests/fixtures/aml/dsdt.aml");
/// A table beside it.
pub const SSDT_PLAIN: &[u8] = include_bytes!("../../tests/fixtures/aml/ssdt-plain.aml");
/// One that the interpreter cannot read.
pub const SSDT_ACCESS_AS: &[u8] = include_bytes!("../../tests/fixtures/aml/ssdt-access-as.aml");
/// One that does not end.
pub const SSDT_ENDLESS: &[u8] = include_bytes!("../../tests/fixtures/aml/ssdt-endless.aml");

/// Writes a FADT, an MCFG, a DSDT, an SSDT and a MADT with these CPUs and one IOAPIC.
pub fn write(root: &Path, apic_ids: &[u8]) {
    let dir = root.join("sys/firmware/acpi/tables");
    fs::create_dir_all(&dir).unwrap();
    let mut fadt = vec![0; 276 - 36];
    fadt[140 - 36..148 - 36].copy_from_slice(&0x7fff_0000u64.to_le_bytes());
    fadt[64 - 36..68 - 36].copy_from_slice(&0x404u32.to_le_bytes());
    fadt[89 - 36] = 2;
    fs::write(dir.join("FACP"), table(b"FACP", &fadt)).unwrap();
    let mut mcfg = vec![0; 8];
    mcfg.extend_from_slice(&0xe000_0000u64.to_le_bytes());
    mcfg.extend_from_slice(&[0, 0, 0, 0xff, 0, 0, 0, 0]);
    fs::write(dir.join("MCFG"), table(b"MCFG", &mcfg)).unwrap();
    fs::write(dir.join("DSDT"), DSDT).unwrap();
    fs::write(dir.join("SSDT"), table(b"SSDT", &[])).unwrap();
    write_madt(root, apic_ids, &[]);
}

/// Writes a MADT with these CPUs, one IOAPIC, and further entries.
pub fn write_madt(root: &Path, apic_ids: &[u8], entries: &[u8]) {
    let dir = root.join("sys/firmware/acpi/tables");
    let mut madt = 0xfee0_0000u32.to_le_bytes().to_vec();
    madt.extend_from_slice(&1u32.to_le_bytes());
    for (uid, &apic_id) in (0u8..).zip(apic_ids) {
        madt.extend_from_slice(&[0, 8, uid, apic_id, 1, 0, 0, 0]);
    }
    madt.extend_from_slice(&[1, 12, 0, 0]);
    madt.extend_from_slice(&0xfec0_0000u32.to_le_bytes());
    madt.extend_from_slice(&0u32.to_le_bytes());
    madt.extend_from_slice(entries);
    fs::write(dir.join("APIC"), table(b"APIC", &madt)).unwrap();
}

/// Writes a HEST with one generic source whose register is at `register`.
pub fn write_hest(root: &Path, register: u64) {
    let mut source = [0; 64];
    source[..2].copy_from_slice(&9u16.to_le_bytes());
    source[7] = 1;
    source[21] = 64;
    source[24..32].copy_from_slice(&register.to_le_bytes());
    source[32..34].copy_from_slice(&[3, 28]);
    let body = [1u32.to_le_bytes().as_slice(), &source].concat();
    fs::write(root.join("sys/firmware/acpi/tables/HEST"), table(b"HEST", &body)).unwrap();
}

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend_from_slice(&(36 + body.len() as u32).to_le_bytes());
    table.extend_from_slice(&[6, 0]);
    table.extend_from_slice(b"FIXTUREFIXTURE");
    table.resize(36, 0);
    table.extend_from_slice(body);
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[9] = 0u8.wrapping_sub(sum);
    table
}
