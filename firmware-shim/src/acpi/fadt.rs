//! The machine's FADT (ACPI 6.5, 5.2.9): its power-management registers.

use super::error::AcpiError;
use super::gas::Gas;
use super::header::SdtHeader;
use super::signature::Signature;
use crate::bytes::{u8_at, u16_at, u32_at, u64_at};
use crate::mem::PhysMem;
use bitflags::bitflags;

/// Length of a revision 6 FADT in bytes.
pub const FADT_REVISION_6_LEN: usize = 276;

/// Length of an ACPI 1.0 FADT, the shortest that holds the fixed flags.
const FADT_REVISION_1_LEN: usize = 116;

/// Longest table without the 64-bit fields. The revision byte is not to be trusted for that, the length is
/// (ACPICA, `acpi_tb_convert_fadt`).
const FADT_LAST_SHORT_LEN: usize = 132;

/// Offsets of the fields (ACPI 6.5, table 5.9).
pub(super) mod offset {
    pub const FIRMWARE_CTRL: usize = 36;
    pub const DSDT: usize = 40;
    pub const PREFERRED_PROFILE: usize = 45;
    pub const SCI_INT: usize = 46;
    pub const SMI_CMD: usize = 48;
    pub const ACPI_ENABLE: usize = 52;
    pub const ACPI_DISABLE: usize = 53;
    pub const PSTATE_CNT: usize = 55;
    pub const PM1A_EVT_BLK: usize = 56;
    pub const PM1B_EVT_BLK: usize = 60;
    pub const PM1A_CNT_BLK: usize = 64;
    pub const PM1B_CNT_BLK: usize = 68;
    pub const PM2_CNT_BLK: usize = 72;
    pub const PM_TMR_BLK: usize = 76;
    pub const GPE0_BLK: usize = 80;
    pub const GPE1_BLK: usize = 84;
    pub const PM1_EVT_LEN: usize = 88;
    pub const PM1_CNT_LEN: usize = 89;
    pub const PM2_CNT_LEN: usize = 90;
    pub const PM_TMR_LEN: usize = 91;
    pub const GPE0_BLK_LEN: usize = 92;
    pub const GPE1_BLK_LEN: usize = 93;
    pub const CST_CNT: usize = 95;
    pub const P_LVL2_LAT: usize = 96;
    pub const P_LVL3_LAT: usize = 98;
    pub const IAPC_BOOT_ARCH: usize = 109;
    pub const RESERVED_111: usize = 111;
    pub const FLAGS: usize = 112;
    pub const RESET_REG: usize = 116;
    pub const RESET_VALUE: usize = 128;
    pub const ARM_BOOT_ARCH: usize = 129;
    pub const MINOR_VERSION: usize = 131;
    pub const X_FIRMWARE_CTRL: usize = 132;
    pub const X_DSDT: usize = 140;
    pub const X_PM1A_EVT_BLK: usize = 148;
    pub const X_PM1B_EVT_BLK: usize = 160;
    pub const X_PM1A_CNT_BLK: usize = 172;
    pub const X_PM1B_CNT_BLK: usize = 184;
    pub const X_PM2_CNT_BLK: usize = 196;
    pub const X_PM_TMR_BLK: usize = 208;
    pub const X_GPE0_BLK: usize = 220;
    pub const X_GPE1_BLK: usize = 232;
}

/// A register block that the FADT names twice: as a 32-bit port with a length, and as a generic address.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub port: usize,
    pub len: usize,
    pub wide: usize,
}

/// The eight blocks, in the order of ACPICA's `fadt_info_table`.
pub(super) mod block {
    use super::{Block, offset as at};

    const fn block(port: usize, len: usize, wide: usize) -> Block {
        Block { port, len, wide }
    }

    pub const PM1A_EVENT: Block = block(at::PM1A_EVT_BLK, at::PM1_EVT_LEN, at::X_PM1A_EVT_BLK);
    pub const PM1B_EVENT: Block = block(at::PM1B_EVT_BLK, at::PM1_EVT_LEN, at::X_PM1B_EVT_BLK);
    pub const PM1A_CONTROL: Block = block(at::PM1A_CNT_BLK, at::PM1_CNT_LEN, at::X_PM1A_CNT_BLK);
    pub const PM1B_CONTROL: Block = block(at::PM1B_CNT_BLK, at::PM1_CNT_LEN, at::X_PM1B_CNT_BLK);
    pub const PM2_CONTROL: Block = block(at::PM2_CNT_BLK, at::PM2_CNT_LEN, at::X_PM2_CNT_BLK);
    pub const PM_TIMER: Block = block(at::PM_TMR_BLK, at::PM_TMR_LEN, at::X_PM_TMR_BLK);
    pub const GPE0: Block = block(at::GPE0_BLK, at::GPE0_BLK_LEN, at::X_GPE0_BLK);
    pub const GPE1: Block = block(at::GPE1_BLK, at::GPE1_BLK_LEN, at::X_GPE1_BLK);

    pub const ALL: [Block; 8] = [
        PM1A_EVENT,
        PM1B_EVENT,
        PM1A_CONTROL,
        PM1B_CONTROL,
        PM2_CONTROL,
        PM_TIMER,
        GPE0,
        GPE1,
    ];
}

bitflags! {
    /// Fixed feature flags (ACPI 6.5, table 5.10), those that a host's tables turn on.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FadtFlags: u32 {
        /// WBINVD works.
        const WBINVD = 1 << 0;
        /// WBINVD flushes but need not invalidate.
        const WBINVD_FLUSH = 1 << 1;
        /// C1 works on all CPUs.
        const PROC_C1 = 1 << 2;
        /// C2 works on a multiprocessor.
        const P_LVL2_UP = 1 << 3;
        /// No power button in the fixed registers.
        const PWR_BUTTON = 1 << 4;
        /// No sleep button in the fixed registers.
        const SLP_BUTTON = 1 << 5;
        /// No RTC wake status in the fixed registers.
        const FIX_RTC = 1 << 6;
        /// The PM timer has 32 bits instead of 24.
        const TMR_VAL_EXT = 1 << 8;
        /// The reset register is there.
        const RESET_REG_SUP = 1 << 10;
        /// More CPUs than logical flat mode can address: use logical cluster mode.
        const FORCE_APIC_CLUSTER_MODEL = 1 << 18;
        /// Use physical destination mode only.
        const FORCE_APIC_PHYSICAL_DESTINATION = 1 << 19;
        /// None of the fixed hardware is there (ACPI 5.0).
        const HW_REDUCED_ACPI = 1 << 20;
        const _ = !0;
    }
}

bitflags! {
    /// IA-PC boot architecture flags (ACPI 6.5, table 5.11).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BootArch: u16 {
        /// User-visible devices on the LPC or ISA bus.
        const LEGACY_DEVICES = 1 << 0;
        /// A keyboard controller at ports 0x60 and 0x64.
        const I8042 = 1 << 1;
        /// Probing for VGA is not safe.
        const NO_VGA = 1 << 2;
        /// No MSI.
        const NO_MSI = 1 << 3;
        /// No ASPM control by the OS.
        const NO_ASPM = 1 << 4;
        /// No CMOS RTC.
        const NO_CMOS_RTC = 1 << 5;
        const _ = !0;
    }
}

/// The machine's FADT: up to 276 bytes of it; what a shorter table lacks reads as zero.
#[derive(Clone, Copy, Debug)]
pub struct Fadt {
    pub(super) bytes: [u8; FADT_REVISION_6_LEN],
    header: SdtHeader,
}

impl Fadt {
    /// Reads the table at `addr`, of any revision from 1 to 6.
    ///
    /// # Errors
    /// [`AcpiError`] if it is damaged or shorter than ACPI 1.0's.
    pub fn read<M: PhysMem + ?Sized>(mem: &M, addr: u64) -> Result<Self, AcpiError> {
        let header = SdtHeader::read_named(mem, addr, Signature::FADT, FADT_REVISION_1_LEN)?;
        let mut bytes = [0; FADT_REVISION_6_LEN];
        let known = (header.length as usize).min(FADT_REVISION_6_LEN);
        mem.read(addr, bytes.split_at_mut(known).0)?;
        Ok(Self { bytes, header })
    }

    /// The table's header.
    #[must_use]
    pub fn header(&self) -> &SdtHeader {
        &self.header
    }

    /// Major revision of the table.
    #[must_use]
    pub fn revision(&self) -> u8 {
        self.header.revision
    }

    /// Fixed feature flags.
    #[must_use]
    pub fn flags(&self) -> FadtFlags {
        FadtFlags::from_bits_retain(u32_at(&self.bytes, offset::FLAGS))
    }

    /// Boot architecture flags. Before revision 3 these bytes are reserved, and the machine is a PC.
    #[must_use]
    pub fn boot_arch(&self) -> BootArch {
        if self.revision() < 3 || self.is_short() {
            BootArch::LEGACY_DEVICES | BootArch::I8042
        } else {
            BootArch::from_bits_retain(u16_at(&self.bytes, offset::IAPC_BOOT_ARCH))
        }
    }

    /// Interrupt of the SCI: an ISA IRQ if the machine has a dual 8259, else a global system interrupt.
    #[must_use]
    pub fn sci_interrupt(&self) -> u16 {
        u16_at(&self.bytes, offset::SCI_INT)
    }

    /// Port of the SMI command register and the values that turn ACPI mode on and off; `None` if it is always on.
    #[must_use]
    pub fn smi_command(&self) -> Option<(u16, u8, u8)> {
        let port = u16::try_from(u32_at(&self.bytes, offset::SMI_CMD)).ok()?;
        (port != 0).then_some((
            port,
            u8_at(&self.bytes, offset::ACPI_ENABLE),
            u8_at(&self.bytes, offset::ACPI_DISABLE),
        ))
    }

    /// PM1a event block: status, then enable register.
    #[must_use]
    pub fn pm1a_event(&self) -> Option<Gas> {
        self.register(block::PM1A_EVENT)
    }

    /// PM1b event block.
    #[must_use]
    pub fn pm1b_event(&self) -> Option<Gas> {
        self.register(block::PM1B_EVENT)
    }

    /// PM1a control block: where a host sets SLP_EN to power off.
    #[must_use]
    pub fn pm1a_control(&self) -> Option<Gas> {
        self.register(block::PM1A_CONTROL)
    }

    /// PM1b control block.
    #[must_use]
    pub fn pm1b_control(&self) -> Option<Gas> {
        self.register(block::PM1B_CONTROL)
    }

    /// PM2 control block.
    #[must_use]
    pub fn pm2_control(&self) -> Option<Gas> {
        self.register(block::PM2_CONTROL)
    }

    /// PM timer, 3.579545 MHz.
    #[must_use]
    pub fn pm_timer(&self) -> Option<Gas> {
        self.register(block::PM_TIMER)
    }

    /// General-purpose event block 0.
    #[must_use]
    pub fn gpe0(&self) -> Option<Gas> {
        self.register(block::GPE0)
    }

    /// General-purpose event block 1.
    #[must_use]
    pub fn gpe1(&self) -> Option<Gas> {
        self.register(block::GPE1)
    }

    /// The reset register and the value to write there, if the machine has one.
    #[must_use]
    pub fn reset(&self) -> Option<(Gas, u8)> {
        if (self.header.length as usize) <= offset::RESET_VALUE || !self.flags().contains(FadtFlags::RESET_REG_SUP) {
            return None;
        }
        let register = Gas::at(&self.bytes, offset::RESET_REG)?;
        Some((register, u8_at(&self.bytes, offset::RESET_VALUE)))
    }

    /// Physical address of the DSDT.
    #[must_use]
    pub fn dsdt(&self) -> u64 {
        self.pointer(offset::DSDT, offset::X_DSDT)
    }

    /// Physical address of the FACS, 0 if there is none.
    #[must_use]
    pub fn facs(&self) -> u64 {
        self.pointer(offset::FIRMWARE_CTRL, offset::X_FIRMWARE_CTRL)
    }

    /// Whether the table ends before the 64-bit fields.
    pub(super) fn is_short(&self) -> bool {
        self.header.length as usize <= FADT_LAST_SHORT_LEN
    }

    /// The block's 64-bit form if the table has one, else what its 32-bit form means.
    pub(super) fn register(&self, block: Block) -> Option<Gas> {
        Gas::at(&self.bytes, block.wide)
            .or_else(|| Gas::from_legacy(u32_at(&self.bytes, block.port), u8_at(&self.bytes, block.len)))
    }

    /// The 64-bit pointer, or the 32-bit one if that is zero.
    fn pointer(&self, narrow: usize, wide: usize) -> u64 {
        match u64_at(&self.bytes, wide) {
            0 => u64::from(u32_at(&self.bytes, narrow)),
            wide => wide,
        }
    }
}
