//! VM entry from outside an exit: the first one of a host on this CPU. The assembly is in [`super::vm_exit`].
#![expect(unsafe_code, reason = "VM entry switches the whole CPU")]

use crate::nested::vcpu::VCpu;

unsafe extern "C" {
    safe static l0_vm_exit: u8;
    fn l0_vm_first_enter(vcpu: *mut core::ffi::c_void) -> !;
}

/// Address that VM exits jump to.
pub(crate) fn address() -> u64 {
    (&raw const l0_vm_exit).addr() as u64
}

/// Launches VMCS01 for the first time, with the registers in `vcpu`.
///
/// # Safety
/// VMCS01 of this CPU is current, clear and filled in; `vcpu` is this CPU's.
pub(crate) unsafe fn launch(vcpu: &'static mut VCpu) -> ! {
    // SAFETY: the caller says that everything is in place; the assembly takes the state over.
    unsafe { l0_vm_first_enter((&raw mut *vcpu).cast()) }
}
