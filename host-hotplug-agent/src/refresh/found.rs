//! Whether an action is done, as L0 and Linux say. What a journal says is checked against this.

use anyhow::Result;
use locum_abi::{CpuMode, HostState};
use partitioner::{Action, ApicId, MemRange};

use super::Agent;
use crate::inventory::{cpu_dir, memory::block_dir, pci};
use crate::l0::view;

impl Agent {
    /// Whether an action is done; `None` where L0 and Linux do not tell, and it may be done again.
    ///
    /// # Errors
    /// If L0 or Linux cannot be asked.
    pub fn found(&self, action: &Action) -> Result<Option<bool>> {
        Ok(match action {
            Action::RemoveMemory { range, .. } => Some(!self.has_block(*range)),
            Action::AddMemory { range, online } => Some(self.has_block(*range) && (!online || self.is_online(*range))),
            // Given away, it may run for the other host.
            Action::OfflineCpu(apic) => {
                Some(!self.runs_on(*apic)? && (self.mode(*apic)? == Some(CpuMode::Parked) || !self.owns(*apic)?))
            }
            Action::OnlineCpu(apic) => Some(self.runs_on(*apic)?),
            Action::RemovePci(address) => Some(!self.machine.sys().exists(pci::dir(*address))),
            Action::AddPci(address) => Some(self.machine.sys().exists(pci::dir(*address))),
            Action::EnterNested(apic) => Some(self.mode(*apic)? == Some(CpuMode::Nested)),
            Action::LeaveNested(apic) => Some(self.mode(*apic)? == Some(CpuMode::Native)),
            Action::StartSuccessor => Some(self.other_state().is_some_and(view::was_started)),
            Action::StopSuccessor => Some(!self.has_other()),
            Action::Transfer(_)
            | Action::LoadSuccessor
            | Action::WipeSuccessor
            | Action::AwaitSuccessor
            | Action::MoveGuest(_)
            | Action::ReturnGuest(_)
            | Action::Entrust
            | Action::PowerOff
            | Action::AwaitIncumbentGone
            | Action::TakeIncumbent => None,
        })
    }

    /// State of the host in the other slot; `None` if L0 does not say.
    pub fn other_state(&self) -> Option<HostState> {
        self.other_host().map(|(state, _)| state)
    }

    /// Whether L0 has another host, or a partition for one; or does not say.
    pub fn has_other(&self) -> bool {
        self.other_state().is_none_or(view::is_there)
    }

    /// Whether Linux has that memory block, online or not.
    pub fn has_block(&self, range: MemRange) -> bool {
        self.machine.sys().exists(block_dir(range.start(), range.len()))
    }

    fn is_online(&self, range: MemRange) -> bool {
        let state = format!("{}/state", block_dir(range.start(), range.len()));
        self.machine.sys().read_optional(state).as_deref() == Some("online")
    }

    /// Whether Linux runs on that CPU. CPU 0 has no file `online`: it always is.
    pub fn runs_on(&self, apic: ApicId) -> Result<bool> {
        let file = format!("{}/online", cpu_dir(self.cpu_number(apic)?));
        Ok(self.machine.sys().read_optional(file).is_none_or(|text| text == "1"))
    }

    /// CPUs of this host in that mode.
    ///
    /// # Errors
    /// If L0 does not say.
    pub fn cpus_in(&self, mode: CpuMode) -> Result<Vec<ApicId>> {
        let status = self.machine.status()?;
        let slot = self.machine.facts().slot;
        let own = view::used(&status).iter().filter(|cpu| view::owner(cpu) == Some(slot));
        let cpus = own.filter(|cpu| cpu.mode == mode as u32);
        Ok(cpus.map(|cpu| ApicId(cpu.apic_id)).collect())
    }

    fn mode(&self, apic: ApicId) -> Result<Option<CpuMode>> {
        let status = self.machine.status()?;
        let cpu = view::used(&status).iter().find(|cpu| cpu.apic_id == apic.0);
        Ok(cpu.and_then(|cpu| CpuMode::from_raw(cpu.mode)))
    }

    fn owns(&self, apic: ApicId) -> Result<bool> {
        let status = self.machine.status()?;
        let cpu = view::used(&status).iter().find(|cpu| cpu.apic_id == apic.0);
        Ok(cpu.and_then(view::owner) == Some(self.machine.facts().slot))
    }
}
