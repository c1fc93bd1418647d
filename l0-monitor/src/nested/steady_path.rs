//! The steady path: a guest that exits and is resumed, again and again, on the same VMCS.
//!
//! These two exits are nearly all there are, so they have a way of their own, with everything prepared that did not
//! change since the last time ([`Steady`]) and with as few VMCS accesses as the result allows. Whatever is out of the
//! ordinary is left to [`crate::nested::exits`], which does the same without preconditions: the tests run every exit
//! both ways.

use crate::arch::registers::{Cr0Flags, Cr4Flags};
use crate::nested::context::Context;
use crate::nested::host_area::{self, HostArea, LoadedOnExit, replaced};
use crate::nested::shadow::{FIELDS, Shadow, shadowed};
use crate::nested::steady::{CLASSES, Copies, Steady};
use crate::vmx::Hardware;
use crate::vmx::controls::{ExitControls, SecondaryControls};
use crate::vmx::exit::{Interruption, Reason};
use crate::vmx::field::{self, Segment};
use crate::vmx::guest::AccessRights;

impl<H: Hardware> Context<'_, H> {
    /// Serves the exit if it is one of the steady path's. False if not: nothing has changed then. If true, VMRESUME
    /// comes next, for the guest if `in_guest` is set.
    #[inline(always)]
    pub(crate) fn steady(&mut self) -> bool {
        if !self.vcpu.steady.ready {
            false
        } else if self.vcpu.in_guest {
            self.steady_exit()
        } else {
            self.steady_resume()
        }
    }

    #[inline(always)]
    fn steady_exit(&mut self) -> bool {
        let reason = self.hw.get(field::EXIT_REASON);
        let Some(class) = usize::try_from(reason).ok().and_then(|r| CLASSES.get(r)) else {
            return false;
        };
        if *class == Copies::OTHER {
            return false;
        }
        self.separate_predictors();
        let steady = &mut self.vcpu.steady;
        let copies = *class | steady.stale | steady.always;
        if self.vcpu.shadow.attached {
            steady.stale = *class & Copies::CLEARED;
            let interrupts = steady.interrupts;
            fill(&mut self.vcpu.shadow, self.hw, reason, copies, interrupts);
        }
        self.hw.select(&self.vcpu.vmcs01);
        self.vcpu.in_guest = false;
        host_area::reload(self.hw, &steady.area, &steady.loaded, self.vcpu.caps.fixed);
        true
    }

    #[inline(always)]
    fn steady_resume(&mut self) -> bool {
        if self.hw.get(field::EXIT_REASON) != u64::from(Reason::VMRESUME.0)
            || !AccessRights::from_bits_retain(self.hw.get(Segment::Cs.guest_rights())).is_64_bit_kernel()
        {
            return false;
        }
        let vcpu = &mut *self.vcpu;
        if vcpu.shadow.attached {
            vcpu.shadow.take_over(self.hw, &vcpu.steady.current);
            vcpu.steady.area.0[replaced::RSP] = vcpu.shadow.in_both[shadowed::HOST_RSP];
        } else {
            self.hw.select(&vcpu.steady.current);
        }
        vcpu.steady.ran = true;
        vcpu.in_guest = true;
        true
    }

    /// Prepares the steady path, if the host is in it: at a VMLAUNCH or VMRESUME. VMCS01 is current; the host's VMCS
    /// is afterwards.
    pub(crate) fn prepare_steady(&mut self, current: u64, area: HostArea) {
        let long_mode = AccessRights::from_bits_retain(self.read(Segment::Cs.guest_rights())).is_64_bit_kernel();
        let cr0 = Cr0Flags::from_bits_retain(self.read(field::CR0_SHADOW));
        let cr4 = Cr4Flags::from_bits_retain(self.read(field::CR4_SHADOW));
        let fixed_bits = cr0.contains(self.vcpu.caps.fixed.cr0)
            && cr4
                .intersection(Cr4Flags::from_bits_retain(area.0[replaced::CR4]))
                .contains(self.vcpu.caps.fixed.cr4);
        self.hw.select(&current);
        let loaded = LoadedOnExit::read(self.hw);
        let controls = self.hw.get(field::SECONDARY_CONTROLS) as u32;
        let controls = SecondaryControls::from_bits_retain(controls);
        let usual = loaded.exit_controls.contains(ExitControls::HOST_64)
            && !loaded.exit_controls.contains(ExitControls::SAVE_PREEMPTION_TIMER);
        self.vcpu.steady = Steady {
            ready: long_mode && fixed_bits && usual,
            ran: true,
            stale: Copies::CLEARED,
            interrupts: controls.contains(SecondaryControls::VIRTUAL_INTERRUPTS)
                && self.vcpu.shadow.has(shadowed::STATUS),
            always: if controls.contains(SecondaryControls::PML) && self.vcpu.shadow.has(shadowed::PML) {
                Copies::PML
            } else {
                Copies::empty()
            },
            current,
            area,
            loaded,
        };
    }
}

/// [`Shadow::fill`] after a guest's exit, of what the exit changed: `reason` was read, `copies` says which of the exit
/// information is new, `interrupts` that the guest interrupt status may be. The current VMCS is the host's before, the
/// shadow or none after.
#[inline(always)]
fn fill(shadow: &mut Shadow, hw: &mut impl Hardware, reason: u64, copies: Copies, interrupts: bool) {
    let rip = hw.get(field::GUEST_RIP);
    let rflags = hw.get(field::GUEST_RFLAGS);
    let interruptibility = hw.get(field::GUEST_INTERRUPTIBILITY);
    let vectoring = hw.get(field::IDT_VECTORING);
    let length = hw.get(field::INSTRUCTION_LENGTH);
    let code = hw.get(Segment::Cs.guest_rights());
    let stack = hw.get(Segment::Ss.guest_rights());
    let status = if interrupts {
        hw.get(field::GUEST_INTERRUPT_STATUS)
    } else {
        shadow.in_both[shadowed::STATUS]
    };
    // VM entry takes the event, and the exit clears the valid bit (SDM vol. 3C, 26.8.3).
    let injected = u8::from(Interruption(shadow.in_both[shadowed::ENTRY]).is_valid());
    let copies = copies | Copies::from_bits_retain(injected * Copies::EVENT.bits());
    let values = if copies.is_empty() {
        [0; AFTER_SOME_EXITS.len()]
    } else {
        read_after_some_exits(hw, copies)
    };
    hw.select(&shadow.phys);
    shadow.set(hw, shadowed::REASON, reason);
    shadow.set(hw, shadowed::RIP, rip);
    shadow.set(hw, shadowed::RFLAGS, rflags);
    shadow.set(hw, shadowed::INTERRUPTIBILITY, interruptibility);
    shadow.set(hw, shadowed::VECTORING, vectoring);
    shadow.set(hw, shadowed::LENGTH, length);
    shadow.set(hw, shadowed::CODE, code);
    shadow.set(hw, shadowed::STACK, stack);
    shadow.set(hw, shadowed::STATUS, status);
    if !copies.is_empty() {
        for ((flags, index), value) in AFTER_SOME_EXITS.into_iter().zip(values) {
            if copies.intersects(flags) {
                shadow.set(hw, index, value);
            }
        }
    }
    shadow.put_down(hw);
}

/// What is copied after some exits only, and which.
const AFTER_SOME_EXITS: [(Copies, usize); 5] = [
    (Copies::PML, shadowed::PML),
    (Copies::EVENT, shadowed::ENTRY),
    (Copies::INTERRUPTION, shadowed::INTERRUPTION),
    (Copies::QUALIFICATION.union(Copies::PHYSICAL), shadowed::QUALIFICATION),
    (Copies::QUALIFICATION.union(Copies::PHYSICAL), shadowed::PHYSICAL),
];

/// Reads the fields of [`AFTER_SOME_EXITS`] that an exit of this kind has.
#[inline(always)]
fn read_after_some_exits(hw: &mut impl Hardware, copies: Copies) -> [u64; AFTER_SOME_EXITS.len()] {
    AFTER_SOME_EXITS.map(|(flags, index)| {
        if copies.intersects(flags) {
            hw.get(FIELDS[index])
        } else {
            0
        }
    })
}
