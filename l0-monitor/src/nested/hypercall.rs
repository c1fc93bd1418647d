//! What a nested host may ask for ([`locum_abi::hypercall`]).
#![expect(unsafe_code, reason = "sends INIT to the CPUs of a dead host")]

use locum_abi::{CpuMode, Errno, HostState, Op, StopReason, TraceKind};

use crate::arch::lapic;
use crate::cpu::{self, CpuIndex, Slot};
use crate::nested::context::Context;
use crate::nested::vcpu::{VCpu, gpr};
use crate::nested::{Start, run, transition};
use crate::park::{self, Command};
use crate::partition::{self, owners::Resource};
use crate::shared;
use crate::vmx::instructions::Cpu;

/// How long L0 waits for another CPU to park, in TSC ticks: tens of milliseconds.
const PARK_TICKS: u64 = 200_000_000;

/// What happens after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The host goes on.
    Resume,
    /// This CPU parks.
    Park,
    /// The host goes on natively; address of its frame.
    Leave(u64),
}

/// Serves the call in the host's registers. VMCS01 is current.
pub fn serve(vcpu: &mut VCpu, hw: &mut Cpu, index: CpuIndex) -> After {
    let raw = vcpu.gprs[gpr::RAX];
    let arguments = [vcpu.gprs[gpr::RDI], vcpu.gprs[gpr::RSI], vcpu.gprs[gpr::RDX]];
    let result = match (Op::from_raw(raw), Slot::ALL.get(vcpu.slot)) {
        (Some(op), Some(slot)) => call(vcpu, hw, index, *slot, op, arguments),
        _ => Err(Errno::Argument),
    };
    let code = match result {
        Ok(After::Resume) => 0,
        Ok(other) => return other,
        Err(errno) => {
            shared::trace(TraceKind::HypercallRefused, errno as u32, raw, arguments[0]);
            shared::status().count_refusal();
            -i64::from(errno as u32)
        }
    };
    vcpu.gprs[gpr::RAX] = code as u64;
    Context { cpu: vcpu, hw }.advance();
    After::Resume
}

fn call(
    vcpu: &mut VCpu,
    hw: &mut Cpu,
    index: CpuIndex,
    slot: Slot,
    op: Op,
    [a, b, c]: [u64; 3],
) -> Result<After, Errno> {
    match op {
        Op::Ping => Ok(After::Resume),
        Op::Leave => transition::prepare_leave(vcpu, hw, slot, a),
        Op::Grant => {
            let resource = Resource::new(a, b, c, |apic| cpu::index_of_apic(apic).map(CpuIndex::get))?;
            wholly_nested(slot)?;
            partition::grant(resource, slot)?;
            partition::trace_owner(a, slot.other(), b, c);
            park::poke();
            Ok(After::Resume)
        }
        Op::Start => start(vcpu, hw, slot, a, b, c),
        Op::Abort => abort(hw, slot),
        Op::Retire => retire(vcpu, hw, index, slot),
        Op::Park => Ok(After::Park),
        Op::Exit => {
            if !partition::two_hosts() {
                return Err(Errno::State);
            }
            run::die(slot.get(), index, StopReason::PoweredOff, [a, b, c]);
            Ok(After::Park)
        }
    }
}

fn wholly_nested(slot: Slot) -> Result<(), Errno> {
    if partition::slot_is_wholly_nested(slot) {
        Ok(())
    } else {
        Err(Errno::State)
    }
}

fn start(vcpu: &VCpu, hw: &mut Cpu, slot: Slot, entry: u64, zero_page: u64, apic_id: u64) -> Result<After, Errno> {
    let to = slot.other();
    wholly_nested(slot)?;
    let apic_id = u32::try_from(apic_id).map_err(|_| Errno::Argument)?;
    let boot = cpu::index_of_apic(apic_id).ok_or(Errno::Argument)?;
    if partition::cpu_owner(boot) != Some(to) {
        return Err(Errno::NotOwner);
    }
    if !run::is_parked(boot) {
        return Err(Errno::NotParked);
    }
    partition::begin_two(hw, slot, vcpu.caps.ept_1g, [entry, zero_page])?;
    shared::clear_channels();
    let stale = shared::mailbox(to).head;
    shared::clear_mailbox(to, stale);
    let status = shared::status();
    let host = status.host(to);
    host.set_generation(status.generation().wrapping_add(1));
    host.set_reason(StopReason::None, [0; 3], apic_id);
    host.set_state(HostState::Running);
    shared::trace(TraceKind::HostStart, to.get() as u32, entry, zero_page);
    let start = Start {
        rip: entry,
        rsi: zero_page,
        slot: to,
    };
    if park::command(boot, Command::StartNested(start)).is_err() {
        host.set_state(HostState::Preparing);
        partition::cancel_two(hw, slot);
        return Err(Errno::NotParked);
    }
    Ok(After::Resume)
}

/// CPUs that the host in `slot` owns, but for `me`.
fn cpus_of(slot: Slot, me: Option<CpuIndex>) -> impl Iterator<Item = CpuIndex> {
    cpu::all().filter(move |c| Some(*c) != me && partition::cpu_owner(*c) == Some(slot))
}

fn abort(hw: &mut Cpu, slot: Slot) -> Result<After, Errno> {
    let other = slot.other();
    let status = shared::status();
    let host = status.host(other);
    let succeeds = partition::two_hosts() && partition::reigning() == other.get();
    match host.state() {
        HostState::Absent | HostState::Retired => return Err(Errno::State),
        // The successor may not stop the incumbent, but it may take over from a dead one.
        HostState::Preparing | HostState::Running if succeeds => return Err(Errno::State),
        HostState::Preparing | HostState::Running => {
            host.set_reason(StopReason::Aborted, [0; 3], 0);
            host.set_state(HostState::Dead);
        }
        HostState::Dead => {}
    }
    let parked = run::wait_until(PARK_TICKS, || {
        for cpu in cpus_of(other, None) {
            if status.cpu(cpu).mode() == CpuMode::Nested && run::claim_init(cpu) {
                // SAFETY: the CPU runs a host in non-root, or L0 for it, which holds INIT until it is back there;
                // nothing of L0 is lost.
                unsafe { lapic::send_init(cpu::apic_id(cpu)) };
            }
        }
        cpus_of(other, None).all(run::is_parked)
    });
    if !parked {
        return Err(Errno::Timeout);
    }
    partition::end_two(hw, slot);
    if succeeds {
        status.set_generation(status.generation().wrapping_add(1));
    }
    host.set_state(HostState::Absent);
    park::poke();
    Ok(After::Resume)
}

fn retire(vcpu: &mut VCpu, hw: &mut Cpu, index: CpuIndex, slot: Slot) -> Result<After, Errno> {
    let other = slot.other();
    let status = shared::status();
    let can_take_over = || status.host(other).state() == HostState::Running;
    if !partition::two_hosts() || partition::reigning() != slot.get() || !can_take_over() {
        return Err(Errno::State);
    }
    if !run::wait_until(PARK_TICKS, || cpus_of(slot, Some(index)).all(run::is_parked)) {
        return Err(Errno::NotParked);
    }
    if !can_take_over() {
        return Err(Errno::State);
    }
    // Before their memory is the other's.
    transition::clear_vmcss(vcpu, hw);
    partition::end_two(hw, other);
    status.set_generation(status.generation().wrapping_add(1));
    status.host(slot).set_state(HostState::Retired);
    shared::trace(TraceKind::HostRetired, slot.get() as u32, 0, 0);
    park::poke();
    Ok(After::Park)
}
