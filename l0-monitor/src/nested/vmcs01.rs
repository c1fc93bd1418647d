//! VMCS01: the VMCS in which a host runs.
//!
//! Interrupts, exceptions, HLT, CR3, most MSRs: nothing of a host's daily life exits. What does: CPUID and XSETBV
//! (always), VMX instructions, CR0 and CR4 writes that VMX can't have as they are, and what the partition filters.

use locum_abi::Frame;
use locum_abi::frame::{CS, DS, ES, FS, GS, LDTR, SS, TR};

use crate::arch::msr;
use crate::arch::registers::{
    CR0_L0, CR4_HOST, Cr4Flags, DEBUGCTL_CLEAR, DR7_CLEAR, EFER_LONG_MODE, EferFlags, RFLAGS_CLEAR,
};
use crate::nested::host_area::TSS_LIMIT;
use crate::nested::machine_check::exceptions;
use crate::nested::vcpu::VCpu;
use crate::partition::PARTITION;
use crate::vmx::Hardware;
use crate::vmx::controls::EntryControls;
use crate::vmx::field::{self, Field, Segment};
use crate::vmx::guest::{self, AccessRights, FLAT_LIMIT, Interruptibility, PendingDebug};

/// VPID of a host: the highest, KVM takes the lowest.
pub(crate) const HOST_VPID: u64 = 0xffff;

/// A segment register as VMCS01 holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentState {
    /// Selector.
    pub(crate) selector: u16,
    /// Access rights.
    pub(crate) rights: AccessRights,
    /// Limit.
    pub(crate) limit: u32,
    /// Base.
    pub(crate) base: u64,
}

impl SegmentState {
    /// With a null selector.
    const NULL: Self = Self {
        selector: 0,
        rights: AccessRights::UNUSABLE,
        limit: 0,
        base: 0,
    };

    /// 64-bit code.
    const fn code(selector: u16) -> Self {
        Self {
            selector,
            rights: AccessRights::CODE_64,
            limit: FLAT_LIMIT as u32,
            base: 0,
        }
    }

    /// A data segment from its selector alone: Linux' are flat; only the base of FS and GS is taken from elsewhere. In
    /// 64-bit mode nothing else of it matters (SDM vol. 3A, 3.4.4).
    const fn data(selector: u16, base: u64) -> Self {
        Self {
            selector,
            rights: if guest::is_null(selector) {
                AccessRights::UNUSABLE
            } else {
                AccessRights::DATA.with_dpl(selector)
            },
            limit: FLAT_LIMIT as u32,
            base,
        }
    }

    /// A task register.
    const fn tss(selector: u16, base: u64, limit: u32) -> Self {
        Self {
            selector,
            rights: AccessRights::BUSY_TSS,
            limit,
            base,
        }
    }

    /// An LDTR.
    const fn ldt(selector: u16, base: u64, limit: u32) -> Self {
        if guest::is_null(selector) {
            return Self::NULL;
        }
        Self {
            selector,
            rights: AccessRights::LDT,
            limit,
            base,
        }
    }
}

/// The state in which a host begins or goes on in non-root operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryState {
    /// CR0 as the host sees it.
    pub(crate) cr0: u64,
    /// CR3.
    pub(crate) cr3: u64,
    /// CR4 as the host sees it.
    pub(crate) cr4: u64,
    /// IA32_EFER.
    pub(crate) efer: u64,
    /// RIP.
    pub(crate) rip: u64,
    /// RSP.
    pub(crate) rsp: u64,
    /// RFLAGS.
    pub(crate) rflags: u64,
    /// DR7.
    pub(crate) dr7: u64,
    /// IA32_DEBUGCTL.
    pub(crate) debugctl: u64,
    /// IA32_SYSENTER_CS, ESP, EIP.
    pub(crate) sysenter: [u64; 3],
    /// GDTR base and limit.
    pub(crate) gdtr: (u64, u16),
    /// IDTR base and limit.
    pub(crate) idtr: (u64, u16),
    /// ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub(crate) segments: [SegmentState; 8],
}

impl EntryState {
    /// The state that a host's frame describes. `sysenter`, `efer` and `debugctl` are read from the CPU: nothing has
    /// changed them since the call.
    pub(crate) fn from_frame(frame: &Frame, efer: u64, debugctl: u64, sysenter: [u64; 3]) -> Self {
        let selectors = &frame.selectors;
        let data = |register: usize, base| SegmentState::data(selectors[register], base);
        Self {
            cr0: frame.cr0,
            cr3: frame.cr3,
            cr4: frame.cr4,
            efer,
            rip: frame.rip,
            rsp: frame.rsp,
            rflags: frame.rflags,
            dr7: frame.dr7,
            debugctl,
            sysenter,
            gdtr: (frame.gdtr.base, frame.gdtr.limit),
            idtr: (frame.idtr.base, frame.idtr.limit),
            segments: [
                data(ES, 0),
                SegmentState::code(selectors[CS]),
                data(SS, 0),
                data(DS, 0),
                data(FS, frame.fs_base),
                data(GS, frame.gs_base),
                SegmentState::ldt(selectors[LDTR], frame.ldtr_base, frame.ldtr_limit),
                SegmentState::tss(selectors[TR], frame.tr_base, frame.tr_limit),
            ],
        }
    }

    /// 64-bit mode on an identity map, as firmware hands a CPU over: the 64-bit Linux boot protocol
    /// (Documentation/arch/x86/boot.rst) and the ACPI wakeup mailbox alike.
    pub(crate) fn firmware(rip: u64, cr3: u64, gdt: (u64, u16), code: u16, data_selector: u16) -> Self {
        let null = SegmentState::NULL;
        let flat = SegmentState::data(data_selector, 0);
        Self {
            cr0: CR0_L0.bits(),
            cr3,
            cr4: CR4_HOST.bits(),
            // NXE: Linux' 64-bit trampoline loads page tables with NX bits before it writes EFER.
            efer: (EFER_LONG_MODE | EferFlags::NO_EXECUTE_ENABLE).bits(),
            rip,
            rsp: 0,
            rflags: RFLAGS_CLEAR,
            dr7: DR7_CLEAR,
            debugctl: DEBUGCTL_CLEAR,
            sysenter: [0; 3],
            gdtr: gdt,
            idtr: (0, 0),
            segments: [
                flat,
                SegmentState::code(code),
                flat,
                flat,
                null,
                null,
                null,
                SegmentState::tss(0, 0, TSS_LIMIT as u32),
            ],
        }
    }

    /// Writes the state to the current VMCS.
    pub(crate) fn write(&self, hw: &mut impl Hardware, vcpu: &VCpu) {
        let efer = EferFlags::from_bits_retain(self.efer);
        let mut controls = vcpu.caps.entry;
        controls.set(EntryControls::IA32E, efer.contains(EferFlags::LONG_MODE_ACTIVE));
        let fixed = vcpu.caps.fixed;
        let fields = [
            (field::ENTRY_CONTROLS, controls.bits().into()),
            (field::GUEST_CR0, self.cr0 | fixed.cr0.bits()),
            (field::CR0_SHADOW, self.cr0),
            (field::GUEST_CR3, self.cr3),
            (field::GUEST_CR4, self.cr4 | fixed.cr4.bits()),
            (field::CR4_SHADOW, self.cr4),
            (field::GUEST_EFER, self.efer),
            (field::GUEST_RIP, self.rip),
            (field::GUEST_RSP, self.rsp),
            (field::GUEST_RFLAGS, self.rflags),
            (field::GUEST_DR7, self.dr7),
            (field::GUEST_DEBUGCTL, self.debugctl),
            (field::GUEST_SYSENTER_CS, self.sysenter[0]),
            (field::GUEST_SYSENTER_ESP, self.sysenter[1]),
            (field::GUEST_SYSENTER_EIP, self.sysenter[2]),
            (field::GUEST_GDTR_BASE, self.gdtr.0),
            (field::GUEST_GDTR_LIMIT, self.gdtr.1.into()),
            (field::GUEST_IDTR_BASE, self.idtr.0),
            (field::GUEST_IDTR_LIMIT, self.idtr.1.into()),
            (field::GUEST_INTERRUPTIBILITY, Interruptibility::empty().bits()),
            (field::GUEST_ACTIVITY, guest::ACTIVE),
            (field::GUEST_PENDING_DEBUG, PendingDebug::empty().bits()),
            (field::VMCS_LINK, !0),
        ];
        write_all(hw, &fields);
        for (segment, state) in Segment::ALL.into_iter().zip(self.segments) {
            hw.vmwrite(segment.guest_selector(), state.selector.into());
            hw.vmwrite(segment.guest_rights(), state.rights.bits());
            hw.vmwrite(segment.guest_limit(), state.limit.into());
            hw.vmwrite(segment.guest_base(), state.base);
        }
    }
}

fn write_all(hw: &mut impl Hardware, fields: &[(Field, u64)]) {
    for (field, value) in fields {
        hw.vmwrite(*field, *value);
    }
}

/// Fills VMCS01, which is current and clear. `tr` is what an exit loads into the task register: the host's own, since
/// L0 uses none and a host must find its own when L0 leaves.
pub(crate) fn fill(hw: &mut impl Hardware, vcpu: &VCpu, state: &EntryState, tr: (u16, u64)) {
    let rules = PARTITION.enforcement(vcpu.slot, vcpu.pretend_bsp);
    let [io_a, io_b] = rules.io_bitmaps;
    let fields = [
        (field::PIN_CONTROLS, vcpu.caps.pin.bits().into()),
        (field::PRIMARY_CONTROLS, vcpu.caps.primary.bits().into()),
        (field::SECONDARY_CONTROLS, vcpu.caps.secondary.bits().into()),
        (field::EXIT_CONTROLS, vcpu.caps.exit.bits().into()),
        (
            field::EXCEPTION_BITMAP,
            exceptions(Cr4Flags::from_bits_retain(state.cr4)),
        ),
        (field::PF_ERROR_MASK, 0),
        (field::PF_ERROR_MATCH, 0),
        (field::CR3_TARGET_COUNT, 0),
        (field::EXIT_MSR_STORE_COUNT, 0),
        (field::EXIT_MSR_LOAD_COUNT, 0),
        (field::ENTRY_MSR_LOAD_COUNT, 0),
        (field::ENTRY_INTERRUPTION, 0),
        (field::CR0_MASK, vcpu.caps.fixed.cr0.bits()),
        (field::CR4_MASK, vcpu.caps.fixed.cr4.bits()),
        (field::IO_BITMAP_A, io_a),
        (field::IO_BITMAP_B, io_b),
        (field::MSR_BITMAP, rules.msr_bitmap),
        (field::EPTP, rules.eptp),
        (field::VPID, HOST_VPID),
        (field::XSS_EXITING_BITMAP, 0),
        (field::PCONFIG_EXITING_BITMAP, 0),
        (field::HOST_EFER, msr::read(msr::EFER) | EFER_LONG_MODE.bits()),
        (field::HOST_SYSENTER_CS, 0),
        (field::HOST_SYSENTER_ESP, 0),
        (field::HOST_SYSENTER_EIP, 0),
        (field::HOST_TR_SELECTOR, tr.0.into()),
        (field::HOST_TR_BASE, tr.1),
    ];
    write_all(hw, &fields);
    if !vcpu.caps.tertiary.is_empty() {
        hw.vmwrite(field::TERTIARY_CONTROLS, vcpu.caps.tertiary.bits());
    }
    vcpu.own_area.write(hw);
    state.write(hw, vcpu);
}
