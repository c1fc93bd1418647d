//! VMCS field encodings (SDM vol. 3D, appendix B).

use core::ops::Index;

/// Width of a field, from bits 14:13 of its encoding (SDM vol. 3C, 26.11.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Width {
    /// 16 bits.
    W16,
    /// 64 bits.
    W64,
    /// 32 bits.
    W32,
    /// Natural width: 64 bits on every CPU that L0 runs on.
    Natural,
}

/// Part of a VMCS, from bits 11:10 of an encoding (SDM vol. 3C, table 26-20, "type").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    /// Controls.
    Control,
    /// VM-exit information: read-only.
    ExitInformation,
    /// Guest state.
    Guest,
    /// Host state.
    Host,
}

/// Encoding of a VMCS field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Field(pub(crate) u32);

impl Field {
    /// An encoding that names no field, on any CPU: bits 31:15 are reserved.
    pub(crate) const NONE: Self = Self(!0);

    /// The field's width.
    pub(crate) const fn width(self) -> Width {
        match self.0 >> 13 & 3 {
            0 => Width::W16,
            1 => Width::W64,
            2 => Width::W32,
            _ => Width::Natural,
        }
    }

    /// All fields that have a [`Self::number`] of their own.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..NUMBERS).map(Self::from_number)
    }

    /// A small number for each field with an index below 64 (CPUs use fewer than 40): width, then type, then index
    /// (SDM vol. 3C, table 26-20). Both halves of a 64-bit field have the same.
    const fn number(self) -> usize {
        (self.width() as usize * 4 + self.area() as usize) * 64 + (self.0 >> 1 & 63) as usize
    }

    const fn from_number(number: usize) -> Self {
        let (group, index) = (number / 64, number % 64);
        Self(((group / 4) << 13 | (group % 4) << 10 | (index << 1)) as u32)
    }

    /// The field that a register operand of VMREAD or VMWRITE names; with upper bits set, none.
    pub(crate) const fn from_operand(code: u64) -> Self {
        if code >> 32 == 0 { Self(code as u32) } else { Self::NONE }
    }

    /// The part of a VMCS that the field is in.
    pub(crate) const fn area(self) -> Area {
        match self.0 >> 10 & 3 {
            0 => Area::Control,
            1 => Area::ExitInformation,
            2 => Area::Guest,
            _ => Area::Host,
        }
    }

    /// The whole field, of a 64-bit field or its upper half (access type "high").
    pub(crate) const fn whole(self) -> Self {
        Self(self.0 & !1)
    }

    /// `value` cut to the field's width, as VMWRITE does.
    pub(crate) const fn truncate(self, value: u64) -> u64 {
        match self.width() {
            Width::W16 => value & 0xffff,
            Width::W32 => value & 0xffff_ffff,
            Width::W64 | Width::Natural => value,
        }
    }
}

/// How many numbers there are.
const NUMBERS: usize = 1024;

/// One value for each VMCS field that a CPU may have. A [`Field`] indexes it, and cannot miss: encodings that no CPU
/// has share places with others.
#[derive(Debug)]
pub(crate) struct PerField<T>(pub(crate) [T; NUMBERS]);

impl<T> Index<Field> for PerField<T> {
    type Output = T;

    fn index(&self, field: Field) -> &T {
        &self.0[field.number()]
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $code:expr;)*) => {
        $($(#[$doc])* pub(crate) const $name: Field = Field($code);)*
    };
}

fields! {
    // B.1 16-bit fields: control, guest state, host state.
    /// Virtual-processor identifier.
    VPID = 0x0000;
    /// Guest interrupt status (APICv).
    GUEST_INTERRUPT_STATUS = 0x0810;
    /// PML index.
    PML_INDEX = 0x0812;
    /// Host ES selector.
    HOST_ES_SELECTOR = 0x0c00;
    /// Host CS selector.
    HOST_CS_SELECTOR = 0x0c02;
    /// Host SS selector.
    HOST_SS_SELECTOR = 0x0c04;
    /// Host DS selector.
    HOST_DS_SELECTOR = 0x0c06;
    /// Host FS selector.
    HOST_FS_SELECTOR = 0x0c08;
    /// Host GS selector.
    HOST_GS_SELECTOR = 0x0c0a;
    /// Host TR selector.
    HOST_TR_SELECTOR = 0x0c0c;

    // B.2 64-bit fields: control, exit information, guest state, host state.
    /// Physical address of I/O bitmap A (ports 0 to 0x7fff).
    IO_BITMAP_A = 0x2000;
    /// Physical address of I/O bitmap B (ports 0x8000 to 0xffff).
    IO_BITMAP_B = 0x2002;
    /// Physical address of the MSR bitmaps.
    MSR_BITMAP = 0x2004;
    /// Physical address of the VM-exit MSR-load area.
    EXIT_MSR_LOAD = 0x2008;
    /// EPT pointer.
    EPTP = 0x201a;
    /// Physical address of the VMREAD bitmap.
    VMREAD_BITMAP = 0x2026;
    /// Physical address of the VMWRITE bitmap.
    VMWRITE_BITMAP = 0x2028;
    /// XSS-exiting bitmap.
    XSS_EXITING_BITMAP = 0x202c;
    /// Tertiary processor-based VM-execution controls.
    TERTIARY_CONTROLS = 0x2034;
    /// PCONFIG-exiting bitmap.
    PCONFIG_EXITING_BITMAP = 0x203e;
    /// Guest-physical address of an EPT violation or misconfiguration.
    GUEST_PHYSICAL_ADDRESS = 0x2400;
    /// What a WRMSRLIST that exited was to write.
    MSR_DATA = 0x2402;
    /// VMCS link pointer.
    VMCS_LINK = 0x2800;
    /// Guest IA32_DEBUGCTL.
    GUEST_DEBUGCTL = 0x2802;
    /// Guest IA32_EFER.
    GUEST_EFER = 0x2806;
    /// Host IA32_EFER.
    HOST_EFER = 0x2c02;

    // B.3 32-bit fields: control, exit information, guest state, host state.
    /// Pin-based VM-execution controls.
    PIN_CONTROLS = 0x4000;
    /// Primary processor-based VM-execution controls.
    PRIMARY_CONTROLS = 0x4002;
    /// Exception bitmap.
    EXCEPTION_BITMAP = 0x4004;
    /// Page-fault error-code mask.
    PF_ERROR_MASK = 0x4006;
    /// Page-fault error-code match.
    PF_ERROR_MATCH = 0x4008;
    /// CR3-target count.
    CR3_TARGET_COUNT = 0x400a;
    /// Primary VM-exit controls.
    EXIT_CONTROLS = 0x400c;
    /// VM-exit MSR-store count.
    EXIT_MSR_STORE_COUNT = 0x400e;
    /// VM-exit MSR-load count.
    EXIT_MSR_LOAD_COUNT = 0x4010;
    /// VM-entry controls.
    ENTRY_CONTROLS = 0x4012;
    /// VM-entry MSR-load count.
    ENTRY_MSR_LOAD_COUNT = 0x4014;
    /// VM-entry interruption information.
    ENTRY_INTERRUPTION = 0x4016;
    /// VM-entry exception error code.
    ENTRY_ERROR_CODE = 0x4018;
    /// VM-entry instruction length.
    ENTRY_INSTRUCTION_LENGTH = 0x401a;
    /// TPR threshold.
    TPR_THRESHOLD = 0x401c;
    /// Secondary processor-based VM-execution controls.
    SECONDARY_CONTROLS = 0x401e;
    /// VM-instruction error.
    INSTRUCTION_ERROR = 0x4400;
    /// Exit reason.
    EXIT_REASON = 0x4402;
    /// VM-exit interruption information.
    EXIT_INTERRUPTION = 0x4404;
    /// IDT-vectoring information.
    IDT_VECTORING = 0x4408;
    /// IDT-vectoring error code.
    IDT_VECTORING_ERROR = 0x440a;
    /// VM-exit instruction length.
    INSTRUCTION_LENGTH = 0x440c;
    /// VM-exit instruction information.
    INSTRUCTION_INFO = 0x440e;
    /// Guest GDTR limit.
    GUEST_GDTR_LIMIT = 0x4810;
    /// Guest IDTR limit.
    GUEST_IDTR_LIMIT = 0x4812;
    /// Guest interruptibility state.
    GUEST_INTERRUPTIBILITY = 0x4824;
    /// Guest activity state.
    GUEST_ACTIVITY = 0x4826;
    /// Guest IA32_SYSENTER_CS.
    GUEST_SYSENTER_CS = 0x482a;
    /// VMX-preemption timer value.
    PREEMPTION_TIMER = 0x482e;
    /// Host IA32_SYSENTER_CS.
    HOST_SYSENTER_CS = 0x4c00;

    // B.4 fields of natural width: control, exit information, guest state, host state.
    /// CR0 guest/host mask.
    CR0_MASK = 0x6000;
    /// CR4 guest/host mask.
    CR4_MASK = 0x6002;
    /// CR0 read shadow.
    CR0_SHADOW = 0x6004;
    /// CR4 read shadow.
    CR4_SHADOW = 0x6006;
    /// Exit qualification.
    EXIT_QUALIFICATION = 0x6400;
    /// Guest CR0.
    GUEST_CR0 = 0x6800;
    /// Guest CR3.
    GUEST_CR3 = 0x6802;
    /// Guest CR4.
    GUEST_CR4 = 0x6804;
    /// Guest GDTR base.
    GUEST_GDTR_BASE = 0x6816;
    /// Guest IDTR base.
    GUEST_IDTR_BASE = 0x6818;
    /// Guest DR7.
    GUEST_DR7 = 0x681a;
    /// Guest RSP.
    GUEST_RSP = 0x681c;
    /// Guest RIP.
    GUEST_RIP = 0x681e;
    /// Guest RFLAGS.
    GUEST_RFLAGS = 0x6820;
    /// Guest pending debug exceptions.
    GUEST_PENDING_DEBUG = 0x6822;
    /// Guest IA32_SYSENTER_ESP.
    GUEST_SYSENTER_ESP = 0x6824;
    /// Guest IA32_SYSENTER_EIP.
    GUEST_SYSENTER_EIP = 0x6826;
    /// Host CR0.
    HOST_CR0 = 0x6c00;
    /// Host CR3.
    HOST_CR3 = 0x6c02;
    /// Host CR4.
    HOST_CR4 = 0x6c04;
    /// Host FS base.
    HOST_FS_BASE = 0x6c06;
    /// Host GS base.
    HOST_GS_BASE = 0x6c08;
    /// Host TR base.
    HOST_TR_BASE = 0x6c0a;
    /// Host GDTR base.
    HOST_GDTR_BASE = 0x6c0c;
    /// Host IDTR base.
    HOST_IDTR_BASE = 0x6c0e;
    /// Host IA32_SYSENTER_ESP.
    HOST_SYSENTER_ESP = 0x6c10;
    /// Host IA32_SYSENTER_EIP.
    HOST_SYSENTER_EIP = 0x6c12;
    /// Host RSP.
    HOST_RSP = 0x6c14;
    /// Host RIP.
    HOST_RIP = 0x6c16;
}

/// Guest PDPTE0 to PDPTE3.
pub(crate) const GUEST_PDPTES: [Field; 4] = [Field(0x280a), Field(0x280c), Field(0x280e), Field(0x2810)];

/// Segment registers in the order of the encodings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// ES.
    Es = 0,
    /// CS.
    Cs = 1,
    /// SS.
    Ss = 2,
    /// DS.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
    /// LDTR.
    Ldtr = 6,
    /// TR.
    Tr = 7,
}

impl Segment {
    /// All eight.
    pub(crate) const ALL: [Self; 8] = [
        Self::Es,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Fs,
        Self::Gs,
        Self::Ldtr,
        Self::Tr,
    ];

    /// Guest selector.
    pub(crate) const fn guest_selector(self) -> Field {
        Field(0x0800 + 2 * self as u32)
    }

    /// Guest limit.
    pub(crate) const fn guest_limit(self) -> Field {
        Field(0x4800 + 2 * self as u32)
    }

    /// Guest access rights.
    pub(crate) const fn guest_rights(self) -> Field {
        Field(0x4814 + 2 * self as u32)
    }

    /// Guest base.
    pub(crate) const fn guest_base(self) -> Field {
        Field(0x6806 + 2 * self as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_follow_the_appendix() {
        assert_eq!(Segment::Tr.guest_selector().0, 0x080e);
        assert_eq!(Segment::Tr.guest_limit().0, 0x480e);
        assert_eq!(Segment::Tr.guest_rights().0, 0x4822);
        assert_eq!(Segment::Tr.guest_base().0, 0x6814);
        assert_eq!(GUEST_RIP.width(), Width::Natural);
        assert_eq!(EPTP.width(), Width::W64);
        assert_eq!(VPID.truncate(0x1_2345), 0x2345);
        assert_eq!((HOST_EFER.area(), GUEST_EFER.area()), (Area::Host, Area::Guest));
        assert_eq!(
            (VPID.area(), EXIT_REASON.area()),
            (Area::Control, Area::ExitInformation)
        );
        assert_eq!(Field::from_operand(0x681e), GUEST_RIP);
        assert_eq!(Field::from_operand(1 << 32 | 0x681e), Field::NONE);
        assert_eq!(Field::from_number(0), VPID);
        assert_eq!(Field::from_number(15 * 64 + 11), HOST_RIP);
        assert_eq!(Field::from_number(4 * 64 + 13), EPTP);
        for (number, field) in Field::all().enumerate() {
            assert_eq!(field.number(), number);
        }
    }
}
