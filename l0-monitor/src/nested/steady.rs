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

const fn classes() -> [u8; 64] {
    let mut table = [OTHER; 64];
    // External interrupt.
    table[1] = INTERRUPTION;
    // Interrupt and NMI window, CPUID, HLT, RDPMC, RDTSC, VMCALL, RDMSR, WRMSR, MTF, PAUSE, TPR threshold, RDTSCP,
    // preemption timer, WBINVD, XSETBV.
    let plain = [7, 8, 10, 12, 15, 16, 18, 31, 32, 37, 40, 43, 51, 52, 54, 55];
    // INVLPG, CR, DR, I/O, MWAIT, APIC access, EOI, APIC write, PML full.
    let qualified = [14, 28, 29, 30, 36, 44, 45, 56, 62];
    let mut i = 0;
    while i < plain.len() {
        table[plain[i]] = 0;
        i += 1;
    }
    i = 0;
    while i < qualified.len() {
        table[qualified[i]] = QUALIFICATION;
        i += 1;
    }
    table[Reason::EPT_VIOLATION.0 as usize] = QUALIFICATION | PHYSICAL;
    table[Reason::EPT_MISCONFIG.0 as usize] = PHYSICAL;
    table
}
