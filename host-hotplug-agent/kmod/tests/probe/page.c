// SPDX-License-Identifier: GPL-2.0
/*
 * A page of code below 4 GiB at CPL 0, for both widths of code. Linux has none there, and user pages are none for a
 * kernel (SMEP): so page tables of our own, with the kernel's half copied from those in use.
 */
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/pgtable.h>
#include <linux/string.h>
#include <asm/special_insns.h>
#include "probe.h"

/* PGD (two pages: PTI wants it at 8 KiB), PUD, PMD, PTE. */
#define TABLES_ORDER 3

static u64 *tables;
static u8 *code;
static u8 *stack;

#define STACK_ORDER 3

static unsigned int place(unsigned long address, unsigned int level)
{
	return address >> (12 + 9 * level) & 511;
}

int lab_page_init(void)
{
	const u64 table = _PAGE_PRESENT | _PAGE_RW | _PAGE_ACCESSED | _PAGE_DIRTY;
	unsigned long base = LAB_STACK_TOP - LAB_STACK_PAGES * PAGE_SIZE;
	u64 *pud, *pmd, *pte;
	unsigned int i;

	/* An address has one place more with five levels. */
	if (pgtable_l5_enabled())
		return -EOPNOTSUPP;
	tables = (u64 *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, TABLES_ORDER);
	code = (u8 *)get_zeroed_page(GFP_KERNEL);
	stack = (u8 *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, STACK_ORDER);
	if (!tables || !code || !stack) {
		lab_page_exit();
		return -ENOMEM;
	}
	pud = tables + 2 * 512;
	pmd = tables + 3 * 512;
	pte = tables + 4 * 512;
	pud[place(LAB_PAGE, 2)] = __pa(pmd) | table;
	pmd[place(LAB_PAGE, 1)] = __pa(pte) | table;
	pte[place(LAB_PAGE, 0)] = __pa(code) | table;
	for (i = 0; i < LAB_STACK_PAGES; i++)
		pte[place(base + i * PAGE_SIZE, 0)] = (__pa(stack) + i * PAGE_SIZE) | table;
	tables[place(LAB_PAGE, 3)] = __pa(pud) | table;
	return 0;
}

void lab_page_exit(void)
{
	free_pages((unsigned long)tables, TABLES_ORDER);
	free_page((unsigned long)code);
	free_pages((unsigned long)stack, STACK_ORDER);
}

u8 *lab_page(void)
{
	return code;
}

u64 lab_page_cr3(void)
{
	unsigned long cr3 = __native_read_cr3();
	const u64 *used = __va(cr3 & PHYSICAL_PAGE_MASK);

	memcpy(tables + 256, used + 256, 256 * sizeof(*tables));
	return __pa(tables) | (cr3 & ~PAGE_MASK);
}
