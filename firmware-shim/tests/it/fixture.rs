//! Machines made of bytes: an emulated PC with an ACPI 1.0 BIOS, and a server with UEFI tables.

use firmware_shim::acpi::{HostFirmware, Locm, Machine, Rsdp};
use firmware_shim::{OutOfRange, PhysMem};

/// Physical memory: pieces at addresses.
#[derive(Clone, Debug, Default)]
pub struct Ram(pub Vec<(u64, Vec<u8>)>);

impl Ram {
    pub fn add(&mut self, addr: u64, bytes: Vec<u8>) -> u64 {
        self.0.push((addr, bytes));
        addr
    }

    /// The bytes at `addr`, up to the end of their piece.
    pub fn at(&self, addr: u64) -> &[u8] {
        self.0
            .iter()
            .find_map(|(base, bytes)| bytes.get(usize::try_from(addr.checked_sub(*base)?).ok()?..))
            .unwrap_or_else(|| panic!("nothing at {addr:#x}"))
    }

    pub fn at_mut(&mut self, addr: u64) -> &mut [u8] {
        self.0
            .iter_mut()
            .find_map(|(base, bytes)| bytes.get_mut(usize::try_from(addr.checked_sub(*base)?).ok()?..))
            .unwrap_or_else(|| panic!("nothing at {addr:#x}"))
    }

    /// The whole table at `addr`.
    pub fn table(&self, addr: u64) -> &[u8] {
        let bytes = self.at(addr);
        &bytes[..u32_at(bytes, 4) as usize]
    }

    /// Sets the checksum of the table at `addr` right again, after a test has changed it.
    pub fn reseal(&mut self, addr: u64) {
        let len = self.table(addr).len();
        let table = &mut self.at_mut(addr)[..len];
        table[9] = 0;
        table[9] = 0u8.wrapping_sub(sum(table));
    }
}

impl PhysMem for Ram {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let found = self.0.iter().find_map(|(base, bytes)| {
            let start = usize::try_from(addr.checked_sub(*base)?).ok()?;
            bytes.get(start..start.checked_add(buf.len())?)
        });
        buf.copy_from_slice(found.ok_or(OutOfRange { addr, len: buf.len() })?);
        Ok(())
    }
}

pub fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// A table with a right length and checksum, made without the crate under test.
pub fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut out = signature.to_vec();
    out.extend((36 + body.len() as u32).to_le_bytes());
    out.extend([revision, 0]);
    out.extend(b"BOCHS BXPCTEST");
    out.extend(1u32.to_le_bytes());
    out.extend(b"BXPC");
    out.extend(1u32.to_le_bytes());
    out.extend(body);
    out[9] = 0u8.wrapping_sub(sum(&out));
    out
}

pub fn rsdp_v1(rsdt: u32) -> Vec<u8> {
    let mut out = b"RSD PTR \0BOCHS \0".to_vec();
    out.extend(rsdt.to_le_bytes());
    out[8] = 0u8.wrapping_sub(sum(&out));
    out
}

pub fn rsdp_v2(xsdt: u64) -> Vec<u8> {
    let mut out = b"RSD PTR \0SERVER\x02\0\0\0\0".to_vec();
    out.extend(36u32.to_le_bytes());
    out.extend(xsdt.to_le_bytes());
    out.extend([0; 4]);
    out[8] = 0u8.wrapping_sub(sum(&out[..20]));
    out[32] = 0u8.wrapping_sub(sum(&out));
    out
}

pub fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Body of Bochs' ACPI 1.0 FADT (`rombios32.c`), 116 bytes with its header.
fn bochs_fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    let mut t = vec![0; 116];
    put(&mut t, 36, &facs.to_le_bytes());
    put(&mut t, 40, &dsdt.to_le_bytes());
    put(&mut t, 44, &[1]); // interrupt model, ACPI 1.0 only
    put(&mut t, 46, &9u16.to_le_bytes()); // SCI
    put(&mut t, 48, &0xb2u32.to_le_bytes()); // SMI command
    put(&mut t, 52, &[0xf1, 0xf0]); // enable, disable
    put(&mut t, 56, &0xb000u32.to_le_bytes()); // PM1a event
    put(&mut t, 64, &0xb004u32.to_le_bytes()); // PM1a control
    put(&mut t, 76, &0xb008u32.to_le_bytes()); // PM timer
    put(&mut t, 80, &0xafe0u32.to_le_bytes()); // GPE0
    put(&mut t, 88, &[4, 2, 0, 4, 4, 0]); // lengths: PM1 event, control, PM2, timer, GPE0, GPE1
    put(&mut t, 96, &0xfffu16.to_le_bytes());
    put(&mut t, 98, &0xfffu16.to_le_bytes());
    put(&mut t, 112, &0x75u32.to_le_bytes()); // WBINVD, C1, no power button, no sleep button, no RTC
    t.split_off(36)
}

pub fn madt_body(lapic: u32, flags: u32, entries: &[&[u8]]) -> Vec<u8> {
    let mut body = lapic.to_le_bytes().to_vec();
    body.extend(flags.to_le_bytes());
    body.extend(entries.concat());
    body
}

pub fn lapic(uid: u8, id: u8, flags: u32) -> Vec<u8> {
    let mut e = vec![0, 8, uid, id];
    e.extend(flags.to_le_bytes());
    e
}

pub fn x2apic(uid: u32, id: u32, flags: u32) -> Vec<u8> {
    let mut e = vec![9, 16, 0, 0];
    e.extend(id.to_le_bytes());
    e.extend(flags.to_le_bytes());
    e.extend(uid.to_le_bytes());
    e
}

pub fn ioapic(id: u8, address: u32, gsi: u32) -> Vec<u8> {
    let mut e = vec![1, 12, id, 0];
    e.extend(address.to_le_bytes());
    e.extend(gsi.to_le_bytes());
    e
}

pub fn source_override(source: u8, gsi: u32, flags: u16) -> Vec<u8> {
    let mut e = vec![2, 10, 0, source];
    e.extend(gsi.to_le_bytes());
    e.extend(flags.to_le_bytes());
    e
}

/// A machine: its memory and the addresses of its tables.
#[derive(Clone)]
pub struct Fixture {
    pub ram: Ram,
    pub rsdp: u64,
    pub root: u64,
    pub fadt: u64,
    pub madt: u64,
    pub dsdt: u64,
    pub facs: u64,
    /// The tables that the XSDT of a first host lists of the machine's own.
    pub others: Vec<u64>,
    /// Those that a successor's lists.
    pub successors: Vec<u64>,
}

impl Fixture {
    pub fn machine(&self) -> Machine<'_, Ram> {
        let rsdp = Rsdp::read(&self.ram, self.rsdp).unwrap();
        Machine::open(&self.ram, &rsdp).unwrap()
    }
}

/// Bochs with four CPUs: RSDP 1.0 in the BIOS area, RSDT, FADT revision 1, no PCI Express.
pub fn bochs() -> Fixture {
    let mut ram = Ram::default();
    let mut bda = vec![0; 0x100];
    put(&mut bda, 0x0e, &0x9fc0u16.to_le_bytes());
    ram.add(0x400, bda);
    ram.add(0x9_fc00, vec![0; 0x400]);
    let mut bios = vec![0; 0x2_0000];
    let (rsdp, root) = (0xf_a1a0, 0x7fff_0000);
    put(&mut bios, (rsdp - 0xe_0000) as usize, &rsdp_v1(root as u32));
    ram.add(0xe_0000, bios);

    let facs = ram.add(0x7fff_1000, {
        let mut facs = b"FACS".to_vec();
        facs.extend(64u32.to_le_bytes());
        facs.resize(64, 0);
        facs
    });
    let dsdt = ram.add(0x7fff_2000, table(b"DSDT", 1, &[]));
    let fadt = ram.add(0x7fff_3000, {
        let mut fadt = table(b"FACP", 1, &bochs_fadt(facs as u32, dsdt as u32));
        put(&mut fadt, 16, b"BXPCFACP");
        fadt
    });
    ram.reseal(fadt);
    let ssdt = ram.add(0x7fff_4000, table(b"SSDT", 1, &[]));
    let nmi = [4, 6, 0xff, 0, 0, 1];
    let madt = ram.add(
        0x7fff_5000,
        table(
            b"APIC",
            1,
            &madt_body(
                0xfee0_0000,
                1,
                &[
                    &lapic(0, 0, 1),
                    &lapic(1, 1, 1),
                    &lapic(2, 2, 1),
                    &lapic(3, 3, 1),
                    &ioapic(4, 0xfec0_0000, 0),
                    &source_override(0, 2, 0),
                    &source_override(5, 5, 0xd),
                    &source_override(9, 9, 0xd),
                    &source_override(10, 10, 0xd),
                    &source_override(11, 11, 0xd),
                    &nmi,
                ],
            ),
        ),
    );
    let hpet = ram.add(0x7fff_6000, table(b"HPET", 1, &[0; 20]));
    let pointers = [fadt, ssdt, madt, hpet].map(|address| (address as u32).to_le_bytes());
    ram.add(root, table(b"RSDT", 1, &pointers.concat()));
    Fixture {
        ram,
        rsdp,
        root,
        fadt,
        madt,
        dsdt,
        facs,
        others: vec![ssdt, hpet],
        successors: vec![ssdt],
    }
}

/// A server: RSDP 2.0, XSDT with a null pointer in it, FADT revision 6 with a reset register, x2APIC CPUs, MCFG, DMAR.
pub fn server() -> Fixture {
    let mut ram = Ram::default();
    let (rsdp, root) = (0x6f00_0000, 0x6f00_1000);
    ram.add(rsdp, rsdp_v2(root));
    let facs = ram.add(0x6f00_2000, {
        let mut facs = b"FACS".to_vec();
        facs.extend(64u32.to_le_bytes());
        facs.resize(64, 0);
        facs
    });
    let dsdt = ram.add(0x6f00_3000, table(b"DSDT", 2, &[]));
    let fadt = ram.add(0x6f00_4000, {
        let mut t = vec![0; 276];
        put(&mut t, 36, &bochs_fadt(facs as u32, dsdt as u32));
        put(&mut t, 44, &[0, 4]); // enterprise server
        put(&mut t, 109, &0x0011u16.to_le_bytes()); // legacy devices, no ASPM
        put(&mut t, 112, &0x0004_85a5u32.to_le_bytes()); // reset register, cluster mode among others
        put(&mut t, 116, &[1, 8, 0, 1, 0xf9, 0x0c]);
        put(&mut t, 128, &[0x06]);
        put(&mut t, 131, &[1]);
        put(&mut t, 140, &dsdt.to_le_bytes());
        put(&mut t, 148, &[1, 32, 0, 2, 0x00, 0xb0]); // X_PM1a event, access size word
        put(&mut t, 172, &[1, 16, 0, 2, 0x04, 0xb0]);
        table(b"FACP", 6, &t[36..])
    });
    let ssdt = ram.add(0x6f00_5000, table(b"SSDT", 2, &[]));
    let ssdt2 = ram.add(0x6f00_5800, table(b"SSDT", 2, &[]));
    let madt = ram.add(
        0x6f00_6000,
        table(
            b"APIC",
            5,
            &madt_body(
                0xfee0_0000,
                1,
                &[
                    &lapic(0, 0, 1),
                    &lapic(1, 2, 1),
                    &lapic(2, 0xff, 0),   // invalid
                    &lapic(3, 4, 2),      // may come later
                    &lapic(4, 6, 0),      // never
                    &x2apic(5, 2, 1),     // listed twice by firmware
                    &x2apic(6, 0x100, 1), // beyond xAPIC
                    &[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
                    &ioapic(8, 0xfec0_0000, 0),
                    &ioapic(9, 0xfec0_1000, 24),
                    &source_override(0, 2, 0),
                    &source_override(9, 9, 0xd),
                    &source_override(8, 8, 5),
                    &[3, 8, 0, 0, 7, 0, 0, 0],
                    &[5, 12, 0, 0, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0],
                    &[0x7f, 4, 1, 2],                                       // reserved type
                    &[16, 16, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0], // firmware's own mailbox
                ],
            ),
        ),
    );
    let mcfg = ram.add(0x6f00_7000, {
        let mut body = vec![0; 8];
        body.extend(0x8000_0000u64.to_le_bytes());
        body.extend([0, 0, 0, 0xff, 0, 0, 0, 0]);
        table(b"MCFG", 1, &body)
    });
    let dmar = ram.add(0x6f00_8000, table(b"DMAR", 1, &[0; 12]));
    let hpet = ram.add(0x6f00_9000, table(b"HPET", 1, &[0; 20]));
    let waet = ram.add(0x6f00_a000, table(b"WAET", 1, &[0; 4]));
    let srat = ram.add(0x6f00_b000, table(b"SRAT", 3, &[0; 12]));
    let pointers = [fadt, 0, ssdt, madt, mcfg, dmar, hpet, waet, srat, ssdt2].map(u64::to_le_bytes);
    ram.add(root, table(b"XSDT", 1, &pointers.concat()));
    Fixture {
        ram,
        rsdp,
        root,
        fadt,
        madt,
        dsdt,
        facs,
        others: vec![ssdt, mcfg, hpet, waet, srat, ssdt2],
        successors: vec![ssdt, mcfg, srat, ssdt2],
    }
}

/// Where the tests put a host's tables.
pub const TABLES: u64 = 0x80_1000;

pub const LOCM: Locm = Locm {
    header_page: 0x80_0000,
    abi_revision: 7,
};

/// APIC ids that a test's machine may have.
const ALL_CPUS: [u32; 256] = {
    let mut ids = [0; 256];
    let mut id = 0;
    while id < ids.len() {
        ids[id] = id as u32;
        id += 1;
    }
    ids
};

pub fn firmware(cpus: &[u32]) -> HostFirmware<'_> {
    HostFirmware {
        cpus,
        managed: &ALL_CPUS,
        mailbox: 0x80_8000,
        reset_vector: 0x80_9000,
        locm: LOCM,
        blank: None,
    }
}
