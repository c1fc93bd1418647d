//! What the steady path ([`super::steady_path`]) has prepared, and which exits it takes.

use bitflags::bitflags;

use crate::nested::host_area::{HostArea, LoadedOnExit};
use crate::vmx::exit::Reason;

/// What the steady path is about. Void (`ready` is false) as soon as anything happens that it depends on; the next
/// VMRESUME that is served in the ordinary way prepares it anew.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steady {
    /// The rest holds: the host is in VMX operation in 64-bit mode and has a current VMCS, which is adopted; its
    /// host-state area is valid for VM entry; CR0 and CR4 show it the bits that VMX fixes.
    pub(crate) ready: bool,
    /// The guest has run since the shadow was attached.
    pub(crate) ran: bool,
    /// Exit information in the shadow that other exits clear; see [`CLASSES`].
    pub(crate) stale: Copies,
    /// Exits change the guest interrupt status: the host has virtual interrupts delivered.
    pub(crate) interrupts: bool,
    /// What else every exit may change: [`Copies::PML`] or nothing.
    pub(crate) always: Copies,
    /// Address of the host's current VMCS.
    pub(crate) current: u64,
    /// The host's own area, as adopted.
    pub(crate) area: HostArea,
    /// What else an exit loads.
    pub(crate) loaded: LoadedOnExit,
}

impl Steady {
    /// Nothing is prepared.
    pub(crate) const NONE: Self = Self {
        ready: false,
        ran: false,
        stale: Copies::empty(),
        interrupts: false,
        always: Copies::empty(),
        current: 0,
        area: HostArea::ZERO,
        loaded: LoadedOnExit::ZERO,
    };
}

bitflags! {
    /// What is copied into the shadow VMCS after some exits only, and what else the steady path has to know of an exit.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Copies: u8 {
        /// The exit qualification is defined, or else cleared (SDM vol. 3C, 29.2.1).
        const QUALIFICATION = 1 << 0;
        /// The VM-exit interruption information is valid, or else marked invalid (29.2.2).
        const INTERRUPTION = 1 << 1;
        /// The guest-physical address is defined; it is undefined after other exits (29.2.1).
        const PHYSICAL = 1 << 2;
        /// The pages that the guest writes are logged, which moves the PML index.
        const PML = 1 << 3;
        /// An event was injected.
        const EVENT = 1 << 4;
        /// Not for the steady path.
        const OTHER = 1 << 7;

        /// Must be copied once more when the next exit has none of it.
        const CLEARED = Self::QUALIFICATION.bits() | Self::INTERRUPTION.bits();
    }
}

/// What each basic exit reason has of the exit information that is not copied always (SDM vol. 3D, appendix C).
pub(crate) static CLASSES: [Copies; 64] = classes();

/// Exits that have nothing else.
const PLAIN: [Reason; 16] = [
    Reason::INTERRUPT_WINDOW,
    Reason::NMI_WINDOW,
    Reason::CPUID,
    Reason::HLT,
    Reason::RDPMC,
    Reason::RDTSC,
    Reason::VMCALL,
    Reason::RDMSR,
    Reason::WRMSR,
    Reason::MONITOR_TRAP,
    Reason::PAUSE,
    Reason::TPR_BELOW_THRESHOLD,
    Reason::RDTSCP,
    Reason::PREEMPTION_TIMER,
    Reason::WBINVD,
    Reason::XSETBV,
];

/// Exits with a qualification.
const QUALIFIED: [Reason; 9] = [
    Reason::INVLPG,
    Reason::CR_ACCESS,
    Reason::MOV_DR,
    Reason::IO,
    Reason::MWAIT,
    Reason::APIC_ACCESS,
    Reason::VIRTUALIZED_EOI,
    Reason::APIC_WRITE,
    Reason::PML_FULL,
];

const fn classes() -> [Copies; 64] {
    let mut table = [Copies::OTHER; 64];
    let mut i = 0;
    while i < PLAIN.len() {
        table[PLAIN[i].0 as usize] = Copies::empty();
        i += 1;
    }
    i = 0;
    while i < QUALIFIED.len() {
        table[QUALIFIED[i].0 as usize] = Copies::QUALIFICATION;
        i += 1;
    }
    table[Reason::EXTERNAL_INTERRUPT.0 as usize] = Copies::INTERRUPTION;
    table[Reason::EPT_VIOLATION.0 as usize] = Copies::QUALIFICATION.union(Copies::PHYSICAL);
    table[Reason::EPT_MISCONFIG.0 as usize] = Copies::PHYSICAL;
    table
}
