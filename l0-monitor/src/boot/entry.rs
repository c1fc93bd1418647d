//! Multiboot2 header, and the way from GRUB's 32-bit protected mode (Multiboot2 specification 2.0, 3.3) to long mode.
#![expect(unsafe_code, reason = "assembly that runs before Rust can")]

use core::arch::global_asm;

use super::home;
use crate::arch::registers::{CR0_L0, CR4_L0, EferFlags};
use crate::arch::{gdt, msr, paging};

/// Bytes of the stack until the boot CPU jumps to the host.
const BOOT_STACK: usize = 128 * 1024;

/// Highest address of its last byte: the entry runs in 32-bit mode, and its page tables map no more.
const HIGHEST: u32 = u32::MAX;
/// "Lowest possible" of the relocation tag: what stays with L0 for good shares a memory block with it, so that this is
/// best the block of the trampolines, which stays anyway.
const PREFER_LOW: u32 = 1;

// There is no framebuffer tag: GRUB gives the screen all the same where there is no text mode (UEFI), and leaves the text
// mode alone where there is one.
//
// The loader puts the image anywhere below 4 GiB, at a multiple of 2 MiB, and zeroes .bss. It does not say where in a
// register.
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
    ".short 10, 0", // relocatable
    ".long 24, {lowest}, {highest}, {image_align}, {prefer_low}",
    ".short 0, 0", // end
    ".long 8",
    "l0_multiboot_end:",
    ".popsection",
    //
    ".pushsection .bss.l0_boot, \"aw\", @nobits",
    ".global l0_boot_pml4, l0_boot_pdpt, l0_boot_pd",
    ".balign 4096",
    "l0_boot_pml4: .skip 4096",
    "l0_boot_pdpt: .skip 4096",
    "l0_boot_pd: .skip 4 * 4096",
    "l0_boot_stack: .skip {stack}",
    "l0_boot_stack_top:",
    ".popsection",
    //
    ".pushsection .data.l0_boot, \"aw\"",
    ".balign 8",
    "l0_boot_gdt: .quad 0, 0, {code}, {data}",
    "l0_boot_gdtr:",
    ".short {limit}",
    "l0_boot_gdtr_base: .long 0",
    ".popsection",
    stack = const BOOT_STACK,
    code = const gdt::CODE_DESCRIPTOR,
    data = const gdt::DATA_DESCRIPTOR,
    limit = const gdt::FLAT_LIMIT,
    lowest = const home::LOWEST as u32,
    highest = const HIGHEST,
    image_align = const paging::LARGE_PAGE,
    prefer_low = const PREFER_LOW,
);

// The 32-bit part, in the syntax that has differences of symbols in an operand. EDI holds the address of `l0_start` from
// the first CALL on, for which the reserved word of the boot information is stack enough: everything is reached relative
// to it. The identity map of the low 4 GiB serves until L0's own tables are made.
global_asm!(
    ".pushsection .text.l0_start, \"ax\"",
    ".global l0_start",
    ".code32",
    "l0_start:",
    "cli",
    "cld",
    "movl %eax, %ebp", // magic; CPUID and WRMSR below want EAX
    "movl %ebx, %esi", // boot information
    "leal 8(%ebx), %esp",
    "call l0_here",
    "l0_here:",
    "popl %edi",
    "leal l0_start - l0_here(%edi), %edi",
    "leal l0_boot_stack_top - l0_start(%edi), %esp",
    // One PML4 entry, four PDPT entries, four directories of 2 MiB pages.
    "leal l0_boot_pdpt - l0_start + {flags}(%edi), %eax",
    "movl %eax, l0_boot_pml4 - l0_start(%edi)",
    "leal l0_boot_pd - l0_start + {flags}(%edi), %eax",
    "xorl %ecx, %ecx",
    "2:",
    "movl %eax, l0_boot_pdpt - l0_start(%edi, %ecx, 8)",
    "addl $4096, %eax",
    "incl %ecx",
    "cmpl $4, %ecx",
    "jne 2b",
    "movl ${large}, %eax",
    "xorl %ecx, %ecx",
    "3:",
    "movl %eax, l0_boot_pd - l0_start(%edi, %ecx, 8)",
    "addl ${large_page}, %eax",
    "incl %ecx",
    "cmpl $2048, %ecx",
    "jne 3b",
    "movl ${cr4}, %eax", // without LA57, which a loader may have left set
    "movl %eax, %cr4",
    "leal l0_boot_pml4 - l0_start(%edi), %eax",
    "movl %eax, %cr3",
    "movl ${efer}, %ecx",
    "rdmsr",
    "orl ${lme}, %eax",
    "wrmsr",
    "leal l0_boot_gdt - l0_start(%edi), %eax",
    "movl %eax, l0_boot_gdtr_base - l0_start(%edi)",
    "lgdt l0_boot_gdtr - l0_start(%edi)",
    "movl ${cr0}, %eax",
    "movl %eax, %cr0",
    "pushl ${code_selector}",
    "leal l0_start64 - l0_start(%edi), %eax",
    "pushl %eax",
    "lretl",
    ".code64",
    ".popsection",
    cr0 = const CR0_L0.bits(),
    cr4 = const CR4_L0.bits(),
    efer = const msr::EFER,
    lme = const EferFlags::LONG_MODE_ENABLE.bits(),
    flags = const paging::PRESENT_WRITABLE,
    large = const paging::PRESENT_WRITABLE_LARGE,
    large_page = const paging::LARGE_PAGE,
    code_selector = const gdt::CODE,
    options(att_syntax),
);

// The 64-bit part. It applies the image's relocations before any Rust runs: each word at a listed address gets the
// image's own added. An even entry of RELR is the address of a word; an odd one has a bit for each of the 63 words that
// follow (System V gABI, "Relocation", SHT_RELR).
global_asm!(
    ".pushsection .text.l0_start, \"ax\"",
    "l0_start64:",
    "mov eax, {data_selector}",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "xor eax, eax",
    "mov fs, eax",
    "mov gs, eax",
    "lea rsp, [rip + l0_boot_stack_top]",
    "lea rbx, [rip + l0_image]",
    "lea rdx, [rip + l0_relr]",
    "lea r8, [rip + l0_relr_end]",
    "4:",
    "cmp rdx, r8",
    "jae 8f",
    "mov rax, [rdx]",
    "add rdx, 8",
    "test al, 1",
    "jnz 5f",
    "lea rcx, [rbx + rax]",
    "add [rcx], rbx",
    "add rcx, 8",
    "jmp 4b",
    "5:",
    "mov r9, rcx",
    "6:",
    "shr rax, 1",
    "jz 7f",
    "test al, 1",
    "jz 9f",
    "add [r9], rbx",
    "9:",
    "add r9, 8",
    "jmp 6b",
    "7:",
    "add rcx, 63 * 8",
    "jmp 4b",
    "jmp 8f",
    ".global l0_moved",
    "l0_moved:", // here from `home`: RDX is CR3, EDI and ESI as for `main`
    "mov cr3, rdx",
    "lea rsp, [rip + l0_boot_stack_top]",
    "mov ebp, edi",
    "8:",
    "mov edi, ebp",
    "mov esi, esi",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".global l0_on_boot_stack",
    "l0_on_boot_stack:", // RDI: where to go for good, from whatever stack
    "lea rsp, [rip + l0_boot_stack_top]",
    "xor ebp, ebp",
    "call rdi",
    "ud2",
    ".popsection",
    data_selector = const gdt::DATA,
    main = sym super::main,
);
