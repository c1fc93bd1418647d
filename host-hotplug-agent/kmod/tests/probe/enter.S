/* SPDX-License-Identifier: GPL-2.0 */
/* To an instruction that is to be tried, and back. */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include <asm/nospec-branch.h>
#include <asm/segment.h>
#include "probe.h"

	.text
/* void lab_probe_enter(const struct start *start) */
SYM_FUNC_START(lab_probe_enter)
	push	%rbp
	push	%rbx
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	mov	%ds, %eax
	push	%rax
	mov	%es, %eax
	push	%rax
	mov	%cr3, %rax
	push	%rax
	mov	%rsp, lab_probe_stack(%rip)

	/* The kernel's half is the same under both. */
	mov	0(%rdi), %rax
	mov	%rax, %cr3
	mov	$__KERNEL_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	push	$__KERNEL_DS
	pushq	32(%rdi)
	pushq	24(%rdi)
	pushq	16(%rdi)
	pushq	8(%rdi)
	mov	40(%rdi), %rax
	mov	48(%rdi), %rcx
	mov	56(%rdi), %rdx
	mov	64(%rdi), %rbx
	mov	72(%rdi), %rsi
	mov	88(%rdi), %rbp
	mov	80(%rdi), %rdi
	iretq

SYM_INNER_LABEL(lab_probe_landing, SYM_L_GLOBAL)
	ANNOTATE_NOENDBR
	pop	%rax
	mov	%rax, %cr3
	pop	%rax
	mov	%eax, %es
	pop	%rax
	mov	%eax, %ds
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%rbx
	pop	%rbp
	cld
	RET
SYM_FUNC_END(lab_probe_enter)

/* It ends where an exception's handler says. */
STACK_FRAME_NON_STANDARD lab_probe_enter

	.section .note.GNU-stack, "", @progbits
