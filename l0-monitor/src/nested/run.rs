//! The run loop: what the assembly calls, and the one place where decisions become actions.
#![expect(unsafe_code, reason = "per-CPU state is reached from assembly")]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, Ordering};

use locum_abi::{CpuMode, Event, HostState, MAX_CPUS, Slot, StopReason};

use crate::cpu::{self, CpuIndex};
use crate::nested::context::Context;
use crate::nested::exits::{Next, Policy};
use crate::nested::gate::GPRS;
use crate::nested::hypercall::{self, After};
use crate::nested::transition;
use crate::nested::vcpu::VCpu;
use crate::nested::vmcs01::HOST_VPID;
use crate::partition::{self, io_filter::Verdict};
use crate::shared::{self, Counter};
use crate::vmx::Hardware;
use crate::vmx::exit::{IoAccess, Reason};
use crate::vmx::hardware::Invalidate;
use crate::vmx::instructions::Cpu;

/// Where a CPU stands between running a host and being parked; decides who may send it INIT.
///
/// INIT is held pending while a CPU is in VMX root, and would reset it as soon as it leaves VMX operation. So a CPU
/// parks only after it has won this word, and one to which INIT was sent first goes back into non-root, where the INIT
/// becomes an exit.
static STAGES: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(PARKED) }; MAX_CPUS];
const RUNNING: u8 = 0;
const INIT_SENT: u8 = 1;
const PARKED: u8 = 2;
const STARTING: u8 = 3;

/// The host in non-root begins to run on `cpu`.
pub fn mark_running(cpu: CpuIndex) {
    STAGES[cpu.get()].store(RUNNING, Ordering::Release);
}

/// A parked CPU is about to start for the host in `slot`. False, and it stays parked, if that host does not own it any
/// more or does not run: whoever stops a host declares it dead first and asks [`is_parked`] afterwards, so one of the
/// two sees the other.
pub fn claim_start(cpu: CpuIndex, slot: Slot) -> bool {
    let stage = &STAGES[cpu.get()];
    stage.store(STARTING, Ordering::SeqCst);
    let may = partition::cpu_owner(cpu) == Some(slot) && shared::status().host(slot).state() == HostState::Running;
    if !may {
        mark_parked(cpu);
    }
    may
}

/// The CPU is in nobody's hands but L0's, or natively a host's.
pub fn mark_parked(cpu: CpuIndex) {
    STAGES[cpu.get()].store(PARKED, Ordering::SeqCst);
}

/// Claims the right to send INIT to `cpu`. False if it is on its way to the parking loop by itself.
pub fn claim_init(cpu: CpuIndex) -> bool {
    let stage = &STAGES[cpu.get()];
    stage
        .compare_exchange(RUNNING, INIT_SENT, Ordering::AcqRel, Ordering::Acquire)
        .is_ok()
}

fn claim_park(cpu: CpuIndex) -> bool {
    let stage = &STAGES[cpu.get()];
    stage.compare_exchange(RUNNING, PARKED, Ordering::AcqRel, Ordering::Acquire) != Err(INIT_SENT)
}

struct Cell(UnsafeCell<VCpu>);

// SAFETY: each element is only used by the CPU it belongs to, see `vcpu`.
unsafe impl Sync for Cell {}

static VCPUS: [Cell; MAX_CPUS] = [const { Cell(UnsafeCell::new(VCpu::new())) }; MAX_CPUS];

/// The state of CPU `cpu`.
///
/// # Safety
/// Called on that CPU, and no other reference to the state is alive: L0's entry points take it once and hand it down.
pub unsafe fn vcpu(cpu: CpuIndex) -> &'static mut VCpu {
    // SAFETY: the caller vouches for exclusive use.
    unsafe { &mut *VCPUS[cpu.get()].0.get() }
}

/// RSP that VM exits load on `cpu`.
pub fn exit_stack(cpu: CpuIndex) -> u64 {
    VCPUS[cpu.get()].0.get() as u64 + GPRS as u64
}

struct Real {
    slot: Slot,
}

impl Policy<Cpu> for Real {
    fn port(&mut self, hw: &mut Cpu, io: IoAccess, value: u32) -> Verdict {
        partition::port(hw, self.slot, io, value)
    }

    fn is_device(&mut self, address: u64) -> bool {
        partition::two_hosts() && partition::is_ioapic(address)
    }

    fn device(&mut self, hw: &mut Cpu, address: u64, write: Option<u32>) -> u32 {
        partition::ioapic(hw, self.slot, address, write).unwrap_or(!0)
    }

    fn allow(&mut self, address: u64, write: bool) -> bool {
        partition::allow(self.slot, address, write)
    }

    fn is_memory(&mut self, address: u64) -> bool {
        partition::is_memory(address)
    }

    fn is_on_trial(&self) -> bool {
        partition::two_hosts() && partition::reigning() != self.slot
    }
}

/// Every VM exit comes here first. True: it was one of the steady state, VMRESUME is next. False: it is still to be
/// handled.
pub(super) extern "C" fn handle_steady(vcpu: *mut VCpu) -> bool {
    // SAFETY: as in `handle_exit`.
    let vcpu = unsafe { &mut *vcpu };
    // SAFETY: as in `handle_exit`.
    let mut hw = unsafe { Cpu::new(vcpu.slot) };
    let of_guest = vcpu.in_guest;
    let steady = Context { cpu: vcpu, hw: &mut hw }.steady();
    if !steady {
        return false;
    }
    let status = shared::status().cpu(vcpu.index);
    status.count(Counter::Exits);
    if of_guest {
        status.count(Counter::GuestExits);
        flush_if_changed(vcpu, &mut hw);
    } else {
        status.count_reason(Reason::VMRESUME.0);
    }
    true
}

/// Every other VM exit. Returns what the assembly enters with: 0 VMRESUME, 1 VMLAUNCH.
pub(super) extern "C" fn handle_exit(vcpu: *mut VCpu) -> u8 {
    // SAFETY: the assembly passes this CPU's state, and nobody else holds it: L0 runs on this CPU only after an exit.
    let vcpu = unsafe { &mut *vcpu };
    let index = vcpu.index;
    let status = shared::status().cpu(index);
    status.count(Counter::Exits);
    let mut policy = Real { slot: vcpu.slot };
    // SAFETY: on L0's page tables with interrupts off, as every exit leaves it.
    let mut hw = unsafe { Cpu::new(vcpu.slot) };
    let was_guest = vcpu.in_guest;
    let (next, reason) = Context { cpu: vcpu, hw: &mut hw }.serve(&mut policy);
    if was_guest {
        status.count(Counter::GuestExits);
    } else {
        status.count_reason(reason.0);
    }
    act(vcpu, &mut hw, index, next)
}

/// A VM entry that did not happen.
pub(super) extern "C" fn handle_failure(vcpu: *mut VCpu, rflags: u64) -> u8 {
    // SAFETY: as in `handle_exit`.
    let vcpu = unsafe { &mut *vcpu };
    let index = vcpu.index;
    // SAFETY: as in `handle_exit`.
    let mut hw = unsafe { Cpu::new(vcpu.slot) };
    let next = Context { cpu: vcpu, hw: &mut hw }.entry_failed(rflags);
    act(vcpu, &mut hw, index, next)
}

/// Rights that the host lost must not survive in this CPU's caches (SDM vol. 3C, 30.4.3.4).
#[inline(always)]
fn flush_if_changed(vcpu: &mut VCpu, hw: &mut Cpu) {
    let changes = partition::ept_changes(vcpu.slot);
    if vcpu.ept_seen != changes {
        vcpu.ept_seen = changes;
        hw.invalidate(Invalidate::Ept, 1, [partition::ept_pointer(vcpu.slot), 0]);
        hw.invalidate(Invalidate::Vpid, 1, [HOST_VPID, 0]);
    }
}

fn act(vcpu: &mut VCpu, hw: &mut Cpu, index: CpuIndex, next: Next) -> u8 {
    match next {
        Next::Host => resume(vcpu, hw),
        Next::Guest(launch) => u8::from(launch),
        Next::Call => match hypercall::serve(vcpu, hw, index) {
            After::Resume => resume(vcpu, hw),
            After::Park => park(vcpu, hw, index),
            After::Leave(frame) => transition::leave(vcpu, hw, index, frame),
        },
        Next::Init => {
            // Only L0 sends INIT, to the CPUs of a host that is being stopped.
            STAGES[index.get()].store(PARKED, Ordering::Release);
            shared::trace(Event::CpuTaken { slot: vcpu.slot });
            transition::clean_up(vcpu, hw);
            crate::park::park(index)
        }
        Next::Die(reason, detail) => {
            die(vcpu.slot, index, reason, detail);
            park(vcpu, hw, index)
        }
    }
}

fn resume(vcpu: &mut VCpu, hw: &mut Cpu) -> u8 {
    flush_if_changed(vcpu, hw);
    // VMCS01 is launched but right after it was cleared to change VMXON regions.
    let launch = !vcpu.launched;
    vcpu.launched = true;
    u8::from(launch)
}

/// Parks this CPU; or, if INIT was sent to it, goes back into non-root so that the INIT arrives: in a state that VM
/// entry accepts whatever the host's was. It exits before the first instruction.
fn park(vcpu: &mut VCpu, hw: &mut Cpu, index: CpuIndex) -> u8 {
    if !claim_park(index) {
        transition::fill_any(vcpu, hw);
        return 1;
    }
    transition::clean_up(vcpu, hw);
    crate::park::park(index)
}

/// Declares the host in `slot` dead. What it has stays as it is until the other host takes it. Without another host,
/// the machine is reset, as it would be natively.
pub fn die(slot: Slot, index: CpuIndex, reason: StopReason, detail: [u64; 3]) {
    let host = shared::status().host(slot);
    if host.state() != HostState::Running {
        return;
    }
    let apic_id = cpu::apic_id(index);
    host.set_reason(reason, detail, apic_id);
    host.set_state(HostState::Dead);
    let [first, second, _] = detail;
    shared::trace(Event::HostDead {
        slot,
        reason,
        detail: [first, second],
    });
    log::error!("host in the {slot:?} slot died on APIC id {apic_id}: {reason:?} {detail:x?}");
    if !partition::two_hosts() {
        log::error!("no other host is there: reset");
        // SAFETY: the only host has just ended.
        unsafe { crate::arch::port::reset_machine() };
    }
}

/// Waits until `done`, at most `ticks` of the TSC.
pub fn wait_until(ticks: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = crate::arch::registers::tsc();
    loop {
        if done() {
            return true;
        }
        if crate::arch::registers::tsc().wrapping_sub(start) > ticks {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// True if `cpu` is parked, and not about to start.
pub fn is_parked(cpu: CpuIndex) -> bool {
    shared::status().cpu(cpu).mode() == CpuMode::Parked
        && STAGES[cpu.get()].load(Ordering::SeqCst) != STARTING
        && !crate::park::has_command(cpu)
}
