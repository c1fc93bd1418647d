/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of lab_probe share. Offsets of struct start are known to enter.S. */
#ifndef LAB_PROBE_H
#define LAB_PROBE_H

/* Where the code lies that is tried, and its stack: below 4 GiB. */
#define LAB_PAGE 0x10000000UL
#define LAB_STACK_TOP (LAB_PAGE + 0x18000UL)
#define LAB_STACK_PAGES 8

#ifndef __ASSEMBLY__
#include <linux/types.h>

/* With what an instruction begins. */
struct start {
	u64 cr3, rip, cs, rflags, rsp;
	/* RAX, RCX, RDX, RBX, RSI, RDI, RBP */
	u64 registers[7];
};

/* Goes there; comes back when an exception's handler goes on at lab_probe_landing, with the stack pointer
 * lab_probe_stack. Interrupts are off. */
void lab_probe_enter(const struct start *start);
extern const char lab_probe_landing[];
extern unsigned long lab_probe_stack;

/* Page tables that have the kernel's half and two things more: the code's page, and its stack. */
int lab_page_init(void);
void lab_page_exit(void);
/* The code's page, as the kernel sees it. */
u8 *lab_page(void);
/* A CR3 for them; what the kernel's half has now is in them. */
u64 lab_page_cr3(void);
#endif

#endif
