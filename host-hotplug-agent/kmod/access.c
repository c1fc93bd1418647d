// SPDX-License-Identifier: GPL-2.0
/*
 * Reading and writing physical memory through /dev/locum: the offset is the address.
 *
 * What is allowed where is told in locum_uapi.h, and decided in classify() and nowhere else.
 */
#include "locum.h"
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/mm.h>
#include <linux/uaccess.h>

/* Bytes mapped at a time: a mapping and its removal cost more than the copy of a page. */
#define WINDOW (1UL << 20)

static bool within(u64 start, u64 size, u64 outer, u64 outer_size)
{
	return start >= outer && size <= outer_size && start - outer <= outer_size - size;
}

/* Regions, rounded up to whole pages, that a program without privilege may look at. */
static bool is_public(u64 start, u64 size)
{
	const struct locum_header *header = &locum.header;

	return within(start, size, locum.header_phys, PAGE_SIZE) ||
	       within(start, size, header->status, PAGE_ALIGN(header->status_size)) ||
	       within(start, size, header->trace, PAGE_ALIGN(header->trace_size)) ||
	       within(start, size, header->kept, PAGE_ALIGN((u64)header->kept_ring_size * header->kept_kinds)) ||
	       within(start, size, header->log, PAGE_ALIGN(header->log_size));
}

/* The machine's own tables: memory that firmware keeps. Another host's memory is Reserved, too, so not while it is. */
static bool is_firmware(u64 start, u64 size)
{
	static const unsigned long descriptors[] = {
		IORES_DESC_ACPI_TABLES, IORES_DESC_ACPI_NV_STORAGE, IORES_DESC_RESERVED,
	};
	const struct locum_header *header = &locum.header;
	unsigned int i;

	if (locum_other_host_alive() || (start < header->private_ + header->private_size && header->private_ < start + size))
		return false;
	for (i = 0; i < ARRAY_SIZE(descriptors); i++)
		if (region_intersects(start, size, IORESOURCE_MEM, descriptors[i]) == REGION_INTERSECTS)
			return true;
	return false;
}

/* May [start, start + size) be read, or written? 0 or a negative errno. Under locum.lock. */
static int classify(const struct file *file, u64 start, u64 size, bool write)
{
	const struct locum_header *header = &locum.header;
	const struct locum_slot_info *other = locum_slot_info(locum_other_slot());

	if (!write && is_public(start, size))
		return 0;
	if (!(file->f_mode & FMODE_WRITE))
		return -EPERM;
	if (locum_ranges_cover(start, size, LOCUM_RANGE_REMOVED))
		return 0;
	if (locum_ranges_touch(start, size, LOCUM_RANGE_GRANTED))
		return -EBUSY;
	if (within(start, size, other->tables, other->tables_size) && write) {
		u32 state = READ_ONCE(locum_host(locum_other_slot())->state);

		return state == LOCUM_HOST_STATE_RUNNING ? -EBUSY : 0;
	}
	if (!write && (within(start, size, header->shared, header->shared_size) || is_firmware(start, size)))
		return 0;
	return -EFAULT;
}

/* How many bytes from @start fit into one class: up to @count, at most a window, and page-wise at borders. */
static size_t largest(const struct file *file, u64 start, size_t count, bool write, int *error)
{
	size_t size = min_t(u64, count, WINDOW - (start & (WINDOW - 1)));

	*error = classify(file, start, size, write);
	if (!*error)
		return size;
	size = min_t(u64, count, PAGE_SIZE - (start & ~PAGE_MASK));
	*error = classify(file, start, size, write);
	return *error ? 0 : size;
}

/* A mapping of any memory that is not Linux's: the shared region's own, or one for a while. */
static void *map(u64 start, size_t size, void **window)
{
	u64 first = start & PAGE_MASK;
	void *shared = locum_shared(start, size);

	*window = NULL;
	if (shared)
		return shared;
	*window = memremap(first, PAGE_ALIGN(start + size) - first, MEMREMAP_WB);
	return *window ? *window + (start - first) : NULL;
}

/* One piece of a read or write. Bytes copied or a negative errno. */
static ssize_t copy_piece(struct file *file, u64 start, char __user *buffer, size_t count, bool write)
{
	void *window, *memory;
	unsigned long left;
	size_t size;
	int error;

	size = largest(file, start, count, write, &error);
	if (error)
		return error;
	memory = map(start, size, &window);
	if (!memory)
		return -ENOMEM;
	left = write ? copy_from_user(memory, buffer, size) : copy_to_user(buffer, memory, size);
	if (window)
		memunmap(window);
	return left == size ? -EFAULT : size - left;
}

static ssize_t copy(struct file *file, char __user *buffer, size_t count, loff_t *position, bool write)
{
	size_t done = 0;
	ssize_t piece = 0;

	if (*position < 0)
		return -EINVAL;
	while (done < count) {
		/* Not for all of it: a load of some 100 MiB must not keep others from the lock. */
		if (mutex_lock_killable(&locum.lock))
			return done ? done : -EINTR;
		piece = copy_piece(file, *position, buffer + done, count - done, write);
		mutex_unlock(&locum.lock);
		if (piece < 0)
			break;
		done += piece;
		*position += piece;
		cond_resched();
	}
	return done ? done : piece;
}

/**
 * locum_read() - read(2) and pread(2)
 * @file: of /dev/locum
 * @buffer: where to
 * @count: bytes
 * @position: physical address
 *
 * Return: bytes read, -EPERM, -EFAULT, -EBUSY, -ENOMEM, -EINTR.
 */
ssize_t locum_read(struct file *file, char __user *buffer, size_t count, loff_t *position)
{
	/* Status must be readable while a long operation has the lock. */
	const void *public = *position >= 0 && is_public(*position, count) ? locum_shared(*position, count) : NULL;

	if (public) {
		unsigned long left = copy_to_user(buffer, public, count);

		*position += count - left;
		return left == count && count ? -EFAULT : count - left;
	}
	return copy(file, buffer, count, position, false);
}

/**
 * locum_write() - write(2) and pwrite(2)
 * @file: of /dev/locum
 * @buffer: where from
 * @count: bytes
 * @position: physical address
 *
 * Return: bytes written, -EPERM, -EFAULT, -EBUSY, -ENOMEM, -EINTR.
 */
ssize_t locum_write(struct file *file, const char __user *buffer, size_t count, loff_t *position)
{
	return copy(file, (char __user *)buffer, count, position, true);
}

/* The pool's table, which programs of both hosts change by atomic words. */
static bool is_pool_table(u64 start, u64 size)
{
	const struct locum_header *header = &locum.header;
	u64 table_size = (u64)header->pool_extent_size * header->pool_extent_count;

	return header->pool_table && within(header->pool_table, PAGE_ALIGN(table_size), header->shared, header->shared_size) &&
	       within(start, size, header->pool_table, PAGE_ALIGN(table_size));
}

/**
 * locum_mmap() - mmap(2) of the shared region, read-only but for the pool's table
 * @file: of /dev/locum
 * @vma: offset is the physical address
 *
 * Return: 0, -EACCES (writable), -EPERM, -EFAULT.
 */
int locum_mmap(struct file *file, struct vm_area_struct *vma)
{
	const struct locum_header *header = &locum.header;
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;
	u64 size = vma->vm_end - vma->vm_start;

	if (vma->vm_flags & VM_WRITE) {
		/* A shared mapping for writing has a file that was opened for it. */
		if (!is_pool_table(start, size) || !(vma->vm_flags & VM_SHARED))
			return -EACCES;
		vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYEXEC);
		return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, size, vma->vm_page_prot);
	}
	if (!is_public(start, size)) {
		if (!(file->f_mode & FMODE_WRITE))
			return -EPERM;
		if (!within(start, size, header->shared, header->shared_size))
			return -EFAULT;
	}
	vm_flags_mod(vma, VM_DONTEXPAND | VM_DONTDUMP, VM_MAYWRITE | VM_MAYEXEC);
	return remap_pfn_range(vma, vma->vm_start, vma->vm_pgoff, size, vma->vm_page_prot);
}
