//! CR0 and CR4 writes that VMX does not allow as they are: the host sees its own value, the CPU gets the fixed bits.

use crate::nested::context::{Context, Exception};
use crate::vmx::Hardware;
use crate::vmx::caps::entry;
use crate::vmx::exit::CrAccess;
use crate::vmx::field::{self, Segment};
use crate::vmx::hardware::Invalidate;

const PE: u64 = 1;
const TS: u64 = 1 << 3;
const ET: u64 = 1 << 4;
const NW: u64 = 1 << 29;
const CD: u64 = 1 << 30;
const PG: u64 = 1 << 31;
const PAE: u64 = 1 << 5;
const VMXE: u64 = 1 << 13;
const PCIDE: u64 = 1 << 17;
const LME: u64 = 1 << 8;
const LMA: u64 = 1 << 10;

impl<H: Hardware> Context<'_, H> {
    /// Serves a control-register exit.
    pub fn control_register(&mut self) {
        self.vcpu.steady.ready = false;
        let access = CrAccess::new(self.read(field::EXIT_QUALIFICATION));
        let cr0 = self.read(field::CR0_SHADOW) & self.vcpu.caps.cr0_fixed
            | self.read(field::GUEST_CR0) & !self.vcpu.caps.cr0_fixed;
        let done = match access {
            CrAccess::Write { cr: 0, gpr } => {
                let value = self.gpr(gpr);
                self.write_cr0(value)
            }
            CrAccess::Write { cr: 4, gpr } => {
                let value = self.gpr(gpr);
                self.write_cr4(value)
            }
            CrAccess::Clts => self.write_cr0(cr0 & !TS),
            // LMSW sets PE, MP, EM, TS and can't clear PE (SDM vol. 2A, LMSW).
            CrAccess::Lmsw(source) => self.write_cr0(cr0 & !0xe | u64::from(source) & 0xf),
            CrAccess::Write { .. } | CrAccess::Read => false,
        };
        if done {
            self.advance();
        } else {
            self.inject(Exception::GeneralProtection);
        }
    }

    fn write_cr0(&mut self, value: u64) -> bool {
        if value >> 32 != 0 || (value & PG != 0 && value & PE == 0) || (value & NW != 0 && value & CD == 0) {
            return false;
        }
        let old = self.read(field::GUEST_CR0);
        let efer = self.read(field::GUEST_EFER);
        let cr4 = self.read(field::GUEST_CR4);
        if value & PG != 0 && old & PG == 0 {
            if efer & LME != 0 {
                let code_is_64 = self.read(Segment::Cs.guest_rights()) & 1 << 13 != 0;
                if cr4 & PAE == 0 || code_is_64 {
                    return false;
                }
                self.set_long_mode(efer, true);
            } else if cr4 & PAE != 0 && !self.load_pdptes() {
                return false;
            }
        } else if value & PG == 0 && old & PG != 0 {
            if cr4 & PCIDE != 0 {
                return false;
            }
            self.set_long_mode(efer, false);
        }
        self.write(field::GUEST_CR0, value | ET | self.vcpu.caps.cr0_fixed);
        self.write(field::CR0_SHADOW, value | ET);
        self.flush();
        true
    }

    fn set_long_mode(&mut self, efer: u64, active: bool) {
        let controls = self.read(field::ENTRY_CONTROLS);
        let bit = u64::from(entry::IA32E);
        self.write(
            field::ENTRY_CONTROLS,
            if active { controls | bit } else { controls & !bit },
        );
        self.write(field::GUEST_EFER, if active { efer | LMA } else { efer & !LMA });
    }

    fn load_pdptes(&mut self) -> bool {
        let table = self.read(field::GUEST_CR3) & 0xffff_ffe0;
        if !self.around.may_touch(table, 32) {
            return false;
        }
        for (i, field) in (0..).zip(field::GUEST_PDPTES) {
            let entry = self.hw.read_phys(table + 8 * i, 8);
            self.write(field, entry);
        }
        true
    }

    fn write_cr4(&mut self, value: u64) -> bool {
        let old = self.read(field::GUEST_CR4);
        let long_mode = self.read(field::GUEST_EFER) & LMA != 0;
        let leaves_vmx = self.vcpu.belief.vmx_on && value & VMXE == 0;
        let bad_pcide =
            value & PCIDE != 0 && old & PCIDE == 0 && (!long_mode || self.read(field::GUEST_CR3) & 0xfff != 0);
        if value & !self.vcpu.caps.cr4_allowed != 0 || leaves_vmx || bad_pcide || (long_mode && value & PAE == 0) {
            return false;
        }
        self.write(field::GUEST_CR4, value | self.vcpu.caps.cr4_fixed);
        self.write(field::CR4_SHADOW, value);
        self.flush();
        true
    }

    /// Drops the host's translations, as the MOV to the control register would have.
    fn flush(&mut self) {
        self.hw.invalidate(Invalidate::Vpid, 1, [crate::nested::HOST_VPID, 0]);
    }
}
