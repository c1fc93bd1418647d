//! VMX capabilities (SDM vol. 3D, appendix A) and the controls L0 runs a host with.

use bitflags::{Flags, bitflags};

use super::controls::{EntryControls, ExitControls, PinControls, PrimaryControls, SecondaryControls, TertiaryControls};
use crate::arch::msr;
use crate::arch::registers::{Cr0Flags, Cr4Flags};

bitflags! {
    /// IA32_FEATURE_CONTROL (SDM vol. 3C, 24.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct FeatureControl: u64 {
        /// Nobody can write the MSR any more.
        const LOCK = 1 << 0;
        /// VMXON is allowed outside SMX operation.
        const VMX_OUTSIDE_SMX = 1 << 2;
        /// Software may change the launch key of SGX.
        const SGX_LAUNCH_CONTROL = 1 << 17;
        /// SGX.
        const SGX = 1 << 18;
        const _ = !0;
    }

    /// IA32_VMX_BASIC (appendix A.1); bits 30:0 are the VMCS revision identifier.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Basic: u64 {
        const REVISION = 0x7fff_ffff;
        /// There are the TRUE control MSRs.
        const TRUE_CONTROLS = 1 << 55;
        const _ = !0;
    }

    /// IA32_VMX_MISC (appendix A.6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Misc: u64 {
        /// VMWRITE writes every field, those of the VM-exit information included.
        const VMWRITE_ANY = 1 << 29;
        const _ = !0;
    }

    /// IA32_VMX_EPT_VPID_CAP (appendix A.10).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct EptVpid: u64 {
        /// EPT can map 1 GiB pages.
        const PAGE_1G = 1 << 17;
        const _ = !0;
    }
}

impl FeatureControl {
    /// What the MSR becomes where firmware left it unlocked: VMX wants it locked, and what is not set then is lost until
    /// the next reset. So all is set that Linux sets (`init_ia32_feat_ctl()` in `arch/x86/kernel/cpu/feat_ctl.c`), but
    /// for VMX inside SMX, which it uses with tboot only.
    pub(crate) const fn locked(self, has_sgx: bool, has_launch_control: bool) -> Self {
        let mut wanted = self.union(Self::LOCK).union(Self::VMX_OUTSIDE_SMX);
        if has_sgx {
            wanted = wanted.union(Self::SGX);
        }
        if has_sgx && has_launch_control {
            wanted = wanted.union(Self::SGX_LAUNCH_CONTROL);
        }
        wanted
    }
}

/// A capability MSR of controls (appendixes A.3 to A.5): bits 31:0 must be 1, bits 63:32 may be.
#[derive(Clone, Copy, Debug)]
struct Settings(u64);

impl Settings {
    fn may<C: Flags<Bits = u32>>(self) -> C {
        C::from_bits_retain((self.0 >> 32) as u32)
    }

    /// The controls with what L0 wants, `None` if the CPU can't.
    fn with<C: Flags<Bits = u32> + Copy>(self, want: C) -> Option<C> {
        let must = C::from_bits_retain(self.0 as u32);
        self.may::<C>().contains(want).then(|| want.union(must))
    }
}

/// What the CPU lacks for L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unfit {
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
pub(crate) struct FixedBits {
    /// Of CR0, but for PE and PG: L0 has unrestricted guest.
    pub(crate) cr0: Cr0Flags,
    /// Of CR4, and MCE: a machine check under a host that has it clear would reset the machine, with the other host.
    pub(crate) cr4: Cr4Flags,
}

impl FixedBits {
    /// Those of CR4 without which VM entry fails.
    pub(crate) const fn cr4_of_vmx(self) -> Cr4Flags {
        self.cr4.difference(Cr4Flags::MACHINE_CHECK_EXCEPTION)
    }
}

/// The controls of a VMCS01 and what the CPU fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Caps {
    /// VMCS revision identifier.
    pub(crate) revision: u32,
    /// Pin-based controls.
    pub(crate) pin: PinControls,
    /// Primary controls.
    pub(crate) primary: PrimaryControls,
    /// Secondary controls.
    pub(crate) secondary: SecondaryControls,
    /// Tertiary controls; empty where they are not activated.
    pub(crate) tertiary: TertiaryControls,
    /// VMCS shadowing, with VMWRITE to every field. Not part of [`Self::secondary`]: it is on only while the host has a
    /// current VMCS.
    pub(crate) shadowing: bool,
    /// Exit controls.
    pub(crate) exit: ExitControls,
    /// Entry controls, without IA-32e mode guest.
    pub(crate) entry: EntryControls,
    /// Bits that must be 1 in VMX operation.
    pub(crate) fixed: FixedBits,
    /// CR4 bits that may be 1.
    pub(crate) cr4_allowed: Cr4Flags,
    /// EPT can map 1 GiB pages.
    pub(crate) ept_1g: bool,
    /// MAXPHYADDR (CPUID.80000008H:EAX).
    pub(crate) phys_bits: u32,
}

impl Caps {
    /// Of a CPU that is not known yet.
    pub(crate) const NONE: Self = Self {
        revision: 0,
        pin: PinControls::empty(),
        primary: PrimaryControls::empty(),
        secondary: SecondaryControls::empty(),
        tertiary: TertiaryControls::empty(),
        shadowing: false,
        exit: ExitControls::empty(),
        entry: EntryControls::empty(),
        fixed: FixedBits {
            cr0: Cr0Flags::empty(),
            cr4: Cr4Flags::empty(),
        },
        cr4_allowed: Cr4Flags::empty(),
        ept_1g: false,
        phys_bits: 0,
    };

    /// Works out the controls. `cpuid_vmx` is CPUID.1:ECX bit 5, `phys_bits` CPUID.80000008H:EAX
    /// bits 7:0; `rdmsr` reads a capability MSR.
    ///
    /// # Errors
    /// [`Unfit`] names what is missing.
    pub(crate) fn new(
        cpuid_vmx: bool,
        phys_bits: u32,
        mut rdmsr: impl FnMut(u32) -> Option<u64>,
    ) -> Result<Self, Unfit> {
        if !cpuid_vmx {
            return Err(Unfit::NoVmx);
        }
        let feature = FeatureControl::from_bits_retain(rdmsr(msr::FEATURE_CONTROL).ok_or(Unfit::NoVmx)?);
        if !feature.contains(FeatureControl::LOCK | FeatureControl::VMX_OUTSIDE_SMX) {
            return Err(Unfit::LockedOff);
        }
        let basic = Basic::from_bits_retain(rdmsr(msr::VMX_BASIC).ok_or(Unfit::NoVmx)?);
        if !basic.contains(Basic::TRUE_CONTROLS) {
            return Err(Unfit::NoTrueControls);
        }
        let mut read = |msr| rdmsr(msr).ok_or(Unfit::NoControl);
        let primary = Settings(read(msr::VMX_TRUE_PROCBASED_CTLS)?);
        let may = primary.may::<PrimaryControls>();
        if !may.contains(PrimaryControls::MONITOR_TRAP) {
            return Err(Unfit::NoControl);
        }
        if !may.contains(PrimaryControls::SECONDARY) {
            return Err(Unfit::NoUnrestricted);
        }
        let (secondary, can_shadow) = secondary(Settings(read(msr::VMX_PROCBASED_CTLS2)?))?;
        let shadowing = can_shadow && Misc::from_bits_retain(read(msr::VMX_MISC)?).contains(Misc::VMWRITE_ANY);
        let ept_vpid = EptVpid::from_bits_retain(read(msr::VMX_EPT_VPID_CAP)?);
        let pin = Settings(read(msr::VMX_TRUE_PINBASED_CTLS)?).with(PinControls::empty());
        // As for the secondary ones: RDMSRLIST and WRMSRLIST raise #UD unless enabled.
        let tertiary = if may.contains(PrimaryControls::TERTIARY) {
            TertiaryControls::from_bits_retain(read(msr::VMX_PROCBASED_CTLS3)?) & TertiaryControls::MSR_LISTS
        } else {
            TertiaryControls::empty()
        };
        let mut wanted = PrimaryControls::IO_BITMAPS | PrimaryControls::MSR_BITMAPS | PrimaryControls::SECONDARY;
        wanted.set(PrimaryControls::TERTIARY, !tertiary.is_empty());
        let primary = primary.with(wanted);
        // EFER is saved but not loaded: KVM counts on the live one for guests whose EFER is the host's.
        let exit = Settings(read(msr::VMX_TRUE_EXIT_CTLS)?)
            .with(ExitControls::HOST_64 | ExitControls::SAVE_DEBUG | ExitControls::SAVE_EFER);
        let entry =
            Settings(read(msr::VMX_TRUE_ENTRY_CTLS)?).with(EntryControls::LOAD_DEBUG | EntryControls::LOAD_EFER);
        Ok(Self {
            revision: basic.intersection(Basic::REVISION).bits() as u32,
            pin: pin.ok_or(Unfit::NoControl)?,
            primary: primary.ok_or(Unfit::NoControl)?,
            secondary,
            tertiary,
            shadowing,
            exit: exit.ok_or(Unfit::NoControl)?,
            entry: entry.ok_or(Unfit::NoControl)?,
            fixed: FixedBits {
                cr0: Cr0Flags::from_bits_retain(read(msr::VMX_CR0_FIXED0)?).difference(NOT_FIXED),
                cr4: Cr4Flags::from_bits_retain(read(msr::VMX_CR4_FIXED0)?) | Cr4Flags::MACHINE_CHECK_EXCEPTION,
            },
            cr4_allowed: Cr4Flags::from_bits_retain(read(msr::VMX_CR4_FIXED1)?),
            ept_1g: ept_vpid.contains(EptVpid::PAGE_1G),
            phys_bits: phys_bits.min(52),
        })
    }
}

/// The secondary controls, and whether the CPU has VMCS shadowing.
fn secondary(settings: Settings) -> Result<(SecondaryControls, bool), Unfit> {
    let needed = SecondaryControls::EPT | SecondaryControls::UNRESTRICTED;
    // Instructions that would raise #UD in non-root operation unless enabled, where the CPU has them.
    let wanted = SecondaryControls::VPID
        | SecondaryControls::RDTSCP
        | SecondaryControls::INVPCID
        | SecondaryControls::XSAVES
        | SecondaryControls::USER_WAIT
        | SecondaryControls::PCONFIG;
    let may = settings.may::<SecondaryControls>();
    let controls = settings.with(needed).ok_or(Unfit::NoUnrestricted)?;
    Ok((controls | wanted & may, may.contains(SecondaryControls::VMCS_SHADOWING)))
}

#[cfg(test)]
mod tests {
    use locum_abi::vmx::NEEDS;

    use super::*;

    fn haswell(msr: u32) -> Option<u64> {
        Some(match msr {
            msr::FEATURE_CONTROL => 5,
            msr::VMX_BASIC => 0x00da_0400_0000_0010,
            msr::VMX_MISC => 0x2004_01e0,
            msr::VMX_TRUE_PINBASED_CTLS => 0x0000_007f_0000_0016,
            msr::VMX_TRUE_PROCBASED_CTLS => 0xfff9_fffe_0400_6172,
            msr::VMX_PROCBASED_CTLS2 => 0x0000_7fff_0000_0000,
            msr::VMX_TRUE_EXIT_CTLS => 0x007f_ffff_0003_6dfb,
            msr::VMX_TRUE_ENTRY_CTLS => 0x0000_ffff_0000_11fb,
            msr::VMX_EPT_VPID_CAP => 0x0f01_0633_4141,
            msr::VMX_CR0_FIXED0 => 0x8000_0021,
            msr::VMX_CR4_FIXED0 => 0x2000,
            msr::VMX_CR4_FIXED1 => 0x1767ff,
            _ => return None,
        })
    }

    /// The same CPU with another value of one MSR.
    fn with(msr: u32, value: u64) -> impl FnMut(u32) -> Option<u64> {
        move |asked| if asked == msr { Some(value) } else { haswell(asked) }
    }

    #[test]
    fn a_haswell_fits() {
        let caps = Caps::new(true, 39, haswell).unwrap();
        assert_eq!(caps.revision, 0x10);
        assert_eq!(caps.fixed.cr0, Cr0Flags::NUMERIC_ERROR);
        assert_eq!(caps.fixed.cr4_of_vmx(), Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS);
        assert!(caps.fixed.cr4.contains(Cr4Flags::MACHINE_CHECK_EXCEPTION));
        assert!(!caps.secondary.contains(SecondaryControls::XSAVES), "this CPU has none");
        assert!(caps.secondary.contains(SecondaryControls::INVPCID) && caps.ept_1g);
        assert_eq!((caps.pin.bits(), caps.primary.bits()), (0x16, 0x9600_6172));
        assert_eq!((caps.exit.bits(), caps.entry.bits()), (0x0013_6fff, 0x91ff));
        assert!(caps.shadowing && !caps.secondary.contains(SecondaryControls::VMCS_SHADOWING));
        assert!(!Caps::new(true, 39, with(msr::VMX_MISC, 0)).unwrap().shadowing);
    }

    /// The words for those who ask before L0 is there are the needs of this code.
    #[test]
    fn what_others_are_told_is_what_is_needed() {
        let whole = |msr| NEEDS.iter().find(|need| need.msr == msr).map(|need| need.bits);
        let bare = |asked| Some(whole(asked).unwrap_or(if asked == msr::FEATURE_CONTROL { 5 } else { 0 }));
        assert!(Caps::new(true, 39, bare).is_ok(), "no more is needed than that");
        for need in NEEDS {
            for bit in (0..u64::BITS).filter(|bit| need.bits >> bit & 1 != 0) {
                let lacking =
                    |asked| bare(asked).map(|value| if asked == need.msr { value & !(1 << bit) } else { value });
                assert!(
                    Caps::new(true, 39, lacking).is_err(),
                    "{:#x} without bit {bit}",
                    need.msr
                );
            }
        }
    }

    #[test]
    fn instructions_that_would_be_undefined_are_enabled() {
        let all = with(msr::VMX_PROCBASED_CTLS2, 0xffff_ffff_0000_0000);
        let caps = Caps::new(true, 39, all).unwrap();
        let enabled = SecondaryControls::RDTSCP
            | SecondaryControls::INVPCID
            | SecondaryControls::XSAVES
            | SecondaryControls::USER_WAIT
            | SecondaryControls::PCONFIG;
        assert!(caps.secondary.contains(enabled));
    }

    #[test]
    fn msr_lists_are_enabled_where_the_cpu_has_them() {
        let with_lists = |tertiary: Option<u64>| {
            move |asked| match asked {
                msr::VMX_TRUE_PROCBASED_CTLS => haswell(asked).map(|value| value | 1 << (32 + 17)),
                msr::VMX_PROCBASED_CTLS3 => tertiary,
                _ => haswell(asked),
            }
        };
        let caps = Caps::new(true, 39, with_lists(Some(!0))).unwrap();
        assert_eq!(caps.tertiary, TertiaryControls::MSR_LISTS);
        assert!(caps.primary.contains(PrimaryControls::TERTIARY));
        let caps = Caps::new(true, 39, with_lists(Some(1 << 4))).unwrap();
        assert!(caps.tertiary.is_empty() && !caps.primary.contains(PrimaryControls::TERTIARY));
        assert_eq!(Caps::new(true, 39, with_lists(None)), Err(Unfit::NoControl));
        let caps = Caps::new(true, 39, haswell).unwrap();
        assert!(caps.tertiary.is_empty() && !caps.primary.contains(PrimaryControls::TERTIARY));
    }

    #[test]
    fn what_is_locked_is_what_linux_would_have_locked() {
        let lmce = FeatureControl::from_bits_retain(1 << 20);
        assert_eq!(lmce.locked(false, true).bits(), 1 << 20 | 5);
        assert_eq!(lmce.locked(true, false).bits(), 1 << 20 | 1 << 18 | 5);
        assert_eq!(FeatureControl::empty().locked(true, true).bits(), 3 << 17 | 5);
    }

    #[test]
    fn unfit_cpus_are_named() {
        assert_eq!(Caps::new(false, 39, haswell), Err(Unfit::NoVmx));
        let locked = with(msr::FEATURE_CONTROL, FeatureControl::LOCK.bits());
        assert_eq!(Caps::new(true, 39, locked), Err(Unfit::LockedOff));
        let no_unrestricted = with(msr::VMX_PROCBASED_CTLS2, 0x2_0000_0000);
        assert_eq!(Caps::new(true, 39, no_unrestricted), Err(Unfit::NoUnrestricted));
        let no_bitmaps = with(msr::VMX_TRUE_PROCBASED_CTLS, 0x8000_0000_0000_0000);
        assert_eq!(Caps::new(true, 39, no_bitmaps), Err(Unfit::NoControl));
    }
}
