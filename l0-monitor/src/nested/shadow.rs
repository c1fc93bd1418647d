//! VMCS shadowing (SDM vol. 3C, 26.10 and 26.6.15): what a host's KVM reads and writes of its VMCS at every guest exit,
//! it reads and writes without an exit to L0.
//!
//! While the host has a current VMCS, the link pointer of VMCS01 names a *shadow VMCS*, one per CPU, and the CPU
//! carries out the host's VMREADs and VMWRITEs of some fields there. Fields that the bitmaps leave out exit as ever, so
//! a field is shadowed only if stock KVM uses it often enough to pay for the copying (see
//! [`crate::nested::trapped_fields`]).
//!
//! Who holds the truth while the host runs:
//! - for the fields in [`WRITTEN`], the shadow: the host changes them there. [`Shadow::flush`] takes them over before
//!   the host's VMCS is used for anything;
//! - for all others, the host's VMCS. A VMWRITE of one exits and goes to both ([`Shadow::refresh`]).
//!
//! The shadow is filled when a VMCS becomes current and after each exit of the guest.
//!
//! # Active or cleared
//! L0 reads and writes the shadow VMCS with VMPTRLD, VMREAD and VMWRITE, which makes it active on this CPU. It may stay
//! so while the host runs: VM entry with VMCS shadowing itself makes the VMCS active that the link pointer names (SDM
//! vol. 3C, 26.1), and nobody reads its region in memory. KVM and Xen clear theirs before each entry all the same.
//! [`Use::Cleared`] does so as well, at the price of two VMCLEARs for each exit of the guest.

use core::sync::atomic::{AtomicU8, Ordering};

use crate::nested::host_area::{HostArea, replaced};
use crate::vmx::Hardware;
use crate::vmx::controls::SecondaryControls;
use crate::vmx::field::{self, Field, Segment};

/// How VMCS shadowing is used where CPUs have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Use {
    /// The shadow VMCS stays active from one exit to the next.
    #[default]
    Active,
    /// It is cleared after each use of L0's.
    Cleared,
    /// Not at all: the slow form is tried this way on CPUs that have the fast one.
    Off,
    /// [`Use::Active`], and interrupt windows are shadowed instead of the guest interrupt status on CPUs that have that,
    /// too: what CPUs without APICv do is tried this way on others.
    Windows,
}

static USE: AtomicU8 = AtomicU8::new(Use::Active as u8);

/// Sets how VMCS shadowing is used, for the life of L0.
pub(crate) fn set_use(how: Use) {
    USE.store(how as u8, Ordering::Relaxed);
}

/// How VMCS shadowing is to be used.
pub(crate) fn how() -> Use {
    let how = USE.load(Ordering::Relaxed);
    let known = [Use::Cleared, Use::Off, Use::Windows]
        .into_iter()
        .find(|known| *known as u8 == how);
    known.unwrap_or_default()
}

macro_rules! shadowed {
    ($($(#[$doc:meta])* $name:ident = $field:expr;)*) => {
        /// The shadowed fields; those in [`WRITTEN`] first.
        ///
        /// Counted with stock KVM 6.12 under a Linux guest: the others are used at less than one guest exit in fifty.
        pub(crate) const FIELDS: [Field; [$(stringify!($name)),*].len()] = [$($field),*];

        /// Indexes into [`FIELDS`].
        pub(crate) mod shadowed {
            #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only counts the names")]
            enum Index { $($name),* }

            $($(#[$doc])* pub(crate) const $name: usize = Index::$name as usize;)*
        }
    };
}

shadowed! {
    /// Host RSP: replaced in the host's VMCS, so it goes between the shadow and the side table. Linux has it at another
    /// place of the stack in every KVM_RUN (`randomize_kstack_offset`).
    HOST_RSP = field::HOST_RSP;
    /// Guest RIP.
    RIP = field::GUEST_RIP;
    /// Guest interruptibility.
    INTERRUPTIBILITY = field::GUEST_INTERRUPTIBILITY;
    /// VM-entry interruption information.
    ENTRY = field::ENTRY_INTERRUPTION;
    /// Primary processor-based controls: interrupt windows. Not shadowed where there is APICv.
    PRIMARY = field::PRIMARY_CONTROLS;
    /// TPR threshold; likewise.
    TPR = field::TPR_THRESHOLD;
    /// VMX-preemption timer.
    TIMER = field::PREEMPTION_TIMER;
    /// Guest interrupt status: there is APICv.
    STATUS = field::GUEST_INTERRUPT_STATUS;
    /// Exit reason.
    REASON = field::EXIT_REASON;
    /// IDT-vectoring information.
    VECTORING = field::IDT_VECTORING;
    /// VM-exit instruction length.
    LENGTH = field::INSTRUCTION_LENGTH;
    /// Guest RFLAGS.
    RFLAGS = field::GUEST_RFLAGS;
    /// Access rights of the guest's CS.
    CODE = Segment::Cs.guest_rights();
    /// Access rights of the guest's SS.
    STACK = Segment::Ss.guest_rights();
    /// Exit qualification.
    QUALIFICATION = field::EXIT_QUALIFICATION;
    /// VM-exit interruption information.
    INTERRUPTION = field::EXIT_INTERRUPTION;
    /// Guest-physical address.
    PHYSICAL = field::GUEST_PHYSICAL_ADDRESS;
    /// PML index.
    PML = field::PML_INDEX;
}

/// How many of [`FIELDS`] the host also writes without an exit.
pub(crate) const WRITTEN: usize = 8;

const _: () = assert!(shadowed::STATUS == WRITTEN - 1);

/// The shadow VMCS of one CPU.
#[derive(Debug)]
pub(crate) struct Shadow {
    /// Its physical address.
    pub(crate) phys: u64,
    /// Physical addresses of the VMREAD and the VMWRITE bitmap.
    bitmaps: [u64; 2],
    /// VMCS01 names it, and it stands for the host's current VMCS.
    pub(crate) attached: bool,
    /// [`Use::Cleared`].
    cleared: bool,
    /// Those of [`FIELDS`] that are shadowed on this CPU, a bit for each.
    present: u32,
    /// What both the shadow and the host's VMCS held when they were last made equal; instead of the latter the side
    /// table, for host RSP.
    pub(crate) in_both: [u64; FIELDS.len()],
}

impl Shadow {
    /// On a CPU without VMCS shadowing.
    pub(crate) const NONE: Self = Self {
        phys: 0,
        bitmaps: [0; 2],
        attached: false,
        cleared: false,
        present: 0,
        in_both: [0; FIELDS.len()],
    };

    /// Makes the shadow VMCS at `phys` ready for this CPU, to be used in this way, which is not [`Use::Off`]. Its page begins
    /// with the revision identifier, bit 31 set; the bitmaps are two pages that all CPUs share, with a bit for each
    /// encoding below 0x8000, all ones at first, which means that every access exits. VMCS01 is current.
    pub(crate) fn prepare(&mut self, hw: &mut impl Hardware, phys: u64, bitmaps: [u64; 2], how: Use) {
        if self.phys == phys {
            return self.clear(hw);
        }
        *self = Self {
            phys,
            bitmaps,
            cleared: how == Use::Cleared,
            ..Self::NONE
        };
        for (i, field) in FIELDS.into_iter().enumerate() {
            if hw.vmread(field).is_ok() {
                self.present |= 1 << i;
            }
        }
        if !self.has(shadowed::TIMER) {
            // Every CPU with VMCS shadowing has the timer; an emulator may not.
            *self = Self::NONE;
            return;
        }
        // With APICv, KVM neither opens interrupt windows nor moves the TPR threshold. (Some CPUs have the field and no
        // posted interrupts, without which KVM does not use it: there the two exit.)
        if how == Use::Windows {
            self.present &= !(1 << shadowed::STATUS);
        } else if self.has(shadowed::STATUS) {
            self.present &= !(1 << shadowed::PRIMARY | 1 << shadowed::TPR);
        }
        let written = self.present & ((1 << WRITTEN) - 1);
        for (bitmap, fields) in bitmaps.into_iter().zip([self.present, written]) {
            clear_bits(hw, bitmap, fields);
        }
        hw.vmclear(phys);
    }

    /// Whether `FIELDS[index]` is shadowed on this CPU.
    pub(crate) const fn has(&self, index: usize) -> bool {
        self.present >> index & 1 != 0
    }

    fn fields(&self, count: usize) -> impl Iterator<Item = (usize, Field)> + use<> {
        let present = self.present;
        FIELDS
            .into_iter()
            .enumerate()
            .take(count)
            .filter(move |(i, _)| present >> i & 1 != 0)
    }

    /// The host's VMCS at `host` is its current one from now on; its host RSP is `rsp`. VMCS01 is current before and
    /// after; `controls` are its secondary controls. Does nothing on a CPU without VMCS shadowing.
    pub(crate) fn attach(
        &mut self,
        hw: &mut impl Hardware,
        vmcs01: u64,
        (host, rsp): (u64, u64),
        controls: SecondaryControls,
    ) {
        if self.phys == 0 {
            return;
        }
        hw.select(&host);
        self.in_both[shadowed::HOST_RSP] = rsp;
        self.fill(hw);
        hw.put(field::HOST_RSP, rsp);
        self.put_down(hw);
        hw.select(&vmcs01);
        if !self.attached {
            self.attached = true;
            hw.put(field::VMREAD_BITMAP, self.bitmaps[0]);
            hw.put(field::VMWRITE_BITMAP, self.bitmaps[1]);
            hw.put(field::VMCS_LINK, self.phys);
            hw.put(
                field::SECONDARY_CONTROLS,
                (controls | SecondaryControls::VMCS_SHADOWING).bits().into(),
            );
        }
    }

    /// The host has no current VMCS from now on: every VMREAD and VMWRITE exits. Nothing is taken over. VMCS01 is
    /// current before and after.
    pub(crate) fn detach(&mut self, hw: &mut impl Hardware, controls: SecondaryControls) {
        if self.attached {
            self.attached = false;
            hw.put(field::SECONDARY_CONTROLS, controls.bits().into());
            hw.put(field::VMCS_LINK, !0);
        }
    }

    /// The CPU leaves VMX operation: nothing of the shadow VMCS stays behind in it.
    pub(crate) fn clear(&mut self, hw: &mut impl Hardware) {
        self.attached = false;
        if self.phys != 0 {
            hw.vmclear(self.phys);
        }
    }

    /// L0 is done with the shadow VMCS, which is current, until the host has run. No VMCS is current afterwards if it is
    /// cleared.
    #[inline(always)]
    pub(crate) fn put_down(&self, hw: &mut impl Hardware) {
        if self.cleared {
            hw.clear(&self.phys);
        }
    }

    /// Copies all fields but host RSP from the current VMCS, which is the host's. The shadow is current afterwards, to
    /// be [put down](Self::put_down).
    pub(crate) fn fill(&mut self, hw: &mut impl Hardware) {
        let mut values = [0; FIELDS.len()];
        for (i, field) in self.fields(FIELDS.len()).skip(1) {
            values[i] = hw.get(field);
        }
        hw.select(&self.phys);
        for (i, field) in self.fields(FIELDS.len()).skip(1) {
            hw.put(field, values[i]);
        }
        self.in_both[1..].copy_from_slice(&values[1..]);
    }

    /// Writes a field of the current VMCS, the shadow or the host's, unless it holds that already.
    #[inline(always)]
    pub(crate) fn set(&mut self, hw: &mut impl Hardware, index: usize, value: u64) {
        if self.in_both[index] != value {
            self.in_both[index] = value;
            hw.put(FIELDS[index], value);
        }
    }

    /// Takes over what the host wrote, into its VMCS at `host`, which is current afterwards. True if there was
    /// anything.
    pub(crate) fn flush(&mut self, hw: &mut impl Hardware, host: u64) -> bool {
        let before = self.in_both;
        self.take_over(hw, &host);
        before != self.in_both
    }

    /// [`Self::flush`] for whoever need not know whether there was anything.
    #[inline(always)]
    pub(crate) fn take_over(&mut self, hw: &mut impl Hardware, host: &u64) {
        let apicv = self.has(shadowed::STATUS);
        hw.select(&self.phys);
        let rsp = hw.get(field::HOST_RSP);
        let rip = hw.get(field::GUEST_RIP);
        let interruptibility = hw.get(field::GUEST_INTERRUPTIBILITY);
        let event = hw.get(field::ENTRY_INTERRUPTION);
        let timer = hw.get(field::PREEMPTION_TIMER);
        let interrupts = if apicv {
            [hw.get(field::GUEST_INTERRUPT_STATUS), 0]
        } else {
            [hw.get(field::PRIMARY_CONTROLS), hw.get(field::TPR_THRESHOLD)]
        };
        self.put_down(hw);
        hw.select(host);
        self.in_both[shadowed::HOST_RSP] = rsp;
        self.set(hw, shadowed::RIP, rip);
        self.set(hw, shadowed::INTERRUPTIBILITY, interruptibility);
        self.set(hw, shadowed::ENTRY, event);
        self.set(hw, shadowed::TIMER, timer);
        if apicv {
            self.set(hw, shadowed::STATUS, interrupts[0]);
        } else {
            self.set(hw, shadowed::PRIMARY, interrupts[0]);
            self.set(hw, shadowed::TPR, interrupts[1]);
        }
    }

    /// The area from the side table with the host RSP that was taken over since.
    pub(crate) fn seen(&self, area: HostArea) -> HostArea {
        let mut area = area;
        if self.attached {
            area.0[replaced::RSP] = self.in_both[shadowed::HOST_RSP];
        }
        area
    }

    /// `field` of the current VMCS, which is the host's, was written: the shadow follows. Half of a 64-bit field counts
    /// as the field. Any VMCS is current afterwards, or none.
    pub(crate) fn refresh(&mut self, hw: &mut impl Hardware, field: Field) {
        let whole = field.whole();
        if let Some((i, _)) = self.fields(FIELDS.len()).find(|(_, f)| *f == whole) {
            let value = hw.get(whole);
            hw.select(&self.phys);
            hw.put(whole, value);
            self.put_down(hw);
            self.in_both[i] = value;
        }
    }
}

/// Clears the bits of the `fields` present. Each word is written once and whole: another CPU may be using it, and must
/// not see a bit of the same set again.
fn clear_bits(hw: &mut impl Hardware, bitmap: u64, fields: u32) {
    let present = |i: &usize| fields >> i & 1 != 0;
    for i in (0..FIELDS.len()).filter(present) {
        let word = FIELDS[i].0 / 64;
        let bits = (0..FIELDS.len())
            .filter(present)
            .filter(|j| FIELDS[*j].0 / 64 == word)
            .fold(!0_u64, |bits, j| bits & !(1 << (FIELDS[j].0 % 64)));
        hw.write_phys(bitmap + 8 * u64::from(word), 8, bits);
    }
}
