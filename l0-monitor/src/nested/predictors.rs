//! Branch predictors: a host that is nested must not be led astray by its guest.
//!
//! Natively the CPU keeps what it learned of branches in VMX root operation apart from what it learned in non-root: a
//! host that has IBRS on counts on that (CPUID's "IBRS and IBPB", IA32_ARCH_CAPABILITIES.IBRS_ALL). While it is nested,
//! both it and its guest are in non-root, where the CPU separates privilege levels but not VMCSs. So each exit of a
//! guest that is reflected to the host is an indirect branch predictor barrier (IBPB), as in KVM with its nested guests
//! (Linux commit 2e7eab81425a, `__nested_vmx_vmexit`), and under the same condition: the CPU has IBRS, so the host may
//! rely on it. The barrier comes first, before any indirect branch of L0's own.
//!
//! Nothing is needed the other way round, nor between the host and L0: that is root and non-root again.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::nested::context::Context;
use crate::vmx::Hardware;

static OFF: AtomicBool = AtomicBool::new(false);

/// Leaves barriers out, for the life of L0.
pub(crate) fn leave_out() {
    OFF.store(true, Ordering::Relaxed);
}

/// Whether a CPU that has the barrier (`has`) makes one at each exit of a guest.
pub(crate) fn wanted(has: bool) -> bool {
    has && !OFF.load(Ordering::Relaxed)
}

impl<H: Hardware> Context<'_, H> {
    /// A guest has exited, and its host is to go on.
    #[inline(always)]
    pub(crate) fn separate_predictors(&mut self) {
        if self.vcpu.barriers {
            self.hw.predictor_barrier();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::nested::exits::Next;
    use crate::nested::test_bed::*;
    use crate::vmx::exit::Reason;
    use crate::vmx::field::{self, Segment};
    use crate::vmx::guest::AccessRights;

    #[test]
    fn only_a_guests_exit_is_a_barrier_and_each_is_one() {
        for on in [true, false] {
            for (mut vcpu, mut hw) in nested() {
                vcpu.barriers = on;
                hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
                hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
                // The first round is the ordinary path's, the others are of the steady one.
                for (round, steady) in [(1, false), (2, true), (3, true)] {
                    hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
                    if !context(&mut vcpu, &mut hw).steady() {
                        assert_eq!(context(&mut vcpu, &mut hw).serve().0, Next::Guest(false));
                    }
                    let before = hw.barriers;
                    hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
                    // As if it could not be served there.
                    vcpu.steady.ready &= steady;
                    let served = context(&mut vcpu, &mut hw).steady();
                    assert_eq!(served, steady);
                    if !served {
                        assert_eq!(context(&mut vcpu, &mut hw).serve().0, Next::Host);
                    }
                    assert_eq!(hw.barriers, before + u32::from(on), "round {round}");
                }
                let before = hw.barriers;
                assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::CPUID), Next::Host);
                assert_eq!(hw.barriers, before);
            }
        }
    }
}
