//! Multiboot2 header, and the way from GRUB's 32-bit protected mode (Multiboot2 specification 2.0, 3.3) to long mode.
#![expect(unsafe_code, reason = "assembly that runs before Rust can")]

use core::arch::global_asm;

use crate::arch::registers::{CR0_L0, CR4_L0, EferFlags};
use crate::arch::{gdt, msr, paging};

/// Bytes of the stack until the boot CPU jumps to the host.
const BOOT_STACK: usize = 64 * 1024;

// The identity map of the low 4 GiB serves until L0's own tables are made. GRUB zeroed .bss.
global_asm!(
    ".pushsection .multiboot2, \"a\"",
    ".balign 8",
    "l0_multiboot_header:",
    ".long 0xe85250d6",
    ".long 0", // protected mode i386
    ".long l0_multiboot_end - l0_multiboot_header",
    ".long -(0xe85250d6 + (l0_multiboot_end - l0_multiboot_header))",
    ".short 6, 0", // modules on page boundaries
    ".long 8",
    ".short 0, 0", // end
    ".long 8",
    "l0_multiboot_end:",
    ".popsection",
    //
    ".pushsection .bss.l0_boot, \"aw\", @nobits",
    ".balign 4096",
    "l0_boot_pml4: .skip 4096",
    "l0_boot_pdpt: .skip 4096",
    "l0_boot_pd: .skip 4 * 4096",
    "l0_boot_stack: .skip {stack}",
    "l0_boot_stack_top:",
    ".popsection",
    //
    ".pushsection .rodata",
    ".balign 8",
    "l0_boot_gdt: .quad 0, 0, {code}, {data}",
    "l0_boot_gdtr:",
    ".short {limit}",
    ".long l0_boot_gdt",
    ".popsection",
    //
    ".pushsection .text.l0_start, \"ax\"",
    ".global l0_start",
    ".code32",
    "l0_start:",
    "cli",
    "cld",
    "mov esp, offset l0_boot_stack_top",
    "mov ebp, eax", // magic; CPUID and WRMSR below want EAX
    "mov esi, ebx", // boot information
    // One PML4 entry, four PDPT entries, four directories of 2 MiB pages.
    "mov dword ptr [l0_boot_pml4], offset l0_boot_pdpt + {flags}",
    "mov eax, offset l0_boot_pd + {flags}",
    "xor ecx, ecx",
    "2:",
    "mov [l0_boot_pdpt + ecx * 8], eax",
    "add eax, 4096",
    "inc ecx",
    "cmp ecx, 4",
    "jne 2b",
    "mov eax, {large}",
    "xor ecx, ecx",
    "3:",
    "mov [l0_boot_pd + ecx * 8], eax",
    "add eax, {large_page}",
    "inc ecx",
    "cmp ecx, 2048",
    "jne 3b",
    "mov eax, {cr4}", // without LA57, which a loader may have left set
    "mov cr4, eax",
    "mov eax, offset l0_boot_pml4",
    "mov cr3, eax",
    "mov ecx, {efer}",
    "rdmsr",
    "or eax, {lme}",
    "wrmsr",
    "lgdt [l0_boot_gdtr]",
    "mov eax, {cr0}",
    "mov cr0, eax",
    ".byte 0xea", // far jump to 64-bit code
    ".long l0_start64",
    ".short {code_selector}",
    ".code64",
    "l0_start64:",
    "mov eax, {data_selector}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "lea rsp, [rip + l0_boot_stack_top]",
    "mov edi, ebp",
    "mov esi, esi",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".popsection",
    stack = const BOOT_STACK,
    code = const gdt::CODE_DESCRIPTOR,
    data = const gdt::DATA_DESCRIPTOR,
    limit = const gdt::FLAT_LIMIT,
    code_selector = const gdt::CODE,
    data_selector = const gdt::DATA,
    cr0 = const CR0_L0.bits(),
    cr4 = const CR4_L0.bits(),
    efer = const msr::EFER,
    lme = const EferFlags::LONG_MODE_ENABLE.bits(),
    flags = const paging::PRESENT_WRITABLE,
    large = const paging::PRESENT_WRITABLE_LARGE,
    large_page = const paging::LARGE_PAGE,
    main = sym super::main,
);
