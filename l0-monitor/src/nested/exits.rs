//! One VM exit, from what the CPU reports to what happens next.
//!
//! An exit of the guest is reflected to the host's KVM untouched; an exit of the host is served. Neither knows how it
//! is carried out: the result is a [`Next`], and `run` applies it.

use arrayvec::ArrayVec;
use locum_abi::{Event, StopReason};

use crate::arch::general::{self, Register};
use crate::nested::context::{Context, Exception};
use crate::nested::decode::{self, Operation};
use crate::nested::host_area::{self, LoadedOnExit};
use crate::nested::steady::Copies;
use crate::nested::vmx_instructions::Outcome;
use crate::partition::Violation;
use crate::partition::io_filter::Verdict;
use crate::vmx::Hardware;
use crate::vmx::exit::{EptViolation, ExitReason, Interruption, IoAccess, Reason};
use crate::vmx::field;
use crate::vmx::guest::Interruptibility;

/// What happens after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Continue the host (VMCS01 is current).
    Host,
    /// Enter the guest (the host's VMCS is current); true for VMLAUNCH.
    Guest(bool),
    /// The host calls: RAX is in the registers.
    Call,
    /// INIT arrived.
    Init,
    /// The host can't go on.
    Die(StopReason, [u64; 3]),
}

impl<H: Hardware> Context<'_, H> {
    /// Serves the exit that the current VMCS reports.
    pub(crate) fn serve(&mut self) -> (Next, Reason) {
        let reason = ExitReason(self.read(field::EXIT_REASON) as u32);
        let basic = reason.basic();
        if self.vcpu.in_guest {
            if basic == Reason::INIT {
                self.vcpu.in_guest = false;
                self.hw.vmptrld(self.vcpu.vmcs01);
                return (Next::Init, basic);
            }
            return (self.reflect(reason), basic);
        }
        if reason.entry_failure() {
            if basic == Reason::MACHINE_CHECK_AT_ENTRY {
                self.machine_check();
                return (Next::Host, basic);
            }
            let rip = self.read(field::GUEST_RIP);
            let qualification = self.read(field::EXIT_QUALIFICATION);
            return (
                Next::Die(StopReason::EntryFailure, [rip, reason.0.into(), qualification]),
                basic,
            );
        }
        self.vcpu.launched = true;
        (self.serve_host(basic), basic)
    }

    /// A guest's exit: the host finds itself at its own exit handler, with the state that hardware would have left.
    fn reflect(&mut self, reason: ExitReason) -> Next {
        self.separate_predictors();
        self.vcpu.in_guest = false;
        let nmi = reason.basic() == Reason::EXCEPTION_NMI && Interruption(self.read(field::EXIT_INTERRUPTION)).is_nmi();
        let loaded = LoadedOnExit::read(self.hw);
        let current = self.vcpu.belief.current.unwrap_or(0);
        let shadow = &self.vcpu.shadow;
        let area = self.vcpu.adopted.find(current).map(|entry| shadow.seen(entry.area));
        if self.vcpu.shadow.attached {
            self.vcpu.shadow.fill(self.hw);
            self.vcpu.shadow.put_down(self.hw);
            self.vcpu.steady.stale = Copies::CLEARED;
        }
        self.hw.vmptrld(self.vcpu.vmcs01);
        let Some(area) = area else {
            return Next::Die(StopReason::Unhandled, [0, reason.0.into(), current]);
        };
        let efer = self.read(field::GUEST_EFER);
        host_area::load(self.hw, &area, &loaded, self.vcpu.caps.fixed, nmi, efer);
        Next::Host
    }

    fn serve_host(&mut self, reason: Reason) -> Next {
        match reason {
            Reason::VMREAD
            | Reason::VMWRITE
            | Reason::VMRESUME
            | Reason::VMLAUNCH
            | Reason::VMPTRLD
            | Reason::VMCLEAR
            | Reason::VMPTRST
            | Reason::INVEPT
            | Reason::INVVPID
            | Reason::VMXON
            | Reason::VMXOFF
            | Reason::VMFUNC => match self.vmx_instruction(reason) {
                Outcome::Host => {}
                Outcome::Guest(launch) => return Next::Guest(launch),
            },
            Reason::CPUID => self.cpuid(),
            Reason::RDMSR => self.rdmsr(),
            Reason::WRMSR => self.wrmsr(),
            Reason::RDMSRLIST => self.msr_list(false),
            Reason::WRMSRLIST => self.msr_list(true),
            Reason::RDMSR_IMMEDIATE => self.immediate_msr(false),
            Reason::WRMSRNS_IMMEDIATE => self.immediate_msr(true),
            Reason::XSETBV => self.xsetbv(),
            Reason::INVD => self.invd(),
            Reason::CR_ACCESS => self.control_register(),
            Reason::IO => return self.io(),
            Reason::EPT_VIOLATION => return self.ept_violation(),
            Reason::INIT => return Next::Init,
            Reason::VMCALL => {
                if self.cpl() == 0 && locum_abi::Op::from_raw(self.vcpu.gprs[Register::Rax]).is_some() {
                    return Next::Call;
                }
                self.vmcall();
            }
            Reason::EXCEPTION_NMI if self.is_machine_check() => self.machine_check_exit(),
            Reason::MONITOR_TRAP if self.vcpu.check_waits => self.delayed_machine_check(),
            Reason::GETSEC => self.inject(Exception::InvalidOpcode),
            Reason::TRIPLE_FAULT => {
                let rip = self.read(field::GUEST_RIP);
                let rsp = self.read(field::GUEST_RSP);
                let cr3 = self.read(field::GUEST_CR3);
                return Next::Die(StopReason::TripleFault, [rip, rsp, cr3]);
            }
            other => {
                let rip = self.read(field::GUEST_RIP);
                let qualification = self.read(field::EXIT_QUALIFICATION);
                return Next::Die(StopReason::Unhandled, [rip, other.0.into(), qualification]);
            }
        }
        Next::Host
    }

    fn io(&mut self) -> Next {
        let io = IoAccess::new(self.read(field::EXIT_QUALIFICATION));
        if io.string {
            self.inject(Exception::GeneralProtection);
            return Next::Host;
        }
        let rax = self.vcpu.gprs[Register::Rax];
        match self.around.port(self.hw, io, rax as u32) {
            Verdict::Value(value) => {
                self.vcpu.gprs[Register::Rax] = general::written(rax, io.size, value.into());
            }
            Verdict::Done => {}
            Verdict::Power => {
                self.around.trace(Event::PowerFiltered {
                    port: io.port,
                    value: rax as u32,
                });
                // Its own end, and not that of the host beside it.
                let rip = self.read(field::GUEST_RIP);
                return Next::Die(StopReason::PoweredOff, [rip, io.port.into(), rax & 0xffff_ffff]);
            }
        }
        self.advance();
        Next::Host
    }

    fn ept_violation(&mut self) -> Next {
        let address = self.read(field::GUEST_PHYSICAL_ADDRESS);
        let qualification = EptViolation::from_bits_retain(self.read(field::EXIT_QUALIFICATION));
        let rip = self.read(field::GUEST_RIP);
        let write = qualification.contains(EptViolation::WRITE);
        let violation = self.around.violation(address, write);
        match violation {
            Violation::Retry => {
                self.deliver_again(qualification.contains(EptViolation::NMI_UNBLOCKING));
                return Next::Host;
            }
            Violation::Fatal => {
                let detail = [rip, address, qualification.bits()];
                return Next::Die(StopReason::WildAccess, detail);
            }
            Violation::Refused => self.around.trace(Event::MemoryDenied {
                qualification: qualification.bits() as u32,
                address,
                rip,
            }),
            Violation::IoApic => {}
        }
        match self.fetch_mov(rip) {
            Some(mov) => {
                let stored = match mov.operation {
                    Operation::Load(_) => None,
                    Operation::Store(register) => Some(self.gpr(register)),
                    Operation::StoreImmediate(value) => Some(value),
                };
                let value = if violation == Violation::IoApic && mov.size == 4 {
                    self.around.ioapic(self.hw, address, stored.map(|value| value as u32))
                } else {
                    !0
                };
                if let Operation::Load(register) = mov.operation {
                    self.load_register(register, mov.size, value);
                }
                self.advance_by(u64::from(mov.length));
            }
            None => self.inject(Exception::GeneralProtection),
        }
        Next::Host
    }

    /// The access that failed may have been part of the delivery of an event, or of an IRET that ended the blocking of
    /// NMIs (`unblocked`): both are made good, so that the retry is complete (SDM vol. 3C, 29.2.4 and 28.9).
    pub(super) fn deliver_again(&mut self, unblocked: bool) {
        let event = Interruption(self.read(field::IDT_VECTORING));
        let blocking = Interruptibility::from_bits_retain(self.read(field::GUEST_INTERRUPTIBILITY));
        if !event.is_valid() {
            if unblocked {
                let blocked = blocking | Interruptibility::NMI;
                self.write(field::GUEST_INTERRUPTIBILITY, blocked.bits());
            }
            return;
        }
        self.write(field::ENTRY_INTERRUPTION, event.again().0);
        let code = self.read(field::IDT_VECTORING_ERROR);
        self.write(field::ENTRY_ERROR_CODE, code);
        let length = self.read(field::INSTRUCTION_LENGTH);
        self.write(field::ENTRY_INSTRUCTION_LENGTH, length);
        if event.is_nmi() {
            let unblocked = blocking.difference(Interruptibility::NMI);
            self.write(field::GUEST_INTERRUPTIBILITY, unblocked.bits());
        }
    }

    fn load_register(&mut self, register: Register, size: u8, value: u32) {
        let old = self.gpr(register);
        self.set_gpr(register, general::written(old, size, value as i32 as u64));
    }

    /// Fetches and decodes the instruction at `rip`; the CPU reports neither its bytes nor its length for an EPT
    /// violation.
    fn fetch_mov(&mut self, rip: u64) -> Option<decode::Mov> {
        let paging = self.paging();
        let may_touch = |address, bytes| self.around.may_touch(address, bytes);
        let mut bytes = ArrayVec::<u8, { decode::LONGEST }>::new();
        for offset in 0..decode::LONGEST as u64 {
            match paging.translate(self.hw, &may_touch, rip.wrapping_add(offset), false) {
                Ok(phys) if may_touch(phys, 1) => bytes.try_push(self.hw.read_phys(phys, 1) as u8).ok()?,
                _ => break,
            }
        }
        decode::mov(&bytes)
    }

    /// The host's entry into its guest failed with these RFLAGS.
    pub(crate) fn entry_failed(&mut self, rflags: u64) -> Next {
        if self.vcpu.in_guest {
            self.guest_entry_failed(rflags);
            return Next::Host;
        }
        let error = self.read(field::INSTRUCTION_ERROR);
        let rip = self.read(field::GUEST_RIP);
        Next::Die(StopReason::EntryFailure, [rip, error, rflags])
    }
}
