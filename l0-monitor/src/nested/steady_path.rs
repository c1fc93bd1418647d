//! The steady path: a guest that exits and is resumed, again and again, on the same VMCS.
//!
//! These two exits are nearly all there are, so they have a way of their own, with everything prepared that did not
//! change since the last time ([`Steady`]) and with as few VMCS accesses as the result allows. Whatever is out of the
//! ordinary is left to [`crate::nested::exits`], which does the same without preconditions: the tests run every exit
//! both ways.

use crate::arch::registers::{Cr0Flags, Cr4Flags};
use crate::nested::context::Context;
use crate::nested::host_area::{self, HostArea, Kept};
use crate::nested::shadow::{FIELDS, Shadow, at};
use crate::nested::steady::{CLASSES, CLEARED, EVENT, INTERRUPTION, OTHER, PHYSICAL, PML, QUALIFICATION, Steady};
use crate::vmx::Hardware;
use crate::vmx::controls::{ExitControls, SecondaryControls};
use crate::vmx::exit::{Interruption, Reason};
use crate::vmx::field::{self, Segment};
use crate::vmx::guest::AccessRights;

impl<H: Hardware> Context<'_, H> {
    /// Serves the exit if it is one of the steady state's. False if not: nothing has changed then. If true, VMRESUME
    /// comes next, for the guest if `in_guest` is set.
    #[inline(always)]
    pub fn steady(&mut self) -> bool {
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
        if *class == OTHER {
            return false;
        }
        let steady = &mut self.vcpu.steady;
        let what = *class | steady.stale | steady.always;
        if self.vcpu.shadow.attached {
            steady.stale = *class & CLEARED;
            let interrupts = steady.interrupts;
            fill(&mut self.vcpu.shadow, self.hw, reason, what, interrupts);
        }
        self.hw.select(&self.vcpu.vmcs01);
        self.vcpu.in_guest = false;
        host_area::reload(self.hw, &steady.area, &steady.kept, self.vcpu.caps.fixed);
        true
    }

    #[inline(always)]
    fn steady_resume(&mut self) -> bool {
        if self.hw.get(field::EXIT_REASON) != u64::from(Reason::VMRESUME.0)
            || !AccessRights::from_bits_retain(self.hw.get(Segment::Cs.guest_rights())).is_64_bit_kernel()
        {
            return false;
        }
        let cpu = &mut *self.vcpu;
        if cpu.shadow.attached {
            cpu.shadow.take_over(self.hw, &cpu.steady.current);
            cpu.steady.area.0[host_area::at::RSP] = cpu.shadow.held[at::HOST_RSP];
        } else {
            self.hw.select(&cpu.steady.current);
        }
        cpu.steady.ran = true;
        cpu.in_guest = true;
        true
    }

    /// Prepares the steady state, if the host is in it: at a VMLAUNCH or VMRESUME. VMCS01 is current; the host's VMCS
    /// is afterwards.
    pub fn prepare_steady(&mut self, current: u64, area: HostArea) {
        let long_mode = AccessRights::from_bits_retain(self.read(Segment::Cs.guest_rights())).is_64_bit_kernel();
        let cr0 = Cr0Flags::from_bits_retain(self.read(field::CR0_SHADOW));
        let cr4 = Cr4Flags::from_bits_retain(self.read(field::CR4_SHADOW));
        let fixed_bits = cr0.contains(self.vcpu.caps.fixed.cr0) && cr4.contains(self.vcpu.caps.fixed.cr4);
        self.hw.select(&current);
        let Ok(kept) = Kept::read(self.hw) else {
            return;
        };
        let controls = self.hw.vmread(field::SECONDARY_CONTROLS).unwrap_or(0) as u32;
        let controls = SecondaryControls::from_bits_retain(controls);
        let usual = kept.exit_controls.contains(ExitControls::HOST_64)
            && !kept.exit_controls.contains(ExitControls::SAVE_PREEMPTION_TIMER);
        self.vcpu.steady = Steady {
            ready: long_mode && fixed_bits && usual,
            ran: true,
            stale: CLEARED,
            interrupts: controls.contains(SecondaryControls::VIRTUAL_INTERRUPTS) && self.vcpu.shadow.has(at::STATUS),
            always: if controls.contains(SecondaryControls::PML) && self.vcpu.shadow.has(at::PML) {
                PML
            } else {
                0
            },
            current,
            area,
            kept,
        };
    }
}

/// [`Shadow::fill`] after a guest's exit, of what the exit changed: `reason` was read, `what` says which of the exit
/// information is new, `interrupts` that the guest interrupt status may be. The current VMCS is the host's before, the
/// shadow after.
#[inline(always)]
fn fill(shadow: &mut Shadow, hw: &mut impl Hardware, reason: u64, what: u8, interrupts: bool) {
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
        shadow.held[at::STATUS]
    };
    // VM entry takes the event, and the exit clears the valid bit (SDM vol. 3C, 26.8.3).
    let injected = u8::from(Interruption(shadow.held[at::ENTRY]).is_valid());
    let what = what | (injected * EVENT);
    let more = if what == 0 { [0; MORE.len()] } else { more(hw, what) };
    hw.select(&shadow.phys);
    shadow.set(hw, at::REASON, reason);
    shadow.set(hw, at::RIP, rip);
    shadow.set(hw, at::RFLAGS, rflags);
    shadow.set(hw, at::INTERRUPTIBILITY, interruptibility);
    shadow.set(hw, at::VECTORING, vectoring);
    shadow.set(hw, at::LENGTH, length);
    shadow.set(hw, at::CODE, code);
    shadow.set(hw, at::STACK, stack);
    shadow.set(hw, at::STATUS, status);
    if what != 0 {
        for ((flags, index), value) in MORE.into_iter().zip(more) {
            if what & flags != 0 {
                shadow.set(hw, index, value);
            }
        }
    }
}

/// What is copied after some exits only, and which.
const MORE: [(u8, usize); 5] = [
    (PML, at::PML),
    (EVENT, at::ENTRY),
    (INTERRUPTION, at::INTERRUPTION),
    (QUALIFICATION | PHYSICAL, at::QUALIFICATION),
    (QUALIFICATION | PHYSICAL, at::PHYSICAL),
];

/// Reads the fields of [`MORE`] that an exit of this kind has.
#[inline(always)]
fn more(hw: &mut impl Hardware, what: u8) -> [u64; MORE.len()] {
    MORE.map(
        |(flags, index)| {
            if what & flags == 0 { 0 } else { hw.get(FIELDS[index]) }
        },
    )
}
