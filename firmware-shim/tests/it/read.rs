//! The machine's own tables.

use crate::fixture::{Fixture, Ram, bochs, put, server, sum, table};
use firmware_shim::acpi::{
    AcpiError, BootArch, Cpu, EcamRegion, FadtFlags, MadtEntry, Rsdp, SPACE_SYSTEM_IO, Signature,
};
use firmware_shim::acpi::{Locm, Machine, Madt, Mcfg};

#[test]
fn finds_the_rsdp_in_the_bios_area() {
    let bochs = bochs();
    let (addr, rsdp) = Rsdp::find_in_bios_area(&bochs.ram).unwrap();
    assert_eq!(addr, bochs.rsdp);
    assert_eq!((rsdp.revision, rsdp.xsdt), (0, 0));
    assert_eq!(u64::from(rsdp.rsdt), bochs.root);
    assert_eq!(rsdp.oem_id, *b"BOCHS ");
}

#[test]
fn finds_the_rsdp_in_the_ebda_first() {
    let mut bochs = bochs();
    let rsdp = bochs.ram.at(bochs.rsdp)[..20].to_vec();
    put(bochs.ram.at_mut(0x9_fc00), 0x3f0 - 0x10, &rsdp);
    assert_eq!(Rsdp::find_in_bios_area(&bochs.ram).unwrap().0, 0x9_fc00 + 0x3e0);
}

#[test]
fn no_rsdp_is_an_error() {
    assert_eq!(Rsdp::find_in_bios_area(&Ram::default()), Err(AcpiError::NoRsdp));
    assert_eq!(Rsdp::find_in_bios_area(&server().ram), Err(AcpiError::NoRsdp));
}

#[test]
fn rsdp_copies_are_verified() {
    let server = server();
    let good = server.ram.at(server.rsdp).to_vec();
    assert_eq!(good.len(), 36);
    let parsed = Rsdp::parse(&good).unwrap();
    assert_eq!((parsed.revision, parsed.xsdt), (2, server.root));
    for cut in 0..36 {
        assert!(Rsdp::parse(&good[..cut]).is_err(), "cut to {cut}");
    }
    for at in 0..36 {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(Rsdp::parse(&bad).is_err(), "byte {at} changed");
    }
}

#[test]
fn a_longer_rsdp_is_read_whole() {
    let mut long = server().ram.at(0x6f00_0000).to_vec();
    put(&mut long, 20, &40u32.to_le_bytes());
    long.extend([1, 2, 3, 4]);
    long[8] = 0;
    long[8] = 0u8.wrapping_sub(sum(&long[..20]));
    long[32] = 0;
    long[32] = 0u8.wrapping_sub(sum(&long));
    let mut ram = Ram::default();
    ram.add(0x1000, long.clone());
    assert_eq!(Rsdp::read(&ram, 0x1000), Rsdp::parse(&long));
    assert_eq!(Rsdp::parse(&long).unwrap().xsdt, 0x6f00_1000);
    ram.at_mut(0x1000)[39] = 5;
    assert_eq!(Rsdp::read(&ram, 0x1000), Err(AcpiError::RsdpChecksum));
}

#[test]
fn walks_rsdt_and_xsdt() {
    let bochs = bochs();
    let found: Vec<_> = bochs.machine().tables().map(|table| table.unwrap().signature).collect();
    assert_eq!(found, [*b"FACP", *b"SSDT", *b"APIC", *b"HPET"].map(Signature));

    let server = server();
    let found: Vec<_> = server.machine().tables().map(|table| table.unwrap().address).collect();
    assert_eq!(found.len(), 9, "the null pointer is passed over");
    assert!(server.machine().has_dmar());
    assert!(!bochs.machine().has_dmar());
}

#[test]
fn a_wrong_checksum_is_told_and_the_table_is_used() {
    for whole in [bochs(), server()] {
        assert_eq!(whole.machine().wrong_checksums().count(), 0);
        let mut fixture = whole.clone();
        for table in [fixture.root, fixture.fadt, fixture.madt] {
            fixture.ram.at_mut(table)[9] ^= 1;
        }
        let machine = fixture.machine();
        let told: Vec<u64> = machine.wrong_checksums().map(|table| table.address).collect();
        assert_eq!(told, [fixture.root, fixture.fadt, fixture.madt]);
        assert_eq!(machine.fadt().unwrap().dsdt(), fixture.dsdt);
        let cpus = |machine: Machine<'_, Ram>| machine.madt().unwrap().cpus().count();
        assert_eq!(cpus(machine), cpus(whole.machine()));
    }
}

#[test]
fn half_a_pointer_at_the_end_of_the_root_table_is_passed_over() {
    let mut fixture = server();
    put(fixture.ram.at_mut(fixture.root), 4, &(36u32 + 8 + 7).to_le_bytes());
    let found: Vec<_> = fixture.machine().tables().map(|table| table.unwrap().address).collect();
    assert_eq!(found, [fixture.fadt]);
    put(fixture.ram.at_mut(fixture.root), 4, &35u32.to_le_bytes());
    let rsdp = Rsdp::read(&fixture.ram, fixture.rsdp).unwrap();
    let error = Machine::open(&fixture.ram, &rsdp).unwrap_err();
    assert!(matches!(error, AcpiError::Length { len: 35, .. }), "{error}");
}

/// Tables of real machines that Linux uses, some with a warning; `tests/fixtures/README.md` says whose they are.
#[test]
fn what_linux_tolerates_is_read() {
    let window = EcamRegion {
        base: 0xf000_0000,
        segment: 0,
        first_bus: 0,
        last_bus: 255,
    };
    for (name, bytes) in [
        ("62 bytes", include_bytes!("../fixtures/mcfg-62-bytes.bin").as_slice()),
        ("checksum", include_bytes!("../fixtures/mcfg-bad-checksum.bin")),
    ] {
        let mut ram = Ram::default();
        ram.add(0x1000, bytes.to_vec());
        let mcfg = Mcfg::read(&ram, 0x1000).unwrap();
        assert_eq!(mcfg.regions().collect::<Vec<_>>(), [Ok(window)], "{name}");
    }
    let mut ram = Ram::default();
    ram.add(0x1000, include_bytes!("../fixtures/madt-bad-checksum.bin").to_vec());
    let madt = Madt::read(&ram, 0x1000).unwrap();
    assert_eq!(madt.cpus().count(), 1);
    assert_ne!(sum(ram.table(0x1000)), 0, "it is the case that it was kept for");
}

#[test]
fn missing_tables_are_named() {
    let mut fixture = bochs();
    put(fixture.ram.at_mut(fixture.madt), 0, b"XXXX");
    fixture.ram.reseal(fixture.madt);
    let error = fixture.machine().madt().unwrap_err();
    assert_eq!(error, AcpiError::Missing(Signature::MADT));
    assert!(error.to_string().contains("APIC"), "{error}");
}

#[test]
fn reads_an_acpi_1_fadt() {
    let bochs = bochs();
    let fadt = bochs.machine().fadt().unwrap();
    assert_eq!(fadt.revision(), 1);
    assert_eq!(fadt.sci_interrupt(), 9);
    assert_eq!(fadt.smi_command(), Some((0xb2, 0xf1, 0xf0)));
    let control = fadt.pm1a_control().unwrap();
    assert_eq!((control.port(), control.bit_width), (Some(0xb004), 16));
    assert_eq!(control.space, SPACE_SYSTEM_IO);
    assert_eq!(fadt.pm1a_event().unwrap().port(), Some(0xb000));
    assert_eq!(fadt.pm_timer().unwrap().port(), Some(0xb008));
    assert_eq!(fadt.gpe0().unwrap().port(), Some(0xafe0));
    for absent in [fadt.pm1b_event(), fadt.pm1b_control(), fadt.pm2_control(), fadt.gpe1()] {
        assert_eq!(absent, None);
    }
    assert_eq!(fadt.reset(), None);
    assert_eq!((fadt.dsdt(), fadt.facs()), (bochs.dsdt, bochs.facs));
    assert_eq!(
        fadt.boot_arch(),
        BootArch::LEGACY_DEVICES | BootArch::I8042,
        "an ACPI 1.0 machine is a PC"
    );
}

#[test]
fn reads_a_revision_6_fadt() {
    let server = server();
    let fadt = server.machine().fadt().unwrap();
    let (register, value) = fadt.reset().unwrap();
    assert_eq!((register.port(), value), (Some(0xcf9), 6));
    assert_eq!(fadt.pm1a_control().unwrap().access_size, 2, "the 64-bit form wins");
    assert!(fadt.flags().contains(FadtFlags::FORCE_APIC_CLUSTER_MODEL));
    assert_eq!(fadt.boot_arch(), BootArch::LEGACY_DEVICES | BootArch::NO_ASPM);
}

#[test]
fn reads_every_length_of_fadt_and_refuses_shorter_ones() {
    let full = server();
    for len in 0..=276 {
        let mut fixture = full.clone();
        put(fixture.ram.at_mut(fixture.fadt), 4, &(len as u32).to_le_bytes());
        if len >= 36 {
            fixture.ram.reseal(fixture.fadt);
        }
        let fadt = fixture.machine().fadt();
        assert_eq!(fadt.is_ok(), len >= 116, "length {len}");
        if let Ok(fadt) = fadt {
            assert_eq!(fadt.reset().is_some(), len >= 129, "length {len}");
        }
    }
}

#[test]
fn reads_cpus_by_linux_rules() {
    let cpu = |apic_id, uid, flags, x2apic| Cpu {
        apic_id,
        uid,
        flags,
        x2apic,
    };
    let server = server();
    let madt = server.machine().madt().unwrap();
    let cpus: Vec<_> = madt.cpus().map(Result::unwrap).collect();
    assert_eq!(
        cpus,
        [
            cpu(0, 0, 1, false),
            cpu(2, 1, 1, false),
            cpu(4, 3, 2, false),
            cpu(6, 4, 0, false),
            cpu(0x100, 6, 1, true),
        ]
    );
    assert!(cpus[2].online_capable() && !cpus[2].enabled());
}

#[test]
fn x2apic_entries_count_when_they_are_all_there_is() {
    let mut fixture = bochs();
    let body = crate::fixture::madt_body(
        0xfee0_0000,
        0,
        &[&crate::fixture::x2apic(0, 0, 1), &crate::fixture::x2apic(1, 1, 1)],
    );
    *fixture.ram.0.iter_mut().find(|(at, _)| *at == fixture.madt).unwrap() = (fixture.madt, table(b"APIC", 5, &body));
    let madt = fixture.machine().madt().unwrap();
    assert_eq!(madt.cpus().count(), 2);
}

#[test]
fn reads_interrupt_controllers_and_overrides() {
    let bochs = bochs();
    let madt = bochs.machine().madt().unwrap();
    let entries: Vec<_> = madt.entries().map(Result::unwrap).collect();
    assert!(entries.contains(&MadtEntry::IoApic {
        id: 4,
        address: 0xfec0_0000,
        gsi_base: 0
    }));
    assert!(entries.contains(&MadtEntry::InterruptOverride {
        bus: 0,
        source: 0,
        gsi: 2,
        flags: 0
    }));
    assert!(entries.contains(&MadtEntry::LocalApicNmi {
        uid: 0xff,
        flags: 0,
        lint: 1
    }));
    let wakeup = server().machine().madt().unwrap().entries().find_map(|e| match e {
        Ok(MadtEntry::Wakeup {
            version,
            mailbox,
            reset_vector,
        }) => Some((version, mailbox, reset_vector)),
        _ => None,
    });
    assert_eq!(wakeup, Some((0, 0x1000, 0)), "version 0 has no reset vector");
}

#[test]
fn a_malformed_madt_entry_is_refused() {
    let broken = |at: u64, value: u8| -> AcpiError {
        let Fixture {
            mut ram, madt, rsdp, ..
        } = bochs();
        ram.at_mut(madt)[at as usize] = value;
        ram.reseal(madt);
        let rsdp = Rsdp::read(&ram, rsdp).unwrap();
        Machine::open(&ram, &rsdp).unwrap().madt().unwrap_err()
    };
    let malformed = |offset, kind, len| AcpiError::MadtEntry { offset, kind, len };
    assert_eq!(broken(45, 0), malformed(44, 0, 0), "would loop for ever");
    assert_eq!(broken(45, 1), malformed(44, 0, 1));
    assert_eq!(broken(45, 7), malformed(44, 0, 7), "too short for a CPU");
    assert_eq!(broken(45, 255), malformed(44, 0, 255), "beyond the table");
}

#[test]
fn reads_mcfg() {
    let server = server();
    let mcfg = server.machine().mcfg().unwrap().unwrap();
    let region = EcamRegion {
        base: 0x8000_0000,
        segment: 0,
        first_bus: 0,
        last_bus: 0xff,
    };
    assert_eq!(mcfg.regions().collect::<Vec<_>>(), [Ok(region)]);
    assert_eq!(region.range(), Some(0x8000_0000..0x9000_0000));
    assert!(bochs().machine().mcfg().unwrap().is_none());

    let mut ram = Ram::default();
    ram.add(0, table(b"MCFG", 1, &[0; 7]));
    assert!(Mcfg::read(&ram, 0).is_err(), "less than its fixed part");
}

#[test]
fn an_ecam_region_that_wraps_has_no_range() {
    let region = EcamRegion {
        base: u64::MAX - 0xfffff,
        segment: 0,
        first_bus: 0,
        last_bus: 1,
    };
    assert_eq!(region.range(), None);
}

#[test]
fn locm_is_verified() {
    let mut ram = Ram::default();
    ram.add(0x1000, table(b"LOCM", 1, &[0; 15]));
    assert!(matches!(
        Locm::read(&ram, 0x1000),
        Err(AcpiError::Length { len: 51, .. })
    ));
}
