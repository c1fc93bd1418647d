//! A host's tables: read back by the `acpi` crate, and byte by byte where Linux and ACPICA are particular.

use crate::fixture::{Fixture, LOCM, Ram, TABLES, bochs, firmware, put, server, sum, u16_at, u32_at, u64_at};
use crate::witness::Reader;
use acpi::sdt::fadt::Fadt;
use acpi::sdt::madt::{Madt, MadtEntry};
use firmware_shim::acpi::{
    AcpiError, BuildError, HostFirmware, HostTables, Locm, Machine, Rsdp, Signature, first_host_tables,
    successor_tables,
};

type Build = fn(&Machine<'_, Ram>, &HostFirmware<'_>, u64, &mut [u8]) -> Result<HostTables, BuildError>;

const FIRST: Build = first_host_tables::<Ram>;
const SUCCESSOR: Build = successor_tables::<Ram>;

/// The machine's memory with a host's tables in it.
pub fn built(fixture: &Fixture, build: Build, cpus: &[u32]) -> (Ram, HostTables) {
    let mut out = vec![0xaa; 4096];
    let tables = build(&fixture.machine(), &firmware(cpus), TABLES, &mut out).unwrap();
    out.truncate(tables.len);
    let mut ram = fixture.ram.clone();
    ram.add(TABLES, out);
    (ram, tables)
}

pub fn all() -> Vec<(&'static str, Fixture, Build)> {
    vec![
        ("bochs first", bochs(), FIRST),
        ("bochs successor", bochs(), SUCCESSOR),
        ("server first", server(), FIRST),
        ("server successor", server(), SUCCESSOR),
    ]
}

#[test]
fn every_table_is_whole_and_sums_to_zero() {
    for (name, fixture, build) in all() {
        let (ram, tables) = built(&fixture, build, &[0]);
        let rsdp = &ram.at(tables.rsdp)[..36];
        assert_eq!(tables.rsdp, TABLES);
        assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0), "{name}: RSDP");
        assert_eq!((rsdp[15], u32_at(rsdp, 20)), (2, 36), "{name}: RSDP");
        assert_eq!(u64_at(rsdp, 24), tables.xsdt);
        assert_eq!(u32_at(rsdp, 16), 0, "{name}: there is no RSDT");
        for (at, signature) in [
            (tables.xsdt, b"XSDT"),
            (tables.fadt, b"FACP"),
            (tables.madt, b"APIC"),
            (tables.locm, b"LOCM"),
        ] {
            let table = ram.table(at);
            assert_eq!(&table[..4], signature, "{name}");
            assert_eq!(sum(table), 0, "{name}: {}", signature.escape_ascii());
            assert_eq!(at % 16, 0, "{name}: {} aligned", signature.escape_ascii());
        }
    }
}

#[test]
fn the_acpi_crate_accepts_every_table() {
    for (name, fixture, build) in all() {
        let (ram, tables) = built(&fixture, build, &[0]);
        let witness = Reader::tables(&ram, tables.rsdp);
        witness.find_table::<Fadt>().unwrap().validate().unwrap();
        let dsdt = witness.dsdt().unwrap();
        assert_eq!(dsdt.phys_address as u64, fixture.dsdt, "{name}");
        for (at, header) in witness.table_headers() {
            #[expect(unsafe_code, reason = "the crate's validation reads behind the header")]
            // SAFETY: a reference to the header in `ram`, where the whole table follows it.
            unsafe {
                let bytes = ram.table(at as u64).as_ptr();
                let in_place = &*bytes.cast::<acpi::sdt::SdtHeader>();
                in_place.validate(header.signature).unwrap();
            }
        }
    }
}

#[test]
fn the_xsdt_lists_what_each_host_may_see() {
    for (name, fixture, build) in all() {
        let (ram, tables) = built(&fixture, build, &[0]);
        let witness = Reader::tables(&ram, tables.rsdp);
        let listed: Vec<u64> = witness.table_entries().map(|at| at as u64).collect();
        let kept = if name.ends_with("first") {
            &fixture.others
        } else {
            &fixture.successors
        };
        let wanted = [&[tables.fadt, tables.madt], kept.as_slice(), &[tables.locm]].concat();
        assert_eq!(listed, wanted, "{name}");
    }
}

#[test]
fn dmar_is_hidden_from_everyone() {
    for (name, fixture, build) in all() {
        let (ram, tables) = built(&fixture, build, &[0]);
        let witness = Reader::tables(&ram, tables.rsdp);
        for (_, header) in witness.table_headers() {
            assert_ne!(header.signature.as_str(), "DMAR", "{name}");
        }
    }
}

/// APIC ids as listed, from both kinds of entry, all of which must be enabled.
fn cpus(ram: &Ram, tables: &HostTables) -> Vec<u32> {
    let witness = Reader::tables(ram, tables.rsdp);
    let madt = witness.find_table::<Madt>().unwrap();
    madt.get()
        .entries()
        .filter_map(|entry| match entry {
            MadtEntry::LocalApic(cpu) => Some((u32::from(cpu.apic_id), cpu.flags)),
            MadtEntry::LocalX2Apic(cpu) => Some((cpu.x2apic_id, cpu.flags)),
            _ => None,
        })
        .map(|(id, flags)| {
            assert_eq!(flags, 1, "CPU {id} enabled");
            id
        })
        .collect()
}

#[test]
fn own_cpus_come_first_in_the_order_given() {
    let (ram, tables) = built(&bochs(), FIRST, &[0, 1]);
    assert_eq!(cpus(&ram, &tables), [0, 1, 2, 3]);
    let (ram, tables) = built(&bochs(), SUCCESSOR, &[3, 2]);
    assert_eq!(cpus(&ram, &tables), [3, 2, 0, 1]);
    let (ram, tables) = built(&server(), SUCCESSOR, &[0x100]);
    assert_eq!(cpus(&ram, &tables), [0x100, 0, 2], "disabled ones are not listed");
}

#[test]
fn a_cpu_keeps_its_uid() {
    let (ram, tables) = built(&server(), SUCCESSOR, &[2]);
    let witness = Reader::tables(&ram, tables.rsdp);
    let madt = witness.find_table::<Madt>().unwrap();
    let Some(MadtEntry::LocalApic(first)) = madt.get().entries().next() else {
        panic!("a local APIC entry first");
    };
    assert_eq!((first.apic_id, first.processor_id), (2, 1));
}

#[test]
fn the_wakeup_structure_is_version_1() {
    for (name, fixture, build) in all() {
        let (ram, tables) = built(&fixture, build, &[0]);
        let witness = Reader::tables(&ram, tables.rsdp);
        let madt = witness.find_table::<Madt>().unwrap();
        assert_eq!(madt.get().get_mpwk_mailbox_addr().unwrap(), 0x80_8000, "{name}");
        let table = ram.table(tables.madt);
        let last = &table[table.len() - 24..];
        assert_eq!(last[..2], [0x10, 24], "{name}: type and length");
        assert_eq!(u16_at(last, 2), 1, "{name}: version");
        assert_eq!(u32_at(last, 4), 0, "{name}: reserved");
        assert_eq!(u64_at(last, 8), 0x80_8000, "{name}: mailbox");
        assert_eq!(u64_at(last, 16), 0x80_9000, "{name}: reset vector");
        let wakeups = madt
            .get()
            .entries()
            .filter(|entry| matches!(entry, MadtEntry::MultiprocessorWakeup(_)))
            .count();
        assert_eq!(wakeups, 1, "{name}: firmware's own is replaced");
    }
}

/// (source, gsi, flags) of the overrides; ids of the IOAPICs; number of LAPIC NMI and of IOAPIC NMI entries.
type InterruptEntries = (Vec<(u8, u32, u16)>, Vec<u8>, usize, usize);

fn interrupts(ram: &Ram, tables: &HostTables) -> InterruptEntries {
    let witness = Reader::tables(ram, tables.rsdp);
    let madt = witness.find_table::<Madt>().unwrap();
    let mut found = InterruptEntries::default();
    for entry in madt.get().entries() {
        match entry {
            MadtEntry::InterruptSourceOverride(o) => {
                found.0.push((o.irq, o.global_system_interrupt, o.flags));
            }
            MadtEntry::IoApic(ioapic) => found.1.push(ioapic.io_apic_id),
            MadtEntry::LocalApicNmi(_) | MadtEntry::X2ApicNmi(_) => found.2 += 1,
            MadtEntry::NmiSource(_) => found.3 += 1,
            _ => {}
        }
    }
    found
}

#[test]
fn the_first_host_keeps_all_interrupts() {
    let (ram, tables) = built(&bochs(), FIRST, &[0]);
    let pci = [5, 9, 10, 11].map(|irq| (irq, u32::from(irq), 0xd));
    let wanted = [&[(0, 2, 0)], pci.as_slice()].concat();
    assert_eq!(interrupts(&ram, &tables), (wanted, vec![4], 1, 0));
    assert_eq!(u32_at(ram.table(tables.madt), 40), 1, "PCAT_COMPAT");
    assert_eq!(u32_at(ram.table(tables.madt), 36), 0xfee0_0000);

    let (ram, tables) = built(&server(), FIRST, &[0]);
    let wanted = vec![(0, 2, 0), (9, 9, 0xd), (8, 8, 5)];
    assert_eq!(interrupts(&ram, &tables), (wanted, vec![8, 9], 1, 1));
}

#[test]
fn a_successor_has_ioapics_but_no_isa_interrupts() {
    let (ram, tables) = built(&bochs(), SUCCESSOR, &[0]);
    assert_eq!(interrupts(&ram, &tables), (vec![], vec![4], 1, 0));
    assert_eq!(u32_at(ram.table(tables.madt), 40), 0, "no dual 8259");

    let (ram, tables) = built(&server(), SUCCESSOR, &[0]);
    assert_eq!(interrupts(&ram, &tables), (vec![], vec![8, 9], 1, 0));
}

/// ACPICA warns of any of these differences (`acpi_tb_convert_fadt`).
fn acpica_is_content(fadt: &[u8]) {
    const BLOCKS: [(&str, usize, usize, usize, bool); 8] = [
        ("PM1a event", 56, 88, 148, true),
        ("PM1b event", 60, 88, 160, false),
        ("PM1a control", 64, 89, 172, true),
        ("PM1b control", 68, 89, 184, false),
        ("PM2 control", 72, 90, 196, false),
        ("PM timer", 76, 91, 208, false),
        ("GPE0", 80, 92, 220, false),
        ("GPE1", 84, 93, 232, false),
    ];
    for (name, port, len, wide, required) in BLOCKS {
        let (port, len) = (u32_at(fadt, port), fadt[len]);
        let (space, width, address) = (fadt[wide], fadt[wide + 1], u64_at(fadt, wide + 4));
        assert_eq!(address, u64::from(port), "{name}: address");
        if port != 0 {
            assert_eq!(space, 1, "{name}: I/O");
            assert_eq!(u16::from(width), u16::from(len) * 8, "{name}: length");
        }
        assert!(!required || (address != 0 && len != 0), "{name}: required");
        if !name.starts_with("PM1") {
            assert_eq!(address == 0, len == 0, "{name}: optional");
        }
    }
}

#[test]
fn the_first_hosts_fadt_is_the_machines_in_revision_6() {
    let bochs = bochs();
    let (ram, tables) = built(&bochs, FIRST, &[0]);
    let (old, new) = (bochs.ram.table(bochs.fadt), ram.table(tables.fadt));
    assert_eq!((new.len(), new[8], new[131]), (276, 6, 5), "length, revision 6.5");
    acpica_is_content(new);
    assert_eq!(u32_at(new, 112), u32_at(old, 112) | 1 << 19, "flags");
    assert_eq!(u16_at(new, 109), 3, "ACPI 1.0 machines have a keyboard controller");
    assert_eq!(u64_at(new, 140), bochs.dsdt, "X_DSDT");
    assert_eq!(u32_at(new, 40), bochs.dsdt as u32, "DSDT");
    assert_eq!(u32_at(new, 36), bochs.facs as u32, "FACS");
    assert_eq!(u64_at(new, 132), 0, "the FACS is named once");
    assert_eq!(new[116..131], [0; 15], "no reset register");
    assert_eq!(new[10..28], old[10..28], "OEM, which Linux' quirks match");
    assert_eq!(new[45..109], old[45..109], "SCI, SMI, ports, lengths, latencies");
}

#[test]
fn reserved_bytes_of_an_acpi_1_fadt_do_not_come_to_life() {
    let mut bochs = bochs();
    for at in [45, 55, 95, 109, 110, 111] {
        bochs.ram.at_mut(bochs.fadt)[at] = 0xff;
    }
    bochs.ram.reseal(bochs.fadt);
    let (ram, tables) = built(&bochs, FIRST, &[0]);
    let fadt = ram.table(tables.fadt);
    for at in [45, 55, 95, 111] {
        assert_eq!(fadt[at], 0, "byte {at}");
    }
    assert_eq!(u16_at(fadt, 109), 3);
}

#[test]
fn a_reset_flag_without_a_register_is_dropped() {
    let mut bochs = bochs();
    put(bochs.ram.at_mut(bochs.fadt), 112, &0x475u32.to_le_bytes());
    bochs.ram.reseal(bochs.fadt);
    let (ram, tables) = built(&bochs, FIRST, &[0]);
    assert_eq!(u32_at(ram.table(tables.fadt), 112), 0x75 | 1 << 19);
}

#[test]
fn a_modern_fadt_changes_in_its_flags_alone() {
    let server = server();
    let (ram, tables) = built(&server, FIRST, &[0]);
    let (old, new) = (server.ram.table(server.fadt), ram.table(tables.fadt));
    acpica_is_content(new);
    let flags = (u32_at(old, 112) | 1 << 19) & !(1 << 18);
    assert_eq!(u32_at(new, 112), flags, "physical mode instead of cluster mode");
    assert_eq!(new[116..131], old[116..131], "reset register");
    assert_eq!(new[148..160], old[148..160], "X_PM1a event keeps its access size");
    let differs: Vec<usize> = (10..148).filter(|&at| new[at] != old[at]).collect();
    assert_eq!(differs, [114, 131], "flags, minor revision");
}

#[test]
fn a_successors_fadt_is_hardware_reduced() {
    for fixture in [bochs(), server()] {
        let (ram, tables) = built(&fixture, SUCCESSOR, &[0]);
        let old = fixture.ram.table(fixture.fadt);
        let fadt = ram.table(tables.fadt);
        assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5));
        let flags = u32_at(fadt, 112);
        let wanted = 1 << 20 | 1 << 19 | 1 << 6 | 1 << 5 | 1 << 4 | u32_at(old, 112) & 0b111;
        assert_eq!(flags, wanted, "{flags:#x}");
        let boot_arch = u16_at(fadt, 109);
        assert_eq!(boot_arch & 0b111, 0b100, "no ISA devices, no 8042, no VGA");
        assert_eq!(boot_arch & 1 << 5, 1 << 5, "no RTC");
        assert_eq!(fadt[46..96], [0; 50], "no SCI, SMI, PM1, PM2, timer, GPE");
        assert_eq!(fadt[116..131], [0; 15], "no reset register");
        assert_eq!(fadt[148..276], [0; 128], "no 64-bit registers");
        assert_eq!((u32_at(fadt, 36), u64_at(fadt, 132)), (0, 0), "no FACS");
        assert_eq!(u64_at(fadt, 140), fixture.dsdt, "X_DSDT");
        assert_eq!(u32_at(fadt, 40), fixture.dsdt as u32, "DSDT");
    }
    let (ram, tables) = built(&server(), SUCCESSOR, &[0]);
    assert_eq!(u16_at(ram.table(tables.fadt), 109) & 1 << 4, 1 << 4, "no ASPM stays");
}

#[test]
fn a_dsdt_above_4_gib_has_a_wide_pointer_only() {
    let mut server = server();
    put(server.ram.at_mut(server.fadt), 40, &0u32.to_le_bytes());
    put(server.ram.at_mut(server.fadt), 140, &0x1_2345_6000u64.to_le_bytes());
    server.ram.reseal(server.fadt);
    for build in [FIRST, SUCCESSOR] {
        let (ram, tables) = built(&server, build, &[0]);
        let fadt = ram.table(tables.fadt);
        assert_eq!((u32_at(fadt, 40), u64_at(fadt, 140)), (0, 0x1_2345_6000));
    }
}

#[test]
fn locm_says_where_l0_is() {
    let (ram, tables) = built(&bochs(), SUCCESSOR, &[0]);
    let table = ram.table(tables.locm);
    assert_eq!(table.len(), 52);
    assert_eq!(
        (u64_at(table, 36), u32_at(table, 44), u32_at(table, 48)),
        (0x80_0000, 7, 0)
    );
    assert_eq!(Locm::read(&ram, tables.locm), Ok(LOCM));
}

#[test]
fn a_successors_tables_can_be_made_from_a_first_hosts_memory() {
    let bochs = bochs();
    let (ram, _) = built(&bochs, FIRST, &[0, 1]);
    let mut again = bochs.clone();
    again.ram = ram;
    assert_eq!(built(&bochs, SUCCESSOR, &[2, 3]).1, built(&again, SUCCESSOR, &[2, 3]).1);
}

#[test]
fn a_small_buffer_says_how_much_is_missing() {
    for (name, fixture, build) in all() {
        let machine = fixture.machine();
        let mut out = [0; 4096];
        let needed = build(&machine, &firmware(&[0]), TABLES, &mut out).unwrap().len;
        for have in [0, 35, 36, 400, needed - 1] {
            let error = build(&machine, &firmware(&[0]), TABLES, &mut out[..have]).unwrap_err();
            assert_eq!(error, BuildError::TooSmall { needed, have }, "{name}");
            assert!(error.to_string().contains(&format!("{} more", needed - have)));
        }
        build(&machine, &firmware(&[0]), TABLES, &mut out[..needed]).unwrap();
    }
}

#[test]
fn cpus_that_l0_does_not_manage_are_left_out() {
    for build in [FIRST, SUCCESSOR] {
        let fixture = bochs();
        let listed = |managed: &[u32]| {
            let mut out = [0; 4096];
            let host = HostFirmware {
                managed,
                ..firmware(&[2])
            };
            let tables = build(&fixture.machine(), &host, TABLES, &mut out).unwrap();
            let mut ram = fixture.ram.clone();
            ram.add(TABLES, out[..tables.len].to_vec());
            let rsdp = Rsdp::read(&ram, tables.rsdp).unwrap();
            let machine = Machine::open(&ram, &rsdp).unwrap();
            let madt = machine.madt().unwrap();
            madt.cpus().map(|cpu| cpu.unwrap().apic_id).collect::<Vec<_>>()
        };
        assert_eq!(listed(&[0, 1, 2, 3]), [2, 0, 1, 3]);
        assert_eq!(listed(&[2, 3]), [2, 3]);
    }
}

/// As with a null pointer: Linux goes on without it.
#[test]
fn an_entry_that_cannot_be_read_is_left_out() {
    const NOWHERE: u64 = 0xdead_0000;
    let mut fixture = server();
    let count = (u32_at(fixture.ram.table(fixture.root), 4) - 36) / 8;
    let last = 36 + 8 * (count as usize - 1);
    let lost = u64_at(fixture.ram.table(fixture.root), last);
    put(fixture.ram.at_mut(fixture.root), last, &NOWHERE.to_le_bytes());
    fixture.ram.reseal(fixture.root);
    for build in [FIRST, SUCCESSOR] {
        let (ram, tables) = built(&fixture, build, &[0]);
        let xsdt = ram.table(tables.xsdt);
        let listed: Vec<u64> = xsdt[36..].chunks(8).map(|entry| u64_at(entry, 0)).collect();
        assert!(listed.len() > 3 && listed.contains(&tables.locm));
        assert!(!listed.contains(&NOWHERE) && !listed.contains(&lost), "{listed:x?}");
    }
}

#[test]
fn impossible_requests_are_refused() {
    let fixture = server();
    let machine = fixture.machine();
    let mut out = [0; 4096];
    let mut refused = |host: HostFirmware<'_>, phys| first_host_tables(&machine, &host, phys, &mut out).unwrap_err();
    assert_eq!(refused(firmware(&[]), TABLES), BuildError::NoCpu);
    assert_eq!(refused(firmware(&[0, 77]), TABLES), BuildError::UnknownCpu(77));
    assert_eq!(
        refused(firmware(&[4]), TABLES),
        BuildError::UnknownCpu(4),
        "not enabled"
    );
    assert_eq!(refused(firmware(&[2, 2]), TABLES), BuildError::DuplicateCpu(2));
    let host = HostFirmware {
        mailbox: 0x80_8010,
        ..firmware(&[0])
    };
    assert!(matches!(
        refused(host, TABLES),
        BuildError::Misaligned { align: 4096, .. }
    ));
    assert!(matches!(
        refused(firmware(&[0]), TABLES + 8),
        BuildError::Misaligned { align: 16, .. }
    ));
    let last = u64::MAX - 15;
    assert_eq!(
        refused(firmware(&[0]), last),
        BuildError::AddressOverflow { addr: last }
    );
}

#[test]
fn a_machine_without_madt_gets_no_host() {
    let mut fixture = bochs();
    fixture.ram.at_mut(fixture.madt)[0] ^= 1;
    let error = first_host_tables(&fixture.machine(), &firmware(&[0]), TABLES, &mut [0; 4096]);
    assert_eq!(error, Err(BuildError::Machine(AcpiError::Missing(Signature::MADT))));
}
