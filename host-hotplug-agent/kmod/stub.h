/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the stub's assembly and its C side share: the module's own part of a frame.
 */
#ifndef LOCUM_STUB_H
#define LOCUM_STUB_H

#include "locum_abi.h"

/* Offsets in struct locum_frame, asserted in frames.c against struct stub_area. */
#define STUB_GDT	(LOCUM_FRAME_MODULE + 0)
#define STUB_IDT	(LOCUM_FRAME_MODULE + 32)
#define STUB_GDTR_RW	(LOCUM_FRAME_MODULE + 336)
#define STUB_TSS	(LOCUM_FRAME_MODULE + 352)

/*
 * Bytes of the frame that are left for the stack between the worlds: an NMI's frame, a machine check's within it, and the
 * far return need 200.
 */
#define STUB_STACK_MIN	1024

#ifndef __ASSEMBLER__

/**
 * struct stub_area - the module's part of a frame; the stack grows down towards it from the end of the frame
 * @gdt: null, 64-bit code twice (L0 may return with any of the two selectors), data at __KERNEL_DS
 * @idt: only vectors 2 and 18, two quadwords each
 * @gdtr_rw: the host's GDT at its writable address (LTR must set the busy bit), limit as the host's
 * @tss: address of the TSS descriptor in that GDT
 */
struct stub_area {
	u64 gdt[4];
	u64 idt[19][2];
	struct locum_table_register gdtr_rw;
	u64 tss;
};

/* In stub.S, all within one page. */
extern char locum_stub_start[], locum_stub_end[], locum_stub_return_native[], locum_stub_nmi[];
extern char locum_stub_machine_check[];

asmlinkage long locum_stub_enter(struct locum_frame *frame);
asmlinkage long locum_stub_leave(struct locum_frame *frame, u64 op);

#endif /* __ASSEMBLER__ */
#endif /* LOCUM_STUB_H */
