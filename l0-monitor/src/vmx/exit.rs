//! Exit reasons and qualifications (SDM vol. 3C, 29.2; vol. 3D, appendix C).

use bitflags::bitflags;
use x86_64::structures::idt::ExceptionVector;

use super::field::Segment;
use crate::arch::general::Register;

/// Basic exit reason (SDM vol. 3D, appendix C): those that L0 knows of an open set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reason(pub(crate) u16);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:expr;)*) => {
        impl Reason { $($(#[$doc])* pub(crate) const $name: Self = Self($code);)* }
    };
}

reasons! {
    /// Exception or NMI.
    EXCEPTION_NMI = 0;
    /// External interrupt.
    EXTERNAL_INTERRUPT = 1;
    /// Triple fault.
    TRIPLE_FAULT = 2;
    /// INIT signal.
    INIT = 3;
    /// Interrupt window.
    INTERRUPT_WINDOW = 7;
    /// NMI window.
    NMI_WINDOW = 8;
    /// CPUID.
    CPUID = 10;
    /// GETSEC.
    GETSEC = 11;
    /// HLT.
    HLT = 12;
    /// INVD.
    INVD = 13;
    /// INVLPG.
    INVLPG = 14;
    /// RDPMC.
    RDPMC = 15;
    /// RDTSC.
    RDTSC = 16;
    /// VMCALL.
    VMCALL = 18;
    /// VMCLEAR.
    VMCLEAR = 19;
    /// VMLAUNCH.
    VMLAUNCH = 20;
    /// VMPTRLD.
    VMPTRLD = 21;
    /// VMPTRST.
    VMPTRST = 22;
    /// VMREAD.
    VMREAD = 23;
    /// VMRESUME.
    VMRESUME = 24;
    /// VMWRITE.
    VMWRITE = 25;
    /// VMXOFF.
    VMXOFF = 26;
    /// VMXON.
    VMXON = 27;
    /// Control-register access.
    CR_ACCESS = 28;
    /// MOV DR.
    MOV_DR = 29;
    /// I/O instruction.
    IO = 30;
    /// RDMSR.
    RDMSR = 31;
    /// WRMSR.
    WRMSR = 32;
    /// MWAIT.
    MWAIT = 36;
    /// Monitor trap flag.
    MONITOR_TRAP = 37;
    /// PAUSE.
    PAUSE = 40;
    /// VM-entry failure due to machine-check event.
    MACHINE_CHECK_AT_ENTRY = 41;
    /// TPR below threshold.
    TPR_BELOW_THRESHOLD = 43;
    /// APIC access.
    APIC_ACCESS = 44;
    /// Virtualized EOI.
    VIRTUALIZED_EOI = 45;
    /// EPT violation.
    EPT_VIOLATION = 48;
    /// EPT misconfiguration.
    EPT_MISCONFIG = 49;
    /// INVEPT.
    INVEPT = 50;
    /// RDTSCP.
    RDTSCP = 51;
    /// VMX-preemption timer expired.
    PREEMPTION_TIMER = 52;
    /// INVVPID.
    INVVPID = 53;
    /// WBINVD or WBNOINVD.
    WBINVD = 54;
    /// XSETBV.
    XSETBV = 55;
    /// APIC write.
    APIC_WRITE = 56;
    /// VMFUNC.
    VMFUNC = 59;
    /// Page-modification log full.
    PML_FULL = 62;
    /// RDMSRLIST.
    RDMSRLIST = 78;
    /// WRMSRLIST.
    WRMSRLIST = 79;
    /// RDMSR with an immediate operand.
    RDMSR_IMMEDIATE = 84;
    /// WRMSRNS with an immediate operand.
    WRMSRNS_IMMEDIATE = 85;
}

/// The 32-bit exit-reason field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExitReason(pub(crate) u32);

impl ExitReason {
    /// Bits 15:0.
    pub(crate) const fn basic(self) -> Reason {
        Reason((self.0 & 0xffff) as u16)
    }

    /// Bit 31: the VM entry failed.
    pub(crate) const fn entry_failure(self) -> bool {
        self.0 >> 31 != 0
    }
}

/// What interrupted, or is to interrupt: VM-exit interruption information, IDT-vectoring information and VM-entry
/// interruption information have one format (SDM vol. 3C, 26.9.2, 26.9.3 and 26.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interruption(pub(crate) u64);

impl Interruption {
    /// The rest means something.
    pub(crate) const VALID: u64 = 1 << 31;
    /// There is an error code.
    const ERROR_CODE: u64 = 1 << 11;
    /// An IRET had ended the blocking of NMIs when the exit happened; undefined in IDT-vectoring information, and
    /// reserved for VM entry.
    const NMI_UNBLOCKING: u64 = 1 << 12;
    /// Type: NMI.
    const NMI: u64 = 2;
    /// Type: hardware exception.
    const HARDWARE_EXCEPTION: u64 = 3;

    const fn kind(self) -> u64 {
        self.0 >> 8 & 7
    }

    /// Whether there was such an event.
    #[inline(always)]
    pub(crate) const fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }

    /// Valid and of type NMI.
    pub(crate) const fn is_nmi(self) -> bool {
        self.is_valid() && self.kind() == Self::NMI
    }

    /// Valid, and the exception with this vector.
    pub(crate) const fn is_exception(self, vector: ExceptionVector) -> bool {
        self.is_valid() && self.kind() == Self::HARDWARE_EXCEPTION && self.0 & 0xff == vector as u64
    }

    /// Whether an IRET had ended the blocking of NMIs.
    pub(crate) const fn nmi_unblocking(self) -> bool {
        self.0 & Self::NMI_UNBLOCKING != 0
    }

    /// As VM entry takes it to deliver the event of IDT-vectoring information again.
    pub(crate) const fn again(self) -> Self {
        Self(self.0 & !Self::NMI_UNBLOCKING)
    }

    /// Entry information that injects a hardware exception.
    pub(crate) const fn exception(vector: ExceptionVector, with_error_code: bool) -> Self {
        let error_code = if with_error_code { Self::ERROR_CODE } else { 0 };
        Self(Self::VALID | error_code | Self::HARDWARE_EXCEPTION << 8 | vector as u64)
    }
}

bitflags! {
    /// Qualification of an EPT violation (SDM vol. 3C, 29.2.1, "Exit Qualification for EPT Violations").
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct EptViolation: u64 {
        /// A data write.
        const WRITE = 1 << 1;
        /// An IRET had ended the blocking of NMIs.
        const NMI_UNBLOCKING = 1 << 12;
        const _ = !0;
    }
}

/// Qualification of a control-register access (SDM table 29-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CrAccess {
    /// MOV to CR `cr` from general register `gpr`.
    Write {
        /// Control register number.
        cr: u8,
        /// General register.
        gpr: Register,
    },
    /// CLTS.
    Clts,
    /// LMSW with this source.
    Lmsw(u16),
    /// MOV from CR: never asked for.
    Read,
}

impl CrAccess {
    /// Decodes the qualification.
    pub(crate) const fn new(qualification: u64) -> Self {
        match qualification >> 4 & 3 {
            0 => Self::Write {
                cr: (qualification & 15) as u8,
                gpr: Register::from_bits((qualification >> 8) as u32),
            },
            1 => Self::Read,
            2 => Self::Clts,
            _ => Self::Lmsw((qualification >> 16) as u16),
        }
    }
}

/// Qualification of an I/O instruction (SDM table 29-5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IoAccess {
    /// Port.
    pub(crate) port: u16,
    /// 1, 2 or 4 bytes.
    pub(crate) size: u8,
    /// IN (true) or OUT.
    pub(crate) input: bool,
    /// INS or OUTS.
    pub(crate) string: bool,
}

impl IoAccess {
    /// Decodes the qualification.
    pub(crate) const fn new(qualification: u64) -> Self {
        Self {
            port: (qualification >> 16) as u16,
            size: (qualification & 7) as u8 + 1,
            input: qualification & 8 != 0,
            string: qualification & 16 != 0,
        }
    }
}

/// VM-exit instruction information of the VMX instructions (SDM tables 29-13, 29-14, 29-15).
#[derive(Clone, Copy, Debug)]
pub(crate) struct InstructionInfo(pub(crate) u32);

impl InstructionInfo {
    /// The first operand is a register.
    pub(crate) const REGISTER: u32 = 1 << 10;
    /// There is no index register.
    pub(crate) const NO_INDEX: u32 = 1 << 22;
    /// There is no base register.
    pub(crate) const NO_BASE: u32 = 1 << 27;
    /// Lowest bit of the address size: 0 is 2 bytes, 1 is 4, 2 is 8.
    pub(crate) const ADDRESS_SIZE: u32 = 7;
    /// Lowest bit of the second register operand.
    pub(crate) const REGISTER2: u32 = 28;

    /// Scale of the index, as a shift.
    pub(crate) const fn scale(self) -> u32 {
        self.0 & 3
    }

    /// First operand is a register (VMREAD, VMWRITE).
    pub(crate) const fn is_register(self) -> bool {
        self.0 & Self::REGISTER != 0
    }

    /// Register of the first operand (VMREAD, VMWRITE).
    pub(crate) const fn register1(self) -> Register {
        Register::from_bits(self.0 >> 3)
    }

    /// Second register operand: the field (VMREAD, VMWRITE) or the type (INVEPT, INVVPID).
    pub(crate) const fn register2(self) -> Register {
        Register::from_bits(self.0 >> Self::REGISTER2)
    }

    /// Address size in bytes: 2, 4 or 8.
    pub(crate) const fn address_size(self) -> u8 {
        2 << (self.0 >> Self::ADDRESS_SIZE & 3)
    }

    /// Segment register; the numbers above GS are not used.
    pub(crate) const fn segment(self) -> Segment {
        Segment::ALL[(self.0 >> 15 & 7) as usize]
    }

    /// Index register.
    pub(crate) const fn index(self) -> Option<Register> {
        if self.0 & Self::NO_INDEX != 0 {
            None
        } else {
            Some(Register::from_bits(self.0 >> 18))
        }
    }

    /// Base register.
    pub(crate) const fn base(self) -> Option<Register> {
        if self.0 & Self::NO_BASE != 0 {
            None
        } else {
            Some(Register::from_bits(self.0 >> 23))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes() {
        assert_eq!(
            CrAccess::new(0x300),
            CrAccess::Write {
                cr: 0,
                gpr: Register::Rbx
            }
        );
        assert_eq!(
            CrAccess::new(0x004),
            CrAccess::Write {
                cr: 4,
                gpr: Register::Rax
            }
        );
        assert_eq!(CrAccess::new(0x0008_0030), CrAccess::Lmsw(8));
        let io = IoAccess::new(0xcfc << 16 | 8 | 3);
        assert_eq!((io.port, io.size, io.input, io.string), (0xcfc, 4, true, false));
        assert!(ExitReason(0x8000_0021).entry_failure());
        assert!(Interruption(0x8000_0202).is_nmi() && !Interruption(0x8000_0302).is_nmi());
        assert_eq!(
            Interruption::exception(ExceptionVector::GeneralProtection, true).0,
            0x8000_0b0d
        );
    }
}
