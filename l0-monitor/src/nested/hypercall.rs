//! What a nested host may ask for ([`locum_abi::hypercall`]).
#![expect(unsafe_code, reason = "sends INIT to the CPUs of a dead host")]

use locum_abi::{Call, Errno, Event, HostState, Op, Slot, StopReason};

use crate::arch::general::Register;
use crate::arch::{lapic, registers};
use crate::id;
use crate::nested::context::Context;
use crate::nested::this_machine::{ThisMachine, die};
use crate::nested::transition;
use crate::nested::vcpu::VCpu;
use crate::park::{self, Start};
use crate::partition::{PARTITION, Survivor};
use crate::shared;
use crate::stage::{self, Step};
use crate::vmx::instructions::Cpu;

/// How long L0 waits for another CPU to park, in TSC ticks: tens of milliseconds.
const PARK_TICKS: u64 = 200_000_000;

/// What happens after a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The host goes on.
    Resume,
    /// This CPU parks.
    Park,
    /// The machine is reset: its last host has ended.
    Reset,
    /// The host goes on natively.
    Leave {
        /// Address of its frame.
        frame: u64,
    },
}

/// Serves the call in the host's registers. VMCS01 is current.
pub(crate) fn serve(vcpu: &mut VCpu, hw: &mut Cpu) -> Served {
    let arguments = [Register::Rdi, Register::Rsi, Register::Rdx].map(|register| vcpu.gprs[register]);
    let op = Op::from_raw(vcpu.gprs[Register::Rax]);
    let call = op.ok_or(Errno::Argument).and_then(|op| Call::decode(op, arguments));
    let result = match call {
        // The call is made once more by not going past it.
        Ok(Call::Leave { frame }) => match transition::leave(vcpu, hw, frame) {
            Ok(transition::Left::Again) => return Served::Resume,
            Ok(transition::Left::Native) => return Served::Leave { frame },
            Err(errno) => Err(errno),
        },
        Ok(call) => serve_call(vcpu, hw, call),
        Err(errno) => Err(errno),
    };
    vcpu.gprs[Register::Rax] = match result {
        Ok(Served::Resume) => 0,
        Ok(other) => return other,
        Err(errno) => {
            let [argument, ..] = arguments;
            shared::trace(Event::CallRefused { errno, op, argument });
            shared::status().count_refusal();
            errno.rax()
        }
    };
    let around = ThisMachine(vcpu.slot);
    let context = &mut Context {
        vcpu,
        hw,
        around: &around,
    };
    context.advance();
    Served::Resume
}

fn serve_call(vcpu: &mut VCpu, hw: &mut Cpu, call: Call) -> Result<Served, Errno> {
    let slot = vcpu.slot;
    match call {
        Call::Ping | Call::Leave { .. } => Ok(Served::Resume),
        Call::Grant(grant) => {
            PARTITION.grant(grant, slot)?;
            Ok(Served::Resume)
        }
        Call::Start {
            entry,
            zero_page,
            apic_id,
        } => start(vcpu, hw, [entry, zero_page], apic_id),
        Call::Abort => abort(hw, slot),
        Call::Retire => retire(vcpu, hw),
        Call::Park => Ok(Served::Park),
        Call::Dump => {
            PARTITION.begin_dump(slot)?;
            log::error!("the host in slot {} has panicked and writes a dump", slot.raw());
            Ok(Served::Resume)
        }
        Call::Will(will) => {
            PARTITION.set_will(slot, will)?;
            Ok(Served::Resume)
        }
        Call::Exit { detail } => {
            if !PARTITION.has_heir(slot) {
                return Err(Errno::State);
            }
            Ok(match die(slot, vcpu.cpu, StopReason::PoweredOff, detail) {
                Survivor::Other => Served::Park,
                Survivor::None => Served::Reset,
            })
        }
    }
}

fn start(vcpu: &VCpu, hw: &mut Cpu, addresses: [u64; 2], apic_id: u32) -> Result<Served, Errno> {
    let slot = vcpu.slot;
    let to = slot.other();
    let boot = id::index_of_apic(apic_id).ok_or(Errno::Argument)?;
    let latches = PARTITION.read_latches(hw);
    PARTITION.begin_two(slot, boot, vcpu.caps.ept_1g, addresses, &latches)?;
    let [entry, zero_page] = addresses;
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
    park::command(boot, start);
    Ok(Served::Resume)
}

fn abort(hw: &mut Cpu, slot: Slot) -> Result<Served, Errno> {
    let other = slot.other();
    PARTITION.condemn(slot)?;
    let cpus = PARTITION.cpus(other);
    let parked = registers::wait_until(PARK_TICKS, || {
        for cpu in cpus.iter().copied() {
            if stage::take(cpu, Step::SendInit).is_ok() {
                // SAFETY: the CPU runs a host in non-root, or L0 for it, which holds INIT until it is back there;
                // nothing of L0 is lost.
                unsafe { lapic::send_init(id::apic_id(cpu)) };
            }
        }
        cpus.iter().copied().all(stage::is_idle)
    });
    if !parked {
        return Err(Errno::Timeout);
    }
    PARTITION.end_two(hw, slot, HostState::Absent)?;
    Ok(Served::Resume)
}

fn retire(vcpu: &mut VCpu, hw: &mut Cpu) -> Result<Served, Errno> {
    let slot = vcpu.slot;
    PARTITION.begin_retiring(slot)?;
    let retired = give_everything(vcpu, hw);
    match retired {
        Ok(()) => shared::trace(Event::HostRetired { slot }),
        Err(_) => PARTITION.cancel_retiring(),
    }
    retired.map(|()| Served::Park)
}

fn give_everything(vcpu: &mut VCpu, hw: &mut Cpu) -> Result<(), Errno> {
    let slot = vcpu.slot;
    let mut others = PARTITION.cpus(slot);
    others.retain(|cpu| *cpu != vcpu.cpu);
    if !registers::wait_until(PARK_TICKS, || others.iter().copied().all(stage::is_idle)) {
        return Err(Errno::NotParked);
    }
    // Before their memory is the other's.
    transition::leave_host_memory(vcpu, hw);
    PARTITION.end_two(hw, slot.other(), HostState::Retired)
}
