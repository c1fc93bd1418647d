//! What a nested host may ask for ([`locum_abi::hypercall`]).
#![expect(unsafe_code, reason = "sends INIT to the CPUs of a dead host")]

use locum_abi::{Call, CpuMode, Errno, Event, HostState, Op, Slot, StopReason};

use crate::arch::lapic;
use crate::cpu::{self, CpuIndex};
use crate::nested::context::Context;
use crate::nested::vcpu::{VCpu, gpr};
use crate::nested::{Start, run, transition};
use crate::park::{self, Command};
use crate::partition;
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
    let op = Op::from_raw(raw);
    let decoded = op.ok_or(Errno::Argument).and_then(|op| Call::decode(op, arguments));
    let slot = vcpu.slot;
    vcpu.gprs[gpr::RAX] = match decoded.and_then(|asked| call(vcpu, hw, index, slot, asked)) {
        Ok(After::Resume) => 0,
        Ok(other) => return other,
        Err(errno) => {
            shared::trace(Event::CallRefused {
                errno,
                op,
                argument: arguments[0],
            });
            shared::status().count_refusal();
            errno.rax()
        }
    };
    Context { cpu: vcpu, hw }.advance();
    After::Resume
}

fn call(vcpu: &mut VCpu, hw: &mut Cpu, index: CpuIndex, slot: Slot, asked: Call) -> Result<After, Errno> {
    match asked {
        Call::Ping => Ok(After::Resume),
        Call::Leave { frame } => transition::prepare_leave(vcpu, hw, slot, frame),
        Call::Grant(grant) => {
            wholly_nested(slot)?;
            partition::grant(grant, slot)?;
            park::poke();
            Ok(After::Resume)
        }
        Call::Start {
            entry,
            zero_page,
            apic_id,
        } => start(vcpu, hw, slot, [entry, zero_page], apic_id),
        Call::Abort => abort(hw, slot),
        Call::Retire => retire(vcpu, hw, index, slot),
        Call::Park => Ok(After::Park),
        Call::Exit { detail } => {
            if !partition::two_hosts() {
                return Err(Errno::State);
            }
            run::die(slot, index, StopReason::PoweredOff, detail);
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

fn start(vcpu: &VCpu, hw: &mut Cpu, slot: Slot, [entry, zero_page]: [u64; 2], apic_id: u32) -> Result<After, Errno> {
    let to = slot.other();
    wholly_nested(slot)?;
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
    shared::trace(Event::HostStart {
        slot: to,
        entry,
        zero_page,
    });
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
    let succeeds = partition::two_hosts() && partition::reigning() == other;
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
    if !partition::two_hosts() || partition::reigning() != slot || !can_take_over() {
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
    shared::trace(Event::HostRetired { slot });
    park::poke();
    Ok(After::Park)
}
