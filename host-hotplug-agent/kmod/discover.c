// SPDX-License-Identifier: GPL-2.0
/*
 * Where L0 is, and which of its slots this host has.
 */
#include "locum.h"
#include <linux/acpi.h>
#include <linux/align.h>
#include <linux/cache.h>
#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/log2.h>
#include <linux/string.h>

/* The ACPI table that leads to L0's header. */
struct locm_table {
	struct acpi_table_header acpi;
	u64 header;
	u32 family;
	u32 reserved;
} __packed;

static void *shared;

/**
 * locum_shared() - the address at which a part of the shared region is mapped
 * @phys: physical address
 * @size: bytes
 *
 * Return: the address, %NULL if any byte is outside the region.
 */
void *locum_shared(u64 phys, u64 size)
{
	const struct locum_header *header = &locum.header;

	if (phys < header->shared || size > header->shared_size ||
	    phys - header->shared > header->shared_size - size)
		return NULL;
	return shared + (phys - header->shared);
}

/*
 * L0 and this module may be of any two releases, as long as no field has moved between them. Everything else is settled
 * field by field, and request by request.
 */
static int check_family(u32 family)
{
	if (family == LOCUM_FAMILY)
		return 0;
	pr_err("L0 is of family %u, this module of family %u: install the locum.ko of the L0 that runs, or reboot into the L0 of the installed package\n",
	       family, LOCUM_FAMILY);
	return -EPROTO;
}

/* LOCM says where the header is. */
static int find_header(u64 *phys)
{
	char signature[] = LOCUM_ACPI_SIGNATURE;
	struct acpi_table_header *table;
	struct locm_table *locm;
	int error = 0;

	if (ACPI_FAILURE(acpi_get_table(signature, 0, &table))) {
		pr_err("L0 is not below this kernel (no ACPI table LOCM): boot through GRUB's Locum entry\n");
		return -ENODEV;
	}
	locm = (struct locm_table *)table;
	if (table->length < sizeof(*locm)) {
		pr_err("ACPI table LOCM has %u bytes, needs %zu: L0 is damaged, reboot the machine\n", table->length,
		       sizeof(*locm));
		error = -EPROTO;
	} else {
		error = check_family(locm->family);
		*phys = locm->header;
	}
	acpi_put_table(table);
	return error;
}

/* Copies as much of the header as L0 has and this module knows. */
static int read_header(u64 phys)
{
	const struct locum_header *there = memremap(phys, LOCUM_PAGE_SIZE, MEMREMAP_WB);
	int error;

	if (!there) {
		pr_err("cannot map L0's header at %#llx\n", phys);
		return -ENOMEM;
	}
	if (there->magic != LOCUM_MAGIC) {
		pr_err("no L0 where ACPI table LOCM points to (magic %#llx): reboot through GRUB's Locum entry\n",
		       there->magic);
		error = -ENODEV;
	} else {
		error = check_family(there->family);
	}
	if (!error && there->size < LOCUM_HEADER_MIN) {
		pr_err("L0's header has %u bytes, less than any L0's: L0 is damaged, reboot the machine\n", there->size);
		error = -EPROTO;
	}
	if (!error) {
		memset(&locum.header, 0, sizeof(locum.header));
		memcpy(&locum.header, there, min_t(size_t, there->size, sizeof(locum.header)));
		locum.header_phys = phys;
	}
	memunmap((void *)there);
	return error;
}

/* What the header says, or what the first release had. */
#define OR_FIRST(said, first) ((said) ? (said) : (first))

/* Is an array as long, and are its elements, as this module needs? */
static bool fits(u64 offset, u64 size, u64 least, u64 align, u64 count, u64 room)
{
	return size >= least && IS_ALIGNED(size, align) && count && offset <= room && count <= (room - offset) / size;
}

/* Works out how L0 lays out what is in the shared region. */
static int read_layout(void)
{
	const struct locum_header *header = &locum.header;
	struct locum_layout *layout = &locum.layout;

	layout->hosts = OR_FIRST(header->status_hosts, LOCUM_FIRST_STATUS_HOSTS);
	layout->host_size = OR_FIRST(header->host_status_size, LOCUM_FIRST_HOST_STATUS_SIZE);
	layout->cpus = OR_FIRST(header->status_cpus, LOCUM_FIRST_STATUS_CPUS);
	layout->cpu_size = OR_FIRST(header->cpu_status_size, LOCUM_FIRST_CPU_STATUS_SIZE);
	layout->cpu_capacity = OR_FIRST(header->cpu_capacity, LOCUM_FIRST_CPU_CAPACITY);
	layout->channel_count = OR_FIRST(header->channel_count, LOCUM_FIRST_CHANNEL_COUNT);
	layout->ring_size = OR_FIRST(header->channel_ring_size, LOCUM_FIRST_CHANNEL_RING_SIZE);
	if (fits(layout->hosts, layout->host_size, LOCUM_FIRST_HOST_STATUS_SIZE, sizeof(u64), LOCUM_SLOTS,
		 header->status_size) &&
	    fits(layout->cpus, layout->cpu_size, LOCUM_FIRST_CPU_STATUS_SIZE, L1_CACHE_BYTES, layout->cpu_capacity,
		 header->status_size) &&
	    fits(0, layout->ring_size, LOCUM_CHANNEL_DATA, LOCUM_PAGE_SIZE, (u64)layout->channel_count * LOCUM_SLOTS,
		 header->channels_size) &&
	    is_power_of_2(layout->ring_size - LOCUM_CHANNEL_DATA))
		return 0;
	pr_err("L0's header contradicts itself: L0 is damaged, reboot the machine\n");
	return -EPROTO;
}

/* Maps the shared region and checks that all we use is inside. */
static int map_shared(void)
{
	const struct locum_header *header = &locum.header;

	shared = memremap(header->shared, header->shared_size, MEMREMAP_WB);
	if (!shared) {
		pr_err("cannot map L0's shared region at %#llx\n", header->shared);
		return -ENOMEM;
	}
	locum.status = locum_shared(header->status, header->status_size);
	locum.channels = locum_shared(header->channels, header->channels_size);
	if (!locum.status || !locum.channels) {
		pr_err("L0's header points outside its shared region: L0 is damaged, reboot the machine\n");
		return -EPROTO;
	}
	return 0;
}

/* Our slot is that of the owner of our CPUs. */
static int find_slot(void)
{
	u32 slot = LOCUM_NO_OWNER;
	unsigned int cpu;

	for_each_online_cpu(cpu) {
		int index = locum_cpu_index(locum_apic_id(cpu));
		u32 owner = index < 0 ? LOCUM_NO_OWNER : READ_ONCE(locum_cpu(index)->owner);

		if (owner >= LOCUM_SLOTS || (slot != LOCUM_NO_OWNER && owner != slot)) {
			pr_err("L0 does not count CPU %u (APIC id %u) to this host (owner %#x): L0 and this kernel disagree, reboot the machine\n",
			       cpu, locum_apic_id(cpu), owner);
			return -EPROTO;
		}
		slot = owner;
	}
	locum.slot = slot;
	return 0;
}

/**
 * locum_discover() - find and map L0
 *
 * Return: 0, -ENODEV (no L0), -EPROTO (another family, or L0 contradicts itself), -ENOMEM.
 */
int locum_discover(void)
{
	u64 phys = 0;
	int error = find_header(&phys);

	if (!error)
		error = read_header(phys);
	if (!error)
		error = read_layout();
	if (error)
		return error;
	error = map_shared();
	if (!error)
		error = find_slot();
	if (error)
		locum_forget();
	return error;
}

/** locum_forget() - undo locum_discover() */
void locum_forget(void)
{
	if (shared)
		memunmap(shared);
	shared = NULL;
}
