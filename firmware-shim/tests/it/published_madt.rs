//! MADTs with the CPUs and IOAPICs of real servers, as their published boot logs print them. Sources: [`crate::machines`],
//! and for the IOAPICs of four sockets a log of a Cascade Lake server under Xen.

use crate::fixture::{Fixture, Ram, TABLES, firmware, ioapic, lapic, madt_body, server, source_override, table};
use firmware_shim::acpi::{
    BuildError, HostFirmware, HostTables, Machine, MadtEntry, Rsdp, first_host_tables, successor_tables,
};

type Build = fn(&Machine<'_, Ram>, &HostFirmware<'_>, u64, &mut [u8]) -> Result<HostTables, BuildError>;

/// A server's CPUs in the order in which Linux lists them, and its IOAPICs as (address, first GSI).
struct Board {
    name: &'static str,
    cpus: Vec<u8>,
    ioapics: Vec<(u32, u32)>,
}

fn boards() -> [Board; 4] {
    // The same ids in each socket.
    let sockets = |bases: &[u8], cores: &[u8]| -> Vec<u8> {
        bases
            .iter()
            .flat_map(|base| cores.iter().map(move |core| base + core))
            .collect()
    };
    let x11_cores = [0, 2, 4, 6, 8, 0x10, 0x12, 0x14, 0x16, 0x18];
    let first_threads = sockets(&[0, 0x20], &x11_cores);
    let second_threads = first_threads.iter().map(|id| id + 1);
    let qssc_cores = [
        0, 1, 2, 3, 4, 5, 0x10, 0x11, 0x12, 0x13, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x30, 0x31, 0x32, 0x33,
    ];
    let eights = |address: u32, gsi: u32| (0..4).map(move |nth| (address + nth * 0x8000, gsi + nth * 8));
    [
        Board {
            name: "Supermicro X11DAi-N, 40 CPUs; of 9 IOAPICs all but the second have 8 pins",
            cpus: first_threads.iter().copied().chain(second_threads).collect(),
            ioapics: vec![
                (0xfec0_0000, 0),
                (0xfec0_1000, 24),
                (0xfec0_8000, 32),
                (0xfec1_0000, 40),
                (0xfec1_8000, 48),
                (0xfec2_0000, 72),
                (0xfec2_8000, 80),
                (0xfec3_0000, 88),
                (0xfec3_8000, 96),
            ],
        },
        Board {
            name: "Supermicro X10DRT, 16 CPUs",
            cpus: sockets(&[0, 0x10], &[0, 2, 4, 6, 8, 0xa, 0xc, 0xe]),
            ioapics: vec![(0xfec0_0000, 0), (0xfec0_1000, 24), (0xfec4_0000, 48)],
        },
        Board {
            name: "HPE DL325 Gen10, 32 CPUs, IOAPICs between devices",
            cpus: sockets(&[0, 0x10, 0x20, 0x30], &[0, 1, 2, 3, 8, 9, 0xa, 0xb]),
            ioapics: vec![
                (0xfec0_0000, 0),
                (0xfda0_0000, 24),
                (0xe0a0_0000, 56),
                (0xc5a0_0000, 88),
                (0xaaa0_0000, 120),
            ],
        },
        Board {
            name: "QCI QSSC-S4R, 80 CPUs, with the 17 IOAPICs of a newer server of four sockets",
            cpus: sockets(&[0, 0x40, 0x80, 0xc0], &qssc_cores),
            ioapics: [(0xfec0_0000, 0), (0xfec0_1000, 24)]
                .into_iter()
                .chain([(0xfec0_8000, 32), (0xfec1_0000, 40), (0xfec1_8000, 48)])
                .chain(eights(0xfec2_0000, 72))
                .chain(eights(0xfec4_0000, 120))
                .chain(eights(0xfec6_0000, 168))
                .collect(),
        },
    ]
}

/// The server of the other tests with the board's MADT, in which entries for CPUs that are not there follow, as firmware
/// leaves them.
fn fixture(board: &Board) -> Fixture {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for (uid, &id) in board.cpus.iter().enumerate() {
        entries.push(lapic(uid as u8, id, 1));
    }
    for uid in board.cpus.len()..120 {
        entries.push(lapic(uid as u8, 0xff, 0));
    }
    for (id, &(address, gsi)) in board.ioapics.iter().enumerate() {
        entries.push(ioapic(id as u8 + 8, address, gsi));
    }
    entries.push(source_override(0, 2, 0));
    entries.push(source_override(9, 9, 0xd));
    let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
    let mut fixture = server();
    let madt = fixture.ram.0.iter_mut().find(|(at, _)| *at == fixture.madt).unwrap();
    madt.1 = table(b"APIC", 3, &madt_body(0xfee0_0000, 1, &entries));
    fixture
}

/// CPUs and IOAPICs that a host's MADT lists.
fn listed(fixture: &Fixture, build: Build, cpus: &[u32]) -> (Vec<u32>, Vec<(u32, u32)>) {
    let mut out = [0; 8192];
    let tables = build(&fixture.machine(), &firmware(cpus), TABLES, &mut out).unwrap();
    let mut ram = fixture.ram.clone();
    ram.add(TABLES, out[..tables.len].to_vec());
    let rsdp = Rsdp::read(&ram, tables.rsdp).unwrap();
    let machine = Machine::open(&ram, &rsdp).unwrap();
    let madt = machine.madt().unwrap();
    let ioapics = madt.entries().filter_map(|entry| match entry.unwrap() {
        MadtEntry::IoApic { address, gsi_base, .. } => Some((address, gsi_base)),
        _ => None,
    });
    let cpus = madt.cpus().map(|cpu| {
        let cpu = cpu.unwrap();
        assert!(cpu.enabled());
        cpu.apic_id
    });
    (cpus.collect(), ioapics.collect())
}

#[test]
fn every_cpu_and_ioapic_is_listed_and_nothing_else() {
    for board in boards() {
        let fixture = fixture(&board);
        let all: Vec<u32> = board.cpus.iter().copied().map(u32::from).collect();
        let (last_half, boot) = (&all[all.len() / 2..], all[0]);
        let (first, ioapics) = listed(&fixture, first_host_tables, &[boot]);
        assert_eq!((first, ioapics), (all.clone(), board.ioapics.clone()), "{}", board.name);

        let (successor, ioapics) = listed(&fixture, successor_tables, last_half);
        assert_eq!(ioapics, board.ioapics, "{}", board.name);
        let mut wanted = last_half.to_vec();
        wanted.extend(&all[..all.len() / 2]);
        assert_eq!(successor, wanted, "{}: its own first", board.name);
    }
}

#[test]
fn boards_are_as_their_logs_say() {
    let sizes: Vec<_> = boards().iter().map(|b| (b.cpus.len(), b.ioapics.len())).collect();
    assert_eq!(sizes, [(40, 9), (16, 3), (32, 5), (80, 17)]);
    let [_, _, _, four_sockets] = boards();
    assert_eq!(four_sockets.cpus.last(), Some(&0xf3));
    assert_eq!(four_sockets.ioapics.last(), Some(&(0xfec7_8000, 192)));
}
