//! What is around a CPU on this machine, as opposed to the tests' model: the partition, the trace ring, the hosts.

use locum_abi::{Errno, Event, Slot, StopReason};

use crate::id::{self, CpuIndex};
use crate::nested::context::Surroundings;
use crate::nested::vcpu::VCpu;
use crate::nested::vmcs01::HOST_VPID;
use crate::partition::io_filter::Verdict;
use crate::partition::{PARTITION, Survivor, Violation};
use crate::shared;
use crate::vmx::Hardware;
use crate::vmx::exit::IoAccess;
use crate::vmx::hardware::{Invalidate, SINGLE_CONTEXT};
use crate::vmx::instructions::Cpu;

/// The partition and the trace ring of this machine, for the host in a slot.
#[derive(Debug)]
pub(crate) struct ThisMachine(pub(crate) Slot);

impl Surroundings<Cpu> for ThisMachine {
    fn may_touch(&self, address: u64, bytes: u64) -> bool {
        PARTITION.may_touch(self.0, address, bytes)
    }

    fn port(&self, hw: &mut Cpu, io: IoAccess, value: u32) -> Verdict {
        PARTITION.port(hw, self.0, io, value)
    }

    fn violation(&self, address: u64, write: bool) -> Violation {
        PARTITION.violation(self.0, address, write)
    }

    fn ioapic(&self, hw: &mut Cpu, address: u64, write: Option<u32>) -> u32 {
        PARTITION.ioapic(hw, self.0, address, write)
    }

    fn trace(&self, event: Event) {
        shared::trace(event);
    }
}

/// Drops what this CPU caches of the host's translations.
pub(crate) fn flush(vcpu: &VCpu, hw: &mut Cpu) {
    hw.invalidate(Invalidate::Ept, SINGLE_CONTEXT, [PARTITION.ept_pointer(vcpu.slot), 0]);
    hw.invalidate(Invalidate::Vpid, SINGLE_CONTEXT, [HOST_VPID, 0]);
}

/// Declares the host in `slot` dead. What it has stays as it is until the other host takes it.
pub(crate) fn die(slot: Slot, cpu: CpuIndex, reason: StopReason, detail: [u64; 3]) -> Survivor {
    let apic_id = id::apic_id(cpu);
    let Some(survivor) = PARTITION.declare_dead(slot, reason, detail, apic_id) else {
        // It was dead already, so the survivor is at work.
        return Survivor::Other;
    };
    tell_death(slot, apic_id, reason, detail);
    if survivor == Survivor::None {
        log::error!("no other host runs: reset");
    }
    survivor
}

/// The host in `slot` ends by itself on this CPU. What it has stays as it is until its heir takes it.
///
/// # Errors
/// [`Errno::State`] if nobody goes on without it.
pub(crate) fn leave_to_heir(slot: Slot, cpu: CpuIndex, detail: [u64; 3]) -> Result<(), Errno> {
    let apic_id = id::apic_id(cpu);
    if PARTITION.leave_to_heir(slot, detail, apic_id)? {
        tell_death(slot, apic_id, StopReason::PoweredOff, detail);
    }
    Ok(())
}

fn tell_death(slot: Slot, apic_id: u32, reason: StopReason, detail: [u64; 3]) {
    let [first, second, _] = detail;
    shared::trace(Event::HostDead {
        slot,
        reason,
        detail: [first, second],
    });
    log::error!(
        "the host in slot {} died on APIC id {apic_id}: {reason:?} {detail:x?}",
        slot.raw()
    );
}
