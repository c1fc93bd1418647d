//! What a nested host may ask for ([`locum_abi::hypercall`]).
#![expect(unsafe_code, reason = "sends INIT to the CPUs of a dead host")]

use locum_abi::{Call, Errno, Event, HostState, Op, Slot};

use crate::arch::general::Register;
use crate::arch::{lapic, registers};
use crate::id;
use crate::nested::context::Context;
use crate::nested::this_machine::{ThisMachine, leave_to_heir};
use crate::nested::transition;
use crate::nested::vcpu::VCpu;
use crate::park::{self, Start};
use crate::partition::PARTITION;
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
    /// The host goes on natively.
    Leave {
        /// Address of its frame.
        frame: u64,
    },
}

/// What a call comes to that is not refused.
enum Answer {
    /// It is done, and the host goes on behind it.
    Done,
    /// The host makes it once more.
    Again,
    /// The host does not go on here, or not nested.
    Ends(Served),
}

/// Serves the call in the host's registers. VMCS01 is current.
pub(crate) fn serve(vcpu: &mut VCpu, hw: &mut Cpu) -> Served {
    let arguments = [Register::Rdi, Register::Rsi, Register::Rdx].map(|register| vcpu.gprs[register]);
    let op = Op::from_raw(vcpu.gprs[Register::Rax]);
    let call = op.ok_or(Errno::Argument).and_then(|op| Call::decode(op, arguments));
    vcpu.gprs[Register::Rax] = match call.and_then(|call| serve_call(vcpu, hw, call)) {
        Ok(Answer::Done) => 0,
        Ok(Answer::Again) => return Served::Resume,
        Ok(Answer::Ends(served)) => return served,
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

fn serve_call(vcpu: &mut VCpu, hw: &mut Cpu, call: Call) -> Result<Answer, Errno> {
    let slot = vcpu.slot;
    match call {
        Call::Ping => {}
        Call::Grant(grant) => PARTITION.grant(grant, slot)?,
        Call::Start {
            entry,
            zero_page,
            apic_id,
        } => start(vcpu, hw, [entry, zero_page], apic_id)?,
        Call::Abort => abort(hw, slot)?,
        Call::Retire => {
            retire(vcpu, hw)?;
            return Ok(Answer::Ends(Served::Park));
        }
        Call::Park => return Ok(Answer::Ends(Served::Park)),
        // The call is made once more by not going past it.
        Call::Leave { frame } => {
            return Ok(match transition::leave(vcpu, hw, frame)? {
                transition::Left::Again => Answer::Again,
                transition::Left::Native => Answer::Ends(Served::Leave { frame }),
            });
        }
        Call::Dump => {
            PARTITION.begin_dump(slot)?;
            log::error!("the host in slot {} has panicked and writes a dump", slot.raw());
        }
        Call::Will(will) => PARTITION.set_will(slot, will)?,
        Call::Exit { detail } => {
            leave_to_heir(slot, vcpu.cpu, detail)?;
            return Ok(Answer::Ends(Served::Park));
        }
    }
    Ok(Answer::Done)
}

fn start(vcpu: &VCpu, hw: &mut Cpu, addresses: [u64; 2], apic_id: u32) -> Result<(), Errno> {
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
    Ok(())
}

fn abort(hw: &mut Cpu, slot: Slot) -> Result<(), Errno> {
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
    PARTITION.end_two(hw, slot, HostState::Absent)
}

fn retire(vcpu: &mut VCpu, hw: &mut Cpu) -> Result<(), Errno> {
    let slot = vcpu.slot;
    PARTITION.begin_retiring(slot)?;
    let retired = give_everything(vcpu, hw);
    match retired {
        Ok(()) => shared::trace(Event::HostRetired { slot }),
        Err(_) => PARTITION.cancel_retiring(),
    }
    retired
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
