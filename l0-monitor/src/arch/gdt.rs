//! One flat GDT and one TSS per CPU (SDM vol. 3A, chapters 3.4 and 8.7).
//!
//! Every CPU has its own because loading the task register marks its descriptor busy, and a VMCS needs a task register.
#![expect(
    unsafe_code,
    reason = "the CPU reads these tables, and loading them is an instruction without a safe form"
)]

use core::arch::asm;
use core::cell::UnsafeCell;

use locum_abi::MAX_CPUS;

use crate::id::CpuIndex;

/// Selector of 64-bit code. The same number as Linux' boot protocol (`__BOOT_CS`) and kernel use.
pub const CODE: u16 = 0x10;
/// Selector of data, `__BOOT_DS`.
pub const DATA: u16 = 0x18;
/// Selector of the TSS.
pub const TSS: u16 = 0x20;

/// Descriptor of 64-bit code at CPL 0, accessed.
pub const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
/// Descriptor of flat writable data, accessed.
pub const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;
/// The GDT that firmware leaves a host: null, unused, code, data.
pub const FLAT: [u64; 4] = [0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR];
/// Its limit.
pub const FLAT_LIMIT: u16 = size_of::<[u64; 4]>() as u16 - 1;
/// Type and present bit of an available 64-bit TSS.
const TSS_AVAILABLE: u64 = 0x89;

/// Limit of the GDT.
pub const GDT_LIMIT: u16 = (6 * 8) - 1;
/// Limit of the TSS: 104 bytes, no I/O bitmap.
pub const TSS_LIMIT: u32 = TSS_SIZE as u32 - 1;
const TSS_SIZE: usize = 104;
/// Offset of the I/O bitmap's offset in the TSS.
const TSS_IOMAP: usize = 102;
/// Offset of IST1 in the TSS.
const TSS_IST1: usize = 36;

/// Bytes of the stack for double faults.
const FAULT_STACK: usize = 2048;

#[repr(C, align(64))]
struct Tables {
    gdt: [u64; 6],
    tss: [u8; TSS_SIZE],
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
            tss: [0; TSS_SIZE],
            fault_stack: FaultStack([0; FAULT_STACK]),
        }
    }; MAX_CPUS],
));

fn tables(cpu: CpuIndex) -> *mut Tables {
    TABLES.0.get().cast::<Tables>().wrapping_add(cpu.get())
}

/// Address of a CPU's GDT.
pub fn base(cpu: CpuIndex) -> u64 {
    tables(cpu) as u64
}

/// Address of a CPU's TSS.
pub fn tss_base(cpu: CpuIndex) -> u64 {
    base(cpu) + core::mem::offset_of!(Tables, tss) as u64
}

/// The two descriptors' worth of an available TSS at `base`.
fn tss_descriptor(base: u64) -> [u64; 2] {
    let low = u64::from(TSS_LIMIT) | (base & 0xff_ffff) << 16 | TSS_AVAILABLE << 40 | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// Fills in a CPU's tables and loads GDTR and the segment registers from them. FS, GS and LDTR become null. TR stays as
/// it is: a host that is refused wants its own back.
///
/// # Safety
/// Called on CPU `cpu` itself, with interrupts off, under L0's page tables.
pub unsafe fn load_segments(cpu: CpuIndex) {
    let tables = tables(cpu);
    let [tss_low, tss_high] = tss_descriptor(tss_base(cpu));
    let fault_stack_top = base(cpu) + (core::mem::offset_of!(Tables, fault_stack) + FAULT_STACK) as u64;
    let register = TableRegister {
        pad: [0; 3],
        limit: GDT_LIMIT,
        base: base(cpu),
    };
    // SAFETY: `cpu` is below MAX_CPUS, so the element exists; only this CPU uses it, and no reference to it is ever
    // made. The descriptors are flat, so every address stays valid while the registers are reloaded.
    unsafe {
        (&raw mut (*tables).gdt).write_volatile([0, 0, CODE_DESCRIPTOR, DATA_DESCRIPTOR, tss_low, tss_high]);
        let tss = (&raw mut (*tables).tss).cast::<u8>();
        tss.add(TSS_IST1).cast::<u64>().write_unaligned(fault_stack_top);
        tss.add(TSS_IOMAP).cast::<u16>().write_unaligned(TSS_SIZE as u16);
        asm!(
            "lgdt [{register}]",
            "push {code}",
            "lea {scratch}, [rip + 2f]",
            "push {scratch}",
            "retfq",
            "2:",
            "mov ds, {data:x}",
            "mov es, {data:x}",
            "mov ss, {data:x}",
            "mov fs, {null:x}",
            "mov gs, {null:x}",
            "lldt {null:x}",
            register = in(reg) &raw const register.limit,
            code = const CODE as i32,
            scratch = out(reg) _,
            data = in(reg) u32::from(DATA),
            null = in(reg) 0u32,
        );
    }
}

/// As [`load_segments`], and loads TR.
///
/// # Safety
/// As for [`load_segments`].
pub unsafe fn load(cpu: CpuIndex) {
    // SAFETY: the caller's word; the TSS descriptor was just written as available.
    unsafe {
        load_segments(cpu);
        asm!("ltr {:x}", in(reg) u32::from(TSS));
    }
}

pub(crate) use locum_abi::frame::TableRegister;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tss_descriptor_scatters_the_base() {
        let [low, high] = tss_descriptor(0x1122_3344_5566_7788);
        assert_eq!(high, 0x1122_3344);
        assert_eq!(low >> 56, 0x55);
        assert_eq!(low >> 16 & 0xff_ffff, 0x66_7788);
        assert_eq!(low & 0xffff, 103);
        assert_eq!(low >> 40 & 0xff, TSS_AVAILABLE);
    }
}
