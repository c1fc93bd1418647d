//! Arbitrary and damaged input: errors, never panics.

use crate::errors;
use crate::fixture::{Fixture, Ram, TABLES, bochs, firmware, server};
use firmware_shim::acpi::{HostFirmware, Machine, Rsdp, first_host_tables, successor_tables};
use firmware_shim::linux::KernelImage;
use firmware_shim::{PhysMem, Pieces};
use proptest::prelude::*;

/// Reads everything there is to read.
fn read_all<M: PhysMem>(mem: &M, rsdp: &Rsdp) {
    let Ok(machine) = Machine::open(mem, rsdp) else {
        return;
    };
    for _ in machine.tables() {}
    if let Ok(fadt) = machine.fadt() {
        let _ = (fadt.reset(), fadt.dsdt(), fadt.for_first_host(), fadt.for_successor());
    }
    if let Ok(madt) = machine.madt() {
        for _ in madt.entries() {}
        for _ in madt.cpus() {}
    }
    if let Ok(Some(mcfg)) = machine.mcfg() {
        for region in mcfg.regions().flatten() {
            let _ = region.range();
        }
    }
    if let Ok(Some(srat)) = machine.srat() {
        for _ in srat.memory() {}
    }
    let _ = machine.boot_error_region();
    if let Ok(Some(hest)) = machine.hest() {
        for _ in hest.registers() {}
    }
    let mut out = [0; 2048];
    let _ = first_host_tables(&machine, &firmware(&[0]), TABLES, &mut out);
    let everything = 0..u64::MAX;
    let successor = HostFirmware {
        blank: Some(std::slice::from_ref(&everything)),
        ..firmware(&[0])
    };
    let _ = successor_tables(&machine, &successor, TABLES, &mut out);
}

fn fixtures() -> [Fixture; 3] {
    [bochs(), server(), errors::machine()]
}

#[test]
fn every_piece_of_memory_cut_off_anywhere() {
    for fixture in fixtures() {
        let rsdp = Rsdp::read(&fixture.ram, fixture.rsdp).unwrap();
        for (index, (_, piece)) in fixture.ram.0.iter().enumerate() {
            let step = if cfg!(miri) { 251 } else { 1 };
            for cut in (0..piece.len().min(512)).step_by(step) {
                let mut ram = fixture.ram.clone();
                ram.0[index].1.truncate(cut);
                read_all(&ram, &rsdp);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 4 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn damaged_tables_with_right_checksums(
        which in 0usize..3,
        damage in prop::collection::vec((0usize..20, 0usize..300, any::<u8>()), 1..8),
    ) {
        let mut fixture = fixtures()[which].clone();
        let rsdp = Rsdp::read(&fixture.ram, fixture.rsdp).unwrap();
        let tables: Vec<u64> = fixture.ram.0.iter().map(|(at, _)| *at).filter(|at| *at > 0x10_0000).collect();
        for (table, at, value) in damage {
            let address = tables[table % tables.len()];
            let bytes = fixture.ram.at_mut(address);
            let at = at % bytes.len();
            bytes[at] = value;
        }
        for address in tables {
            let length = fixture.ram.at(address).get(4..8).map_or(0, |raw| u32::from_le_bytes(raw.try_into().unwrap()));
            if (10..=fixture.ram.at(address).len()).contains(&(length as usize)) {
                fixture.ram.reseal(address);
            }
        }
        read_all(&fixture.ram, &rsdp);
    }

    #[test]
    fn arbitrary_rsdp(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Rsdp::parse(&bytes);
        let named = [b"RSD PTR ".as_slice(), &bytes].concat();
        let _ = Rsdp::parse(&named);
        let _ = Rsdp::read(&Pieces(&[(0x1000, &named)]), 0x1000);
    }

    #[test]
    fn arbitrary_pointers(xsdt: u64, rsdt: u32, revision: u8) {
        let rsdp = Rsdp { revision, oem_id: [0; 6], rsdt, xsdt };
        read_all(&bochs().ram, &rsdp);
        let mut everywhere = Ram::default();
        everywhere.add(xsdt, vec![0x20; 300]);
        read_all(&everywhere, &rsdp);
    }

    #[test]
    fn arbitrary_kernel_headers(mut bytes in prop::collection::vec(any::<u8>(), 0x290..0x1000), plausible: bool) {
        if plausible {
            bytes[0x202..0x206].copy_from_slice(b"HdrS");
            bytes[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
            bytes[0x207] = 3;
            bytes[0x236] |= 1;
            bytes[0x201] = 0x6a;
            bytes[0x1f1] = 1;
            bytes[0x1f5..0x1f8].fill(0);
        }
        if let Ok(kernel) = KernelImage::parse(&bytes) {
            let _ = kernel.check_load(u64::MAX, u64::MAX);
            prop_assert!(kernel.code().len() < bytes.len());
        }
    }
}
