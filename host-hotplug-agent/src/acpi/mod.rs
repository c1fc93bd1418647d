//! This host's ACPI tables, as Linux shows them in `/sys/firmware/acpi/tables`; [`aml`]: what the code in them uses.

pub mod aml;

use std::fs;

use anyhow::{Context, Result};
use firmware_shim::acpi::{Machine, MadtEntry, Rsdp, Signature};
use firmware_shim::{OutOfRange, PhysMem};
use partitioner::MemRange;

use crate::sysroot::SysRoot;

const DIR: &str = "sys/firmware/acpi/tables";
/// Where the copies pretend to be until they are placed: nothing reads there but through [`Tables`].
const PRETENDED: u64 = 0x1000;

/// Copies of tables, each at an address, and a root table that lists them.
#[derive(Clone, Debug)]
pub struct Tables {
    pieces: Vec<(u64, Vec<u8>)>,
    xsdt: u64,
}

impl Tables {
    /// Reads this host's tables. Those whose names `keep` accepts lie at addresses from `base` on, so that they can be
    /// copied there ([`Self::kept`]); the others at addresses that mean nothing.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub fn read(sys: &SysRoot, base: u64, keep: impl Fn(Signature) -> bool) -> Result<Self> {
        let (mut kept_at, mut other_at) = (base, PRETENDED);
        let mut pieces = Vec::new();
        for name in sys.list(DIR)? {
            let path = sys.path(DIR).join(&name);
            if path.is_dir() {
                continue;
            }
            let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
            let Some(signature) = bytes.first_chunk::<4>().copied().map(Signature) else {
                continue;
            };
            // The FADT has their addresses.
            if signature == Signature::DSDT || name.starts_with("FACS") {
                continue;
            }
            let at = if keep(signature) { &mut kept_at } else { &mut other_at };
            let next = (*at + bytes.len() as u64).next_multiple_of(16);
            pieces.push((std::mem::replace(at, next), bytes));
        }
        let xsdt = other_at;
        let root = root_table(&pieces);
        pieces.push((xsdt, root));
        Ok(Self { pieces, xsdt })
    }

    /// The tables by their root.
    ///
    /// # Errors
    /// If the root table is damaged.
    pub fn machine(&self) -> Result<Machine<'_, Self>> {
        let rsdp = Rsdp {
            revision: 2,
            oem_id: *b"LOCUM ",
            rsdt: 0,
            xsdt: self.xsdt,
        };
        Machine::open(self, &rsdp).context("reading this host's ACPI tables")
    }

    /// The copies at `base` and above, with their addresses.
    pub fn kept(&self, base: u64) -> impl Iterator<Item = (u64, &[u8])> {
        self.pieces
            .iter()
            .filter(move |(at, _)| *at >= base)
            .map(|(at, bytes)| (*at, bytes.as_slice()))
    }
}

impl PhysMem for Tables {
    fn read(&self, addr: u64, buf: &mut [u8]) -> Result<(), OutOfRange> {
        let found = self.pieces.iter().find_map(|(base, bytes)| {
            let start = usize::try_from(addr.checked_sub(*base)?).ok()?;
            bytes.get(start..start.checked_add(buf.len())?)
        });
        let bytes = found.ok_or(OutOfRange { addr, len: buf.len() })?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

/// An XSDT (ACPI 6.5, 5.2.8) over all pieces.
fn root_table(pieces: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut table = b"XSDT".to_vec();
    let length = firmware_shim::acpi::SDT_HEADER_LEN + 8 * pieces.len();
    table.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    table.extend_from_slice(&[1, 0]);
    table.extend_from_slice(b"LOCUM LOCUMTAB");
    table.resize(firmware_shim::acpi::SDT_HEADER_LEN, 0);
    for (at, _) in pieces {
        table.extend_from_slice(&at.to_le_bytes());
    }
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(9) {
        *checksum = 0u8.wrapping_sub(sum);
    }
    table
}

/// What the MADT says about CPUs and IOAPICs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    /// APIC ids of the enabled CPUs in Linux's order: the position is Linux's number of the CPU. (Linux numbers CPUs in
    /// the order of the MADT, but the boot CPU, which L0 always lists first.)
    pub cpus: Vec<u32>,
    /// First global system interrupt of each IOAPIC, ascending.
    pub gsi_bases: Vec<u32>,
    /// Physical addresses of the IOAPICs.
    pub addresses: Vec<u64>,
    /// ISA interrupts that are at another global system interrupt than that of their number: (interrupt, GSI).
    pub overrides: Vec<(u32, u32)>,
}

impl Interrupts {
    /// Reads the MADT.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn read(sys: &SysRoot) -> Result<Self> {
        let tables = Tables::read(sys, u64::MAX, |_| false)?;
        let madt = tables.machine()?.madt().context("reading the MADT")?;
        let mut found = Self::default();
        for cpu in madt.cpus() {
            let cpu = cpu?;
            if cpu.enabled() {
                found.cpus.push(cpu.apic_id);
            }
        }
        for entry in madt.entries() {
            match entry? {
                MadtEntry::IoApic { address, gsi_base, .. } => {
                    found.gsi_bases.push(gsi_base);
                    found.addresses.push(u64::from(address));
                }
                MadtEntry::InterruptOverride {
                    bus: 0, source, gsi, ..
                } if u32::from(source) != gsi => found.overrides.push((u32::from(source), gsi)),
                _ => {}
            }
        }
        found.gsi_bases.sort_unstable();
        Ok(found)
    }

    /// The global system interrupt of Linux's interrupt `number`: the same, but for an ISA interrupt that the firmware
    /// has wired elsewhere (Linux `mp_override_legacy_irq`).
    pub fn gsi(&self, number: u32) -> u32 {
        let moved = self.overrides.iter().find(|(source, _)| *source == number);
        moved.map_or(number, |(_, gsi)| *gsi)
    }

    /// Linux's number of the CPU with that APIC id.
    pub fn number(&self, apic_id: u32) -> Option<u32> {
        let position = self.cpus.iter().position(|&id| id == apic_id)?;
        u32::try_from(position).ok()
    }
}

/// What other tables say about places that AML uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Platform {
    /// Ports of the PM1 control registers; none in hardware-reduced ACPI.
    pub pm1_control: Vec<u16>,
    /// Windows of PCI configuration space of segment 0, from bus 0 on.
    pub ecam: Vec<MemRange>,
}

impl Platform {
    /// Reads the FADT and the MCFG.
    ///
    /// # Errors
    /// If one is damaged, or there is no FADT.
    pub fn read(sys: &SysRoot) -> Result<Self> {
        let tables = Tables::read(sys, u64::MAX, |_| false)?;
        let machine = tables.machine()?;
        let fadt = machine.fadt().context("reading the FADT")?;
        let registers = [fadt.pm1a_control(), fadt.pm1b_control()].into_iter().flatten();
        let pm1_control = registers.filter_map(|register| register.port()).collect();
        let mut ecam = Vec::new();
        if let Some(mcfg) = machine.mcfg().context("reading the MCFG")? {
            for region in mcfg.regions() {
                let region = region?;
                let end = region.range().map(|range| range.end);
                ecam.extend(
                    end.filter(|_| region.segment == 0)
                        .and_then(|end| MemRange::new(region.base, end)),
                );
            }
        }
        Ok(Self { pm1_control, ecam })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tables;

    #[test]
    fn cpus_and_ioapics_come_from_the_madt() {
        let dir = tempfile::tempdir().unwrap();
        tables::write(dir.path(), &[0, 2, 1, 3]);
        let found = Interrupts::read(&SysRoot::at(dir.path())).unwrap();
        assert_eq!(found.cpus, [0, 2, 1, 3]);
        assert_eq!(found.number(1), Some(2));
        assert_eq!(found.number(9), None);
        assert_eq!(found.gsi_bases, [0]);
        assert_eq!(found.addresses, [0xfec0_0000]);
    }

    #[test]
    fn kept_tables_lie_where_they_will_be() {
        let dir = tempfile::tempdir().unwrap();
        tables::write(dir.path(), &[0, 1]);
        let base = 0x90_0000;
        let tables = Tables::read(&SysRoot::at(dir.path()), base, |sig| sig == Signature::SSDT).unwrap();
        let kept: Vec<u64> = tables.kept(base).map(|(at, _)| at).collect();
        assert_eq!(kept, [base]);
        let machine = tables.machine().unwrap();
        assert_eq!(machine.find(Signature::SSDT).unwrap().address, base);
        assert!(machine.fadt().is_ok());
    }
}
