//! A host's FADT, revision 6 (ACPI 6.5), made from the machine's.
//!
//! Linux looks at the flag "force physical destination" only if the revision is at least 3, and old firmware, Bochs'
//! among it, has revision 1: so the table is converted, never patched. The conversion is ACPICA's own
//! (`drivers/acpi/acpica/tbfadt.c`), done ahead of it, so that it finds nothing to warn of.

use super::fadt::{BootArch, FADT_REVISION_6_LEN, Fadt, FadtFlags, block, offset as at};
use super::header::{CHECKSUM_OFFSET, LENGTH_OFFSET, SDT_HEADER_LEN};
use crate::bytes::{checksum, field, put, u8_at, u32_at};

const REVISION: u8 = 6;
const MINOR_REVISION: u8 = 5;

impl Fadt {
    /// The FADT of the first host: the machine's, converted to revision 6, with physical destination mode forced.
    #[must_use]
    pub fn for_first_host(&self) -> [u8; FADT_REVISION_6_LEN] {
        let mut out = self.bytes;
        if self.is_short() {
            // Reserved in ACPI 1.0, and not always zero; ACPICA clears them by the table's length.
            put(&mut out, at::PREFERRED_PROFILE, &[0]);
            put(&mut out, at::PSTATE_CNT, &[0]);
            put(&mut out, at::CST_CNT, &[0]);
            put(&mut out, at::RESERVED_111, &[0]);
        }
        put(&mut out, at::IAPC_BOOT_ARCH, &self.boot_arch().bits().to_le_bytes());
        for block in block::ALL {
            if let Some(register) = self.register(block) {
                put(&mut out, block.wide, &register.encode());
            }
        }
        // The FACS keeps its 32-bit pointer alone: ACPICA would load it twice if both were set.
        put(&mut out, at::X_DSDT, &self.dsdt().to_le_bytes());
        let mut flags = self.flags() | FadtFlags::FORCE_APIC_PHYSICAL_DESTINATION;
        flags.remove(FadtFlags::FORCE_APIC_CLUSTER_MODEL);
        if self.reset().is_none() {
            flags.remove(FadtFlags::RESET_REG_SUP);
            put(&mut out, at::RESET_REG, &[0; at::ARM_BOOT_ARCH - at::RESET_REG]);
        }
        if self.is_short() {
            put(&mut out, at::ARM_BOOT_ARCH, &[0; 2]);
        }
        put(&mut out, at::FLAGS, &flags.bits().to_le_bytes());
        seal(out)
    }

    /// The FADT of a successor: hardware-reduced, so no SCI, PM1, PM timer, GPE, reset register, FACS, VGA, RTC or
    /// keyboard controller; Linux then probes none of them. DSDT and vendor are the machine's.
    #[must_use]
    pub fn for_successor(&self) -> [u8; FADT_REVISION_6_LEN] {
        let mut out = [0; FADT_REVISION_6_LEN];
        put(&mut out, 0, &field::<SDT_HEADER_LEN>(&self.bytes, 0));
        let dsdt = self.dsdt();
        if let Ok(narrow) = u32::try_from(dsdt) {
            put(&mut out, at::DSDT, &narrow.to_le_bytes());
        }
        put(&mut out, at::X_DSDT, &dsdt.to_le_bytes());
        if !self.is_short() {
            put(
                &mut out,
                at::PREFERRED_PROFILE,
                &[u8_at(&self.bytes, at::PREFERRED_PROFILE)],
            );
        }
        // Latencies above 100 and 1000 us say that C2 and C3 are not there.
        put(&mut out, at::P_LVL2_LAT, &u16::MAX.to_le_bytes());
        put(&mut out, at::P_LVL3_LAT, &u16::MAX.to_le_bytes());
        let boot_arch =
            (self.boot_arch() & (BootArch::NO_MSI | BootArch::NO_ASPM)) | BootArch::NO_VGA | BootArch::NO_CMOS_RTC;
        put(&mut out, at::IAPC_BOOT_ARCH, &boot_arch.bits().to_le_bytes());
        let kept = FadtFlags::WBINVD | FadtFlags::WBINVD_FLUSH | FadtFlags::PROC_C1;
        let flags = (self.flags() & kept)
            | FadtFlags::PWR_BUTTON
            | FadtFlags::SLP_BUTTON
            | FadtFlags::FIX_RTC
            | FadtFlags::FORCE_APIC_PHYSICAL_DESTINATION
            | FadtFlags::HW_REDUCED_ACPI;
        put(&mut out, at::FLAGS, &flags.bits().to_le_bytes());
        seal(out)
    }
}

/// Sets length, revisions and checksum.
fn seal(mut out: [u8; FADT_REVISION_6_LEN]) -> [u8; FADT_REVISION_6_LEN] {
    const REVISION_OFFSET: usize = 8;
    put(&mut out, LENGTH_OFFSET, &(FADT_REVISION_6_LEN as u32).to_le_bytes());
    put(&mut out, REVISION_OFFSET, &[REVISION]);
    put(&mut out, at::MINOR_VERSION, &[MINOR_REVISION]);
    put(&mut out, CHECKSUM_OFFSET, &[0]);
    let sum = checksum(&out);
    put(&mut out, CHECKSUM_OFFSET, &[sum]);
    debug_assert_eq!(u32_at(&out, LENGTH_OFFSET) as usize, out.len());
    out
}
