//! One flat GDT and one TSS per CPU (SDM vol. 3A, chapters 3.4 and 8.7).
//!
//! Every CPU has its own because loading the task register marks its descriptor busy, and a VMCS needs a task register.
#![expect(
    unsafe_code,
    reason = "the CPU reads these tables, and loading them is an instruction without a safe form"
)]

use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::MaybeUninit;

use locum_abi::MAX_CPUS;

use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::{lgdt, load_tss};
use x86_64::structures::DescriptorTablePointer;
use x86_64::structures::gdt::{Descriptor, DescriptorFlags, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::id::CpuIndex;

/// Selector of 64-bit code. The same number as Linux' boot protocol (`__BOOT_CS`) and kernel use.
pub(crate) const CODE: u16 = 0x10;
/// Selector of data, `__BOOT_DS`.
pub(crate) const DATA: u16 = 0x18;
/// Selector of the TSS.
pub(crate) const TSS: u16 = 0x20;
/// Which entry of the interrupt stack table has the stack for double faults.
pub(crate) const FAULT_IST: u16 = 0;

/// Descriptor of 64-bit code at CPL 0, accessed.
pub(crate) const CODE_DESCRIPTOR: u64 = DescriptorFlags::KERNEL_CODE64.bits();
/// Descriptor of flat writable data, accessed.
pub(crate) const DATA_DESCRIPTOR: u64 = DescriptorFlags::KERNEL_DATA.bits();
/// The GDT that firmware leaves a host: null, unused, code, data.
pub(crate) const FLAT: [u64; 4] = [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR];
/// Its limit.
pub(crate) const FLAT_LIMIT: u16 = size_of::<[u64; 4]>() as u16 - 1;

/// A CPU's GDT: [`FLAT`], then the TSS in two entries. Not the crate's `GlobalDescriptorTable`: that hides where in it
/// the entries are, which VMCSs and the reset vector's page name.
type Gdt = [u64; 6];
/// Limit of a CPU's GDT.
pub(crate) const GDT_LIMIT: u16 = size_of::<Gdt>() as u16 - 1;

/// Bytes of the stack for double faults.
const FAULT_STACK: usize = 2048;

/// Zero at first, so that the image need not hold it.
#[repr(C, align(64))]
struct Tables {
    gdt: Gdt,
    tss: MaybeUninit<TaskStateSegment>,
    fault_stack: FaultStack,
}

#[repr(C, align(16))]
struct FaultStack([u8; FAULT_STACK]);

struct PerCpu(UnsafeCell<[Tables; MAX_CPUS]>);

// SAFETY: each element is written by its own CPU only, in `load`, and read by that CPU's hardware.
unsafe impl Sync for PerCpu {}

static TABLES: PerCpu = PerCpu(UnsafeCell::new(
    [const {
        Tables {
            gdt: [0; 6],
            tss: MaybeUninit::zeroed(),
            fault_stack: FaultStack([0; FAULT_STACK]),
        }
    }; MAX_CPUS],
));

fn tables(cpu: CpuIndex) -> *mut Tables {
    TABLES.0.get().cast::<Tables>().wrapping_add(cpu.get())
}

/// Address of a CPU's GDT.
pub(crate) fn base(cpu: CpuIndex) -> u64 {
    tables(cpu) as u64
}

/// Address of a CPU's TSS.
pub(crate) fn tss_base(cpu: CpuIndex) -> u64 {
    base(cpu) + core::mem::offset_of!(Tables, tss) as u64
}

/// Fills in a CPU's tables and loads GDTR and the segment registers from them. FS, GS and LDTR become null. TR stays as
/// it is: a host that is refused wants its own back.
///
/// # Safety
/// Called on CPU `cpu` itself, with interrupts off, under L0's page tables.
pub(crate) unsafe fn load_segments(cpu: CpuIndex) {
    let tables = tables(cpu);
    let fault_stack_top = base(cpu) + (core::mem::offset_of!(Tables, fault_stack) + FAULT_STACK) as u64;
    let mut tss = TaskStateSegment::new();
    tss.interrupt_stack_table[usize::from(FAULT_IST)] = VirtAddr::new_truncate(fault_stack_top);
    let register = DescriptorTablePointer {
        limit: GDT_LIMIT,
        base: VirtAddr::new_truncate(base(cpu)),
    };
    // SAFETY: `cpu` is below MAX_CPUS, so the element exists; only this CPU uses it, and no reference to it is ever
    // made. The descriptors are flat, so every address stays valid while the registers are reloaded.
    unsafe {
        let place = (&raw mut (*tables).tss).cast::<TaskStateSegment>();
        place.write_volatile(tss);
        (&raw mut (*tables).gdt).write_volatile(gdt(place));
        lgdt(&register);
        CS::set_reg(SegmentSelector(CODE));
        DS::set_reg(SegmentSelector(DATA));
        ES::set_reg(SegmentSelector(DATA));
        SS::set_reg(SegmentSelector(DATA));
        FS::set_reg(SegmentSelector::NULL);
        GS::set_reg(SegmentSelector::NULL);
        asm!("lldt {:x}", in(reg) 0_u32, options(nostack, preserves_flags));
    }
}

/// The entries of a GDT with an available TSS at `tss`.
///
/// # Safety
/// There is a TSS.
unsafe fn gdt(tss: *const TaskStateSegment) -> Gdt {
    // SAFETY: the caller's word.
    let (low, high) = match unsafe { Descriptor::tss_segment_unchecked(tss) } {
        Descriptor::SystemSegment(low, high) => (low, high),
        Descriptor::UserSegment(low) => (low, 0),
    };
    [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, low, high]
}

/// As [`load_segments`], and loads TR.
///
/// # Safety
/// As for [`load_segments`].
pub(crate) unsafe fn load(cpu: CpuIndex) {
    // SAFETY: the caller's word; the TSS descriptor was just written as available.
    unsafe {
        load_segments(cpu);
        load_tss(SegmentSelector(TSS));
    }
}

pub(crate) use locum_abi::frame::TableRegister;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_where_selectors_say() {
        let tss = TaskStateSegment::new();
        let address = (&raw const tss).addr() as u64;
        // SAFETY: it is there.
        let gdt = unsafe { gdt(&raw const tss) };
        assert_eq!(gdt[usize::from(CODE / 8)], 0x00af_9b00_0000_ffff);
        assert_eq!(gdt[usize::from(DATA / 8)], 0x00cf_9300_0000_ffff);
        let (low, high) = (gdt[usize::from(TSS / 8)], gdt[usize::from(TSS / 8) + 1]);
        assert_eq!((low >> 16 & 0xff_ffff) | low >> 56 << 24 | high << 32, address);
        assert_eq!(
            (low & 0xffff, low >> 40 & 0xff),
            (103, 0x89),
            "limit; present, available"
        );
    }
}
