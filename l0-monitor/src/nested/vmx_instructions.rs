//! The host's VMX instructions (SDM vol. 3C, chapter 31), executed for it on its own VMCSs.
//!
//! Each is carried out by the real instruction with the host's VMCS current, so that flags, error numbers and launch
//! states are the CPU's own. Around each call VMCS01 is current.

use locum_abi::PAGE_SIZE;

use crate::arch::paging::page_of;
use crate::arch::registers::Cr4Flags;
use crate::nested::context::{Context, Exception};
use crate::nested::host_area::replaced;
use crate::nested::steady::Steady;
use crate::nested::vcpu::Belief;
use crate::nested::{trapped_fields, walk};
use crate::vmx::exit::{InstructionInfo, Reason};
use crate::vmx::field::{self, Area, Field};
use crate::vmx::hardware::Invalidate;
use crate::vmx::{Hardware, VmxStatus};

/// A physical address that no VMXON or VMPTRLD accepts: beyond every MAXPHYADDR.
const BAD_POINTER: u64 = page_of(u64::MAX);

/// What the exit handler does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Continue the host.
    Host,
    /// Enter the guest: the host's VMCS is current. True for VMLAUNCH.
    Guest(bool),
}

impl<H: Hardware> Context<'_, H> {
    /// Serves a VMX instruction.
    pub(crate) fn vmx_instruction(&mut self, reason: Reason) -> Outcome {
        if reason == Reason::VMXON {
            self.vmxon();
            return Outcome::Host;
        }
        if !self.vcpu.belief.vmx_on {
            self.inject(Exception::InvalidOpcode);
            return Outcome::Host;
        }
        if self.cpl() != 0 {
            self.inject(Exception::GeneralProtection);
            return Outcome::Host;
        }
        match reason {
            Reason::VMREAD => self.vmread(),
            Reason::VMWRITE => self.vmwrite(),
            Reason::VMRESUME => return self.enter_guest(false),
            Reason::VMLAUNCH => return self.enter_guest(true),
            Reason::VMPTRLD => self.vmptrld(),
            Reason::VMCLEAR => self.vmclear(),
            Reason::VMPTRST => self.vmptrst(),
            Reason::INVEPT => self.invalidate(Invalidate::Ept),
            Reason::INVVPID => self.invalidate(Invalidate::Vpid),
            Reason::VMXOFF => self.vmxoff(),
            _ => self.inject(Exception::InvalidOpcode),
        }
        Outcome::Host
    }

    /// VMCALL that is no call to L0, as natively in VMX root operation (SDM vol. 3C, VMCALL): of all VMX instructions it
    /// alone exits before the checks of mode and privilege.
    pub(crate) fn vmcall(&mut self) {
        if !self.vcpu.belief.vmx_on || self.is_compatibility_mode() {
            self.inject(Exception::InvalidOpcode);
        } else if self.cpl() != 0 {
            self.inject(Exception::GeneralProtection);
        } else {
            self.on_host_vmcs(|context| context.hw.vmcall());
        }
    }

    /// Executes `instruction` with the host's VMCS current, so that an error number lands there, and ends the
    /// instruction. Without a current VMCS a VMfailValid is a VMfailInvalid.
    fn on_host_vmcs(&mut self, instruction: impl FnOnce(&mut Self) -> VmxStatus) {
        let current = self.vcpu.belief.current;
        if let Some(phys) = current {
            self.hw.vmptrld(phys);
        }
        let status = match instruction(self) {
            VmxStatus::FailValid if current.is_none() => VmxStatus::FailInvalid,
            status => status,
        };
        self.hw.vmptrld(self.vcpu.vmcs01);
        self.finish(status);
    }

    fn operand<const N: usize>(&mut self) -> Option<[u64; N]> {
        let info = InstructionInfo(self.read(field::INSTRUCTION_INFO) as u32);
        let linear = self.operand_address(info);
        let paging = self.paging();
        match walk::read_words(self.hw, &|a, n| self.around.may_touch(a, n), paging, linear) {
            Ok(words) => Some(words),
            Err(fault) => {
                self.inject(Self::operand_exception(fault, linear));
                None
            }
        }
    }

    fn vmxon(&mut self) {
        let cr4 = Cr4Flags::from_bits_retain(self.read(field::CR4_SHADOW));
        if !cr4.contains(Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS) {
            return self.inject(Exception::InvalidOpcode);
        }
        if self.cpl() != 0 {
            return self.inject(Exception::GeneralProtection);
        }
        let Some([region]) = self.operand::<1>() else {
            return;
        };
        if self.vcpu.belief.vmx_on {
            // In root operation the CPU reports error 15 (or VMfailInvalid) whatever the operand.
            let own = self.vcpu.vmxon_region;
            return self.on_host_vmcs(|context| context.hw.vmxon(own));
        }
        let usable = region.is_multiple_of(PAGE_SIZE)
            && self.around.may_touch(region, PAGE_SIZE)
            && self.hw.read_phys(region, 4) as u32 == self.vcpu.caps.revision;
        if !usable {
            return self.finish(VmxStatus::FailInvalid);
        }
        self.vcpu.belief = Belief {
            vmx_on: true,
            vmxon_region: Some(region),
            current: None,
        };
        self.finish(VmxStatus::Succeed);
    }

    fn vmxoff(&mut self) {
        self.leave_steady();
        self.hw.vmptrld(self.vcpu.vmcs01);
        self.vcpu.shadow.detach(self.hw, self.vcpu.caps.secondary);
        self.give_back_all();
        self.vcpu.belief = Belief::default();
        // The host may free the region it entered with.
        self.vcpu.move_to_own_region(self.hw);
        self.finish(VmxStatus::Succeed);
    }

    fn vmptrld(&mut self) {
        let Some([phys]) = self.operand::<1>() else {
            return;
        };
        let target = self.checked_pointer(phys);
        self.leave_steady();
        self.on_host_vmcs(|context| {
            let status = context.hw.vmptrld(target);
            if !status.ok() {
                return status;
            }
            let own = context.vcpu.own_area;
            match context.vcpu.adopted.adopt(context.hw, target, &own) {
                Ok(()) => {
                    context.vcpu.belief.current = Some(target);
                    VmxStatus::Succeed
                }
                Err(status) => status,
            }
        });
        self.attach_shadow();
    }

    /// Lets the shadow stand for the host's current VMCS. VMCS01 is current.
    pub(crate) fn attach_shadow(&mut self) {
        if let Some(current) = self.vcpu.belief.current
            && let Some(entry) = self.vcpu.adopted.find(current)
        {
            let host = (current, entry.area.0[replaced::RSP]);
            let (vmcs01, controls) = (self.vcpu.vmcs01, self.vcpu.caps.secondary);
            self.vcpu.shadow.attach(self.hw, vmcs01, host, controls);
        }
    }

    /// Ends the steady path and takes over what the host wrote to the shadow of its current VMCS. That one, or VMCS01
    /// if there is no shadow, is current afterwards.
    pub(crate) fn leave_steady(&mut self) {
        let Some(current) = self.vcpu.belief.current else {
            return;
        };
        let mut changed = self.vcpu.steady.ran;
        self.vcpu.steady = Steady::NONE;
        if self.vcpu.shadow.attached {
            changed |= self.vcpu.shadow.flush(self.hw, current);
        }
        if changed && let Some(entry) = self.vcpu.adopted.find(current) {
            entry.fingerprint = None;
            entry.area = self.vcpu.shadow.seen(entry.area);
        }
    }

    fn vmclear(&mut self) {
        let Some([phys]) = self.operand::<1>() else {
            return;
        };
        let target = self.checked_pointer(phys);
        let was_current = self.vcpu.belief.current == Some(target);
        if was_current {
            self.leave_steady();
            self.hw.vmptrld(self.vcpu.vmcs01);
            self.vcpu.shadow.detach(self.hw, self.vcpu.caps.secondary);
        }
        self.give_back(target);
        self.on_host_vmcs(|context| context.hw.vmclear(target));
        if was_current {
            self.vcpu.belief.current = None;
        }
    }

    /// The address to hand to the real VMPTRLD or VMCLEAR: the host's, or, where the host may not name it, one that
    /// makes the instruction fail as it does on hardware for that reason.
    fn checked_pointer(&mut self, phys: u64) -> u64 {
        if self.vcpu.belief.vmxon_region == Some(phys) {
            self.vcpu.vmxon_region
        } else if self.around.may_touch(page_of(phys), PAGE_SIZE) {
            phys
        } else {
            BAD_POINTER
        }
    }

    fn vmptrst(&mut self) {
        let info = InstructionInfo(self.read(field::INSTRUCTION_INFO) as u32);
        let linear = self.operand_address(info);
        let paging = self.paging();
        let value = self.vcpu.belief.current.unwrap_or(!0);
        match walk::write_word(self.hw, &|a, n| self.around.may_touch(a, n), paging, linear, value) {
            Ok(()) => self.finish(VmxStatus::Succeed),
            Err(fault) => self.inject(Self::operand_exception(fault, linear)),
        }
    }

    fn invalidate(&mut self, instruction: Invalidate) {
        let Some(descriptor) = self.operand::<2>() else {
            return;
        };
        let info = InstructionInfo(self.read(field::INSTRUCTION_INFO) as u32);
        let kind = self.gpr(info.register2());
        self.on_host_vmcs(|context| context.hw.invalidate(instruction, kind, descriptor));
    }

    fn count_trapped(&self, code: u64, write: bool) {
        if let Some(event) = trapped_fields::count(Field(code as u32), write) {
            self.around.trace(event);
        }
    }

    fn vmread(&mut self) {
        let info = InstructionInfo(self.read(field::INSTRUCTION_INFO) as u32);
        let code = self.gpr(info.register2());
        let Some(current) = self.vcpu.belief.current else {
            return self.finish(VmxStatus::FailInvalid);
        };
        let field = Field::from_operand(code);
        self.count_trapped(code, false);
        let entry = self.vcpu.adopted.find(current);
        let own = entry.and_then(|entry| entry.area.value(field));
        let value = match own {
            Some(value) => Ok(*value),
            None => {
                self.hw.vmptrld(current);
                let value = self.hw.vmread(field);
                self.hw.vmptrld(self.vcpu.vmcs01);
                value
            }
        };
        match value {
            Err(status) => self.finish(status),
            Ok(value) if info.is_register() => {
                self.set_gpr(info.register1(), value);
                self.finish(VmxStatus::Succeed);
            }
            Ok(value) => {
                let linear = self.operand_address(info);
                let paging = self.paging();
                match walk::write_word(self.hw, &|a, n| self.around.may_touch(a, n), paging, linear, value) {
                    Ok(()) => self.finish(VmxStatus::Succeed),
                    Err(fault) => self.inject(Self::operand_exception(fault, linear)),
                }
            }
        }
    }

    fn vmwrite(&mut self) {
        let info = InstructionInfo(self.read(field::INSTRUCTION_INFO) as u32);
        let value = if info.is_register() {
            self.gpr(info.register1())
        } else {
            let Some([value]) = self.operand::<1>() else {
                return;
            };
            value
        };
        let code = self.gpr(info.register2());
        let Some(current) = self.vcpu.belief.current else {
            return self.finish(VmxStatus::FailInvalid);
        };
        let field = Field::from_operand(code);
        self.count_trapped(code, true);
        if let Some(entry) = self.vcpu.adopted.find(current) {
            entry.fingerprint = None;
            if let Some(own) = entry.area.value(field) {
                *own = field.truncate(value);
                self.vcpu.steady.area = self.vcpu.shadow.seen(entry.area);
                self.vcpu.steady.ready &= entry.area.valid(&self.vcpu.caps);
                return self.finish(VmxStatus::Succeed);
            }
        }
        // What `prepare_steady` and `calm_exit_list` read.
        let prepared = [
            field::EXIT_CONTROLS,
            field::SECONDARY_CONTROLS,
            field::EXIT_MSR_LOAD_COUNT,
            field::EXIT_MSR_LOAD,
        ];
        if field.area() == Area::Host || prepared.contains(&field.whole()) {
            self.vcpu.steady.ready = false;
        }
        self.hw.vmptrld(current);
        let status = self.hw.vmwrite(field, value);
        if status.ok() && self.vcpu.shadow.attached {
            self.vcpu.shadow.refresh(self.hw, field);
        }
        self.hw.vmptrld(self.vcpu.vmcs01);
        self.finish(status);
    }

    /// VMLAUNCH or VMRESUME: the same instruction on the host's VMCS. VMCS01's RIP stays at the instruction; the exit
    /// of the guest replaces it, a failure advances it ([`Context::guest_entry_failed`]).
    fn enter_guest(&mut self, launch: bool) -> Outcome {
        let Some(current) = self.vcpu.belief.current else {
            self.finish(VmxStatus::FailInvalid);
            return Outcome::Host;
        };
        self.leave_steady();
        let Some(entry) = self.vcpu.adopted.find(current) else {
            // Without its own exit handler in it the VMCS must not run: an exit would end in the host's, in VMX root.
            self.hw.vmptrld(self.vcpu.vmcs01);
            self.finish(VmxStatus::FailInvalid);
            return Outcome::Host;
        };
        entry.fingerprint = None;
        let area = entry.area;
        let valid = area.valid(&self.vcpu.caps);
        self.hw.vmptrld(self.vcpu.vmcs01);
        self.prepare_steady(current, area);
        if self.calm_exit_list() {
            self.vcpu.steady.ready = false;
        }
        if !valid {
            self.vcpu.steady.ready = false;
            // The entry must fail as it would with the host's own area, and must not succeed: a CR3 beyond the
            // physical width gives the same error with certainty.
            self.hw.vmwrite(field::HOST_CR3, BAD_POINTER);
        }
        self.vcpu.in_guest = true;
        Outcome::Guest(launch)
    }

    /// The instruction that [`Context::vmx_instruction`] asked for failed with these RFLAGS: the host sees exactly
    /// that.
    pub(crate) fn guest_entry_failed(&mut self, rflags: u64) {
        self.vcpu.in_guest = false;
        let own_cr3 = self.vcpu.own_area.0[replaced::CR3];
        self.hw.vmwrite(field::HOST_CR3, own_cr3);
        self.hw.vmptrld(self.vcpu.vmcs01);
        self.finish(VmxStatus::from_rflags(rflags));
    }
}
