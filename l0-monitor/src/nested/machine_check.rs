//! A machine check on a nested host's CPU (SDM vol. 3B, chapter 17; vol. 3C, 26.8, 28.9 and 29.2 for what VMX does).
//!
//! While the host runs, with CR4.MCE set, its checks are its own and nothing exits, and those of its guest exit to its
//! KVM as ever. L0 comes into it in three cases:
//!
//! - The check came in L0, or as L0 entered the host (exit reason 41). The host gets it at VM entry, as the exception
//!   that it would have taken where it stands.
//! - The host has CR4.MCE clear, as a successor until it has a handler. Its own CPU would reset, and with it the other
//!   host: so the CPU has MCE set, the check exits, and L0 answers it as on a parked CPU.
//! - VM entry delivers one event. If there is one that must not get lost, the monitor trap flag brings the CPU back when
//!   that one has been delivered.

use x86_64::structures::idt::ExceptionVector;

use crate::arch::msr;
use crate::arch::registers::Cr4Flags;
use crate::machine_check::{self, McgStatus};
use crate::nested::context::Context;
use crate::nested::host_area::replaced;
use crate::vmx::Hardware;
use crate::vmx::controls::PrimaryControls;
use crate::vmx::exit::Interruption;
use crate::vmx::field;
use locum_abi::Event;

/// Exceptions that exit from a host that sees this CR4.
pub(crate) const fn exceptions(cr4: Cr4Flags) -> u64 {
    if cr4.contains(Cr4Flags::MACHINE_CHECK_EXCEPTION) {
        0
    } else {
        1 << ExceptionVector::MachineCheck as u64
    }
}

impl<H: Hardware> Context<'_, H> {
    /// A check came while L0 had the CPU. The current VMCS is the one that was to be entered; VMCS01 is, afterwards.
    pub(crate) fn noted_machine_check(&mut self) {
        if self.vcpu.in_guest {
            // The host is at its VMLAUNCH or VMRESUME, and will come there again.
            self.vcpu.in_guest = false;
            self.vcpu.steady.ready = false;
            let own_cr3 = self.vcpu.own_area.0[replaced::CR3];
            self.write(field::HOST_CR3, own_cr3);
            self.hw.vmptrld(self.vcpu.vmcs01);
        }
        self.machine_check();
    }

    /// The exit is a machine check's.
    pub(super) fn is_machine_check(&mut self) -> bool {
        Interruption(self.read(field::EXIT_INTERRUPTION)).is_exception(ExceptionVector::MachineCheck)
    }

    /// The host exited by a machine check, maybe as an event was delivered to it.
    pub(super) fn machine_check_exit(&mut self) {
        let unblocked = Interruption(self.read(field::EXIT_INTERRUPTION)).nmi_unblocking();
        self.deliver_again(unblocked);
        self.machine_check();
    }

    /// The event before it is delivered.
    pub(super) fn delayed_machine_check(&mut self) {
        self.vcpu.check_waits = false;
        self.trap_after_event(false);
        self.machine_check();
    }

    fn trap_after_event(&mut self, on: bool) {
        let mut controls = PrimaryControls::from_bits_retain(self.read(field::PRIMARY_CONTROLS) as u32);
        controls.set(PrimaryControls::MONITOR_TRAP, on);
        self.write(field::PRIMARY_CONTROLS, controls.bits().into());
    }

    /// The host on this CPU is to have a check, or L0 answers it. VMCS01 is current.
    pub(super) fn machine_check(&mut self) {
        let status = machine_check::status(|msr| self.hw.rdmsr(msr));
        if !status.contains(McgStatus::MCIP) {
            // The host has finished it meanwhile.
            return;
        }
        let cr4 = Cr4Flags::from_bits_retain(self.read(field::CR4_SHADOW));
        if !cr4.contains(Cr4Flags::MACHINE_CHECK_EXCEPTION) {
            machine_check::answer(|msr| self.hw.rdmsr(msr), |event| self.around.trace(event));
            self.hw.wrmsr(msr::MCG_STATUS, 0);
        } else if Interruption(self.read(field::ENTRY_INTERRUPTION)).is_valid() {
            self.vcpu.check_waits = true;
            self.trap_after_event(true);
        } else {
            let event = Interruption::exception(ExceptionVector::MachineCheck, false);
            self.write(field::ENTRY_INTERRUPTION, event.0);
            self.around.trace(Event::MachineCheck {
                to_host: true,
                status: status.bits(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::arch::general::Register;
    use crate::arch::msr;
    use crate::arch::registers::Cr4Flags;
    use crate::nested::exits::Next;
    use crate::nested::host_area::replaced;
    use crate::nested::model::Model;
    use crate::nested::test_bed::*;
    use crate::nested::vcpu::VCpu;
    use crate::vmx::controls::PrimaryControls;
    use crate::vmx::exit::{ExitReason, Reason};
    use crate::vmx::field::{self, Segment};
    use crate::vmx::guest::AccessRights;

    const MCE: u64 = Cr4Flags::MACHINE_CHECK_EXCEPTION.bits();
    /// #MC as VM entry injects it.
    const INJECTED: u64 = 0x8000_0312;
    /// RIPV and MCIP.
    const IN_PROGRESS: u64 = 5;

    /// The CPU has taken a check, and the host's CR4 is this.
    fn check(hw: &mut Model, cr4: u64) {
        hw.msrs.insert(msr::MCG_STATUS, IN_PROGRESS);
        hw.set(VMCS01, field::CR4_SHADOW, cr4);
    }

    fn status(hw: &Model) -> u64 {
        hw.msrs[&msr::MCG_STATUS]
    }

    fn entry_event(hw: &Model) -> u64 {
        hw.field(VMCS01, field::ENTRY_INTERRUPTION)
    }

    fn traps_after_event(hw: &Model) -> bool {
        let controls = PrimaryControls::from_bits_retain(hw.field(VMCS01, field::PRIMARY_CONTROLS) as u32);
        controls.contains(PrimaryControls::MONITOR_TRAP)
    }

    fn write_cr4(vcpu: &mut VCpu, hw: &mut Model, value: u64) {
        vcpu.gprs[Register::Rax] = value;
        hw.set(VMCS01, field::EXIT_QUALIFICATION, 4);
        assert_eq!(exit_host(vcpu, hw, Reason::CR_ACCESS), Next::Host);
    }

    #[test]
    fn a_check_in_l0_is_the_hosts() {
        for (mut vcpu, mut hw) in nested() {
            check(&mut hw, FIXED.cr4.bits());
            context(&mut vcpu, &mut hw).noted_machine_check();
            assert_eq!((entry_event(&hw), status(&hw)), (INJECTED, IN_PROGRESS));
            assert_eq!(hw.field(VMCS01, field::GUEST_RIP), RIP);
        }
    }

    #[test]
    fn a_check_that_is_finished_is_nobodys() {
        for (mut vcpu, mut hw) in nested() {
            check(&mut hw, FIXED.cr4.bits());
            hw.msrs.insert(msr::MCG_STATUS, 0);
            context(&mut vcpu, &mut hw).noted_machine_check();
            assert_eq!(entry_event(&hw), 0);
        }
    }

    /// Whatever L0 was at when the check came, it looks for one as it enters (`doors/vm_exit.rs`): after every exit, by
    /// either path, the host has it next, or right behind what it was to have first.
    #[test]
    fn a_check_during_any_exit_is_the_hosts_next() {
        let of_host = [
            Reason::CPUID,
            Reason::RDMSR,
            Reason::XSETBV,
            Reason::CR_ACCESS,
            Reason::EPT_VIOLATION,
            Reason::GETSEC,
            Reason::VMCALL,
            Reason::VMREAD,
            Reason::VMWRITE,
            Reason::VMPTRLD,
            Reason::VMPTRST,
            Reason::VMCLEAR,
            Reason::INVEPT,
            Reason::VMXON,
            Reason::VMLAUNCH,
            Reason::VMRESUME,
            Reason::VMXOFF,
        ];
        let of_guest = [Reason::CPUID, Reason::EPT_VIOLATION, Reason::EXCEPTION_NMI];
        let both = of_host.map(|reason| (false, reason)).into_iter();
        for (guests, reason) in both.chain(of_guest.map(|reason| (true, reason))) {
            for (mut vcpu, mut hw) in nested() {
                hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
                hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
                hw.set(VMCS01, field::EXIT_QUALIFICATION, 0x5000);
                for round in 0..3 {
                    hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
                    if guests {
                        hw.set(VMCS01, field::EXIT_REASON, Reason::VMRESUME.0.into());
                        if !context(&mut vcpu, &mut hw).steady() {
                            assert_eq!(context(&mut vcpu, &mut hw).serve().0, Next::Guest(false));
                        }
                        hw.set(GUEST, field::EXIT_REASON, reason.0.into());
                    } else {
                        hw.set(VMCS01, field::EXIT_REASON, reason.0.into());
                    }
                    if !context(&mut vcpu, &mut hw).steady() {
                        context(&mut vcpu, &mut hw).serve();
                    }
                    // The host's CR4 as the exit has left it, with MCE.
                    check(&mut hw, FIXED.cr4.bits());
                    let first = hw.field(VMCS01, field::ENTRY_INTERRUPTION);
                    context(&mut vcpu, &mut hw).noted_machine_check();
                    assert_eq!(
                        (hw.current, vcpu.in_guest),
                        (Some(VMCS01), false),
                        "{reason:?}, round {round}"
                    );
                    if first >> 31 == 0 {
                        assert_eq!(entry_event(&hw), INJECTED, "{reason:?}, round {round}");
                    } else {
                        assert_eq!(entry_event(&hw), first, "{reason:?}, round {round}");
                        assert!(vcpu.check_waits && traps_after_event(&hw));
                        hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
                        assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::MONITOR_TRAP), Next::Host);
                        assert_eq!(entry_event(&hw), INJECTED, "{reason:?}, round {round}");
                    }
                    hw.set(VMCS01, field::GUEST_RIP, RIP);
                }
            }
        }
    }

    #[test]
    fn a_check_before_the_guest_runs_comes_before_the_instruction() {
        for (mut vcpu, mut hw) in nested() {
            // With an area that VM entry is to refuse, too.
            for cr3 in [kvm_value(GUEST, replaced::CR3), 1 << 50] {
                access(&mut vcpu, &mut hw, Reason::VMWRITE, field::HOST_CR3, cr3);
                hw.set(VMCS01, field::GUEST_RIP, RIP);
                check(&mut hw, FIXED.cr4.bits());
                hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
                assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMRESUME), Next::Guest(false));
                context(&mut vcpu, &mut hw).noted_machine_check();
                assert_eq!((hw.current, vcpu.in_guest), (Some(VMCS01), false));
                assert_eq!((entry_event(&hw), hw.field(VMCS01, field::GUEST_RIP)), (INJECTED, RIP));
                assert_eq!(hw.field(GUEST, field::HOST_CR3), vcpu.own_area.0[replaced::CR3]);
            }
            // The handler returns to the instruction.
            assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMRESUME), Next::Guest(false));
            assert_eq!(hw.current, Some(GUEST));
        }
    }

    #[test]
    fn a_host_that_takes_none_is_spared() {
        for (mut vcpu, mut hw) in nested() {
            let without = FIXED.cr4.bits() & !MCE;
            write_cr4(&mut vcpu, &mut hw, without);
            assert_eq!(
                hw.field(VMCS01, field::GUEST_CR4) & MCE,
                MCE,
                "or the machine would reset"
            );
            assert_eq!(hw.field(VMCS01, field::CR4_SHADOW) & MCE, 0);
            assert_eq!(hw.field(VMCS01, field::EXCEPTION_BITMAP), 1 << 18);
            check(&mut hw, without);
            hw.set(VMCS01, field::EXIT_INTERRUPTION, INJECTED);
            assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::EXCEPTION_NMI), Next::Host);
            assert_eq!((entry_event(&hw), status(&hw)), (0, 0));
            write_cr4(&mut vcpu, &mut hw, FIXED.cr4.bits());
            assert_eq!(hw.field(VMCS01, field::CR4_SHADOW) & MCE, MCE);
            assert_eq!(hw.field(VMCS01, field::EXCEPTION_BITMAP), 0);
        }
    }

    #[test]
    fn a_guests_exit_loads_what_the_host_has_of_mce() {
        for (mut vcpu, mut hw) in nested() {
            for (mce, exceptions) in [(0, 1 << 18), (MCE, 0)] {
                let cr4 = kvm_value(GUEST, replaced::CR4) & !MCE | mce;
                access(&mut vcpu, &mut hw, Reason::VMWRITE, field::HOST_CR4, cr4);
                // The host's CR4 has MCE, whatever an exit is to load; the rest is as the steady path wants it.
                hw.set(VMCS01, field::CR0_SHADOW, FIXED.cr0.bits());
                hw.set(VMCS01, Segment::Cs.guest_rights(), AccessRights::CODE_64.bits());
                write_cr4(&mut vcpu, &mut hw, FIXED.cr4.bits());
                assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMRESUME), Next::Guest(false));
                hw.set(GUEST, field::EXIT_REASON, Reason::CPUID.0.into());
                let mut context = context(&mut vcpu, &mut hw);
                if !context.steady() {
                    assert_eq!(context.serve().0, Next::Host);
                }
                assert_eq!(hw.field(VMCS01, field::CR4_SHADOW) & MCE, mce);
                assert_eq!(hw.field(VMCS01, field::EXCEPTION_BITMAP), exceptions);
            }
        }
    }

    #[test]
    fn an_event_that_was_being_delivered_comes_first() {
        for (mut vcpu, mut hw) in nested() {
            // An external interrupt, whose delivery met a page that EPT did not map yet.
            let interrupt = 0x8000_00ec;
            hw.set(VMCS01, field::GUEST_PHYSICAL_ADDRESS, 0x5000);
            hw.set(VMCS01, field::IDT_VECTORING, interrupt);
            assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::EPT_VIOLATION), Next::Host);
            check(&mut hw, FIXED.cr4.bits());
            context(&mut vcpu, &mut hw).noted_machine_check();
            assert_eq!(entry_event(&hw), interrupt);
            assert!(traps_after_event(&hw));
            // The CPU clears the valid bit as it delivers it.
            hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            hw.set(VMCS01, field::IDT_VECTORING, 0);
            assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::MONITOR_TRAP), Next::Host);
            assert_eq!((entry_event(&hw), status(&hw)), (INJECTED, IN_PROGRESS));
            assert!(!traps_after_event(&hw));
            assert!(matches!(
                exit_host(&mut vcpu, &mut hw, Reason::MONITOR_TRAP),
                Next::Die(..)
            ));
        }
    }

    #[test]
    fn a_check_at_vm_entry_is_the_hosts() {
        for (mut vcpu, mut hw) in nested() {
            let failed = ExitReason(1 << 31 | u32::from(Reason::MACHINE_CHECK_AT_ENTRY.0));
            check(&mut hw, FIXED.cr4.bits());
            vcpu.launched = false;
            hw.set(VMCS01, field::EXIT_REASON, failed.0.into());
            assert_eq!(context(&mut vcpu, &mut hw).serve().0, Next::Host);
            assert!(!vcpu.launched, "the VMLAUNCH that failed is to be tried again");
            assert_eq!((entry_event(&hw), status(&hw)), (INJECTED, IN_PROGRESS));

            // At the entry of its guest KVM is told, as without L0.
            hw.set(VMCS01, field::ENTRY_INTERRUPTION, 0);
            assert_eq!(exit_host(&mut vcpu, &mut hw, Reason::VMRESUME), Next::Guest(false));
            assert!(vcpu.launched);
            hw.set(GUEST, field::EXIT_REASON, failed.0.into());
            assert_eq!(context(&mut vcpu, &mut hw).serve().0, Next::Host);
            assert_eq!(entry_event(&hw), 0);
            assert_eq!(
                access(&mut vcpu, &mut hw, Reason::VMREAD, field::EXIT_REASON, 0).1,
                failed.0.into()
            );
        }
    }
}
