//! The host-state area: what a VM exit loads (SDM vol. 3C, 26.5 and 29.5).
//!
//! L0 replaces the part of it that decides where an exit lands. The rest (TR, SYSENTER, PAT, EFER, PERF_GLOBAL_CTRL)
//! stays the host's: the CPU then loads the host's values at the exit, which is what the host is to find. L0 itself
//! uses neither a TSS nor SYSENTER.

use crate::arch::registers::{CR4_CET, Cr0Flags, Cr4Flags, DEBUGCTL_CLEAR, DR7_CLEAR, EFER_LONG_MODE, RFLAGS_CLEAR};
use crate::nested::machine_check::exceptions;
use crate::vmx::Hardware;
use crate::vmx::caps::{Caps, FixedBits};
use crate::vmx::controls::ExitControls;
use crate::vmx::field::{self, Area, Field, Segment};
use crate::vmx::guest::{self, AccessRights, FLAT_LIMIT, Interruptibility, PendingDebug};

/// Number of replaced fields.
pub(crate) const FIELDS: usize = 15;

/// Index of a replaced field in a [`HostArea`].
pub(crate) mod replaced {
    /// CR0.
    pub(crate) const CR0: usize = 0;
    /// CR3.
    pub(crate) const CR3: usize = 1;
    /// CR4.
    pub(crate) const CR4: usize = 2;
    /// RSP.
    pub(crate) const RSP: usize = 3;
    /// RIP.
    pub(crate) const RIP: usize = 4;
    /// Selectors ES, CS, SS, DS, FS, GS from here on.
    pub(crate) const SELECTORS: usize = 5;
    /// FS base.
    pub(crate) const FS_BASE: usize = 11;
    /// GS base.
    pub(crate) const GS_BASE: usize = 12;
    /// GDTR base.
    pub(crate) const GDTR_BASE: usize = 13;
    /// IDTR base.
    pub(crate) const IDTR_BASE: usize = 14;
}

/// Encodings, in the order of [`HostArea`].
pub(crate) const REPLACED: [Field; FIELDS] = [
    field::HOST_CR0,
    field::HOST_CR3,
    field::HOST_CR4,
    field::HOST_RSP,
    field::HOST_RIP,
    field::HOST_ES_SELECTOR,
    field::HOST_CS_SELECTOR,
    field::HOST_SS_SELECTOR,
    field::HOST_DS_SELECTOR,
    field::HOST_FS_SELECTOR,
    field::HOST_GS_SELECTOR,
    field::HOST_FS_BASE,
    field::HOST_GS_BASE,
    field::HOST_GDTR_BASE,
    field::HOST_IDTR_BASE,
];

/// Table indicator and privilege level of a selector, which VM entry wants clear.
const TI_RPL: u64 = 7;

/// Values of the replaced fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostArea(pub(crate) [u64; FIELDS]);

impl HostArea {
    /// All zero.
    pub(crate) const ZERO: Self = Self([0; FIELDS]);

    /// The value of a field of the current VMCS, `None` if L0 leaves the field alone.
    pub(crate) fn value(&mut self, field: Field) -> Option<&mut u64> {
        if field.area() != Area::Host {
            return None;
        }
        let place = REPLACED
            .iter()
            .zip(&mut self.0)
            .find(|(replaced, _)| **replaced == field);
        place.map(|(_, value)| value)
    }

    /// Selector of one of ES to GS.
    #[inline(always)]
    pub(crate) const fn selector(&self, segment: Segment) -> u64 {
        self.0[replaced::SELECTORS + segment as usize]
    }

    /// Reads the area of the current VMCS.
    pub(crate) fn read(hw: &mut impl Hardware) -> Self {
        Self(REPLACED.map(|field| hw.get(field)))
    }

    /// Writes the area of the current VMCS.
    pub(crate) fn write(&self, hw: &mut impl Hardware) {
        for (value, field) in self.0.iter().zip(REPLACED) {
            hw.put(field, *value);
        }
    }

    /// Whether VM entry would accept these fields (SDM vol. 3C, 28.2.2 and 28.2.3); the CPU checks the others.
    pub(crate) fn valid(&self, caps: &Caps) -> bool {
        let values = &self.0;
        let cr0 = Cr0Flags::from_bits_retain(values[replaced::CR0]);
        let cr4 = Cr4Flags::from_bits_retain(values[replaced::CR4]);
        let canonical = |a: u64| ((a as i64) << 16 >> 16) as u64 == a;
        let selectors = &values[replaced::SELECTORS..replaced::FS_BASE];
        cr0.contains(caps.fixed.cr0 | Cr0Flags::PROTECTED_MODE_ENABLE | Cr0Flags::PAGING)
            && values[replaced::CR0] >> 32 == 0
            && cr4.contains(caps.fixed.cr4_of_vmx() | Cr4Flags::PHYSICAL_ADDRESS_EXTENSION)
            && caps.cr4_allowed.contains(cr4)
            && (!cr4.contains(CR4_CET) || cr0.contains(Cr0Flags::WRITE_PROTECT))
            && values[replaced::CR3] >> caps.phys_bits == 0
            && selectors.iter().all(|selector| selector & TI_RPL == 0)
            && values[replaced::SELECTORS + Segment::Cs as usize] != 0
            && [
                replaced::RIP,
                replaced::FS_BASE,
                replaced::GS_BASE,
                replaced::GDTR_BASE,
                replaced::IDTR_BASE,
            ]
            .iter()
            .all(|i| canonical(values[*i]))
    }
}

/// What else an exit loads, read from the VMCS of the guest that exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoadedOnExit {
    /// VM-exit controls.
    pub(crate) exit_controls: ExitControls,
    /// TR selector and base.
    pub(crate) tr: [u64; 2],
    /// SYSENTER_CS, ESP, EIP.
    pub(crate) sysenter: [u64; 3],
    /// IA32_EFER, if the exit controls load it.
    pub(crate) efer: u64,
}

impl LoadedOnExit {
    /// All zero.
    pub(crate) const ZERO: Self = Self {
        exit_controls: ExitControls::empty(),
        tr: [0; 2],
        sysenter: [0; 3],
        efer: 0,
    };

    /// Reads them from the current VMCS.
    pub(crate) fn read(hw: &mut impl Hardware) -> Self {
        let exit_controls = ExitControls::from_bits_retain(hw.get(field::EXIT_CONTROLS) as u32);
        Self {
            exit_controls,
            tr: [field::HOST_TR_SELECTOR, field::HOST_TR_BASE].map(|field| hw.get(field)),
            sysenter: [
                field::HOST_SYSENTER_CS,
                field::HOST_SYSENTER_ESP,
                field::HOST_SYSENTER_EIP,
            ]
            .map(|field| hw.get(field)),
            efer: if exit_controls.contains(ExitControls::LOAD_EFER) {
                hw.get(field::HOST_EFER)
            } else {
                0
            },
        }
    }
}

/// Limit of GDTR and IDTR after an exit (SDM vol. 3C, 29.5.2).
pub(crate) const TABLE_LIMIT: u64 = 0xffff;
/// Limit of TR after an exit (29.5.2).
pub(crate) const TSS_LIMIT: u64 = 0x67;

/// Puts into the current VMCS (VMCS01) the guest state that an exit to the host leaves on hardware: SDM vol. 3C, 29.5
/// "Loading Host State", with the limits, RFLAGS, DR7 and DEBUGCTL that it prescribes.
///
/// `nmi` is true if the exit was caused by an NMI, after which NMIs are blocked (29.3.3). `efer_now` is the IA32_EFER
/// that VMCS01 holds; only LMA and LME change where the exit controls do not load the MSR.
pub(crate) fn load(
    hw: &mut impl Hardware,
    area: &HostArea,
    loaded: &LoadedOnExit,
    fixed: FixedBits,
    nmi: bool,
    efer_now: u64,
) {
    load_registers(hw, area, loaded, fixed);
    load_segments(hw, area, loaded);
    hw.put(field::CR0_SHADOW, area.0[replaced::CR0]);
    hw.put(field::CR4_SHADOW, area.0[replaced::CR4]);
    let cr4 = Cr4Flags::from_bits_retain(area.0[replaced::CR4]);
    hw.put(field::EXCEPTION_BITMAP, exceptions(cr4));
    if !loaded.exit_controls.contains(ExitControls::LOAD_EFER) {
        hw.put(field::GUEST_EFER, efer_now | EFER_LONG_MODE.bits());
    }
    let blocking = if nmi {
        Interruptibility::NMI
    } else {
        Interruptibility::empty()
    };
    hw.put(field::GUEST_INTERRUPTIBILITY, blocking.bits());
    hw.put(field::GUEST_ACTIVITY, guest::ACTIVE);
    hw.put(field::GUEST_PENDING_DEBUG, PendingDebug::empty().bits());
}

/// The part of [`load`] that the host may change at any time without an exit.
fn load_registers(hw: &mut impl Hardware, area: &HostArea, loaded: &LoadedOnExit, fixed: FixedBits) {
    for (field, value) in registers(area, loaded, fixed) {
        hw.put(field, value);
    }
    hw.put(field::GUEST_RIP, area.0[replaced::RIP]);
    hw.put(field::GUEST_RFLAGS, RFLAGS_CLEAR);
    hw.put(field::GUEST_GDTR_LIMIT, TABLE_LIMIT);
    if loaded.exit_controls.contains(ExitControls::LOAD_EFER) {
        hw.put(field::GUEST_EFER, loaded.efer);
    }
}

/// What an exit puts into the host's registers, but for those that it finds otherwise nearly every time,
/// and EFER, which not every exit loads.
#[inline(always)]
const fn registers(area: &HostArea, loaded: &LoadedOnExit, fixed: FixedBits) -> [(Field, u64); 16] {
    let values = &area.0;
    [
        (field::GUEST_CR0, values[replaced::CR0] | fixed.cr0.bits()),
        (field::GUEST_CR3, values[replaced::CR3]),
        (field::GUEST_CR4, values[replaced::CR4] | fixed.cr4.bits()),
        (field::GUEST_RSP, values[replaced::RSP]),
        (field::GUEST_DR7, DR7_CLEAR),
        (field::GUEST_DEBUGCTL, DEBUGCTL_CLEAR),
        (Segment::Fs.guest_base(), values[replaced::FS_BASE]),
        (Segment::Gs.guest_base(), values[replaced::GS_BASE]),
        (Segment::Tr.guest_base(), loaded.tr[1]),
        (Segment::Tr.guest_limit(), TSS_LIMIT),
        (field::GUEST_GDTR_BASE, values[replaced::GDTR_BASE]),
        (field::GUEST_IDTR_BASE, values[replaced::IDTR_BASE]),
        (field::GUEST_IDTR_LIMIT, TABLE_LIMIT),
        (field::GUEST_SYSENTER_CS, loaded.sysenter[0]),
        (field::GUEST_SYSENTER_ESP, loaded.sysenter[1]),
        (field::GUEST_SYSENTER_EIP, loaded.sysenter[2]),
    ]
}

/// The segment registers, but for the bases and the limit in [`load_registers`].
#[inline(never)]
fn load_segments(hw: &mut impl Hardware, area: &HostArea, loaded: &LoadedOnExit) {
    for segment in Segment::ALL {
        let (selector, limit, rights) = match segment {
            Segment::Ldtr => (0, 0, AccessRights::UNUSABLE),
            Segment::Tr => (loaded.tr[0], TSS_LIMIT, AccessRights::BUSY_TSS),
            Segment::Cs => (area.selector(segment), FLAT_LIMIT, AccessRights::CODE_64),
            other => match area.selector(other) {
                0 => (0, FLAT_LIMIT, AccessRights::UNUSABLE),
                selector => (selector, FLAT_LIMIT, AccessRights::DATA),
            },
        };
        hw.put(segment.guest_selector(), selector);
        hw.put(segment.guest_limit(), limit);
        hw.put(segment.guest_rights(), rights.bits());
        if !matches!(segment, Segment::Fs | Segment::Gs | Segment::Tr) {
            hw.put(segment.guest_base(), 0);
        }
    }
}

/// [`load`] where the host left off in 64-bit mode at CPL 0 by a VM exit and all but a few registers are as it found
/// them after the last one: what differs is looked for before anything is written. A VMREAD is cheaper than a VMWRITE,
/// after which VM entry may check the VMCS anew (Linux commit 3af80fec6e7f).
#[inline(always)]
pub(crate) fn reload(hw: &mut impl Hardware, area: &HostArea, loaded: &LoadedOnExit, fixed: FixedBits) {
    if registers_differ(hw, area, loaded, fixed) | segments_differ(hw, area, loaded) != 0 {
        load_registers(hw, area, loaded, fixed);
        load_segments(hw, area, loaded);
        hw.put(field::GUEST_INTERRUPTIBILITY, Interruptibility::empty().bits());
    }
    hw.put(field::GUEST_RIP, area.0[replaced::RIP]);
    hw.put(field::GUEST_RFLAGS, RFLAGS_CLEAR);
}

/// 0 if [`load_registers`] would change nothing but RIP and RFLAGS, and the host does not block interrupts. Linux
/// changes the limit of the GDTR whenever its KVM leaves a guest for longer, so that one is corrected right away.
#[inline(always)]
fn registers_differ(hw: &mut impl Hardware, area: &HostArea, loaded: &LoadedOnExit, fixed: FixedBits) -> u64 {
    if hw.get(field::GUEST_GDTR_LIMIT) != TABLE_LIMIT {
        hw.put(field::GUEST_GDTR_LIMIT, TABLE_LIMIT);
    }
    let mut differ = hw.get(field::GUEST_INTERRUPTIBILITY);
    for (field, value) in registers(area, loaded, fixed) {
        differ |= hw.get(field) ^ value;
    }
    if loaded.exit_controls.contains(ExitControls::LOAD_EFER) {
        differ |= hw.get(field::GUEST_EFER) ^ loaded.efer;
    }
    differ
}

/// 0 if [`load_segments`] would change nothing that a host can tell, if it left off in 64-bit mode at CPL 0 by a VM
/// exit: there selectors say it all. Limits and the other bases are not used, a null selector is unusable, the code
/// segment has L set and DPL 0, and a task register that LTR loaded is a busy TSS (SDM vol. 3A, 3.4.4 and 9.2.4).
#[inline(always)]
fn segments_differ(hw: &mut impl Hardware, area: &HostArea, loaded: &LoadedOnExit) -> u64 {
    let mut differ = hw.get(Segment::Ldtr.guest_selector());
    differ |= hw.get(Segment::Tr.guest_selector()) ^ loaded.tr[0];
    for segment in [
        Segment::Es,
        Segment::Cs,
        Segment::Ss,
        Segment::Ds,
        Segment::Fs,
        Segment::Gs,
    ] {
        differ |= hw.get(segment.guest_selector()) ^ area.selector(segment);
    }
    differ
}
