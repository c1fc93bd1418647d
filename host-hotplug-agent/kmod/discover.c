// SPDX-License-Identifier: GPL-2.0
/*
 * Where L0 is, and which of its slots this host has.
 */
#include "locum.h"
#include <linux/acpi.h>
#include <linux/cpumask.h>
#include <linux/io.h>

/* The ACPI table that leads to L0's header. */
struct locm_table {
	struct acpi_table_header acpi;
	u64 header;
	u32 revision;
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
	const struct locum_header *header = locum.header;

	if (phys < header->shared || size > header->shared_size ||
	    phys - header->shared > header->shared_size - size)
		return NULL;
	return shared + (phys - header->shared);
}

/* LOCM says where the header is. */
static int find_header(u64 *phys)
{
	char signature[] = LOCUM_ACPI_SIGNATURE;
	struct acpi_table_header *table;
	struct locm_table *locm;
	int error = 0;

	if (ACPI_FAILURE(acpi_get_table(signature, 0, &table))) {
		pr_err("L0 is not below this kernel (no ACPI table LOCM): boot through the locum boot stage\n");
		return -ENODEV;
	}
	locm = (struct locm_table *)table;
	if (table->length < sizeof(*locm)) {
		pr_err("ACPI table LOCM has %u bytes, needs %zu: install L0 and locum.ko of one release\n",
		       table->length, sizeof(*locm));
		error = -EPROTO;
	} else if (locm->revision != LOCUM_FAMILY) {
		pr_err("L0 has ABI revision %u, this module %u: install L0 and locum.ko of one release\n",
		       locm->revision, LOCUM_FAMILY);
		error = -EPROTO;
	} else {
		*phys = locm->header;
	}
	acpi_put_table(table);
	return error;
}

static int check_header(const struct locum_header *header)
{
	if (header->magic != LOCUM_MAGIC) {
		pr_err("no L0 where ACPI table LOCM points to (magic %#llx): reboot through the locum boot stage\n",
		       header->magic);
		return -ENODEV;
	}
	if (header->family != LOCUM_FAMILY || header->size != sizeof(*header)) {
		pr_err("L0's header has revision %u and %u bytes, this module wants %u and %zu: install L0 and locum.ko of one release\n",
		       header->family, header->size, LOCUM_FAMILY, sizeof(*header));
		return -EPROTO;
	}
	return 0;
}

/* Maps the shared region and checks that all we use is inside. */
static int map_shared(void)
{
	const struct locum_header *header = locum.header;

	shared = memremap(header->shared, header->shared_size, MEMREMAP_WB);
	if (!shared) {
		pr_err("cannot map L0's shared region at %#llx\n", header->shared);
		return -ENOMEM;
	}
	locum.status = locum_shared(header->status, sizeof(*locum.status));
	locum.channels = locum_shared(header->channels,
				      2 * LOCUM_CHANNEL_COUNT * sizeof(*locum.channels));
	if (!locum.status || header->status_size < sizeof(*locum.status) || !locum.channels) {
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
 * Return: 0, -ENODEV (no L0), -EPROTO (another revision, or L0 contradicts itself), -ENOMEM.
 */
int locum_discover(void)
{
	u64 phys = 0;
	int error = find_header(&phys);

	if (error)
		return error;
	locum.header = memremap(phys, sizeof(*locum.header), MEMREMAP_WB);
	if (!locum.header) {
		pr_err("cannot map L0's header at %#llx\n", phys);
		return -ENOMEM;
	}
	locum.header_phys = phys;
	error = check_header(locum.header);
	if (!error)
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
	memunmap((void *)locum.header);
}
