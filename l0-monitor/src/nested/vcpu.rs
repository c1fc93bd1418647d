//! What L0 keeps for one CPU while it is nested.
#![expect(unsafe_code, reason = "per-CPU state is reached from assembly")]

use core::cell::UnsafeCell;

use locum_abi::{MAX_CPUS, Slot};

use crate::arch::general::Registers;
use crate::id::{CpuIndex, PerCpu};
use crate::nested::adopt::Adopted;
use crate::nested::host_area::HostArea;
use crate::nested::shadow::Shadow;
use crate::nested::steady::Steady;
use crate::nested::tracing::Held;
use crate::vmx::Hardware;
use crate::vmx::caps::Caps;

/// The host's belief about VMX on this CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Belief {
    /// In VMX operation.
    pub(crate) vmx_on: bool,
    /// The VMXON region it named, if L0 saw it.
    pub(crate) vmxon_region: Option<u64>,
    /// Its current VMCS.
    pub(crate) current: Option<u64>,
}

/// Bytes below [`VCpu::gprs`] that an NMI may use as stack: exits begin with RSP in the register area.
pub(crate) const NMI_ROOM: usize = 1024;

/// One CPU's nested state. The assembly relies on the first four fields (see `doors/vm_exit.rs`).
#[repr(C, align(64))]
#[derive(Debug)]
pub(crate) struct VCpu {
    /// See [`NMI_ROOM`].
    pub(crate) nmi_room: [u8; NMI_ROOM],
    /// General registers of whoever runs above L0: the host, or its guest. They pass through L0 unchanged on the way
    /// from one to the other. RSP is kept in the VMCS, its place is not used.
    pub(crate) gprs: Registers,
    /// Top of this CPU's L0 stack.
    pub(crate) stack_top: u64,
    /// Address of the byte that tells of a machine check ([`crate::machine_check::noted_at`]).
    pub(crate) noted_at: u64,
    /// Slot of the host.
    pub(crate) slot: Slot,
    /// This CPU.
    pub(crate) cpu: CpuIndex,
    /// APIC id.
    pub(crate) apic_id: u32,
    /// L0's VMXON region is the one in use (not one of the host's).
    pub(crate) own_vmxon: bool,
    /// VMCS01 has been launched since it was last cleared: an exit has come.
    pub(crate) launched: bool,
    /// The host's machine check waits until the event before it is delivered.
    pub(crate) check_waits: bool,
    /// The guest runs (or is about to): the current VMCS is the host's.
    pub(crate) in_guest: bool,
    /// The host reads APICBASE.BSP as 1 on this CPU.
    pub(crate) pretend_bsp: bool,
    /// A guest's exit is a barrier for the branch predictors.
    pub(crate) barriers: bool,
    /// What the host has switched on that stays off in the CPU.
    pub(crate) held: Held,
    /// Physical address of VMCS01.
    pub(crate) vmcs01: u64,
    /// Physical address of L0's VMXON region.
    pub(crate) vmxon_region: u64,
    /// Changes of the slot's EPT that this CPU has seen.
    pub(crate) ept_seen: u32,
    /// What the host believes.
    pub(crate) belief: Belief,
    /// What L0 puts into the host-state area of every VMCS it enters.
    pub(crate) own_area: HostArea,
    /// The VMCSs of the host whose host-state area L0 has replaced.
    pub(crate) adopted: Adopted,
    /// What the steady path needs.
    pub(crate) steady: Steady,
    /// Shadow of the host's current VMCS.
    pub(crate) shadow: Shadow,
    /// Capabilities and controls.
    pub(crate) caps: Caps,
}

impl VCpu {
    /// A CPU that was never nested.
    pub(crate) const fn new() -> Self {
        Self {
            nmi_room: [0; NMI_ROOM],
            gprs: Registers::ZERO,
            stack_top: 0,
            noted_at: 0,
            slot: Slot::Even,
            cpu: CpuIndex::FIRST,
            apic_id: 0,
            own_vmxon: false,
            launched: false,
            check_waits: false,
            in_guest: false,
            pretend_bsp: false,
            barriers: false,
            held: Held::NONE,
            vmcs01: 0,
            vmxon_region: 0,
            ept_seen: 0,
            belief: Belief {
                vmx_on: false,
                vmxon_region: None,
                current: None,
            },
            own_area: HostArea::ZERO,
            adopted: Adopted::new(),
            steady: Steady::NONE,
            shadow: Shadow::NONE,
            caps: Caps::NONE,
        }
    }

    /// Leaves VMX operation in a region of the host's, if that is the one in use, and enters it in L0's own. VMCS01 is
    /// current afterwards, to be launched if the region has changed.
    pub(crate) fn move_to_own_region(&mut self, hw: &mut impl Hardware) {
        if !self.own_vmxon {
            self.shadow.clear(hw);
            hw.vmclear(self.vmcs01);
            hw.vmxoff();
            self.own_vmxon = hw.vmxon(self.vmxon_region).ok();
            self.launched = false;
        }
        hw.vmptrld(self.vmcs01);
    }
}

/// Where the register area is in a [`VCpu`].
pub(crate) const GPRS: usize = core::mem::offset_of!(VCpu, gprs);
const _: () = assert!(GPRS == NMI_ROOM);

struct Cell(UnsafeCell<VCpu>);

// SAFETY: each element is only used by the CPU it belongs to, see `of`.
unsafe impl Sync for Cell {}

static VCPUS: PerCpu<Cell> = PerCpu([const { Cell(UnsafeCell::new(VCpu::new())) }; MAX_CPUS]);

/// The state of CPU `cpu`.
///
/// # Safety
/// Called on that CPU, and no other reference to the state is alive: L0's doors take it once and hand it down.
pub(crate) unsafe fn of(cpu: CpuIndex) -> &'static mut VCpu {
    // SAFETY: the caller vouches for exclusive use.
    unsafe { &mut *VCPUS[cpu].0.get() }
}

/// RSP that VM exits load on `cpu`.
pub(crate) fn exit_stack(cpu: CpuIndex) -> u64 {
    VCPUS[cpu].0.get() as u64 + GPRS as u64
}
