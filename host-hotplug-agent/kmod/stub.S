/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The stub: the few instructions that run while CR3 changes between the host's and L0's.
 *
 * Its page is mapped at the same address under both (frames.c), as is the CPU's frame, and nothing else of the host
 * is. So in here: no call, no thunk, no per-CPU variable, no exception table, and no stack but the frame's once CR3
 * has changed. What every word of the frame means is told in l0-monitor/abi/src/frame.rs.
 *
 * An NMI or a machine check may come at any instruction. It always finds a handler that fits the tables loaded at that moment:
 *  - the stub's IDT is loaded before the stub's GDT, and the host's GDT before the host's IDT, because Linux's handler
 *    reads its CPU number out of the GDT, while the stub's asks only for a code segment at __KERNEL_CS;
 *  - TR and the GS base are the host's again before its IDT is, because Linux's handler runs on an IST stack;
 *  - CS is the host's selector before its IDT is loaded, because IRET loads it again.
 * The stub's handler finds its frame by the address of its IDT, which is in there.
 *
 * Plain RET and JMP, no thunks: a thunk is not mapped under L0's CR3. These run once per switch, never with a guest's or
 * a program's values in reach.
 */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/msr-index.h>
#include <asm/nospec-branch.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>
#include <asm/unwind_hints.h>
#include "stub.h"

#define GDTR(field)	(LOCUM_FRAME_##field + LOCUM_TABLE_OPERAND)
#define TSS_TYPE_BYTE	5
#define TSS_BUSY	2

	.section .text.locum_stub, "ax"
	.balign	LOCUM_FRAME_SIZE
SYM_DATA_START(locum_stub_start)

/* What both ways in store before they go: where the host goes on, and what the ABI says must survive. */
.macro SAVE_HOST
	pushfq
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	movq	%rsp, LOCUM_FRAME_RSP(%rdi)
	leaq	locum_stub_resume(%rip), %rax
	movq	%rax, LOCUM_FRAME_RIP(%rdi)
.endm

/*
 * long locum_stub_enter(struct locum_frame *frame): native to nested. Interrupts off; C has filled in all of the frame
 * but RIP, RSP and RFLAGS. Returns 0 in VMX non-root, or L0's refusal (negative) as if nothing had happened.
 */
SYM_CODE_START(locum_stub_enter)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	SAVE_HOST
	movq	6*8(%rsp), %rax
	movq	%rax, LOCUM_FRAME_RFLAGS(%rdi)
	lidt	GDTR(STUB_IDTR)(%rdi)
	lgdt	GDTR(STUB_GDTR)(%rdi)
	leaq	LOCUM_FRAME_SIZE(%rdi), %rsp
	movq	LOCUM_FRAME_L0_CR3(%rdi), %rax
	movq	LOCUM_FRAME_L0_ENTRY(%rdi), %rdx
	movq	%rax, %cr3
	ANNOTATE_RETPOLINE_SAFE
	jmp	*%rdx
	int3
SYM_CODE_END(locum_stub_enter)

/*
 * long locum_stub_leave(struct locum_frame *frame, u64 op): nested to native by VMCALL. On success L0 goes on at
 * return_native with everything of the host in the frame; on refusal after the VMCALL.
 */
SYM_CODE_START(locum_stub_leave)
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	SAVE_HOST
	movq	%rsi, %rax
	vmcall
SYM_INNER_LABEL(locum_stub_resume, SYM_L_LOCAL)
	UNWIND_HINT_UNDEFINED
	ENDBR
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	popfq
	ANNOTATE_UNRET_SAFE
	ret
	int3
SYM_CODE_END(locum_stub_leave)

/*
 * From L0, in VMX root or outside VMX operation, on L0's CR3, the frame's stack and tables; RDI: frame. Gives the CPU
 * back to the host.
 */
SYM_CODE_START(locum_stub_return_native)
	UNWIND_HINT_UNDEFINED
	ENDBR
	cld
	movq	LOCUM_FRAME_CR0(%rdi), %rax
	movq	%rax, %cr0
	/* Without PGE and PCIDE first: one of the two writes changes one of them and so drops all translations. */
	movq	LOCUM_FRAME_CR4(%rdi), %rax
	movq	%rax, %rcx
	andq	$~(X86_CR4_PGE | X86_CR4_PCIDE), %rcx
	movq	%rcx, %cr4
	/* PCIDE can be set only while CR3[11:0] is 0, as it is in L0's. The host's PCID comes with its CR3. */
	movq	%rax, %cr4
	movq	LOCUM_FRAME_CR3(%rdi), %rax
	movq	%rax, %cr3

	/* The host's memory is back. LTR refuses a busy TSS and writes the GDT: take the GDT's writable alias. */
	lgdt	(STUB_GDTR_RW + LOCUM_TABLE_OPERAND)(%rdi)
	movq	STUB_TSS(%rdi), %rax
	andb	$~TSS_BUSY, TSS_TYPE_BYTE(%rax)
	movzwl	LOCUM_FRAME_TR(%rdi), %eax
	ltr	%ax
	lgdt	GDTR(GDTR)(%rdi)
	movzwl	LOCUM_FRAME_LDTR(%rdi), %eax
	lldt	%ax

	movzwl	LOCUM_FRAME_ES(%rdi), %eax
	movl	%eax, %es
	movzwl	LOCUM_FRAME_DS(%rdi), %eax
	movl	%eax, %ds
	movzwl	LOCUM_FRAME_FS(%rdi), %eax
	movl	%eax, %fs
	movzwl	LOCUM_FRAME_GS(%rdi), %eax
	movl	%eax, %gs
	movzwl	LOCUM_FRAME_SS(%rdi), %eax
	movl	%eax, %ss
	movl	$MSR_FS_BASE, %ecx
	movl	LOCUM_FRAME_FS_BASE(%rdi), %eax
	movl	(LOCUM_FRAME_FS_BASE + 4)(%rdi), %edx
	wrmsr
	movl	$MSR_GS_BASE, %ecx
	movl	LOCUM_FRAME_GS_BASE(%rdi), %eax
	movl	(LOCUM_FRAME_GS_BASE + 4)(%rdi), %edx
	wrmsr

	movzwl	LOCUM_FRAME_CS(%rdi), %eax
	leaq	.Lhost_cs(%rip), %rdx
	pushq	%rax
	pushq	%rdx
	lretq
.Lhost_cs:
	UNWIND_HINT_UNDEFINED
	ANNOTATE_NOENDBR
	lidt	GDTR(IDTR)(%rdi)

	movq	LOCUM_FRAME_RESULT(%rdi), %rax
	movq	LOCUM_FRAME_RSP(%rdi), %rsp
	ANNOTATE_RETPOLINE_SAFE
	jmp	*LOCUM_FRAME_RIP(%rdi)
	int3
SYM_CODE_END(locum_stub_return_native)

/* Sets a word of the frame and goes on. */
.macro REMEMBER what
	UNWIND_HINT_UNDEFINED
	ENDBR
	pushq	%rax
	subq	$16, %rsp
	sidt	(%rsp)
	movq	2(%rsp), %rax
	andq	$-LOCUM_FRAME_SIZE, %rax
	movl	$1, \what(%rax)
	addq	$16, %rsp
	popq	%rax
	iretq
.endm

/* The stub's only interrupt handlers: they remember the NMI for the module to send again, and the machine check for it
 * to raise.
 */
SYM_CODE_START(locum_stub_nmi)
	REMEMBER LOCUM_FRAME_NMI
SYM_CODE_END(locum_stub_nmi)

SYM_CODE_START(locum_stub_machine_check)
	REMEMBER LOCUM_FRAME_MACHINE_CHECK
SYM_CODE_END(locum_stub_machine_check)

/* One page exactly (.org refuses to go back). */
	.org	locum_stub_start + LOCUM_FRAME_SIZE, 0xcc
SYM_DATA_START(locum_stub_end)

	.section .note.GNU-stack, "", %progbits
