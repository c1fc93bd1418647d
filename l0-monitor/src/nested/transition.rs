//! Native to nested and back, on one CPU.
//!
//! **Entering** never leaves VMX operation. Whether the CPU is in it is found out with VMXON itself, which fails in
//! root operation and changes nothing (SDM vol. 3C, VMXON). **Leaving** leaves VMX operation only if the host believes
//! itself outside; otherwise the VMXON region in use, even if it is L0's, stays in use.
//!
//! Nothing here jumps: the doors enter VMCS01 or go back to the host when these functions have returned.
#![expect(
    unsafe_code,
    reason = "changes control registers, and reads the frame that a host names"
)]

use locum_abi::frame::TR;
use locum_abi::{Errno, Event, Frame, PAGE_SIZE, Slot};
use x86_64::registers::debug::Dr7;

use crate::arch::general::{Register, Registers};
use crate::arch::registers::Cr4Flags;
use crate::arch::{cpuid, gdt, msr, paging, registers, stack};
use crate::id::{self, CpuIndex};
use crate::machine_check;
use crate::nested::context::Context;
use crate::nested::fingerprint;
use crate::nested::host_area::{HostArea, replaced};
use crate::nested::predictors;
use crate::nested::regions;
use crate::nested::shadow;
use crate::nested::steady::Steady;
use crate::nested::this_machine::{ThisMachine, flush};
use crate::nested::tracing::Held;
use crate::nested::vcpu::{self, Belief, VCpu};
use crate::nested::vmcs01::{self, EntryState};
use crate::nested::walk::Paging;
use crate::park::Start;
use crate::partition::PARTITION;
use crate::shared::{self, Counter};
use crate::stage::{self, Step};
use crate::trap;
use crate::vmx::caps::Caps;
use crate::vmx::field::{self, Segment};
use crate::vmx::guest;
use crate::vmx::instructions::Cpu;
use crate::vmx::{Hardware, VmxStatus};

/// The capabilities of this CPU.
///
/// # Errors
/// [`Errno::NoVmx`]; the log has what is missing.
pub(crate) fn caps(hw: &mut Cpu) -> Result<Caps, Errno> {
    let vmx = hw.cpuid(1, 0)[2] & cpuid::LEAF1_ECX_VMX != 0;
    let phys_bits = hw.cpuid(0x8000_0008, 0)[0] & 0xff;
    Caps::new(vmx, phys_bits, |msr| hw.rdmsr(msr)).map_err(|unfit| {
        log::error!("this CPU can't run L0: {unfit:?}");
        Errno::NoVmx
    })
}

/// L0's own host-state area on `cpu`; VM exits land at `exit_rip`.
pub(crate) fn own_area(hw: &mut Cpu, cpu: CpuIndex, slot: Slot, exit_rip: u64) -> HostArea {
    let mut cr4 = registers::CR4_L0 | Cr4Flags::VIRTUAL_MACHINE_EXTENSIONS;
    cr4.set(Cr4Flags::OSXSAVE, hw.cpuid(1, 0)[2] & cpuid::LEAF1_ECX_XSAVE != 0);
    let mut area = HostArea::ZERO;
    let code = u64::from(gdt::CODE);
    let data = u64::from(gdt::DATA);
    for (index, value) in [
        (replaced::CR0, registers::CR0_L0.bits()),
        (replaced::CR3, paging::l0_cr3(slot)),
        (replaced::CR4, cr4.bits()),
        (replaced::RSP, vcpu::exit_stack(cpu)),
        (replaced::RIP, exit_rip),
        (replaced::SELECTORS + Segment::Es as usize, data),
        (replaced::SELECTORS + Segment::Cs as usize, code),
        (replaced::SELECTORS + Segment::Ss as usize, data),
        (replaced::SELECTORS + Segment::Ds as usize, data),
        (replaced::GDTR_BASE, gdt::base(cpu)),
        (replaced::IDTR_BASE, trap::base()),
    ] {
        area.0[index] = value;
    }
    area
}

/// Brings this CPU into VMX operation, if it is not, and makes VMCS01 current and clear. Returns what the host, if one
/// runs here, believes.
fn take_root(vcpu: &mut VCpu, hw: &mut Cpu, cpu: CpuIndex, slot: Slot, exit_rip: u64) -> Result<Belief, Errno> {
    vcpu.caps = caps(hw)?;
    let regions = regions::prepare(cpu, vcpu.caps.revision);
    (vcpu.vmxon_region, vcpu.vmcs01) = (regions.vmxon, regions.vmcs01);
    vcpu.slot = slot;
    vcpu.cpu = cpu;
    vcpu.barriers = predictors::wanted(cpuid::has_ibpb());
    vcpu.apic_id = id::apic_id(cpu);
    vcpu.steady = Steady::NONE;
    vcpu.stack_top = stack::top(cpu);
    vcpu.noted_at = machine_check::noted_at(cpu);
    vcpu.check_waits = false;
    vcpu.own_area = own_area(hw, cpu, slot, exit_rip);
    vcpu.in_guest = false;
    vcpu.launched = false;
    PARTITION.prepare(slot, vcpu.caps.ept_1g);
    vcpu.ept_seen = PARTITION.ept_changes(slot);
    registers::allow_vmx();
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
    let shadowing = shadow::how();
    if vcpu.caps.shadowing && shadowing != shadow::Use::Off {
        vcpu.shadow.prepare(hw, regions.shadow, regions.bitmaps, shadowing);
    }
    if fingerprint::enabled() {
        fingerprint::probe(hw);
    }
    Ok(belief)
}

/// The host that the frame describes becomes nested on this CPU, which is `cpu`: VMCS01 is current, clear and filled in
/// afterwards, to be launched. VM exits land at `exit_rip`.
///
/// # Errors
/// [`Errno::Frame`], [`Errno::NoVmx`], [`Errno::EntryFailed`]; nothing has changed for the host then.
pub(crate) fn enter(vcpu: &mut VCpu, hw: &mut Cpu, frame: &Frame, cpu: CpuIndex, exit_rip: u64) -> Result<(), Errno> {
    if !frame.is_of(id::apic_id(cpu)) {
        return Err(Errno::Frame);
    }
    vcpu.pretend_bsp = false;
    let belief = take_root(vcpu, hw, cpu, PARTITION.owner(cpu), exit_rip)?;
    vcpu.belief = belief;
    // MSRs that every CPU with VMX has.
    let sysenter = msr::SYSENTER.map(msr::read);
    let state = EntryState::from_frame(frame, msr::read(msr::EFER), msr::read(msr::DEBUGCTL), sysenter);
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
    on_this_machine(vcpu, hw, |context| context.attach_shadow());
    flush(vcpu, hw);
    if let Err(found) = stage::take(cpu, Step::Enter) {
        log::error!("APIC id {}: a host enters from stage {found:?}", vcpu.apic_id);
        give_root_back(vcpu, hw);
        return Err(Errno::State);
    }
    vcpu.held = Held::take(hw);
    shared::status().cpu(cpu).count(Counter::Enters);
    shared::trace(Event::Enter {
        in_vmx: belief.vmx_on,
        vmcs: belief.current,
    });
    vcpu.gprs = Registers::ZERO;
    Ok(())
}

fn on_this_machine<T>(vcpu: &mut VCpu, hw: &mut Cpu, serve: impl FnOnce(&mut Context<'_, Cpu>) -> T) -> T {
    let around = ThisMachine(vcpu.slot);
    serve(&mut Context {
        vcpu,
        hw,
        around: &around,
    })
}

/// Prepares a parked CPU, which is `cpu`, to start in VMX non-root: VMCS01 is current, clear and filled in afterwards,
/// to be launched. VM exits land at `exit_rip`.
///
/// # Errors
/// [`Errno::NoVmx`], [`Errno::EntryFailed`].
pub(crate) fn start(vcpu: &mut VCpu, hw: &mut Cpu, cpu: CpuIndex, start: Start, exit_rip: u64) -> Result<(), Errno> {
    vcpu.pretend_bsp = start.rsi != 0;
    take_root(vcpu, hw, cpu, start.slot, exit_rip)?;
    // What a host before left on is nobody's.
    Held::take(hw);
    vcpu.held = Held::NONE;
    // The CPU may still be in VMX operation in a region of somebody who is gone.
    vcpu.move_to_own_region(hw);
    vcpu.belief = Belief::default();
    fill_firmware(vcpu, hw, start.rip);
    flush(vcpu, hw);
    stage::take(cpu, Step::RunNested).map_err(|_| Errno::State)?;
    vcpu.gprs = Registers::ZERO;
    vcpu.gprs[Register::Rsi] = start.rsi;
    Ok(())
}

/// Fills VMCS01 with the state in which firmware hands over a CPU.
fn fill_firmware(vcpu: &VCpu, hw: &mut Cpu, rip: u64) {
    let tables = (shared::firmware_gdt(vcpu.slot), gdt::FLAT_LIMIT);
    let state = EntryState::firmware(rip, shared::firmware_cr3(vcpu.slot), tables, gdt::CODE, gdt::DATA);
    vmcs01::fill(hw, vcpu, &state, (gdt::TSS, gdt::tss_base(vcpu.cpu)));
}

/// How a call to leave ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// The host goes on natively, through its frame.
    Native,
    /// The host is to call once more.
    Again,
}

/// Leaves: all of the host's VMCSs get their own host-state area back, and VMX on this CPU is what the host believes.
/// The frame is reached twice: by `address`, at which the host's stub uses it under both page tables, and by its
/// physical address.
///
/// # Errors
/// [`Errno::Frame`]; [`Errno::State`] while another host is being prepared or runs.
pub(crate) fn leave(vcpu: &mut VCpu, hw: &mut Cpu, address: u64) -> Result<Left, Errno> {
    // The frame is reached by way of the slot's stub tables, which the host may have changed since, and which a CPU of
    // the other slot maps elsewhere: VM exits load CR3 without dropping what is cached for it (SDM vol. 3C, 30.4.3.1).
    // SAFETY: these are the tables in use.
    unsafe { paging::load(vcpu.slot) };
    check_frame(vcpu, hw, address)?;
    if move_task_register(hw)? {
        return Ok(Left::Again);
    }
    PARTITION.leave(vcpu.cpu, vcpu.slot)?;
    // SAFETY: `check_frame` found the page mapped there under this CR3, and it is the host's, which gave it to L0 with
    // the call.
    let frame = unsafe { &mut *(address as *mut Frame) };
    describe(vcpu, hw, frame);
    vcpu.held.give_back(hw);
    let belief = vcpu.belief;
    let given_back = give_root_back(vcpu, hw);
    shared::status().cpu(vcpu.cpu).count(Counter::Leaves);
    shared::trace(Event::Leave {
        in_vmx: belief.vmx_on,
        vmcs: belief.current,
        given_back: given_back as u64,
    });
    Ok(Left::Native)
}

/// Checks the frame of a Leave call.
fn check_frame(vcpu: &mut VCpu, hw: &mut Cpu, address: u64) -> Result<(), Errno> {
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::Frame);
    }
    let slot = vcpu.slot;
    let may_touch = |a, n| PARTITION.may_touch(slot, a, n);
    let mut read = |f| hw.vmread(f).map_err(|_| Errno::EntryFailed);
    let host = Paging {
        cr3: read(field::GUEST_CR3)?,
        five_levels: Cr4Flags::from_bits_retain(read(field::GUEST_CR4)?).contains(Cr4Flags::L5_PAGING),
    };
    let phys = host
        .translate(hw, &may_touch, address, true)
        .map_err(|_| Errno::Frame)?;
    if !may_touch(phys, PAGE_SIZE) {
        return Err(Errno::Frame);
    }
    let l0 = Paging {
        cr3: paging::l0_cr3(slot),
        five_levels: false,
    };
    // L0's own tables, the last two levels of which the module writes: nothing outside L0's memory is read on their
    // word.
    let own = shared::place().all();
    let own = own.start..=own.end;
    let is_own = |a: u64, n: u64| own.contains(&a) && a.checked_add(n).is_some_and(|end| own.contains(&end));
    let mapped = |hw: &mut Cpu, address: u64| l0.translate(hw, &is_own, address, false).ok();
    // SAFETY: the page belongs to the host, which gave it to L0 with the call; plain data.
    let seen = unsafe { &*(phys as *const Frame) };
    let good =
        mapped(hw, address) == Some(phys) && mapped(hw, seen.return_native).is_some() && seen.is_of(vcpu.apic_id);
    if good { Ok(()) } else { Err(Errno::Frame) }
}

/// Has the next exit load the task register with the host's own TSS, as a native host must find it. True if it does not
/// yet.
fn move_task_register(hw: &mut Cpu) -> Result<bool, Errno> {
    let mut read = |f| hw.vmread(f).map_err(|_| Errno::EntryFailed);
    let guest = [read(Segment::Tr.guest_selector())?, read(Segment::Tr.guest_base())?];
    let host = [read(field::HOST_TR_SELECTOR)?, read(field::HOST_TR_BASE)?];
    if host == guest {
        return Ok(false);
    }
    hw.vmwrite(field::HOST_TR_SELECTOR, guest[0]);
    hw.vmwrite(field::HOST_TR_BASE, guest[1]);
    Ok(true)
}

/// Puts the host's state, which VMCS01 holds, into its frame; what the frame does not carry is loaded.
fn describe(vcpu: &VCpu, hw: &mut Cpu, frame: &mut Frame) {
    // VMCS01 is current and has all these fields.
    let mut read = |f| hw.get(f);
    let (cr0_mask, cr4_mask) = (vcpu.caps.fixed.cr0.bits(), vcpu.caps.fixed.cr4.bits());
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
    frame.result = 0;
    let msrs = [
        (msr::EFER, read(field::GUEST_EFER)),
        (msr::DEBUGCTL, read(field::GUEST_DEBUGCTL)),
        (msr::SYSENTER[0], read(field::GUEST_SYSENTER_CS)),
        (msr::SYSENTER[1], read(field::GUEST_SYSENTER_ESP)),
        (msr::SYSENTER[2], read(field::GUEST_SYSENTER_EIP)),
    ];
    for (msr, value) in msrs {
        if hw.rdmsr(msr) != Some(value) {
            hw.wrmsr(msr, value);
        }
    }
    // The host's own value; L0 uses no breakpoints and its code is at none of the host's addresses.
    Dr7::write_raw(frame.dr7);
}

/// Makes VMX on this CPU what the host believes it to be. Returns how many VMCSs were given back.
fn give_root_back(vcpu: &mut VCpu, hw: &mut Cpu) -> usize {
    let given_back = on_this_machine(vcpu, hw, |context| {
        context.leave_steady();
        context.vcpu.shadow.clear(context.hw);
        context.give_back_all()
    });
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
pub(crate) fn clear_vmcss(vcpu: &mut VCpu, hw: &mut Cpu) {
    vcpu.shadow.clear(hw);
    while let Some(phys) = vcpu.adopted.any() {
        on_this_machine(vcpu, hw, |context| context.give_back(phys));
        hw.vmclear(phys);
    }
    vcpu.belief.current = None;
    hw.vmptrld(vcpu.vmcs01);
}

/// Nothing of VMX on this CPU is in the host's memory any more: no VMCS, no VMXON region. VMCS01 is current afterwards,
/// to be launched.
pub(crate) fn leave_host_memory(vcpu: &mut VCpu, hw: &mut Cpu) {
    on_this_machine(vcpu, hw, |context| context.leave_steady());
    hw.vmptrld(vcpu.vmcs01);
    vcpu.shadow.detach(hw, vcpu.caps.secondary);
    clear_vmcss(vcpu, hw);
    vcpu.move_to_own_region(hw);
}

/// Fills VMCS01 with a state that VM entry accepts, cleared: for a CPU whose pending INIT is the next thing to happen. It
/// sleeps until then, since it has nothing to execute.
pub(crate) fn fill_any(vcpu: &mut VCpu, hw: &mut Cpu) {
    vcpu.shadow.clear(hw);
    hw.vmclear(vcpu.vmcs01);
    hw.vmptrld(vcpu.vmcs01);
    vcpu.in_guest = false;
    vcpu.launched = false;
    fill_firmware(vcpu, hw, 0);
    hw.put(field::GUEST_ACTIVITY, guest::HALTED);
}

/// The host on this CPU is gone: no VMCS of it may stay cached, and the CPU leaves VMX operation.
pub(crate) fn clean_up(vcpu: &mut VCpu, hw: &mut Cpu) {
    clear_vmcss(vcpu, hw);
    hw.vmclear(vcpu.vmcs01);
    hw.vmxoff();
    vcpu.belief = Belief::default();
    // SAFETY: VMXOFF has just been executed.
    unsafe { registers::forbid_vmx() };
}
