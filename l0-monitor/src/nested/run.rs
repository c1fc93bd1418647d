//! From an exit to what L0 does next: the one place where decisions of [`super::exits`] become actions.
//!
//! The doors call these functions with the CPU's own state and carry out what they return ([`Onward`]).

use locum_abi::Event;

use crate::machine_check;
use crate::nested::context::Context;
use crate::nested::exits::Next;
use crate::nested::hypercall::{self, Served};
use crate::nested::this_machine::{ThisMachine, die, flush};
use crate::nested::transition;
use crate::nested::vcpu::VCpu;
use crate::partition::{PARTITION, Survivor};
use crate::shared::{self, Counter};
use crate::stage::{self, Step};
use crate::vmx::Hardware;
use crate::vmx::exit::Reason;
use crate::vmx::field;
use crate::vmx::instructions::Cpu;

/// What L0 does when an exit is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onward {
    /// Enters the current VMCS: by VMLAUNCH or by VMRESUME.
    Enter {
        /// VMLAUNCH.
        launch: bool,
    },
    /// Parks this CPU, which has left VMX operation.
    Park,
    /// Resets the machine: its only host has died.
    Reset,
    /// Goes back to the native host through its frame at this address.
    Leave {
        /// Under this CR3.
        frame: u64,
    },
}

/// Every VM exit comes here first. True: it was one of the steady path, VMRESUME is next. False: it is still to be
/// handled.
#[inline(always)]
pub(crate) fn steady(vcpu: &mut VCpu, hw: &mut Cpu) -> bool {
    let of_guest = vcpu.in_guest;
    let around = ThisMachine(vcpu.slot);
    let context = &mut Context {
        vcpu,
        hw,
        around: &around,
    };
    if !context.steady() {
        return false;
    }
    let status = shared::status().cpu(vcpu.cpu);
    status.count(Counter::Exits);
    if of_guest {
        status.count(Counter::GuestExits);
        flush_if_changed(vcpu, hw);
    } else {
        status.count_reason(Reason::VMRESUME.0);
    }
    true
}

/// Every other VM exit.
pub(crate) fn exit(vcpu: &mut VCpu, hw: &mut Cpu) -> Onward {
    let status = shared::status().cpu(vcpu.cpu);
    status.count(Counter::Exits);
    let of_guest = vcpu.in_guest;
    let around = ThisMachine(vcpu.slot);
    let context = &mut Context {
        vcpu,
        hw,
        around: &around,
    };
    let (next, reason) = context.serve();
    if of_guest {
        status.count(Counter::GuestExits);
    } else {
        status.count_reason(reason.0);
    }
    go_on(vcpu, hw, next)
}

/// A VM entry that did not happen, with the RFLAGS that tell why.
pub(crate) fn entry_failed(vcpu: &mut VCpu, hw: &mut Cpu, rflags: u64) -> Onward {
    let around = ThisMachine(vcpu.slot);
    let context = &mut Context {
        vcpu,
        hw,
        around: &around,
    };
    let next = context.entry_failed(rflags);
    go_on(vcpu, hw, next)
}

/// A machine check came while L0 served this CPU: the host continues with it, and not its guest.
pub(crate) fn machine_check(vcpu: &mut VCpu, hw: &mut Cpu) -> Onward {
    let around = ThisMachine(vcpu.slot);
    let context = &mut Context {
        vcpu,
        hw,
        around: &around,
    };
    if machine_check::take(context.vcpu.cpu) {
        context.noted_machine_check();
    }
    go_on(vcpu, hw, Next::Host)
}

/// Rights that the host lost must not survive in this CPU's caches (SDM vol. 3C, 30.4.3.4), nor in the I/O bitmaps that
/// it uses. VMCS01 is current.
#[inline(always)]
fn flush_if_changed(vcpu: &mut VCpu, hw: &mut Cpu) {
    let changes = PARTITION.ept_changes(vcpu.slot);
    if vcpu.ept_seen != changes {
        vcpu.ept_seen = changes;
        let [io_a, io_b] = PARTITION.io_bitmaps(vcpu.slot);
        hw.put(field::IO_BITMAP_A, io_a);
        hw.put(field::IO_BITMAP_B, io_b);
        flush(vcpu, hw);
    }
}

fn go_on(vcpu: &mut VCpu, hw: &mut Cpu, next: Next) -> Onward {
    match next {
        Next::Host => resume(vcpu, hw),
        Next::Guest(launch) => Onward::Enter { launch },
        Next::Call => match hypercall::serve(vcpu, hw) {
            Served::Resume => resume(vcpu, hw),
            Served::Park => park(vcpu, hw),
            Served::Leave { frame } => Onward::Leave { frame },
        },
        // L0 sent it, since the host is being stopped. No other INIT may be sent from then on; now VMX can be left.
        Next::Init if stage::take(vcpu.cpu, Step::Init).is_ok() => {
            shared::trace(Event::CpuTaken { slot: vcpu.slot });
            transition::clean_up(vcpu, hw);
            Onward::Park
        }
        // The host itself sent it: it gives the CPU up.
        Next::Init => park(vcpu, hw),
        Next::Die(reason, detail) => {
            if die(vcpu.slot, vcpu.cpu, reason, detail) == Survivor::None {
                return Onward::Reset;
            }
            park(vcpu, hw)
        }
    }
}

fn resume(vcpu: &mut VCpu, hw: &mut Cpu) -> Onward {
    flush_if_changed(vcpu, hw);
    // VMCS01 is launched but right after it was cleared to change VMXON regions.
    Onward::Enter { launch: !vcpu.launched }
}

/// Parks this CPU; or, if INIT was sent to it, goes back into non-root so that the INIT arrives: in a state that VM
/// entry accepts whatever the host's was. It exits before the first instruction.
fn park(vcpu: &mut VCpu, hw: &mut Cpu) -> Onward {
    if stage::take(vcpu.cpu, Step::Park).is_err() {
        transition::fill_any(vcpu, hw);
        return Onward::Enter { launch: true };
    }
    transition::clean_up(vcpu, hw);
    Onward::Park
}
