//! Into the parking loop, and out of it to a host.
#![expect(unsafe_code, reason = "parking gives up the stack that it came on")]

use core::arch::asm;

use locum_abi::Event;

use super::{native_host, vm_entry};
use crate::arch::{cpuid, gdt, registers, stack};
use crate::id::CpuIndex;
use crate::nested::{transition, vcpu};
use crate::park;
use crate::partition::StartMode;
use crate::stage::{self, Stage, Step};
use crate::vmx::instructions::Cpu;
use crate::{selftest, shared, trap};

/// Where [`super::reset`] and the AP trampoline lead, on this CPU's stack, with L0's page tables. The rest of L0's CPU
/// state is loaded here.
///
/// # Safety
/// Only jumped to by these two.
pub(crate) unsafe extern "C" fn arrive() -> ! {
    let Some(cpu) = cpuid::current() else {
        registers::halt_forever()
    };
    // SAFETY: on the CPU itself, interrupts off, on L0's page tables; the IDT was filled before any CPU got here.
    unsafe {
        gdt::load(cpu);
        trap::load();
    }
    let step = match stage::of(cpu) {
        Stage::Absent => Step::ComeUp,
        _ => Step::Offline,
    };
    if let Err(found) = stage::take(cpu, step) {
        // A host has written to the table of modes behind its reset vector: L0 is not where it thinks.
        log::error!(
            "APIC id {} comes from stage {found:?}: this CPU halts",
            cpuid::apic_id()
        );
        registers::halt_forever()
    }
    if step == Step::ComeUp && selftest::wanted() {
        selftest::run(cpu);
    }
    shared::trace(Event::Park { from_nested: false });
    park(cpu)
}

/// Parks this CPU, which is `cpu` and in [`Stage::Parking`], from whatever L0 was doing: the stack starts over. L0's
/// page tables, GDT and IDT are in use and interrupts off.
pub(crate) fn park(cpu: CpuIndex) -> ! {
    // SAFETY: nothing on the old stack is needed again, since neither function returns; the new one belongs to this
    // CPU. RSP is 16-byte aligned before the call, as the ABI wants it.
    unsafe {
        asm!(
            "mov rsp, {top}",
            "xor ebp, ebp",
            "call {parked}",
            "ud2",
            top = in(reg) stack::top(cpu),
            in("rdi") cpu.get(),
            parked = sym parked,
            options(noreturn),
        )
    }
}

extern "C" fn parked(index: usize) -> ! {
    let Some(cpu) = CpuIndex::new(index) else {
        registers::halt_forever()
    };
    loop {
        let (start, mode) = park::wait_for_start(cpu);
        let started = match mode {
            StartMode::Native => stage::take(cpu, Step::RunNative).map(|()| {
                // SAFETY: the host asked for this CPU to go there, and L0 has nothing more to do on it.
                unsafe { native_host::enter(start.slot, start.rip, start.rsi) }
            }),
            StartMode::Nested => {
                // SAFETY: the CPU was parked: nobody holds its state. On L0's page tables, interrupts off.
                let (vcpu, mut hw) = unsafe { (vcpu::of(cpu), Cpu::new()) };
                match transition::start(vcpu, &mut hw, cpu, start, vm_entry::address()) {
                    // SAFETY: VMCS01 is current, clear and filled in.
                    Ok(()) => unsafe { vm_entry::launch(vcpu) },
                    Err(errno) => {
                        log::error!("APIC id {}: can't start nested: {errno:?}", cpuid::apic_id());
                        stage::take(cpu, Step::Refuse)
                    }
                }
            }
        };
        if let Err(found) = started {
            log::error!("APIC id {}: a start ends in stage {found:?}", cpuid::apic_id());
        }
    }
}
