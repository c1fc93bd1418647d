// SPDX-License-Identifier: GPL-2.0
/*
 * Memory out of Linux and back, by Linux's own hotplug.
 */
#include "locum.h"
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/memory.h>
#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/notifier.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/string.h>

#define RESOURCE_NAME	"System RAM (locum)"
#define WIPE_WINDOW	(2UL << 20)

/* Linux keeps a pointer to the name in each resource, also when this module is gone: so it lives outside, for ever. */
static const char *resource_name;

/* What locum_memory_add() is adding just now, in page frames. */
static unsigned long adding_first, adding_end;

/**
 * locum_is_ram() - does this kernel use any of it as memory?
 * @start: first byte
 * @size: bytes
 *
 * Return: whether any byte is System RAM (online or not).
 */
bool locum_is_ram(u64 start, u64 size)
{
	return region_intersects(start, size, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) != REGION_DISJOINT;
}

static bool overlaps(u64 start, u64 size, u64 other, u64 other_size)
{
	return start < other + other_size && other < start + size;
}

/* L0's own memory and the pool are nobody's to add or wipe. */
static bool forbidden(const struct locum_range *range)
{
	const struct locum_header *header = &locum.header;
	unsigned int i;

	/* An L0 of the first release tells of one piece only; what it does not tell is zero. */
	for (i = 0; i < LOCUM_POOL_PIECES; i++)
		if (overlaps(range->start, range->size, header->pool_pieces[i].start, header->pool_pieces[i].size))
			return true;
	return overlaps(range->start, range->size, header->shared, header->shared_size) ||
	       overlaps(range->start, range->size, header->private_, header->private_size) ||
	       overlaps(range->start, range->size, header->pool, header->pool_size);
}

static int check(const struct locum_range *range, u64 unit)
{
	if (range->reserved || range->reserved2 || !range->size || range->start + range->size < range->start ||
	    !IS_ALIGNED(range->start, unit) || !IS_ALIGNED(range->size, unit))
		return -EINVAL;
	return 0;
}

/*
 * Is the range this host's and not in use? That holds for what was removed and not granted; and for memory unknown to
 * this kernel once no other host is there that could have it (a retired one's, of which L0 made us the owner).
 */
static int check_free(const struct locum_range *range)
{
	if (forbidden(range))
		return -EACCES;
	if (locum_is_ram(range->start, range->size))
		return -EEXIST;
	if (locum_ranges_touch(range->start, range->size, LOCUM_RANGE_GRANTED))
		return -EBUSY;
	if (locum_other_host_alive() && !locum_ranges_cover(range->start, range->size, LOCUM_RANGE_REMOVED))
		return -EBUSY;
	return 0;
}

/* A question for walk_iomem_res_desc(): which resource holds an address? */
struct holder {
	u64 address;
	struct resource resource;
};

static int find_holder(struct resource *resource, void *data)
{
	struct holder *holder = data;

	if (holder->address < resource->start || holder->address > resource->end)
		return 0;
	holder->resource = *resource;
	return 1;
}

static int any(struct resource *resource, void *data)
{
	return 1;
}

/*
 * Linux splits a System RAM resource by giving all of its children (kernel image, crash kernel) to the lower half. Are
 * there children above the range? Then it only warns, and the resource stays: memory removed and yet "System RAM". 7.3
 * divides the children, too, and could be asked to; but nothing in its headers tells.
 */
static bool unsplittable(u64 start, u64 size)
{
	const unsigned long flags = IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY;
	/* Any function of the kernel tells where its image is. */
	u64 kernel = __pa((unsigned long)&memory_block_size_bytes);
	struct holder holder = { .address = start };

	walk_iomem_res_desc(IORES_DESC_NONE, flags, 0, U64_MAX, &holder, find_holder);
	if (holder.resource.start == start || holder.resource.end < start + size)
		return false;
	if (kernel >= start && kernel <= holder.resource.end)
		return true;
	return walk_iomem_res_desc(IORES_DESC_CRASH_KERNEL, flags, start + size, holder.resource.end, NULL, any) > 0;
}

/*
 * Linux maps its memory in pages of up to 1 GiB. When a part of such a page is removed, it takes the page for a page
 * table (remove_pud_table() in arch/x86/mm/init_64.c), and dies of what is in it.
 */
static bool cuts_page(u64 start, u64 size)
{
	const u64 edges[] = { start, start + size };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(edges); i++) {
		unsigned int level;

		if (IS_ALIGNED(edges[i], PUD_SIZE))
			continue;
		if (lookup_address((unsigned long)__va(edges[i] - i), &level) && level == PG_LEVEL_1G)
			return true;
	}
	return false;
}

/* Called for each System RAM resource in a range. */
static int remove_piece(struct resource *resource, void *data)
{
	u64 size = resource_size(resource);
	int error;

	if (unsplittable(resource->start, size)) {
		pr_err("memory %#llx+%#llx cannot be removed with the kernel image or crash kernel above it: update L0 or boot with nokaslr, and without crashkernel=\n",
		       resource->start, size);
		return -EBUSY;
	}
	if (cuts_page(resource->start, size)) {
		pr_err("memory %#llx+%#llx is part of a page of 1 GiB, which Linux cannot divide: boot with nogbpages\n",
		       resource->start, size);
		return -EBUSY;
	}
	error = offline_and_remove_memory(resource->start, size);
	/* Linux may report success all the same: 7.3 only warns if memory that is offline cannot be removed after all. */
	if (!error && locum_is_ram(resource->start, size)) {
		pr_err("memory %#llx+%#llx is offline, but Linux could not remove it: see the kernel's warning above\n",
		       resource->start, size);
		error = -EBUSY;
	}
	if (error)
		return error;
	return locum_ranges_set(resource->start, size, LOCUM_RANGE_REMOVED);
}

/**
 * locum_memory_remove() - take memory blocks from Linux
 * @range: see locum_uapi.h
 *
 * One call of Linux per resource: it finds the resource to shrink only if the range lies within one. Usually a range
 * does, and then it is all or nothing.
 *
 * Return: 0, -EINVAL, -EBUSY, -ENOSPC, -EINTR.
 */
int locum_memory_remove(const struct locum_range *range)
{
	int error = check(range, memory_block_size_bytes());

	if (error)
		return error;
	if (range->nid)
		return -EINVAL;
	if (region_intersects(range->start, range->size, IORESOURCE_SYSTEM_RAM, IORES_DESC_NONE) != REGION_INTERSECTS)
		return -EBUSY;
	/* Is there room to remember it? */
	error = locum_ranges_set(range->start, range->size, LOCUM_RANGE_REMOVED);
	locum_ranges_set(range->start, range->size, 0);
	if (error)
		return error;
	error = walk_iomem_res_desc(IORES_DESC_NONE, IORESOURCE_SYSTEM_RAM | IORESOURCE_BUSY, range->start,
				    range->start + range->size - 1, NULL, remove_piece);
	locum_pin();
	return error;
}

/*
 * Debian's kernels online what is added at once, and to a kernel zone, from where it never comes back. Refuse that:
 * the block stays offline, and the agent onlines it as movable.
 */
static int refuse_kernel_zone(struct notifier_block *block, unsigned long action, void *data)
{
	const struct memory_notify *what = data;

	if (action != MEM_GOING_ONLINE || what->start_pfn < READ_ONCE(adding_first) ||
	    what->start_pfn >= READ_ONCE(adding_end))
		return NOTIFY_DONE;
	return page_zonenum(pfn_to_page(what->start_pfn)) == ZONE_MOVABLE ? NOTIFY_OK : NOTIFY_BAD;
}

static struct notifier_block online_notifier = {
	.notifier_call = refuse_kernel_zone,
};

/**
 * locum_memory_add() - give memory to Linux
 * @range: see locum_uapi.h
 *
 * Return: 0, -EINVAL, -EEXIST, -EBUSY, -EACCES, -ENOMEM.
 */
int locum_memory_add(const struct locum_range *range)
{
	int nid = range->nid == NUMA_NO_NODE ? memory_add_physaddr_to_nid(range->start) : range->nid;
	int error = check(range, memory_block_size_bytes());

	if (!error)
		error = check_free(range);
	if (error)
		return error;
	if (nid < 0 || nid >= nr_node_ids || !node_online(nid))
		return -EINVAL;
	WRITE_ONCE(adding_end, PHYS_PFN(range->start + range->size));
	WRITE_ONCE(adding_first, PHYS_PFN(range->start));
	/* Merged, so that neighbours added one by one can be removed as one later. */
	error = add_memory_driver_managed(nid, range->start, range->size, resource_name, MHP_MERGE_RESOURCE);
	WRITE_ONCE(adding_end, 0);
	if (error)
		return error;
	locum_ranges_set(range->start, range->size, 0);
	locum_pin();
	return 0;
}

/**
 * locum_memory_wipe() - zero memory that is not Linux's
 * @range: see locum_uapi.h
 *
 * Return: 0, -EINVAL, -EEXIST, -EBUSY, -EACCES, -EINTR, -ENOMEM.
 */
int locum_memory_wipe(const struct locum_range *range)
{
	u64 at = range->start;
	u64 end = at + range->size;
	int error = check(range, PAGE_SIZE);

	if (!error)
		error = check_free(range);
	while (!error && at < end) {
		u64 size = min_t(u64, end - at, WIPE_WINDOW);
		void *window = memremap(at, size, MEMREMAP_WB);

		if (!window)
			return -ENOMEM;
		/* Not by bytes: an emulator counts each. */
		memset64(window, 0, size / sizeof(u64));
		memunmap(window);
		at += size;
		cond_resched();
		if (fatal_signal_pending(current))
			error = -EINTR;
	}
	return error;
}

/**
 * locum_memory_init() - get ready for adding memory
 *
 * Return: 0, -ENOMEM.
 */
int locum_memory_init(void)
{
	int error;

	resource_name = kstrdup(RESOURCE_NAME, GFP_KERNEL);
	if (!resource_name)
		return -ENOMEM;
	error = register_memory_notifier(&online_notifier);
	if (error)
		kfree(resource_name);
	return error;
}

/** locum_memory_exit() - undo locum_memory_init(); the name stays, resources may point to it */
void locum_memory_exit(void)
{
	unregister_memory_notifier(&online_notifier);
}
