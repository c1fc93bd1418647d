//! The controls of a VMCS (SDM vol. 3C, 26.6 to 26.8): those that L0 sets or asks for. Others that the CPU fixes, or
//! that a host's KVM uses, are kept as they are.

use bitflags::bitflags;

bitflags! {
    /// Pin-based VM-execution controls (26.6.1): L0 wants none for a host.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct PinControls: u32 {
        /// NMI exiting.
        const NMI_EXITING = 1 << 3;
        const _ = !0;
    }

    /// Primary processor-based VM-execution controls (26.6.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct PrimaryControls: u32 {
        /// Activate tertiary controls.
        const TERTIARY = 1 << 17;
        /// Use I/O bitmaps.
        const IO_BITMAPS = 1 << 25;
        /// Monitor trap flag.
        const MONITOR_TRAP = 1 << 27;
        /// Use MSR bitmaps.
        const MSR_BITMAPS = 1 << 28;
        /// Activate secondary controls.
        const SECONDARY = 1 << 31;
        const _ = !0;
    }

    /// Secondary processor-based VM-execution controls (26.6.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct SecondaryControls: u32 {
        /// Enable EPT.
        const EPT = 1 << 1;
        /// Enable RDTSCP.
        const RDTSCP = 1 << 3;
        /// Enable VPID.
        const VPID = 1 << 5;
        /// Unrestricted guest.
        const UNRESTRICTED = 1 << 7;
        /// Virtual-interrupt delivery.
        const VIRTUAL_INTERRUPTS = 1 << 9;
        /// Enable INVPCID.
        const INVPCID = 1 << 12;
        /// VMCS shadowing.
        const VMCS_SHADOWING = 1 << 14;
        /// Enable page-modification logging.
        const PML = 1 << 17;
        /// Enable XSAVES and XRSTORS.
        const XSAVES = 1 << 20;
        /// Enable user-level wait and pause.
        const USER_WAIT = 1 << 26;
        /// Enable PCONFIG.
        const PCONFIG = 1 << 27;
        const _ = !0;
    }

    /// Tertiary processor-based VM-execution controls (26.6.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct TertiaryControls: u64 {
        /// Enable MSR-list instructions.
        const MSR_LISTS = 1 << 6;
        const _ = !0;
    }

    /// Primary VM-exit controls (26.7.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct ExitControls: u32 {
        /// Save debug controls.
        const SAVE_DEBUG = 1 << 2;
        /// Host address-space size: the monitor runs in 64-bit mode.
        const HOST_64 = 1 << 9;
        /// Save IA32_EFER.
        const SAVE_EFER = 1 << 20;
        /// Load IA32_EFER.
        const LOAD_EFER = 1 << 21;
        /// Save VMX-preemption timer value.
        const SAVE_PREEMPTION_TIMER = 1 << 22;
        const _ = !0;
    }

    /// VM-entry controls (26.8.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct EntryControls: u32 {
        /// Load debug controls.
        const LOAD_DEBUG = 1 << 2;
        /// IA-32e mode guest.
        const IA32E = 1 << 9;
        /// Load IA32_EFER.
        const LOAD_EFER = 1 << 15;
        const _ = !0;
    }
}
