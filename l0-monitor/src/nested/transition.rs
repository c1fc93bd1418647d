//! Native to nested and back, on one CPU.
//!
//! **Entering** never leaves VMX operation. Whether the CPU is in it is found out with VMXON itself, which fails in
//! root operation and changes nothing (SDM vol. 3C, VMXON). **Leaving** leaves VMX operation only if the host believes
//! itself outside; otherwise the VMXON region in use, even if it is L0's, stays in use.
#![expect(unsafe_code, reason = "changes control registers and jumps between a host and L0")]

use core::arch::asm;

use locum_abi::frame::{FRAME_MAGIC, TR};
use locum_abi::{CpuMode, Errno, Event, Frame, Slot};

use crate::arch::{gdt, idt, paging, registers};
use crate::boot::{host, reset};
use crate::cpu::{self, CpuIndex};
use crate::nested::check;
use crate::nested::context::Context;
use crate::nested::hypercall::After;
use crate::nested::shadow;
use crate::nested::steady::Steady;
use crate::nested::vcpu::{Belief, VCpu, gpr};
use crate::nested::vmcs01::{self, HOST_VPID, HostState};
use crate::nested::walk::Paging;
use crate::nested::{Start, gate, host_area, host_area::HostArea, host_area::at, regions, run};
use crate::partition;
use crate::shared::{self, Counter};
use crate::vmx::caps::Caps;
use crate::vmx::field::{self, Segment};
use crate::vmx::hardware::Invalidate;
use crate::vmx::instructions::Cpu;
use crate::vmx::{Hardware, VmxStatus};

const EFER: u32 = 0xc000_0080;
const DEBUGCTL: u32 = 0x1d9;
const SYSENTER: [u32; 3] = [0x174, 0x175, 0x176];
const CR4_OSXSAVE: u64 = 1 << 18;
const CPUID_XSAVE: u32 = 1 << 26;
const CPUID_VMX: u32 = 1 << 5;
/// Four descriptors (see `boot::host`).
const FIRMWARE_GDT_LIMIT: u16 = 31;

fn caps(hw: &mut Cpu) -> Result<Caps, Errno> {
    let vmx = hw.cpuid(1, 0)[2] & CPUID_VMX != 0;
    let phys_bits = hw.cpuid(0x8000_0008, 0)[0] & 0xff;
    Caps::new(vmx, phys_bits, |msr| hw.rdmsr(msr)).map_err(|unfit| {
        log::error!("this CPU can't run L0: {unfit:?}");
        Errno::NoVmx
    })
}

/// L0's own host-state area on `cpu`.
fn own_area(hw: &mut Cpu, cpu: CpuIndex, slot: Slot) -> HostArea {
    let xsave = if hw.cpuid(1, 0)[2] & CPUID_XSAVE != 0 {
        CR4_OSXSAVE
    } else {
        0
    };
    let mut area = HostArea::ZERO;
    let code = u64::from(gdt::CODE);
    let data = u64::from(gdt::DATA);
    for (index, value) in [
        (at::CR0, registers::CR0_L0),
        (at::CR3, paging::l0_cr3(slot)),
        (at::CR4, registers::CR4_PAE | registers::CR4_VMXE | xsave),
        (at::RSP, run::exit_stack(cpu)),
        (at::RIP, gate::exit_address()),
        (at::SELECTORS + Segment::Es as usize, data),
        (at::SELECTORS + Segment::Cs as usize, code),
        (at::SELECTORS + Segment::Ss as usize, data),
        (at::SELECTORS + Segment::Ds as usize, data),
        (at::GDTR_BASE, gdt::base(cpu)),
        (at::IDTR_BASE, idt::base()),
    ] {
        area.0[index] = value;
    }
    area
}

/// Sets CR4.VMXE.
fn allow_vmx() {
    // SAFETY: the bit only makes VMXON legal.
    unsafe { asm!("mov cr4, {}", in(reg) registers::cr4() | registers::CR4_VMXE, options(nostack)) };
}

/// Brings this CPU into VMX operation, if it is not, and makes VMCS01 current and clear. Returns what the host, if one
/// runs here, believes.
fn take_root(vcpu: &mut VCpu, hw: &mut Cpu, cpu: CpuIndex, slot: Slot) -> Result<Belief, Errno> {
    vcpu.caps = caps(hw)?;
    let regions = regions::prepare(cpu, vcpu.caps.revision);
    (vcpu.vmxon_region, vcpu.vmcs01) = (regions.vmxon, regions.vmcs01);
    vcpu.slot = slot;
    vcpu.index = cpu;
    vcpu.apic_id = cpu::apic_id(cpu);
    vcpu.steady = Steady::NONE;
    vcpu.stack_top = cpu::stack_top(cpu);
    vcpu.own_area = own_area(hw, cpu, slot);
    vcpu.in_guest = false;
    vcpu.launched = false;
    partition::prepare(slot, vcpu.caps.ept_1g);
    vcpu.ept_seen = partition::ept_changes(slot);
    allow_vmx();
    vcpu.own_vmxon = hw.vmxon(vcpu.vmxon_region).ok();
    let belief = if vcpu.own_vmxon {
        Belief::default()
    } else {
        let current = hw.vmptrst();
        Belief {
            vmx_on: true,
            vmxon_region: None,
            current: (current != !0).then_some(current),
        }
    };
    let ready = hw.vmclear(vcpu.vmcs01).ok() && hw.vmptrld(vcpu.vmcs01).ok();
    if !ready {
        log::error!("VMCS01 can't be loaded");
        return Err(Errno::EntryFailed);
    }
    if vcpu.caps.shadowing && shadow::allowed() {
        vcpu.shadow.prepare(hw, regions.shadow, regions.bitmaps);
    }
    if check::enabled() {
        check::probe(hw);
    }
    Ok(belief)
}

fn flush(vcpu: &VCpu, hw: &mut Cpu) {
    hw.invalidate(Invalidate::Ept, 1, [partition::ept_pointer(vcpu.slot), 0]);
    hw.invalidate(Invalidate::Vpid, 1, [HOST_VPID, 0]);
}

/// A host calls from native mode: the only call there is, "enter".
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "called by the native entry only, which has read the CPU's frame at that address"
)]
pub fn native_call(frame: *mut Frame, cpu: CpuIndex) -> ! {
    // SAFETY: the stub mapped its frame at this address under L0's CR3 and gives it to this CPU until it is back; the
    // entry assembly has already read from it. The state is this CPU's, and no exit handler runs on a native CPU.
    let (frame_ref, vcpu) = unsafe { (&mut *frame, run::vcpu(cpu)) };
    let Some(slot) = partition::cpu_owner(cpu) else {
        registers::halt_forever()
    };
    // SAFETY: on L0's page tables, interrupts off.
    let mut hw = unsafe { Cpu::new(slot) };
    match enter(vcpu, &mut hw, frame_ref, cpu, slot) {
        // SAFETY: `enter` made VMCS01 current and filled it in.
        Ok(()) => unsafe { gate::launch(vcpu) },
        Err(errno) => {
            shared::trace(Event::CallRefused {
                errno,
                op: None,
                argument: frame as u64,
            });
            shared::status().count_refusal();
            frame_ref.result = -i64::from(errno as u32);
            // SAFETY: nothing was changed, the frame is as the stub made it.
            unsafe { return_native(frame as u64) }
        }
    }
}

fn enter(vcpu: &mut VCpu, hw: &mut Cpu, frame: &mut Frame, cpu: CpuIndex, slot: Slot) -> Result<(), Errno> {
    if frame.magic != FRAME_MAGIC || frame.apic_id != cpu::apic_id(cpu) {
        return Err(Errno::Frame);
    }
    vcpu.pretend_bsp = false;
    let belief = take_root(vcpu, hw, cpu, slot)?;
    vcpu.belief = belief;
    let mut msr = |m| hw.rdmsr(m).unwrap_or(0);
    let sysenter = SYSENTER.map(&mut msr);
    let state = HostState::from_frame(frame, msr(EFER), msr(DEBUGCTL), sysenter);
    vmcs01::fill(hw, vcpu, &state, (frame.selectors[TR], frame.tr_base));
    if let Some(current) = belief.current {
        let own = vcpu.own_area;
        let adopted = hw.vmptrld(current).ok() && vcpu.adopted.adopt(hw, current, &own).is_ok();
        hw.vmptrld(vcpu.vmcs01);
        if !adopted {
            give_root_back(vcpu, hw);
            return Err(Errno::EntryFailed);
        }
    }
    Context { cpu: vcpu, hw }.attach_shadow();
    flush(vcpu, hw);
    run::mark_running(cpu);
    reset::set_nested(vcpu.apic_id, slot, true);
    let status = shared::status().cpu(cpu);
    status.set_mode(CpuMode::Nested);
    status.count(Counter::Enters);
    shared::trace(Event::Enter {
        in_vmx: belief.vmx_on,
        vmcs: belief.current,
    });
    vcpu.gprs = [0; 16];
    Ok(())
}

/// Starts a parked CPU in VMX non-root.
pub fn start(cpu: CpuIndex, start: Start) -> ! {
    // SAFETY: the CPU was parked: nobody holds its state. On L0's page tables, interrupts off.
    let (vcpu, mut hw) = unsafe { (run::vcpu(cpu), Cpu::new(start.slot)) };
    vcpu.pretend_bsp = start.rsi != 0;
    match take_root(vcpu, &mut hw, cpu, start.slot) {
        Ok(_) => {}
        Err(errno) => {
            log::error!("APIC id {}: can't start nested: {errno:?}", cpu::apic_id(cpu));
            run::mark_parked(cpu);
            crate::park::park(cpu)
        }
    }
    if !vcpu.own_vmxon {
        // The CPU was still in VMX operation in a region of somebody who is gone.
        vcpu.shadow.clear(&mut hw);
        hw.vmclear(vcpu.vmcs01);
        hw.vmxoff();
        vcpu.own_vmxon = hw.vmxon(vcpu.vmxon_region).ok();
        hw.vmptrld(vcpu.vmcs01);
    }
    vcpu.belief = Belief::default();
    let cr3 = host::firmware_cr3(start.slot);
    // SAFETY: only an address is computed.
    let firmware_gdt = unsafe { &raw const (*shared::slot_area(start.slot)).gdt } as u64;
    let state = HostState::firmware(start.rip, cr3, (firmware_gdt, FIRMWARE_GDT_LIMIT), gdt::CODE, gdt::DATA);
    vmcs01::fill(&mut hw, vcpu, &state, (gdt::TSS, gdt::tss_base(cpu)));
    flush(vcpu, &mut hw);
    run::mark_running(cpu);
    reset::set_nested(vcpu.apic_id, start.slot, true);
    shared::status().cpu(cpu).set_mode(CpuMode::Nested);
    vcpu.gprs = [0; 16];
    vcpu.gprs[gpr::RSI] = start.rsi;
    // SAFETY: VMCS01 is current, clear and filled in.
    unsafe { gate::launch(vcpu) }
}

/// Checks a Leave call. The frame is reached twice: by the address at which the host's stub uses it, under both page
/// tables, and by its physical address.
///
/// # Errors
/// [`Errno::Frame`]; [`Errno::State`] while another host is being prepared or runs.
pub fn prepare_leave(vcpu: &mut VCpu, hw: &mut Cpu, slot: Slot, frame: u64) -> Result<After, Errno> {
    let other = shared::status().host(slot.other()).state();
    if partition::two_hosts() || other == locum_abi::HostState::Preparing {
        return Err(Errno::State);
    }
    if frame & 0xfff != 0 {
        return Err(Errno::Frame);
    }
    let mut read = |f| hw.vmread(f).map_err(|_| Errno::EntryFailed);
    let (cr3, cr4) = (read(field::GUEST_CR3)?, read(field::GUEST_CR4)?);
    let guest_tr = [read(Segment::Tr.guest_selector())?, read(Segment::Tr.guest_base())?];
    let host_tr = [read(host_area::HOST_TR_SELECTOR)?, read(field::HOST_TR_BASE)?];
    let host = Paging {
        cr3,
        five_levels: cr4 & 1 << 12 != 0,
    };
    let phys = host.translate(hw, frame, true).map_err(|_| Errno::Frame)?;
    if !hw.may_touch(phys, 4096) {
        return Err(Errno::Frame);
    }
    // SAFETY: on L0's page tables; only L0's own tables are walked with it.
    let mut trusted = unsafe { Cpu::trusted() };
    let l0 = Paging {
        cr3: paging::l0_cr3(slot),
        five_levels: false,
    };
    // SAFETY: the page belongs to the host, which gave it to L0 with the call; plain data.
    let seen = unsafe { &*(phys as *const Frame) };
    let mapped = |hw: &mut Cpu, address: u64| l0.translate(hw, address, false).ok();
    let good = mapped(&mut trusted, frame) == Some(phys)
        && mapped(&mut trusted, seen.return_native).is_some()
        && seen.magic == FRAME_MAGIC
        && seen.apic_id == vcpu.apic_id;
    if !good {
        return Err(Errno::Frame);
    }
    if host_tr != guest_tr {
        // The next exit loads the task register with the host's own TSS, as a native host must find it. The call is
        // made again by not going past it.
        hw.vmwrite(host_area::HOST_TR_SELECTOR, guest_tr[0]);
        hw.vmwrite(field::HOST_TR_BASE, guest_tr[1]);
        return Ok(After::Leave(0));
    }
    Ok(After::Leave(frame))
}

/// Leaves: all of the host's VMCSs get their own host-state area back, and the host goes on natively. A frame of 0
/// means that the host is to make its call once more. Returns (to resume the host) only then.
pub fn leave(vcpu: &mut VCpu, hw: &mut Cpu, index: CpuIndex, frame_address: u64) -> u8 {
    if frame_address == 0 {
        return 0;
    }
    // SAFETY: `prepare_leave` found the page mapped there under this CR3, and it is the host's.
    let frame = unsafe { &mut *(frame_address as *mut Frame) };
    let mut read = |f| hw.vmread(f).unwrap_or(0);
    let (cr0_mask, cr4_mask) = (vcpu.caps.cr0_fixed, vcpu.caps.cr4_fixed);
    frame.cr0 = read(field::GUEST_CR0) & !cr0_mask | read(field::CR0_SHADOW) & cr0_mask;
    frame.cr4 = read(field::GUEST_CR4) & !cr4_mask | read(field::CR4_SHADOW) & cr4_mask;
    frame.cr3 = read(field::GUEST_CR3);
    frame.rflags = read(field::GUEST_RFLAGS);
    frame.gdtr.base = read(field::GUEST_GDTR_BASE);
    frame.gdtr.limit = read(field::GUEST_GDTR_LIMIT) as u16;
    frame.idtr.base = read(field::GUEST_IDTR_BASE);
    frame.idtr.limit = read(field::GUEST_IDTR_LIMIT) as u16;
    for segment in Segment::ALL {
        frame.selectors[segment as usize] = read(segment.guest_selector()) as u16;
    }
    frame.fs_base = read(Segment::Fs.guest_base());
    frame.gs_base = read(Segment::Gs.guest_base());
    frame.dr7 = read(field::GUEST_DR7);
    let msrs = [
        (EFER, read(field::GUEST_EFER)),
        (DEBUGCTL, read(field::GUEST_DEBUGCTL)),
        (SYSENTER[0], read(field::GUEST_SYSENTER_CS)),
        (SYSENTER[1], read(field::GUEST_SYSENTER_ESP)),
        (SYSENTER[2], read(field::GUEST_SYSENTER_EIP)),
    ];
    for (msr, value) in msrs {
        if hw.rdmsr(msr) != Some(value) {
            hw.wrmsr(msr, value);
        }
    }
    frame.result = 0;
    frame.detail = 0;
    let dr7 = frame.dr7;
    // SAFETY: the host's own value; L0 uses no breakpoints and its code is at none of the host's addresses.
    unsafe { asm!("mov dr7, {}", in(reg) dr7, options(nostack)) };
    let belief = vcpu.belief;
    let given_back = give_root_back(vcpu, hw);
    reset::set_nested(vcpu.apic_id, vcpu.slot, false);
    let status = shared::status().cpu(index);
    status.set_mode(CpuMode::Native);
    status.count(Counter::Leaves);
    shared::trace(Event::Leave {
        in_vmx: belief.vmx_on,
        vmcs: belief.current,
        given_back: given_back as u64,
    });
    // SAFETY: the frame holds the host's state, and VMX is as the host believes.
    unsafe { return_native(frame_address) }
}

/// Makes VMX on this CPU what the host believes it to be. Returns how many VMCSs were given back.
fn give_root_back(vcpu: &mut VCpu, hw: &mut Cpu) -> usize {
    Context { cpu: vcpu, hw }.leave_steady();
    vcpu.shadow.clear(hw);
    let given_back = vcpu.adopted.give_back_all(hw);
    hw.vmptrld(vcpu.vmcs01);
    hw.vmclear(vcpu.vmcs01);
    if !vcpu.belief.vmx_on {
        hw.vmxoff();
    } else if let Some(current) = vcpu.belief.current
        && hw.vmptrld(current) != VmxStatus::Succeed
    {
        log::error!("the host's VMCS at {current:#x} can't be loaded");
    }
    given_back
}

/// Gives every VMCS of the host back and clears it, so that the CPU keeps nothing of it. VMCS01 is current afterwards.
pub fn clear_vmcss(vcpu: &mut VCpu, hw: &mut Cpu) {
    vcpu.shadow.clear(hw);
    while let Some(phys) = vcpu.adopted.any() {
        vcpu.adopted.give_back(hw, phys);
        hw.vmclear(phys);
    }
    vcpu.belief.current = None;
    hw.vmptrld(vcpu.vmcs01);
}

/// Fills VMCS01 with a state that VM entry accepts, cleared: for a CPU whose pending INIT is the next thing to happen.
pub fn fill_any(vcpu: &mut VCpu, hw: &mut Cpu) {
    vcpu.shadow.clear(hw);
    hw.vmclear(vcpu.vmcs01);
    hw.vmptrld(vcpu.vmcs01);
    vcpu.in_guest = false;
    vcpu.launched = true;
    let slot = vcpu.slot;
    let cr3 = host::firmware_cr3(slot);
    let state = HostState::firmware(0, cr3, (0, 0), gdt::CODE, gdt::DATA);
    let tss = gdt::tss_base(vcpu.index);
    vmcs01::fill(hw, vcpu, &state, (gdt::TSS, tss));
}

/// The host on this CPU is gone: no VMCS of it may stay cached, and the CPU leaves VMX operation.
pub fn clean_up(vcpu: &mut VCpu, hw: &mut Cpu) {
    clear_vmcss(vcpu, hw);
    hw.vmclear(vcpu.vmcs01);
    hw.vmxoff();
    vcpu.belief = Belief::default();
    // SAFETY: outside VMX operation the bit may be cleared.
    unsafe { asm!("mov cr4, {}", in(reg) registers::cr4() & !registers::CR4_VMXE, options(nostack)) };
}

/// Goes back to the host through its stub.
///
/// # Safety
/// The frame is mapped at `frame` under this CR3, with the stub, and describes the host as it is to go on.
unsafe fn return_native(frame: u64) -> ! {
    // SAFETY: the stub's contract (`locum_abi::frame`): its GDT and IDT are mapped under both page tables, its stack
    // ends with the frame.
    unsafe {
        asm!(
            "lgdt [rdi + {gdtr}]",
            "lidt [rdi + {idtr}]",
            "lea rsp, [rdi + 4096]",
            "mov rax, [rdi + {target}]",
            "jmp rax",
            gdtr = const core::mem::offset_of!(Frame, stub_gdtr) + 6,
            idtr = const core::mem::offset_of!(Frame, stub_idtr) + 6,
            target = const core::mem::offset_of!(Frame, return_native),
            in("rdi") frame,
            options(noreturn),
        )
    }
}
