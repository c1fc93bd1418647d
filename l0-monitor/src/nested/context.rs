//! One exit of the host being served: the helpers that every handler uses. VMCS01 is current.

use locum_abi::Event;
use x86_64::structures::idt::{ExceptionVector, PageFaultErrorCode};

use crate::arch::general::Register;
use crate::arch::registers::{Cr4Flags, DEBUGCTL_BTF, EferFlags, RFlags};
use crate::nested::vcpu::VCpu;
use crate::nested::walk::{Fault, Paging};
use crate::partition::Violation;
use crate::partition::io_filter::Verdict;
use crate::vmx::exit::{InstructionInfo, Interruption, IoAccess, Reason};
use crate::vmx::field::{self, Field, Segment};
use crate::vmx::guest::{AccessRights, Interruptibility, PendingDebug};
use crate::vmx::{Hardware, VmxStatus};

/// An exception for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exception {
    /// #UD.
    InvalidOpcode,
    /// #GP(0).
    GeneralProtection,
    /// #PF with error code at this linear address.
    Page(PageFaultErrorCode, u64),
}

/// The CPU's state, its hardware and what is around it while an exit is served.
pub(crate) struct Context<'a, H: Hardware> {
    /// State.
    pub(crate) vcpu: &'a mut VCpu,
    /// Hardware.
    pub(crate) hw: &'a mut H,
    /// Partition and trace.
    pub(crate) around: &'a dyn Surroundings<H>,
}

/// What an exit meets outside its CPU: the rules of the partition, and the trace.
pub(crate) trait Surroundings<H: Hardware> {
    /// Whether the host may touch these bytes of RAM: nothing a host names is touched before this says yes.
    fn may_touch(&self, address: u64, bytes: u64) -> bool;
    /// A port access; see [`crate::partition::Partition::port`].
    fn port(&self, hw: &mut H, io: IoAccess, value: u32) -> Verdict;
    /// An access that EPT refused.
    fn violation(&self, address: u64, write: bool) -> Violation;
    /// An access to an IOAPIC.
    fn ioapic(&self, hw: &mut H, address: u64, write: Option<u32>) -> u32;
    /// Leaves a record in the trace ring.
    fn trace(&self, event: Event);
}

impl<H: Hardware> Context<'_, H> {
    /// A field of the current VMCS. VMCS01 is current and has every field that L0 asks for, so a failure can only be a
    /// bug of L0: it is traced, and 0 stands in.
    pub(crate) fn read(&mut self, field: Field) -> u64 {
        self.hw.vmread(field).unwrap_or_else(|status| {
            self.vmx_fail(Reason::VMREAD, status, field);
            0
        })
    }

    /// Writes a field of the current VMCS, under the same terms.
    pub(crate) fn write(&mut self, field: Field, value: u64) {
        let status = self.hw.vmwrite(field, value);
        if !status.ok() {
            self.vmx_fail(Reason::VMWRITE, status, field);
        }
    }

    fn vmx_fail(&mut self, instruction: Reason, status: VmxStatus, field: Field) {
        self.around.trace(Event::VmxFail {
            instruction: instruction.0,
            rflags: status.apply(0),
            field: field.0.into(),
        });
    }

    /// A general register of the host, RSP included.
    pub(crate) fn gpr(&mut self, register: Register) -> u64 {
        if register == Register::Rsp {
            self.read(field::GUEST_RSP)
        } else {
            self.vcpu.gprs[register]
        }
    }

    /// Sets a general register of the host.
    pub(crate) fn set_gpr(&mut self, register: Register, value: u64) {
        if register == Register::Rsp {
            self.write(field::GUEST_RSP, value);
        } else {
            self.vcpu.gprs[register] = value;
        }
    }

    /// Goes past the instruction that exited: RIP, the blocking by STI or MOV SS, RFLAGS.RF (SDM vol. 3B, 19.3.1.1), and
    /// the single-step trap if RFLAGS.TF is set and not for branches alone (DEBUGCTL.BTF, 19.4.3).
    pub(crate) fn advance(&mut self) {
        let length = self.read(field::INSTRUCTION_LENGTH);
        self.advance_by(length);
    }

    /// The same for an instruction whose length the CPU does not report.
    pub(crate) fn advance_by(&mut self, length: u64) {
        let rip = self.read(field::GUEST_RIP).wrapping_add(length);
        self.write(field::GUEST_RIP, rip);
        let blocking = Interruptibility::from_bits_retain(self.read(field::GUEST_INTERRUPTIBILITY));
        let instruction = Interruptibility::STI | Interruptibility::MOV_SS;
        if blocking.intersects(instruction) {
            self.write(field::GUEST_INTERRUPTIBILITY, blocking.difference(instruction).bits());
        }
        let rflags = RFlags::from_bits_retain(self.read(field::GUEST_RFLAGS));
        if rflags.contains(RFlags::RESUME_FLAG) {
            let rflags = rflags.difference(RFlags::RESUME_FLAG);
            self.write(field::GUEST_RFLAGS, rflags.bits());
        }
        if rflags.contains(RFlags::TRAP_FLAG) && self.read(field::GUEST_DEBUGCTL) & DEBUGCTL_BTF == 0 {
            let pending = PendingDebug::from_bits_retain(self.read(field::GUEST_PENDING_DEBUG));
            self.write(field::GUEST_PENDING_DEBUG, (pending | PendingDebug::SINGLE_STEP).bits());
        }
    }

    /// Ends a VMX instruction of the host with its outcome in RFLAGS.
    pub(crate) fn finish(&mut self, status: VmxStatus) {
        let rflags = self.read(field::GUEST_RFLAGS);
        self.write(field::GUEST_RFLAGS, status.apply(rflags));
        self.advance();
    }

    /// Raises an exception at the instruction that exited. It is a fault, for which the CPU saves RFLAGS with RF set (SDM
    /// vol. 3B, 19.3.1.1); an injected one is saved as it stands in the VMCS (vol. 3C, 28.6.1.1).
    pub(crate) fn inject(&mut self, exception: Exception) {
        let (vector, has_code, code) = match exception {
            Exception::InvalidOpcode => (ExceptionVector::InvalidOpcode, false, 0),
            Exception::GeneralProtection => (ExceptionVector::GeneralProtection, true, 0),
            Exception::Page(code, address) => {
                self.hw.set_cr2(address);
                (ExceptionVector::Page, true, code.bits())
            }
        };
        let rip = self.read(field::GUEST_RIP);
        self.around.trace(Event::Inject {
            vector: vector as u8,
            error: code as u16,
            rip,
        });
        let rflags = RFlags::from_bits_retain(self.read(field::GUEST_RFLAGS)) | RFlags::RESUME_FLAG;
        self.write(field::GUEST_RFLAGS, rflags.bits());
        self.write(field::ENTRY_INTERRUPTION, Interruption::exception(vector, has_code).0);
        self.write(field::ENTRY_ERROR_CODE, code);
    }

    /// Current privilege level of the host: the DPL of SS.
    pub(crate) fn cpl(&mut self) -> u8 {
        AccessRights::from_bits_retain(self.read(Segment::Ss.guest_rights())).dpl()
    }

    /// Whether the host executes 32- or 16-bit code in IA-32e mode, or virtual-8086 code.
    pub(crate) fn is_compatibility_mode(&mut self) -> bool {
        let efer = EferFlags::from_bits_retain(self.read(field::GUEST_EFER));
        let code = AccessRights::from_bits_retain(self.read(Segment::Cs.guest_rights()));
        let virtual_8086 = RFlags::from_bits_retain(self.read(field::GUEST_RFLAGS)).contains(RFlags::VIRTUAL_8086_MODE);
        virtual_8086 || efer.contains(EferFlags::LONG_MODE_ACTIVE) && !code.contains(AccessRights::LONG)
    }

    /// Whether the host executes 64-bit code.
    pub(crate) fn is_64_bit_mode(&mut self) -> bool {
        let efer = EferFlags::from_bits_retain(self.read(field::GUEST_EFER));
        let code = AccessRights::from_bits_retain(self.read(Segment::Cs.guest_rights()));
        efer.contains(EferFlags::LONG_MODE_ACTIVE) && code.contains(AccessRights::LONG)
    }

    /// How the host translates addresses.
    pub(crate) fn paging(&mut self) -> Paging {
        Paging {
            cr3: self.read(field::GUEST_CR3),
            five_levels: Cr4Flags::from_bits_retain(self.read(field::GUEST_CR4)).contains(Cr4Flags::L5_PAGING),
        }
    }

    /// Linear address of the memory operand of the VMX instruction that exited (SDM vol. 3C, 29.2.1 "displacement" in
    /// the qualification, table 29-13 for the rest).
    pub(crate) fn operand_address(&mut self, info: InstructionInfo) -> u64 {
        let mut address = self.read(field::EXIT_QUALIFICATION);
        if let Some(base) = info.base() {
            address = address.wrapping_add(self.gpr(base));
        }
        if let Some(index) = info.index() {
            address = address.wrapping_add(self.gpr(index) << info.scale());
        }
        if info.address_size() == 4 {
            address &= 0xffff_ffff;
        }
        match info.segment() {
            segment @ (Segment::Fs | Segment::Gs) => address.wrapping_add(self.read(segment.guest_base())),
            _ => address,
        }
    }

    /// Gives a VMCS of the host its own host-state area back, if it was adopted.
    pub(crate) fn give_back(&mut self, phys: u64) {
        if let Some(checked) = self.vcpu.adopted.give_back(self.hw, phys) {
            self.around.trace(checked);
        }
    }

    /// Gives every VMCS of the host back; returns how many. The current VMCS is any of them afterwards.
    pub(crate) fn give_back_all(&mut self) -> usize {
        let count = self.vcpu.adopted.len();
        while let Some(phys) = self.vcpu.adopted.any() {
            self.give_back(phys);
        }
        count
    }

    /// The exception that a failed operand access raises.
    pub(crate) fn operand_exception(fault: Fault, linear: u64) -> Exception {
        match fault {
            Fault::Page(code) => Exception::Page(code, linear),
            Fault::Outside | Fault::NonCanonical => Exception::GeneralProtection,
        }
    }
}
