//! VMX capabilities (SDM vol. 3D, appendix A) and the controls L0 runs a host with.

use crate::arch::registers::{Cr0Flags, Cr4Flags};

/// IA32_FEATURE_CONTROL.
pub const IA32_FEATURE_CONTROL: u32 = 0x3a;
/// IA32_VMX_BASIC.
pub const IA32_VMX_BASIC: u32 = 0x480;
/// IA32_VMX_MISC.
pub const IA32_VMX_MISC: u32 = 0x485;
const PROCBASED_CTLS2: u32 = 0x48b;
/// IA32_VMX_EPT_VPID_CAP.
pub const IA32_VMX_EPT_VPID_CAP: u32 = 0x48c;
const TRUE_PINBASED: u32 = 0x48d;
const TRUE_PROCBASED: u32 = 0x48e;
const TRUE_EXIT: u32 = 0x48f;
const TRUE_ENTRY: u32 = 0x490;
const CR0_FIXED0: u32 = 0x486;
const CR4_FIXED0: u32 = 0x488;
const CR4_FIXED1: u32 = 0x489;

/// Primary processor-based controls.
pub mod primary {
    /// Use I/O bitmaps.
    pub const IO_BITMAPS: u32 = 1 << 25;
    /// Use MSR bitmaps.
    pub const MSR_BITMAPS: u32 = 1 << 28;
    /// Activate secondary controls.
    pub const SECONDARY: u32 = 1 << 31;
}

/// Secondary processor-based controls.
pub mod secondary {
    /// Enable EPT.
    pub const EPT: u32 = 1 << 1;
    /// Enable RDTSCP.
    pub const RDTSCP: u32 = 1 << 3;
    /// Enable VPID.
    pub const VPID: u32 = 1 << 5;
    /// Unrestricted guest.
    pub const UNRESTRICTED: u32 = 1 << 7;
    /// Virtual-interrupt delivery.
    pub const VIRTUAL_INTERRUPTS: u32 = 1 << 9;
    /// Enable INVPCID.
    pub const INVPCID: u32 = 1 << 12;
    /// VMCS shadowing.
    pub const VMCS_SHADOWING: u32 = 1 << 14;
    /// Enable page-modification logging.
    pub const PML: u32 = 1 << 17;
    /// Enable XSAVES and XRSTORS.
    pub const XSAVES: u32 = 1 << 20;
    /// Enable user-level wait and pause.
    pub const USER_WAIT: u32 = 1 << 26;
}

/// VM-exit controls.
pub mod exit {
    /// Save debug controls.
    pub const SAVE_DEBUG: u32 = 1 << 2;
    /// Host address-space size: the monitor runs in 64-bit mode.
    pub const HOST_64: u32 = 1 << 9;
    /// Save IA32_EFER.
    pub const SAVE_EFER: u32 = 1 << 20;
    /// Load IA32_EFER.
    pub const LOAD_EFER: u32 = 1 << 21;
    /// Save VMX-preemption timer value.
    pub const SAVE_PREEMPTION_TIMER: u32 = 1 << 22;
}

/// VM-entry controls.
pub mod entry {
    /// Load debug controls.
    pub const LOAD_DEBUG: u32 = 1 << 2;
    /// IA-32e mode guest.
    pub const IA32E: u32 = 1 << 9;
    /// Load IA32_EFER.
    pub const LOAD_EFER: u32 = 1 << 15;
}

/// What the CPU lacks for L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// CPUID.1:ECX.VMX is clear.
    NoVmx,
    /// Firmware locked VMX off in IA32_FEATURE_CONTROL.
    LockedOff,
    /// No TRUE control MSRs (IA32_VMX_BASIC bit 55).
    NoTrueControls,
    /// EPT or unrestricted guest is missing.
    NoUnrestricted,
    /// A control that L0 needs can't be set.
    NoControl,
}

/// What unrestricted guest takes out of the bits of CR0 that VMX fixes (SDM vol. 3D, appendix A.7).
const NOT_FIXED: Cr0Flags = Cr0Flags::PROTECTED_MODE_ENABLE.union(Cr0Flags::PAGING);

/// Bits of the control registers that must be 1 in VMX operation (SDM vol. 3D, appendixes A.7 and A.8): a host sees its
/// own values of them, the CPU has these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedBits {
    /// Of CR0, but for PE and PG: L0 has unrestricted guest.
    pub cr0: Cr0Flags,
    /// Of CR4.
    pub cr4: Cr4Flags,
}

/// The controls of a VMCS01 and what the CPU fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// VMCS revision identifier.
    pub revision: u32,
    /// Pin-based controls.
    pub pin: u32,
    /// Primary controls.
    pub primary: u32,
    /// Secondary controls.
    pub secondary: u32,
    /// VMCS shadowing, with VMWRITE to every field (IA32_VMX_MISC bit 29). Not part of [`Self::secondary`]: it is on
    /// only while the host has a current VMCS.
    pub shadowing: bool,
    /// Exit controls.
    pub exit: u32,
    /// Entry controls, without IA-32e mode guest.
    pub entry: u32,
    /// Bits that must be 1 in VMX operation.
    pub fixed: FixedBits,
    /// CR4 bits that may be 1.
    pub cr4_allowed: Cr4Flags,
    /// EPT can map 1 GiB pages.
    pub ept_1g: bool,
    /// IA32_VMX_EPT_VPID_CAP.
    pub ept_vpid: u64,
    /// MAXPHYADDR (CPUID.80000008H:EAX).
    pub phys_bits: u32,
}

fn adjust(msr: u64, want: u32) -> Option<u32> {
    let must = msr as u32;
    let may = (msr >> 32) as u32;
    if want & !may != 0 { None } else { Some(want | must) }
}

impl Caps {
    /// Of a CPU that is not known yet.
    pub const NONE: Self = Self {
        revision: 0,
        pin: 0,
        primary: 0,
        secondary: 0,
        shadowing: false,
        exit: 0,
        entry: 0,
        fixed: FixedBits {
            cr0: Cr0Flags::empty(),
            cr4: Cr4Flags::empty(),
        },
        cr4_allowed: Cr4Flags::empty(),
        ept_1g: false,
        ept_vpid: 0,
        phys_bits: 0,
    };

    /// Works out the controls. `cpuid_vmx` is CPUID.1:ECX bit 5, `phys_bits` CPUID.80000008H:EAX
    /// bits 7:0; `rdmsr` reads a capability MSR.
    ///
    /// # Errors
    /// [`Unfit`] names what is missing.
    pub fn new(cpuid_vmx: bool, phys_bits: u32, mut rdmsr: impl FnMut(u32) -> Option<u64>) -> Result<Self, Unfit> {
        if !cpuid_vmx {
            return Err(Unfit::NoVmx);
        }
        let feature = rdmsr(IA32_FEATURE_CONTROL).ok_or(Unfit::NoVmx)?;
        if feature & 5 != 5 {
            return Err(Unfit::LockedOff);
        }
        let basic = rdmsr(IA32_VMX_BASIC).ok_or(Unfit::NoVmx)?;
        if basic & 1 << 55 == 0 {
            return Err(Unfit::NoTrueControls);
        }
        let mut read = |msr| rdmsr(msr).ok_or(Unfit::NoControl);
        let primary_msr = read(TRUE_PROCBASED)?;
        if primary_msr >> 32 & u64::from(primary::SECONDARY) == 0 {
            return Err(Unfit::NoUnrestricted);
        }
        let secondary_msr = read(PROCBASED_CTLS2)?;
        let needed = secondary::EPT | secondary::UNRESTRICTED;
        let secondary = adjust(secondary_msr, needed).ok_or(Unfit::NoUnrestricted)?;
        // Instructions that would raise #UD in non-root operation unless enabled, where the CPU has them.
        let wanted =
            secondary::VPID | secondary::RDTSCP | secondary::INVPCID | secondary::XSAVES | secondary::USER_WAIT;
        let secondary = secondary | wanted & (secondary_msr >> 32) as u32;
        let can_shadow = secondary_msr >> 32 & u64::from(secondary::VMCS_SHADOWING) != 0;
        let shadowing = can_shadow && read(IA32_VMX_MISC)? & 1 << 29 != 0;
        let ept_vpid = read(IA32_VMX_EPT_VPID_CAP)?;
        let need = |msr, want| adjust(msr, want).ok_or(Unfit::NoControl);
        Ok(Self {
            revision: basic as u32 & 0x7fff_ffff,
            pin: need(read(TRUE_PINBASED)?, 0)?,
            primary: need(
                primary_msr,
                primary::IO_BITMAPS | primary::MSR_BITMAPS | primary::SECONDARY,
            )?,
            secondary,
            shadowing,
            exit: need(
                read(TRUE_EXIT)?,
                // EFER is saved but not loaded: KVM counts on the live one for guests whose EFER is the host's.
                exit::HOST_64 | exit::SAVE_DEBUG | exit::SAVE_EFER,
            )?,
            entry: need(read(TRUE_ENTRY)?, entry::LOAD_DEBUG | entry::LOAD_EFER)?,
            fixed: FixedBits {
                cr0: Cr0Flags::from_bits_retain(read(CR0_FIXED0)?).difference(NOT_FIXED),
                cr4: Cr4Flags::from_bits_retain(read(CR4_FIXED0)?),
            },
            cr4_allowed: Cr4Flags::from_bits_retain(read(CR4_FIXED1)?),
            ept_1g: ept_vpid & 1 << 17 != 0,
            ept_vpid,
            phys_bits: phys_bits.min(52),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn haswell(msr: u32) -> Option<u64> {
        Some(match msr {
            IA32_FEATURE_CONTROL => 5,
            IA32_VMX_BASIC => 0x00da_0400_0000_0010,
            IA32_VMX_MISC => 0x2004_01e0,
            TRUE_PINBASED => 0x0000_007f_0000_0016,
            TRUE_PROCBASED => 0xfff9_fffe_0400_6172,
            PROCBASED_CTLS2 => 0x0000_7fff_0000_0000,
            TRUE_EXIT => 0x007f_ffff_0003_6dfb,
            TRUE_ENTRY => 0x0000_ffff_0000_11fb,
            IA32_VMX_EPT_VPID_CAP => 0x0f01_0633_4141,
            CR0_FIXED0 => 0x8000_0021,
            CR4_FIXED0 => 0x2000,
            CR4_FIXED1 => 0x1767ff,
            _ => return None,
        })
    }

    #[test]
    fn a_haswell_fits() {
        let caps = Caps::new(true, 39, haswell).unwrap();
        assert_eq!(caps.fixed.cr0, Cr0Flags::NUMERIC_ERROR);
        assert_eq!(caps.fixed.cr4, Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS);
        assert_eq!(caps.secondary & secondary::XSAVES, 0, "this CPU has none");
        assert!(caps.secondary & secondary::INVPCID != 0 && caps.ept_1g);
        assert_eq!(caps.exit & exit::HOST_64, exit::HOST_64);
        assert!(caps.shadowing && caps.secondary & secondary::VMCS_SHADOWING == 0);
        let read_only = |msr| {
            if msr == IA32_VMX_MISC { Some(0) } else { haswell(msr) }
        };
        assert!(!Caps::new(true, 39, read_only).unwrap().shadowing);
    }

    #[test]
    fn unfit_cpus_are_named() {
        assert_eq!(Caps::new(false, 39, haswell), Err(Unfit::NoVmx));
        let locked = |msr| {
            if msr == IA32_FEATURE_CONTROL {
                Some(1)
            } else {
                haswell(msr)
            }
        };
        assert_eq!(Caps::new(true, 39, locked), Err(Unfit::LockedOff));
        let no_ug = |msr| {
            if msr == PROCBASED_CTLS2 {
                Some(0x2_0000_0000)
            } else {
                haswell(msr)
            }
        };
        assert_eq!(Caps::new(true, 39, no_ug), Err(Unfit::NoUnrestricted));
    }
}
