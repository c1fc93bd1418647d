//! CR0 and CR4 writes that VMX does not allow as they are: the host sees its own value, the CPU gets the fixed bits.
//!
//! The rules are those of MOV to a control register (SDM vol. 2B, "MOV—Move to/from Control Registers") and of entering
//! and leaving IA-32e mode (SDM vol. 3A, 10.8.5).

use crate::arch::general::Register;
use crate::arch::registers::{CR4_CET, Cr0Flags, Cr4Flags, EferFlags};
use crate::nested::context::{Context, Exception};
use crate::nested::machine_check::exceptions;
use crate::nested::vmcs01::HOST_VPID;
use crate::vmx::Hardware;
use crate::vmx::controls::EntryControls;
use crate::vmx::exit::CrAccess;
use crate::vmx::field::{self, Segment};
use crate::vmx::guest::AccessRights;
use crate::vmx::hardware::{Invalidate, SINGLE_CONTEXT};

/// What LMSW writes (SDM vol. 2A, LMSW). It can set PE, and can't clear it.
const LMSW: Cr0Flags = Cr0Flags::PROTECTED_MODE_ENABLE
    .union(Cr0Flags::MONITOR_COPROCESSOR)
    .union(Cr0Flags::EMULATE_COPROCESSOR)
    .union(Cr0Flags::TASK_SWITCHED);

/// CR3 with PAE paging: the address of the PDPTEs (SDM vol. 3A, table 4-7).
const CR3_PAE: u64 = 0xffff_ffe0;
/// CR3 in IA-32e mode: the process-context identifier (SDM vol. 3A, table 4-13).
const CR3_PCID: u64 = 0xfff;

impl<H: Hardware> Context<'_, H> {
    /// Serves a control-register exit.
    pub(crate) fn control_register(&mut self) {
        self.vcpu.steady.ready = false;
        let access = CrAccess::new(self.read(field::EXIT_QUALIFICATION));
        let fixed = self.vcpu.caps.fixed.cr0;
        let cr0 = Cr0Flags::from_bits_retain(self.read(field::CR0_SHADOW)).intersection(fixed)
            | Cr0Flags::from_bits_retain(self.read(field::GUEST_CR0)).difference(fixed);
        let done = match access {
            CrAccess::Write { cr: 0, gpr } => {
                let value = self.source(gpr);
                self.write_cr0(Cr0Flags::from_bits_retain(value))
            }
            CrAccess::Write { cr: 4, gpr } => {
                let value = self.source(gpr);
                self.write_cr4(Cr4Flags::from_bits_retain(value))
            }
            CrAccess::Clts => self.write_cr0(cr0.difference(Cr0Flags::TASK_SWITCHED)),
            CrAccess::Lmsw(source) => {
                let kept = cr0.difference(LMSW) | cr0.intersection(Cr0Flags::PROTECTED_MODE_ENABLE);
                let source = Cr0Flags::from_bits_retain(source.into());
                self.write_cr0(kept | source.intersection(LMSW))
            }
            CrAccess::Write { .. } | CrAccess::Read => false,
        };
        if done {
            self.advance();
        } else {
            self.inject(Exception::GeneralProtection);
        }
    }

    /// What MOV takes of a register: all of it in 64-bit mode only.
    fn source(&mut self, gpr: Register) -> u64 {
        let value = self.gpr(gpr);
        if self.is_64_bit_mode() {
            value
        } else {
            value & u64::from(u32::MAX)
        }
    }

    fn write_cr0(&mut self, value: Cr0Flags) -> bool {
        let pages = value.contains(Cr0Flags::PAGING);
        // What VMX fixes, without what unrestricted guest frees: the host believes itself in root operation.
        let in_vmx = self.vcpu.caps.fixed.cr0 | Cr0Flags::PROTECTED_MODE_ENABLE | Cr0Flags::PAGING;
        if value.bits() >> 32 != 0
            || (pages && !value.contains(Cr0Flags::PROTECTED_MODE_ENABLE))
            || (value.contains(Cr0Flags::NOT_WRITE_THROUGH) && !value.contains(Cr0Flags::CACHE_DISABLE))
            || (self.has_cet() && !value.contains(Cr0Flags::WRITE_PROTECT))
            || (self.vcpu.belief.vmx_on && !value.contains(in_vmx))
        {
            return false;
        }
        let paged = Cr0Flags::from_bits_retain(self.read(field::GUEST_CR0)).contains(Cr0Flags::PAGING);
        let efer = EferFlags::from_bits_retain(self.read(field::GUEST_EFER));
        let cr4 = Cr4Flags::from_bits_retain(self.read(field::GUEST_CR4));
        let pae = cr4.contains(Cr4Flags::PHYSICAL_ADDRESS_EXTENSION);
        if pages && !paged {
            if efer.contains(EferFlags::LONG_MODE_ENABLE) {
                let code = AccessRights::from_bits_retain(self.read(Segment::Cs.guest_rights()));
                let code_is_64 = code.contains(AccessRights::LONG);
                if !pae || code_is_64 {
                    return false;
                }
                self.set_long_mode(efer, true);
            } else if pae && !self.load_pdptes() {
                return false;
            }
        } else if !pages && paged {
            if cr4.contains(Cr4Flags::PCID) || self.is_64_bit_mode() {
                return false;
            }
            self.set_long_mode(efer, false);
        }
        let value = value | Cr0Flags::EXTENSION_TYPE;
        self.write(field::GUEST_CR0, (value | self.vcpu.caps.fixed.cr0).bits());
        self.write(field::CR0_SHADOW, value.bits());
        self.flush();
        true
    }

    fn has_cet(&mut self) -> bool {
        Cr4Flags::from_bits_retain(self.read(field::GUEST_CR4)).contains(CR4_CET)
    }

    fn set_long_mode(&mut self, mut efer: EferFlags, active: bool) {
        let mut controls = EntryControls::from_bits_retain(self.read(field::ENTRY_CONTROLS) as u32);
        controls.set(EntryControls::IA32E, active);
        self.write(field::ENTRY_CONTROLS, controls.bits().into());
        efer.set(EferFlags::LONG_MODE_ACTIVE, active);
        self.write(field::GUEST_EFER, efer.bits());
    }

    fn load_pdptes(&mut self) -> bool {
        let table = self.read(field::GUEST_CR3) & CR3_PAE;
        if !self.around.may_touch(table, 32) {
            return false;
        }
        for (i, field) in (0..).zip(field::GUEST_PDPTES) {
            let entry = self.hw.read_phys(table + 8 * i, 8);
            self.write(field, entry);
        }
        true
    }

    fn write_cr4(&mut self, value: Cr4Flags) -> bool {
        let old = Cr4Flags::from_bits_retain(self.read(field::GUEST_CR4));
        let efer = EferFlags::from_bits_retain(self.read(field::GUEST_EFER));
        let long_mode = efer.contains(EferFlags::LONG_MODE_ACTIVE);
        let leaves_vmx = self.vcpu.belief.vmx_on && !value.contains(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS);
        let bad_pcide = value.contains(Cr4Flags::PCID)
            && !old.contains(Cr4Flags::PCID)
            && (!long_mode || self.read(field::GUEST_CR3) & CR3_PCID != 0);
        let leaves_long_mode = long_mode && !value.contains(Cr4Flags::PHYSICAL_ADDRESS_EXTENSION);
        let cr0 = Cr0Flags::from_bits_retain(self.read(field::GUEST_CR0));
        let bad_cet = value.contains(CR4_CET) && !cr0.contains(Cr0Flags::WRITE_PROTECT);
        if !self.vcpu.caps.cr4_allowed.contains(value) || leaves_vmx || bad_pcide || leaves_long_mode || bad_cet {
            return false;
        }
        self.write(field::GUEST_CR4, (value | self.vcpu.caps.fixed.cr4).bits());
        self.write(field::CR4_SHADOW, value.bits());
        self.write(field::EXCEPTION_BITMAP, exceptions(value));
        self.flush();
        true
    }

    /// Drops the host's translations, as the MOV to the control register would have.
    fn flush(&mut self) {
        self.hw.invalidate(Invalidate::Vpid, SINGLE_CONTEXT, [HOST_VPID, 0]);
    }
}
