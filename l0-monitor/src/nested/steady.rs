//! What the steady path ([`super::steady_path`]) has prepared, and which exits it takes.

use crate::nested::host_area::{HostArea, Kept};
use crate::vmx::exit::Reason;

/// What the steady state is about. Void (`ready` is false) as soon as anything happens that it depends on; the next
/// VMRESUME that is served in the ordinary way prepares it anew.
#[derive(Clone, Copy, Debug)]
pub struct Steady {
    /// The rest holds: the host is in VMX operation in 64-bit mode and has a current VMCS, which is adopted; its
    /// host-state area is valid for VM entry; CR0 and CR4 show it the bits that VMX fixes.
    pub ready: bool,
    /// The guest has run since the shadow was attached.
    pub ran: bool,
    /// Exit information in the shadow that other exits clear; see [`CLASSES`].
    pub stale: u8,
    /// Exits change the guest interrupt status: the host has virtual interrupts delivered.
    pub interrupts: bool,
    /// What else every exit may change: [`PML`] or nothing.
    pub always: u8,
    /// Address of the host's current VMCS.
    pub current: u64,
    /// The host's own area, as adopted.
    pub area: HostArea,
    /// What else an exit loads.
    pub kept: Kept,
}

impl Steady {
    /// Nothing is prepared.
    pub const NONE: Self = Self {
        ready: false,
        ran: false,
        stale: 0,
        interrupts: false,
        always: 0,
        current: 0,
        area: HostArea::ZERO,
        kept: Kept::ZERO,
    };
}

/// The exit qualification is defined, or else cleared (SDM vol. 3C, 29.2.1).
pub const QUALIFICATION: u8 = 1;
/// The VM-exit interruption information is valid, or else marked invalid (29.2.2).
pub const INTERRUPTION: u8 = 2;
/// The guest-physical address is defined; it is undefined after other exits (29.2.1).
pub const PHYSICAL: u8 = 4;
/// The pages that the guest writes are logged, which moves the PML index.
pub const PML: u8 = 8;
/// An event was injected.
pub const EVENT: u8 = 0x10;
/// Not for the steady state.
pub const OTHER: u8 = 0x80;
/// Must be copied once more when the next exit has none of it.
pub const CLEARED: u8 = QUALIFICATION | INTERRUPTION;

/// What each basic exit reason has of the exit information that is not copied always (SDM vol. 3D, appendix C).
pub static CLASSES: [u8; 64] = classes();

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

const fn classes() -> [u8; 64] {
    let mut table = [OTHER; 64];
    let mut i = 0;
    while i < PLAIN.len() {
        table[PLAIN[i].0 as usize] = 0;
        i += 1;
    }
    i = 0;
    while i < QUALIFIED.len() {
        table[QUALIFIED[i].0 as usize] = QUALIFICATION;
        i += 1;
    }
    table[Reason::EXTERNAL_INTERRUPT.0 as usize] = INTERRUPTION;
    table[Reason::EPT_VIOLATION.0 as usize] = QUALIFICATION | PHYSICAL;
    table[Reason::EPT_MISCONFIG.0 as usize] = PHYSICAL;
    table
}
