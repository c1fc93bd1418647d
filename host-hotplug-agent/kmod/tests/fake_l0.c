// SPDX-License-Identifier: GPL-2.0
/*
 * Makes a shared region as L0 would have it, with an "L0" that refuses to enter: enough for locum.ko to load, and for
 * the stub to go to another page table and come back, in QEMU without VMX. See run.sh.
 *
 * usage: fake_l0 REGION LOCM first|later: writes the region (to be loaded at FAKE_BASE) and the body of the ACPI table, as
 * an L0 of the first release has them, or one that is later than this module and has more of everything.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../locum_abi.h"
#include "fake_l0.h"

static unsigned char region[FAKE_SIZE];
static unsigned long used = FAKE_HEADER_PAGE;

static uint64_t take(unsigned long bytes, unsigned long align)
{
	unsigned long at = (used + align - 1) & ~(align - 1);

	used = at + bytes;
	if (used > sizeof(region)) {
		fprintf(stderr, "the region is full\n");
		exit(1);
	}
	return FAKE_BASE + at;
}

static void *at(uint64_t phys)
{
	return region + (phys - FAKE_BASE);
}

/*
 * The fake entry, 64-bit, RDI = frame: does to the CPU what L0's own work does to it (segments, TR and GS base are not
 * the host's any more), sends this CPU an NMI, refuses with NoVmx (6).
 */
static const unsigned char entry[] = {
	0x31, 0xc0,					/* xor %eax, %eax */
	0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8,	/* mov %eax, %ds, %es, %fs, %gs */
	0x31, 0xd2,					/* xor %edx, %edx */
	0xb9, 0x01, 0x01, 0x00, 0xc0, 0x0f, 0x30,	/* mov $MSR_GS_BASE, %ecx; wrmsr */
	0xb9, 0x00, 0x01, 0x00, 0xc0, 0x0f, 0x30,	/* mov $MSR_FS_BASE, %ecx; wrmsr */
	0x8b, 0x47, 0x08,				/* mov 8(%rdi), %eax: APIC id */
	0xc1, 0xe0, 0x18,				/* shl $24, %eax */
	0xbb, 0x00, 0x00, 0xe0, 0xfe,			/* mov $0xfee00000, %ebx */
	0x89, 0x83, 0x10, 0x03, 0x00, 0x00,		/* mov %eax, 0x310(%rbx): ICR2 */
	0xc7, 0x83, 0x00, 0x03, 0x00, 0x00,		/* movl $0x4400, 0x300(%rbx): NMI */
	0x00, 0x44, 0x00, 0x00,
	0xb9, 0x00, 0x01, 0x00, 0x00,			/* mov $256, %ecx */
	0xf3, 0x90, 0xe2, 0xfc,				/* 1: pause; loop 1b */
	0x48, 0xc7, 0x47, 0x10, 0xfa, 0xff, 0xff, 0xff,	/* movq $-6, 16(%rdi): result */
	0xff, 0x67, 0x28,				/* jmp *40(%rdi): return_native */
};

/* Identity map of the first 4 GiB by 2 MiB pages; top GiB through the module's directory. Bit 12 of CR3 clear. */
static uint64_t page_table(uint64_t stub_pd)
{
	uint64_t pml4 = take(4096, 8192), low = take(4096, 4096), high = take(4096, 4096);
	uint64_t directories = take(4 * 4096, 4096);
	uint64_t i;

	((uint64_t *)at(pml4))[0] = low | 3;
	((uint64_t *)at(pml4))[511] = high | 3;
	((uint64_t *)at(high))[511] = stub_pd | 3;
	for (i = 0; i < 4; i++)
		((uint64_t *)at(low))[i] = (directories + i * 4096) | 3;
	for (i = 0; i < 4 * 512; i++)
		((uint64_t *)at(directories))[i] = i << 21 | 0x83;
	return pml4;
}

static void slot(struct locum_slot_info *slot)
{
	slot->mailbox = take(4096, 4096);
	slot->reset_vector = take(4096, 4096);
	slot->stub_pd = take(4096, 4096);
	slot->stub_pt_pages = 16;
	slot->stub_pt = take(16 * 4096, 4096);
	slot->l0_cr3 = page_table(slot->stub_pd);
	slot->l0_entry = take(4096, 4096);
	memcpy(at(slot->l0_entry), entry, sizeof(entry));
	slot->tables_size = FAKE_TABLES;
	slot->tables = take(FAKE_TABLES, 4096);
}

/* The status, with its arrays where the header says. */
static void fill_status(const struct locum_header *header)
{
	struct locum_status *status = at(header->status);
	unsigned int i;

	status->cpu_count = FAKE_CPUS;
	FAKE_HOST(status, header, LOCUM_SLOT_EVEN)->state = LOCUM_HOST_STATE_RUNNING;
	for (i = 0; i < FAKE_CPUS; i++) {
		struct locum_cpu_status *cpu = FAKE_CPU(status, header, i);

		cpu->apic_id = i;
		cpu->mode = LOCUM_CPU_MODE_NATIVE;
	}
}

/* It says nothing of sizes, and what lies behind its header is not for reading. */
static void first_release(struct locum_header *header)
{
	header->size = LOCUM_HEADER_MIN;
	header->status_size = sizeof(struct locum_status);
	header->channels_size = (unsigned long)LOCUM_FIRST_CHANNEL_COUNT * LOCUM_SLOTS * LOCUM_FIRST_CHANNEL_RING_SIZE;
}

static void later_release(struct locum_header *header)
{
	header->size = 2048;
	header->features = ~0ULL;
	header->host_status_size = sizeof(struct locum_host_status) + 24;
	header->status_hosts = 128;
	header->cpu_status_size = sizeof(struct locum_cpu_status) + 64;
	header->cpu_capacity = LOCUM_MAX_CPUS + 1;
	header->status_cpus = 256;
	header->status_size = header->status_cpus + header->cpu_capacity * header->cpu_status_size;
	header->channel_count = LOCUM_CHANNEL_COUNT + 1;
	header->channel_ring_size = LOCUM_CHANNEL_DATA + 2 * LOCUM_RING_DATA;
	header->channels_size = (unsigned long)header->channel_count * LOCUM_SLOTS * header->channel_ring_size;
	header->kept_kinds = 2;
	header->kept_ring_size = 2048;
	header->kept = take(4096, 4096);
	header->pool_extent_size = sizeof(struct locum_pool_extent) + 64;
	header->pool_extent_count = 42;
}

static void save(const char *path, const void *data, size_t size)
{
	FILE *file = fopen(path, "wb");

	if (!file || fwrite(data, size, 1, file) != 1 || fclose(file)) {
		perror(path);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	struct locum_header *header = (struct locum_header *)region;
	struct {
		uint64_t header;
		uint32_t family;
		uint32_t reserved;
	} locm = { FAKE_BASE, LOCUM_FAMILY, 0 };

	if (argc != 4)
		return 2;
	if (strcmp(argv[3], "first"))
		later_release(header);
	else
		first_release(header);
	header->magic = LOCUM_MAGIC;
	header->family = LOCUM_FAMILY;
	header->shared = FAKE_BASE;
	header->shared_size = FAKE_SIZE;
	header->private_ = FAKE_PRIVATE;
	header->private_size = FAKE_PRIVATE_SIZE;
	header->status = take(header->status_size, 4096);
	header->trace = take(sizeof(struct locum_trace_ring), 4096);
	header->trace_size = sizeof(struct locum_trace_ring);
	header->log = take(sizeof(struct locum_log_ring), 4096);
	header->log_size = sizeof(struct locum_log_ring);
	header->channels = take(header->channels_size, 4096);
	if (header->pool_extent_count)
		header->pool_table = take(header->pool_extent_count * header->pool_extent_size, 4096);
	header->cpu_count = FAKE_CPUS;
	slot(&header->slots[LOCUM_SLOT_EVEN]);
	slot(&header->slots[LOCUM_SLOT_ODD]);
	fill_status(header);
	memset(region + header->size, 0xff, FAKE_HEADER_PAGE - header->size);
	save(argv[1], region, sizeof(region));
	save(argv[2], &locm, sizeof(locm));
	return 0;
}
