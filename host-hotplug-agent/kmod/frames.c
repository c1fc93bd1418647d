// SPDX-License-Identifier: GPL-2.0
/*
 * The frames, and L0's view of them: its page table maps the stub and the frames where this kernel has them.
 *
 * Both must be in the top GiB of the address space, where L0's header offers page tables: so the frames are static,
 * because memory of a module is there and no other memory that a module can get is.
 */
#include "locum.h"
#include "stub.h"
#include <linux/build_bug.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>
#include <asm/desc.h>
#include <asm/io.h>
#include <asm/msr.h>
#include <asm/pgtable.h>
#include <asm/trapnr.h>

#define TOP_GIB		0xffffffffc0000000UL
#define CODE64		0x00af9b000000ffffULL	/* present, accessed, ring 0, long mode */
#define DATA		0x00cf93000000ffffULL	/* present, accessed, ring 0, writable */
#define L0_TABLE	(_PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED)
#define L0_PAGE		(L0_TABLE | _PAGE_DIRTY)

static struct locum_frame frames[LOCUM_MAX_CPUS] __aligned(LOCUM_FRAME_SIZE);

static_assert(offsetof(struct stub_area, gdt) + LOCUM_FRAME_MODULE == STUB_GDT);
static_assert(offsetof(struct stub_area, idt) + LOCUM_FRAME_MODULE == STUB_IDT);
static_assert(offsetof(struct stub_area, gdtr_rw) + LOCUM_FRAME_MODULE == STUB_GDTR_RW);
static_assert(offsetof(struct stub_area, tss) + LOCUM_FRAME_MODULE == STUB_TSS);
static_assert(sizeof(struct stub_area) + STUB_STACK_MIN <= sizeof(frames[0].module));
static_assert(__KERNEL_CS == 0x10 && __KERNEL_DS == 0x18);

static struct stub_area *area(struct locum_frame *frame)
{
	return (struct stub_area *)frame->module;
}

/**
 * locum_frame_of() - the frame of a CPU
 * @cpu: CPU number
 *
 * Return: the frame, %NULL if the number is beyond what L0 manages.
 */
struct locum_frame *locum_frame_of(unsigned int cpu)
{
	return cpu < LOCUM_MAX_CPUS ? &frames[cpu] : NULL;
}

/* The physical address of a page of this module. */
static u64 phys_of(const void *address)
{
	return page_to_phys(vmalloc_to_page(address));
}

/* A 64-bit interrupt gate (SDM vol. 3A, figure "64-Bit IDT Gate Descriptors"), no IST: the stack is the frame's. */
static void set_gate(u64 gate[2], const void *handler)
{
	u64 address = (u64)handler;

	gate[0] = (address & 0xffff) | __KERNEL_CS << 16 | 0x8eULL << 40 | (address >> 16 & 0xffff) << 48;
	gate[1] = address >> 32;
}

static void init_frame(struct locum_frame *frame, unsigned int cpu)
{
	struct stub_area *stub = area(frame);

	frame->magic = LOCUM_FRAME_MAGIC;
	frame->apic_id = locum_apic_id(cpu);
	frame->phys = phys_of(frame);
	frame->return_native = (u64)locum_stub_return_native;
	frame->l0_cr3 = locum_slot_info(locum.slot)->l0_cr3;
	frame->l0_entry = locum_slot_info(locum.slot)->l0_entry;

	/* L0 may come back with either selector in CS; an NMI then loads it again. */
	stub->gdt[1] = CODE64;
	stub->gdt[2] = CODE64;
	stub->gdt[3] = DATA;
	frame->stub_gdtr.limit = sizeof(stub->gdt) - 1;
	frame->stub_gdtr.base = (u64)stub->gdt;

	set_gate(stub->idt[X86_TRAP_NMI], locum_stub_nmi);
	set_gate(stub->idt[X86_TRAP_MC], locum_stub_machine_check);
	frame->stub_idtr.limit = sizeof(stub->idt) - 1;
	frame->stub_idtr.base = (u64)stub->idt;
}

/**
 * locum_frame_prepare() - make a frame ready for the way back, on its CPU with interrupts off
 * @frame: frame of this CPU
 *
 * Needed for entering and leaving: both end in the stub's return_native (a refused enter does, too).
 */
void locum_frame_prepare(struct locum_frame *frame)
{
	struct desc_struct *gdt = this_cpu_ptr(&gdt_page)->gdt;
	struct stub_area *stub = area(frame);

	stub->gdtr_rw.limit = GDT_SIZE - 1;
	stub->gdtr_rw.base = (u64)gdt;
	stub->tss = (u64)(gdt + GDT_ENTRY_TSS);
	frame->result = 0;
}

/* Base and limit of a system descriptor of the GDT; 0 for the null selector. */
static void system_segment(const struct desc_struct *gdt, u16 selector, u64 *base, u32 *limit)
{
	const struct ldttss_desc *desc = (const struct ldttss_desc *)&gdt[selector >> 3];

	*base = 0;
	*limit = 0;
	if (!(selector & ~7))
		return;
	*base = desc->base0 | (u64)desc->base1 << 16 | (u64)desc->base2 << 24 | (u64)desc->base3 << 32;
	*limit = desc->limit0 | desc->limit1 << 16;
	if (desc->g)
		*limit = *limit << 12 | 0xfff;
}

/**
 * locum_frame_fill_host() - write the host's state to a frame, on its CPU with interrupts off
 * @frame: frame of this CPU
 *
 * All fields marked "host" but RIP, RSP and RFLAGS, which are the stub's. KVM changes some of them (DR7, FS) between
 * guests' entries, but not with interrupts off.
 */
void locum_frame_fill_host(struct locum_frame *frame)
{
	struct desc_ptr gdtr, idtr;
	u16 *selectors = frame->selectors;
	struct desc_struct *gdt;

	frame->cr0 = native_read_cr0();
	frame->cr3 = __native_read_cr3();
	frame->cr4 = native_read_cr4();
	native_store_gdt(&gdtr);
	store_idt(&idtr);
	frame->gdtr.limit = gdtr.size;
	frame->gdtr.base = gdtr.address;
	frame->idtr.limit = idtr.size;
	frame->idtr.base = idtr.address;

	asm volatile("movw %%es, %0" : "=m"(selectors[LOCUM_SEL_ES]));
	asm volatile("movw %%cs, %0" : "=m"(selectors[LOCUM_SEL_CS]));
	asm volatile("movw %%ss, %0" : "=m"(selectors[LOCUM_SEL_SS]));
	asm volatile("movw %%ds, %0" : "=m"(selectors[LOCUM_SEL_DS]));
	asm volatile("movw %%fs, %0" : "=m"(selectors[LOCUM_SEL_FS]));
	asm volatile("movw %%gs, %0" : "=m"(selectors[LOCUM_SEL_GS]));
	asm volatile("sldt %0" : "=m"(selectors[LOCUM_SEL_LDTR]));
	asm volatile("str %0" : "=m"(selectors[LOCUM_SEL_TR]));
	frame->fs_base = __rdmsr(MSR_FS_BASE);
	frame->gs_base = __rdmsr(MSR_GS_BASE);

	gdt = (struct desc_struct *)gdtr.address;
	system_segment(gdt, selectors[LOCUM_SEL_TR], &frame->tr_base, &frame->tr_limit);
	system_segment(gdt, selectors[LOCUM_SEL_LDTR], &frame->ldtr_base, &frame->ldtr_limit);
	asm volatile("movq %%db7, %0" : "=r"(frame->dr7));
}

/* Maps one page of this module into L0's page table at its own address. */
static int map_page(u64 *directory, u64 *tables, u32 *used, const void *page)
{
	const struct locum_slot_info *slot = locum_slot_info(locum.slot);
	unsigned long address = (unsigned long)page;
	u64 *entry;
	u32 table;

	if (address < TOP_GIB) {
		pr_err("the module was loaded at %#lx, below the top GiB, where L0 cannot map it: boot a kernel with CONFIG_RANDOMIZE_BASE\n",
		       address);
		return -EOPNOTSUPP;
	}
	entry = &directory[pmd_index(address)];
	if (!*entry) {
		if (*used == slot->stub_pt_pages) {
			pr_err("L0 has only %u page tables for the stub: load the module again\n", *used);
			return -ENOSPC;
		}
		*entry = (slot->stub_pt + (u64)*used * LOCUM_PAGE_SIZE) | L0_TABLE;
		++*used;
	}
	table = ((*entry & PTE_PFN_MASK) - slot->stub_pt) / LOCUM_PAGE_SIZE;
	tables[(u64)table * PTRS_PER_PTE + pte_index(address)] = phys_of(page) | L0_PAGE;
	return 0;
}

static void unmap_all(void)
{
	const struct locum_slot_info *slot = locum_slot_info(locum.slot);
	void *directory = locum_shared(slot->stub_pd, LOCUM_PAGE_SIZE);
	void *tables = locum_shared(slot->stub_pt, (u64)slot->stub_pt_pages * LOCUM_PAGE_SIZE);

	memset(directory, 0, LOCUM_PAGE_SIZE);
	memset(tables, 0, slot->stub_pt_pages * LOCUM_PAGE_SIZE);
}

/**
 * locum_frames_init() - prepare the frames and map them and the stub for L0
 *
 * Return: 0, -EPROTO, -EOPNOTSUPP, -ENOSPC.
 */
int locum_frames_init(void)
{
	const struct locum_slot_info *slot = locum_slot_info(locum.slot);
	u64 *directory = locum_shared(slot->stub_pd, LOCUM_PAGE_SIZE);
	u64 *tables = locum_shared(slot->stub_pt, (u64)slot->stub_pt_pages * LOCUM_PAGE_SIZE);
	const char *page = PTR_ALIGN_DOWN(&locum_stub_start[0], LOCUM_PAGE_SIZE);
	unsigned int cpu;
	u32 used = 0;
	int error = 0;

	if (!directory || !tables || slot->stub_pt_pages == 0 || slot->l0_cr3 & BIT(12)) {
		pr_err("L0's header has no usable page table for the stub: L0 is damaged, reboot the machine\n");
		return -EPROTO;
	}
	unmap_all();
	for (; !error && page < locum_stub_end; page += LOCUM_PAGE_SIZE)
		error = map_page(directory, tables, &used, page);
	for_each_possible_cpu(cpu) {
		struct locum_frame *frame = locum_frame_of(cpu);

		if (error || !frame)
			break;
		init_frame(frame, cpu);
		error = map_page(directory, tables, &used, frame);
	}
	if (error)
		unmap_all();
	return error;
}

/** locum_frames_exit() - take stub and frames out of L0's page table; all CPUs are native (see locum_pin()) */
void locum_frames_exit(void)
{
	unmap_all();
}
