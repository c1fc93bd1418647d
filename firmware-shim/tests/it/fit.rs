//! The crate `acpi` held against our reader of the machine's tables: where both read the same, and why L0 does not use
//! it. Each reason is a test of its own, which fails once a release of the crate has mended it.
//!
//! What no test can show: the crate's types are references into the firmware's memory, made by an `unsafe` mapping that
//! the user writes. Ours are values, copied out by [`firmware_shim::PhysMem`], and this crate forbids `unsafe`.

use crate::fixture::{Fixture, Ram, bochs, put, server, u32_at};
use crate::witness::Reader;
use acpi::AcpiTables;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::sdt::mcfg::Mcfg;
use firmware_shim::acpi::{self as ours, AcpiError, Machine, Rsdp};
use std::panic::{AssertUnwindSafe, catch_unwind};

fn theirs(fixture: &Fixture) -> AcpiTables<Reader<'_>> {
    Reader::tables(&fixture.ram, fixture.rsdp)
}

/// The server without the null pointer in its XSDT, on which the crate ends ([`a_null_pointer_is_followed`]).
fn whole_server() -> Fixture {
    let mut fixture = server();
    let hpet = fixture.ram.0.iter().find(|(_, bytes)| bytes.starts_with(b"HPET"));
    let hpet = hpet.expect("an HPET table").0;
    put(fixture.ram.at_mut(fixture.root), 44, &hpet.to_le_bytes());
    fixture.ram.reseal(fixture.root);
    fixture
}

/// Bochs with memory behind its FADT, which the crate takes for part of it ([`a_short_table_is_mapped_as_a_long_one`]).
fn roomy_bochs() -> Fixture {
    let mut fixture = bochs();
    let fadt = fixture.fadt;
    let (_, bytes) = fixture.ram.0.iter_mut().find(|(at, _)| *at == fadt).expect("a FADT");
    bytes.resize(ours::FADT_REVISION_6_LEN, 0);
    fixture
}

/// Whether the crate gets by without a panic.
fn survives(read: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(read)).is_ok()
}

/// (APIC id, flags) of the CPUs, (address, first interrupt) of the IOAPICs.
type Controllers = (Vec<(u32, u32)>, Vec<(u32, u32)>);

fn their_controllers(madt: std::pin::Pin<&Madt>) -> Controllers {
    let mut found = Controllers::default();
    for entry in madt.entries() {
        match entry {
            MadtEntry::LocalApic(cpu) => found.0.push((cpu.apic_id.into(), cpu.flags)),
            MadtEntry::LocalX2Apic(cpu) => found.0.push((cpu.x2apic_id, cpu.flags)),
            MadtEntry::IoApic(io) => found.1.push((io.io_apic_address, io.global_system_interrupt_base)),
            _ => {}
        }
    }
    found
}

fn our_controllers(madt: &ours::Madt<'_, Ram>) -> Controllers {
    let mut found = Controllers::default();
    for entry in madt.entries() {
        match entry.unwrap() {
            ours::MadtEntry::LocalApic { apic_id, flags, .. } => found.0.push((apic_id.into(), flags)),
            ours::MadtEntry::LocalX2Apic { apic_id, flags, .. } => found.0.push((apic_id, flags)),
            ours::MadtEntry::IoApic { address, gsi_base, .. } => found.1.push((address, gsi_base)),
            _ => {}
        }
    }
    found
}

#[test]
fn both_read_the_same_of_whole_tables() {
    for fixture in [roomy_bochs(), whole_server()] {
        let (theirs, machine) = (theirs(&fixture), fixture.machine());
        let madt = theirs.find_table::<Madt>().unwrap();
        assert_eq!(their_controllers(madt.get()), our_controllers(&machine.madt().unwrap()));
        assert_eq!(
            theirs.dsdt().unwrap().phys_address as u64,
            machine.fadt().unwrap().dsdt()
        );
        let fadt = theirs.find_table::<Fadt>().unwrap();
        let control = machine.fadt().unwrap().pm1a_control().unwrap();
        assert_eq!(fadt.pm1a_control_block().unwrap().address, control.address);
    }
}

#[test]
#[cfg_attr(miri, ignore = "the crate walks behind the structure that it has a reference to")]
fn both_read_what_linux_tolerates() {
    let in_place = |bytes: &[u8]| {
        let mut ram = Ram::default();
        ram.add(0x1000, bytes.to_vec());
        ram
    };
    for bytes in [
        include_bytes!("../fixtures/mcfg-62-bytes.bin").as_slice(),
        include_bytes!("../fixtures/mcfg-bad-checksum.bin"),
    ] {
        let ram = in_place(bytes);
        #[expect(unsafe_code, reason = "the crate maps tables by unsafe functions")]
        // SAFETY: the table is whole, and `Reader` checks that.
        let theirs = unsafe { acpi::PhysicalMapping::<_, Mcfg>::new(0x1000, bytes.len(), Reader(&ram)) };
        let ours: Vec<_> = ours::Mcfg::read(&ram, 0x1000).unwrap().regions().flatten().collect();
        let bases: Vec<u64> = theirs.entries().iter().map(|entry| entry.base_address).collect();
        assert_eq!(bases, ours.iter().map(|region| region.base).collect::<Vec<_>>());
    }
    let bytes = include_bytes!("../fixtures/madt-bad-checksum.bin");
    let ram = in_place(bytes);
    #[expect(unsafe_code, reason = "the crate maps tables by unsafe functions")]
    // SAFETY: as above.
    let theirs = unsafe { acpi::PhysicalMapping::<_, Madt>::new(0x1000, bytes.len(), Reader(&ram)) };
    let madt = ours::Madt::read(&ram, 0x1000).unwrap();
    assert_eq!(their_controllers(theirs.get()), our_controllers(&madt));
}

/// Firmware leaves null pointers in its root table. Linux passes over them.
#[test]
fn a_null_pointer_is_followed() {
    let fixture = server();
    assert!(fixture.machine().madt().is_ok());
    let theirs = theirs(&fixture);
    assert!(!survives(|| drop(theirs.find_table::<Madt>())), "mended: see the head");
}

/// A reference to a FADT of revision 6 is made whatever length the table has.
#[test]
fn a_short_table_is_mapped_as_a_long_one() {
    let fixture = bochs();
    assert!(fixture.machine().fadt().is_ok());
    let theirs = theirs(&fixture);
    assert!(!survives(|| drop(theirs.find_table::<Fadt>())), "mended: see the head");
}

/// A mapping cannot fail: whoever implements it for memory that is not there has a panic to choose, or a wild pointer.
#[test]
fn a_pointer_to_nowhere_is_no_error() {
    let mut fixture = whole_server();
    put(fixture.ram.at_mut(fixture.root), 36, &0xdead_0000u64.to_le_bytes());
    fixture.ram.reseal(fixture.root);
    let machine = fixture.machine();
    assert!(matches!(
        machine.unreadable().collect::<Vec<_>>()[..],
        [AcpiError::Memory(_)]
    ));
    assert!(matches!(machine.fadt(), Err(AcpiError::Missing(_))), "that was it");
    assert!(machine.madt().is_ok(), "what comes later is found");
    let theirs = theirs(&fixture);
    assert!(!survives(|| drop(theirs.find_table::<Fadt>())), "mended: see the head");
}

/// The server's MADT with this as its first entry's length.
fn with_entry_of(len: u8) -> Fixture {
    let mut fixture = whole_server();
    fixture.ram.at_mut(fixture.madt)[45] = len;
    fixture.ram.reseal(fixture.madt);
    fixture
}

fn our_madt_error(fixture: &Fixture) -> AcpiError {
    let rsdp = Rsdp::read(&fixture.ram, fixture.rsdp).unwrap();
    Machine::open(&fixture.ram, &rsdp).unwrap().madt().unwrap_err()
}

#[test]
#[cfg_attr(miri, ignore = "the crate walks behind the structure that it has a reference to")]
fn an_entry_of_no_length_never_ends() {
    let fixture = with_entry_of(0);
    assert!(matches!(our_madt_error(&fixture), AcpiError::MadtEntry { len: 0, .. }));
    let theirs = theirs(&fixture);
    let madt = theirs.find_table::<Madt>().unwrap();
    let length = u32_at(fixture.ram.table(fixture.madt), 4) as usize;
    assert!(madt.get().entries().nth(length).is_some(), "mended: see the head");
}

#[test]
#[cfg_attr(miri, ignore = "the crate walks behind the structure that it has a reference to")]
fn an_entry_shorter_than_its_type_reaches_beyond_the_table() {
    let mut fixture = with_entry_of(2);
    put(fixture.ram.at_mut(fixture.madt), 4, &46u32.to_le_bytes());
    fixture.ram.reseal(fixture.madt);
    assert!(matches!(our_madt_error(&fixture), AcpiError::MadtEntry { len: 2, .. }));
    let theirs = theirs(&fixture);
    let madt = theirs.find_table::<Madt>().unwrap();
    let Some(MadtEntry::LocalApic(cpu)) = madt.get().entries().next() else {
        panic!("mended: see the head");
    };
    let end = (&raw const *cpu).addr() + size_of_val(cpu);
    let table = fixture.ram.table(fixture.madt);
    assert!(end > table.as_ptr_range().end.addr(), "mended: see the head");
}

/// The revision is not to be trusted, the length is (ACPICA, `acpi_tb_convert_fadt`): here it ends before the 64-bit
/// fields, and what the memory behind it holds is taken for them.
#[test]
fn a_short_fadt_is_believed_by_its_revision() {
    let mut fixture = whole_server();
    let fadt = fixture.ram.at_mut(fixture.fadt);
    put(fadt, 4, &116u32.to_le_bytes());
    put(fadt, 172, &[0, 16, 0, 2, 0xef, 0xbe, 0xad, 0xde]);
    fixture.ram.reseal(fixture.fadt);
    let control = fixture.machine().fadt().unwrap().pm1a_control().unwrap();
    assert_eq!(control.port(), Some(0xb004));
    let theirs = theirs(&fixture);
    let fadt = theirs.find_table::<Fadt>().unwrap();
    assert_eq!(
        fadt.pm1a_control_block().unwrap().address,
        0xdead_beef,
        "mended: see the head"
    );
}

#[test]
fn a_name_that_is_no_text_cannot_be_printed() {
    let mut fixture = whole_server();
    put(fixture.ram.at_mut(fixture.madt), 0, &[0xff; 4]);
    let ours: Vec<String> = fixture
        .machine()
        .tables()
        .map(|table| table.unwrap().signature.to_string())
        .collect();
    assert!(ours.contains(&r"\xff\xff\xff\xff".to_owned()));
    let theirs = theirs(&fixture);
    let print = || {
        theirs
            .table_headers()
            .for_each(|(_, header)| drop(header.signature.to_string()))
    };
    assert!(!survives(print), "mended: see the head");
}
