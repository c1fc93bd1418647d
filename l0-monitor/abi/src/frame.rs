//! The page through which one CPU changes between native and nested.
//!
//! A module can map neither L0's text nor its data executable, so the switch of CR3 runs in the module's own text (the
//! *stub*), which the module maps at the same address in L0's page table, together with one [`Frame`] per CPU
//! (see `stub_pd` in [`crate::header::SlotInfo`]).
//!
//! **Enter**, with interrupts off and on the frame's CPU:
//! 1. the stub saves callee-saved registers and RFLAGS on the host's stack, stores RSP and the address of its resume
//!    label in the frame, fills in all fields marked "host" below;
//! 2. loads the frame's GDT and IDT (so that an NMI or a machine check finds a handler under both CR3s; it only sets
//!    `nmi` or `machine_check`), switches RSP to the frame's stack, loads `l0_cr3`, jumps to `l0_entry` with RDI =
//!    address of the frame;
//! 3. L0 continues the host at `rip` with `rsp` in VMX non-root, RAX = 0; or, refusing, jumps to `return_native` with
//!    RDI = address of the frame and `result` set to the negative [`crate::Errno`].
//!
//! **Leave**: the host saves callee-saved registers as above, stores RSP, the resume label in the frame, and executes
//! VMCALL with [`crate::Op::Leave`]. L0 fills all "host" fields from the host's state, loads the frame's GDT and IDT
//! and jumps to `return_native` in VMX root, on `l0_cr3` and the frame's stack, RDI = address of the frame.
//!
//! **`return_native`** (in the stub) restores, from the frame: CR0, CR4 and CR3 (through one CR4 write with PGE and
//! PCIDE clear, so that no stale translation survives), GDTR, IDTR, LDTR, data segments, FS and GS bases, RSP, then
//! jumps to `rip` with RAX = `result`. PAT, EFER, SYSENTER, DEBUGCTL and DR7 are restored by L0 before. The task
//! register's limit, which VM exits truncate, is the module's to reload afterwards (its GDT may be read-only).

/// First word of a frame: `LCMFRAME`.
pub const FRAME_MAGIC: u64 = u64::from_le_bytes(*b"LCMFRAME");

/// A pseudo-descriptor as LGDT and LIDT read it, padded to keep `base` aligned.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct TableRegister {
    /// Not read by the CPU.
    pub pad: [u16; 3],
    /// Limit in bytes. The instruction's operand starts here.
    pub limit: u16,
    /// Linear address.
    pub base: u64,
}

impl TableRegister {
    /// No table.
    pub const ZERO: Self = Self {
        pad: [0; 3],
        limit: 0,
        base: 0,
    };
}

/// The frame: 4 KiB, page aligned. Its last bytes are the stack used while neither the host's nor L0's is mapped.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Frame {
    /// [`FRAME_MAGIC`].
    pub magic: u64,
    /// APIC id of the CPU it belongs to.
    pub apic_id: u32,
    /// Set to 1 by the stub's NMI handler; the module re-sends the NMI when it is back in the host.
    pub nmi: u32,
    /// What the call returns: 0 or the negative of an [`crate::Errno`].
    pub result: i64,
    /// Set to 1 by the stub's machine-check handler, or by L0 for a check that came before it was back in the stub; the
    /// module raises it when it is back in the host. IA32_MCG_STATUS and the banks are as the CPU left them.
    pub machine_check: u64,
    /// Physical address of this frame.
    pub phys: u64,
    /// Address of the stub's `return_native`.
    pub return_native: u64,
    /// `l0_cr3` of the host's slot.
    pub l0_cr3: u64,
    /// `l0_entry` of the host's slot.
    pub l0_entry: u64,
    /// Stub's GDT for the time between the worlds: 64-bit code at the host's CS selector, data at its SS selector.
    pub stub_gdtr: TableRegister,
    /// Stub's IDT: vector 2 sets `nmi`, vector 18 `machine_check`; all others are not expected.
    pub stub_idtr: TableRegister,
    /// Host: where it goes on.
    pub rip: u64,
    /// Host: RSP there.
    pub rsp: u64,
    /// Host: RFLAGS there (IF clear).
    pub rflags: u64,
    /// Host: CR0.
    pub cr0: u64,
    /// Host: CR3.
    pub cr3: u64,
    /// Host: CR4, VMXE as the host sees it.
    pub cr4: u64,
    /// Host: GDTR.
    pub gdtr: TableRegister,
    /// Host: IDTR.
    pub idtr: TableRegister,
    /// Host: selectors ES, CS, SS, DS, FS, GS, LDTR, TR.
    pub selectors: [u16; 8],
    /// Host: FS base.
    pub fs_base: u64,
    /// Host: GS base.
    pub gs_base: u64,
    /// Host: base of the TSS, from its GDT.
    pub tr_base: u64,
    /// Host: limit of the TSS, from its GDT.
    pub tr_limit: u32,
    /// Host: limit of the LDT, from its GDT; ignored if LDTR is null.
    pub ldtr_limit: u32,
    /// Host: base of the LDT.
    pub ldtr_base: u64,
    /// Host: DR7. Filled by the stub before L0 changes it.
    pub dr7: u64,
    /// Not used, zero.
    pub reserved2: [u64; 34],
    /// The module's: GDT and IDT of the stub, and the stack (downwards from the end of the page).
    pub module: [u8; 3584],
}

impl Frame {
    /// A page of zeroes: nobody's frame.
    pub const ZERO: Self = Self {
        magic: 0,
        apic_id: 0,
        nmi: 0,
        result: 0,
        machine_check: 0,
        phys: 0,
        return_native: 0,
        l0_cr3: 0,
        l0_entry: 0,
        stub_gdtr: TableRegister::ZERO,
        stub_idtr: TableRegister::ZERO,
        rip: 0,
        rsp: 0,
        rflags: 0,
        cr0: 0,
        cr3: 0,
        cr4: 0,
        gdtr: TableRegister::ZERO,
        idtr: TableRegister::ZERO,
        selectors: [0; 8],
        fs_base: 0,
        gs_base: 0,
        tr_base: 0,
        tr_limit: 0,
        ldtr_limit: 0,
        ldtr_base: 0,
        dr7: 0,
        reserved2: [0; 34],
        module: [0; 3584],
    };

    /// Whether this is a frame, and that of the CPU with this APIC id. L0 takes no other one.
    #[must_use]
    pub const fn is_of(&self, apic_id: u32) -> bool {
        self.magic == FRAME_MAGIC && self.apic_id == apic_id
    }
}

const _: () = assert!(size_of::<Frame>() == 4096);
const _: () = assert!(core::mem::offset_of!(Frame, module) == 512);

/// Index of a segment register in [`Frame::selectors`], in the order of the VMCS encodings.
pub const ES: usize = 0;
/// See [`ES`].
pub const CS: usize = 1;
/// See [`ES`].
pub const SS: usize = 2;
/// See [`ES`].
pub const DS: usize = 3;
/// See [`ES`].
pub const FS: usize = 4;
/// See [`ES`].
pub const GS: usize = 5;
/// See [`ES`].
pub const LDTR: usize = 6;
/// See [`ES`].
pub const TR: usize = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_frame_of_the_same_cpu_is_taken() {
        let frame = |magic, apic_id| Frame {
            magic,
            apic_id,
            ..Frame::ZERO
        };
        assert!(frame(FRAME_MAGIC, 6).is_of(6));
        assert!(!frame(FRAME_MAGIC, 6).is_of(4));
        assert!(!frame(FRAME_MAGIC ^ 1, 6).is_of(6));
        assert!(!Frame::ZERO.is_of(0));
    }
}
