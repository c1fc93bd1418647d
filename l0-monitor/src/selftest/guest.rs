//! The guest of the self-test: a few instructions of L0's own text, on L0's page tables, behind an EPT of its own.
#![expect(unsafe_code, reason = "VM entry switches the whole CPU, and the CPU reads the EPT")]

use core::arch::global_asm;
use core::cell::UnsafeCell;

use locum_abi::Slot;

use x86_64::structures::idt::ExceptionVector;

use crate::arch::paging::{ENTRIES, LARGE_PAGE, LOW_GIB, Table, page_of};
use crate::arch::registers::{CR4_CET, Cr4Flags};
use crate::arch::{gdt, lapic, msr, paging, registers};
use crate::id::CpuIndex;
use crate::nested::regions::Regions;
use crate::nested::vcpu::VCpu;
use crate::nested::vmcs01::EntryState;
use crate::shared;
use crate::vmx::controls::{PinControls, PrimaryControls, SecondaryControls};
use crate::vmx::exit::{ExitReason, Reason};
use crate::vmx::field::{self, Field};
use crate::vmx::hardware::{Invalidate, SINGLE_CONTEXT};
use crate::vmx::instructions::Cpu;
use crate::vmx::{Hardware, VmxStatus};

/// General registers that a guest is started with, and leaves.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Registers {
    pub(super) rax: u64,
    pub(super) rbx: u64,
    pub(super) rcx: u64,
}

// The VM entry of one round, and of many in a row. Both come back where they were called, with RAX 0 after an exit, or
// RFLAGS if VM entry did not happen. A guest's RIP stays at the VMCALL that exits, so that it does so again.
global_asm!(
    ".pushsection .text",
    ".global l0_selftest_enter, l0_selftest_exit, l0_selftest_rounds, l0_selftest_unblock",
    ".global l0_selftest_call, l0_selftest_load, l0_selftest_read, l0_selftest_write, l0_selftest_init, l0_selftest_jump, l0_selftest_landing",
    "l0_selftest_enter:", // rdi = registers, esi = 1 to launch
    "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15", "push rdi",
    "mov eax, {host_rsp}",
    "vmwrite rax, rsp",
    "mov rax, [rdi]",
    "mov rbx, [rdi + 8]",
    "mov rcx, [rdi + 16]",
    "test esi, esi",
    "jnz 2f",
    "vmresume",
    "jmp 3f",
    "2:",
    "vmlaunch",
    "3:",
    "pushfq",
    "pop rax",
    "pop rdi",
    "jmp 5f",
    "l0_selftest_exit:",
    "pop rdi",
    "mov [rdi], rax",
    "mov [rdi + 8], rbx",
    "mov [rdi + 16], rcx",
    "xor eax, eax",
    "5:",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
    "ret",
    "l0_selftest_rounds:", // rdi = how many
    "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
    "mov eax, {host_rsp}",
    "vmwrite rax, rsp",
    "mov eax, {host_rip}",
    "lea rdx, [rip + 6f]",
    "vmwrite rax, rdx",
    "mov r8, rdi",
    "vmresume",
    "jmp 7f",
    "6:",
    "dec r8",
    "jz 8f",
    "vmresume",
    "7:",
    "pushfq",
    "pop rax",
    "jmp 9f",
    "8:",
    "xor eax, eax",
    "9:",
    "mov edx, {host_rip}",
    "lea rcx, [rip + l0_selftest_exit]",
    "vmwrite rdx, rcx",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
    "ret",
    "l0_selftest_unblock:", // an IRET to the next instruction
    "mov eax, ss",
    "push rax",
    "lea rcx, [rsp + 8]",
    "push rcx",
    "pushfq",
    "mov eax, cs",
    "push rax",
    "lea rax, [rip + 4f]",
    "push rax",
    "iretq",
    "4:",
    "ret",
    // The guests.
    "l0_selftest_load:",
    "mov rax, [rbx]",
    "jmp l0_selftest_call",
    "l0_selftest_read:",
    "vmread rax, rcx",
    "jmp l0_selftest_call",
    "l0_selftest_init:",
    "mov edx, ecx",
    "test rbx, rbx",
    "jz 2f",
    "shl edx, 24",
    "mov [rbx + {icr_high}], edx",
    "mov [rbx + {icr_low}], eax",
    "jmp 3f",
    "2:",
    "mov ecx, {icr}",
    "wrmsr",
    "3:",
    "mov ecx, {patience}",
    "4:",
    "pause",
    "dec ecx",
    "jnz 4b",
    "jmp l0_selftest_call",
    "l0_selftest_jump:",
    "jmp rbx",
    "l0_selftest_write:",
    "vmwrite rcx, rax",
    "jmp l0_selftest_call",
    "l0_selftest_landing:",
    "endbr64",
    "l0_selftest_call:",
    "vmcall",
    "jmp l0_selftest_call",
    ".popsection",
    host_rsp = const field::HOST_RSP.0,
    host_rip = const field::HOST_RIP.0,
    icr_high = const lapic::ICR_HIGH,
    icr_low = const lapic::ICR_LOW,
    icr = const msr::X2APIC + lapic::ICR_LOW / 16,
    patience = const PATIENCE,
);

unsafe extern "C" {
    fn l0_selftest_enter(registers: *mut Registers, launch: u32) -> u64;
    fn l0_selftest_rounds(rounds: u64) -> u64;
    fn l0_selftest_unblock();
    safe static l0_selftest_exit: u8;
    safe static l0_selftest_call: u8;
    safe static l0_selftest_load: u8;
    safe static l0_selftest_read: u8;
    safe static l0_selftest_write: u8;
    safe static l0_selftest_init: u8;
    safe static l0_selftest_jump: u8;
    safe static l0_selftest_landing: u8;
}

/// How often the guest that sent INIT looks whether it is still there.
const PATIENCE: u32 = 1_000_000;

/// What the guest does before it exits by VMCALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    /// Nothing.
    Call,
    /// RAX = the word at RBX.
    Load,
    /// VMREAD of the field in RCX to RAX.
    Read,
    /// VMWRITE of RAX to the field in RCX.
    Write,
    /// Sends the IPI in RAX to the APIC id in RCX, by the LAPIC at RBX, or as an x2APIC if that is 0; then waits.
    Init,
    /// Jumps to RBX.
    Jump,
}

impl Code {
    fn address(self) -> u64 {
        let label = match self {
            Self::Call => &raw const l0_selftest_call,
            Self::Load => &raw const l0_selftest_load,
            Self::Read => &raw const l0_selftest_read,
            Self::Write => &raw const l0_selftest_write,
            Self::Init => &raw const l0_selftest_init,
            Self::Jump => &raw const l0_selftest_jump,
        };
        label.addr() as u64
    }
}

/// Address at which the guest finds [`PROBE`] if its EPT lets it: below 4 GiB, where L0's page tables map everything.
const ALIAS: u64 = ((LOW_GIB as u64) << 30) - LARGE_PAGE;
/// What the guest reads there.
const PROBE_VALUE: u64 = 0x4c6f_6375_6d21;

/// EPT entries (SDM vol. 3C, 30.3.2): read, write, execute; memory type write-back; a large page.
const RWX: u64 = 7;
const WRITE_BACK: u64 = 6;
const LARGE: u64 = 1 << 7;
/// EPT pointer: the page walk has four levels (26.6.11).
const FOUR_LEVELS: u64 = 3 << 3;

#[repr(C, align(4096))]
struct Pages {
    pml4: Table,
    pdpt: Table,
    pd: [Table; LOW_GIB],
    /// Bitmaps of VMCS shadowing: nothing exits.
    nothing: Table,
    /// Another VMCS.
    vmcs: Table,
    probe: u64,
}

struct Static(UnsafeCell<Pages>);

// SAFETY: CPUs are tried one after the other, each uses the pages by itself.
unsafe impl Sync for Static {}

static PAGES: Static = Static(UnsafeCell::new(Pages {
    pml4: [0; ENTRIES],
    pdpt: [0; ENTRIES],
    pd: [[0; ENTRIES]; LOW_GIB],
    nothing: [0; ENTRIES],
    vmcs: [0; ENTRIES],
    probe: 0,
}));

/// A CPU in VMX root with the guest's VMCS current.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) hw: &'a mut Cpu,
    vcpu: &'a VCpu,
    pub(super) regions: Regions,
    launched: bool,
}

impl<'a> Guest<'a> {
    /// Fills the guest's VMCS, which is current and clear. `vcpu` has the CPU's capabilities and L0's own host-state
    /// area.
    pub(super) fn new(hw: &'a mut Cpu, vcpu: &'a VCpu, cpu: CpuIndex, regions: Regions) -> Self {
        let mut guest = Self {
            hw,
            vcpu,
            regions,
            launched: false,
        };
        guest.fill(cpu);
        guest
    }

    fn fill(&mut self, cpu: CpuIndex) {
        let caps = &self.vcpu.caps;
        let bitmaps = PrimaryControls::IO_BITMAPS | PrimaryControls::MSR_BITMAPS;
        let tables = (gdt::base(cpu), gdt::GDT_LIMIT);
        let cr3 = paging::l0_cr3(Slot::Even);
        let state = EntryState::firmware(Code::Call.address(), cr3, tables, gdt::CODE, gdt::DATA);
        self.vcpu.own_area.write(self.hw);
        let fields = [
            (field::PIN_CONTROLS, caps.pin.bits().into()),
            (field::PRIMARY_CONTROLS, caps.primary.difference(bitmaps).bits().into()),
            (field::SECONDARY_CONTROLS, caps.secondary.bits().into()),
            (field::EXIT_CONTROLS, caps.exit.bits().into()),
            (field::EXCEPTION_BITMAP, 0),
            (field::CR3_TARGET_COUNT, 0),
            (field::EXIT_MSR_STORE_COUNT, 0),
            (field::EXIT_MSR_LOAD_COUNT, 0),
            (field::ENTRY_MSR_LOAD_COUNT, 0),
            (field::ENTRY_INTERRUPTION, 0),
            (field::CR0_MASK, 0),
            (field::CR4_MASK, 0),
            (field::EPTP, fill_ept()),
            (field::VPID, 1),
            (field::HOST_RIP, (&raw const l0_selftest_exit).addr() as u64),
            (field::HOST_EFER, msr::read(msr::EFER)),
            (field::HOST_SYSENTER_CS, 0),
            (field::HOST_SYSENTER_ESP, 0),
            (field::HOST_SYSENTER_EIP, 0),
            (field::HOST_TR_SELECTOR, gdt::TSS.into()),
            (field::HOST_TR_BASE, gdt::tss_base(cpu)),
            (field::VMREAD_BITMAP, nothing()),
            (field::VMWRITE_BITMAP, nothing()),
        ];
        for (field, value) in fields {
            // Not every CPU has the last two.
            self.hw.vmwrite(field, value);
        }
        state.write(self.hw, self.vcpu);
    }

    /// Runs the guest once: the reason of its exit, and its registers.
    ///
    /// # Errors
    /// RFLAGS if VM entry did not happen.
    pub(super) fn run(&mut self, code: Code, mut registers: Registers) -> Result<(ExitReason, Registers), u64> {
        self.hw.put(field::GUEST_RIP, code.address());
        // SAFETY: the VMCS is current and filled: its exit comes back to where it was entered, and its guest touches
        // nothing but what the EPT has.
        let failed = unsafe { l0_selftest_enter(&raw mut registers, u32::from(!self.launched)) };
        if failed != 0 {
            return Err(failed);
        }
        self.launched = true;
        Ok((ExitReason(self.hw.get(field::EXIT_REASON) as u32), registers))
    }

    /// The guest exits by VMCALL this often.
    ///
    /// # Errors
    /// RFLAGS if VM entry did not happen.
    pub(super) fn rounds(&mut self, rounds: u64) -> Result<(), u64> {
        // SAFETY: as in `run`; the guest has run before, and stands at its VMCALL.
        match unsafe { l0_selftest_rounds(rounds) } {
            0 => Ok(()),
            failed => Err(failed),
        }
    }

    /// Lets the guest's VMREADs and VMWRITEs go to the shadow VMCS, which is clear.
    pub(super) fn attach_shadow(&mut self) {
        let controls = self.vcpu.caps.secondary | SecondaryControls::VMCS_SHADOWING;
        self.hw.put(field::SECONDARY_CONTROLS, controls.bits().into());
        self.hw.put(field::VMCS_LINK, self.regions.shadow);
    }

    /// The contrary.
    pub(super) fn detach_shadow(&mut self) {
        self.hw
            .put(field::SECONDARY_CONTROLS, self.vcpu.caps.secondary.bits().into());
        self.hw.put(field::VMCS_LINK, !0);
    }

    /// A field of the shadow VMCS, which this CPU accesses and then leaves for the guest's VMCS, with a VMCLEAR or
    /// without.
    pub(super) fn with_shadow<T>(&mut self, clear: bool, access: impl FnOnce(&mut Cpu) -> T) -> T {
        self.hw.vmptrld(self.regions.shadow);
        let result = access(self.hw);
        if clear {
            self.hw.vmclear(self.regions.shadow);
        }
        self.hw.vmptrld(self.regions.vmcs01);
        result
    }

    /// NMIs exit, or go to the guest.
    pub(super) fn exit_by_nmi(&mut self, on: bool) {
        let mut controls = self.vcpu.caps.pin;
        controls.set(PinControls::NMI_EXITING, on);
        self.hw.put(field::PIN_CONTROLS, controls.bits().into());
    }

    /// The guest has CR4.CET set, and its #CP exits; or neither.
    pub(super) fn set_cet(&mut self, on: bool) {
        let mut cr4 = Cr4Flags::from_bits_retain(self.hw.get(field::GUEST_CR4));
        cr4.set(CR4_CET, on);
        self.hw.put(field::GUEST_CR4, cr4.bits());
        let exceptions = u64::from(on) << ExceptionVector::ControlProtection as u64;
        self.hw.put(field::EXCEPTION_BITMAP, exceptions);
    }

    /// Where the guest can jump to VMCALL: at ENDBR64, or not.
    pub(super) fn landing(endbr: bool) -> u64 {
        let label = if endbr {
            &raw const l0_selftest_landing
        } else {
            &raw const l0_selftest_call
        };
        label.addr() as u64
    }

    /// The guest accesses MSRs without exits, or none.
    pub(super) fn allow_msrs(&mut self, on: bool) {
        let bitmaps = PrimaryControls::IO_BITMAPS | PrimaryControls::MSR_BITMAPS;
        let mut controls = self.vcpu.caps.primary.difference(bitmaps);
        controls.set(PrimaryControls::MSR_BITMAPS, on);
        self.hw.put(field::PRIMARY_CONTROLS, controls.bits().into());
        self.hw.put(field::MSR_BITMAP, nothing());
    }

    /// Lets the guest have the page at [`ALIAS`], or takes it away, in the EPT alone.
    pub(super) fn allow(&mut self, allowed: bool) {
        set_alias(allowed);
    }

    /// Drops what this CPU caches of the EPT.
    pub(super) fn flush(&mut self) -> VmxStatus {
        let eptp = self.hw.get(field::EPTP);
        self.hw.invalidate(Invalidate::Ept, SINGLE_CONTEXT, [eptp, 0])
    }

    /// What the guest finds at [`ALIAS`]: the exit's reason, and RAX.
    ///
    /// # Errors
    /// As for [`Self::run`].
    pub(super) fn probe(&mut self) -> Result<(Reason, u64), u64> {
        let registers = Registers {
            rbx: ALIAS + (probe_address() & (LARGE_PAGE - 1)),
            ..Registers::default()
        };
        let (reason, registers) = self.run(Code::Load, registers)?;
        Ok((reason.basic(), registers.rax))
    }

    /// Whether that is what [`set_alias`] put there.
    pub(super) const fn is_probe(value: u64) -> bool {
        value == PROBE_VALUE
    }
}

/// Ends the blocking of NMIs that an exit by one has begun.
pub(super) fn unblock_nmis() {
    // SAFETY: IRET to the next instruction, with all that it loads as it is.
    unsafe { l0_selftest_unblock() };
}

/// Address of a VMCS region besides those that each CPU has.
pub(super) fn another_vmcs(revision: u32) -> u64 {
    // SAFETY: one CPU at a time is tried; no reference to the pages is ever made.
    unsafe {
        let region = (&raw mut (*PAGES.0.get()).vmcs).cast::<u32>();
        region.write_volatile(revision);
        region as u64
    }
}

fn nothing() -> u64 {
    // SAFETY: only an address is computed.
    unsafe { &raw const (*PAGES.0.get()).nothing as u64 }
}

fn probe_address() -> u64 {
    // SAFETY: only an address is computed.
    unsafe { &raw const (*PAGES.0.get()).probe as u64 }
}

/// Fills the EPT: L0's memory, the LAPIC uncached, and what a guest finds at [`ALIAS`]. Returns the EPT pointer.
fn fill_ept() -> u64 {
    let pages = PAGES.0.get();
    // SAFETY: one CPU at a time is tried; no reference to the pages is ever made.
    unsafe {
        let pd = (&raw mut (*pages).pd).cast::<u64>();
        (&raw mut (*pages).pml4)
            .cast::<u64>()
            .write_volatile(&raw const (*pages).pdpt as u64 | RWX);
        for gib in 0..LOW_GIB {
            let directory = pd.add(gib * ENTRIES) as u64;
            (&raw mut (*pages).pdpt)
                .cast::<u64>()
                .add(gib)
                .write_volatile(directory | RWX);
        }
        let l0 = shared::place().all();
        for page in l0.start / LARGE_PAGE..l0.end.div_ceil(LARGE_PAGE) {
            pd.add(page as usize).write_volatile(large(page * LARGE_PAGE));
        }
        if let Some(lapic) = lapic::registers_at() {
            let page = (lapic / LARGE_PAGE) as usize % (LOW_GIB * ENTRIES);
            pd.add(page).write_volatile((page as u64 * LARGE_PAGE) | RWX | LARGE);
        }
        (&raw mut (*pages).probe).write_volatile(PROBE_VALUE);
    }
    set_alias(true);
    page_of(pages as u64) | FOUR_LEVELS | WRITE_BACK
}

const fn large(address: u64) -> u64 {
    address | RWX | WRITE_BACK << 3 | LARGE
}

fn set_alias(allowed: bool) {
    let entry = if allowed {
        large(probe_address() & !(LARGE_PAGE - 1))
    } else {
        0
    };
    // SAFETY: as in `fill_ept`; the index is inside the directories.
    unsafe {
        let pd = (&raw mut (*PAGES.0.get()).pd).cast::<u64>();
        pd.add((ALIAS / LARGE_PAGE) as usize).write_volatile(entry);
    }
}

/// The TSC when all instructions before have ended.
pub(super) fn ticks() -> u64 {
    // SAFETY: waits, and reads a counter.
    unsafe { core::arch::asm!("lfence", options(nostack)) };
    registers::tsc()
}

/// A field that is in every VMCS, that no check of VM entry depends on, and that the shadow shows.
pub(super) const FIELD: Field = field::GUEST_RSP;
