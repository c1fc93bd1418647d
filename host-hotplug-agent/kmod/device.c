// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/locum: the agent's way in. Calls are described in locum_uapi.h.
 */
#include "locum.h"
#include <linux/memory.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/security.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/tsc.h>

/* Room for any argument. */
union argument {
	struct locum_info info;
	struct locum_switch change;
	struct locum_cycle cycle;
	struct locum_call call;
	struct locum_range range;
	struct locum_text text;
	struct locum_request request;
	__u32 word;
};

static int info(struct locum_info *info)
{
	const struct locum_header *header = &locum.header;

	memset(info, 0, sizeof(*info));
	info->family = LOCUM_UAPI_FAMILY;
	info->l0_family = header->family;
	info->slot = locum.slot;
	info->cpu_count = header->cpu_count;
	info->header = locum.header_phys;
	info->shared = header->shared;
	info->shared_size = header->shared_size;
	info->memory_block = memory_block_size_bytes();
	info->tsc_khz = tsc_khz;
	info->features = LOCUM_UAPI_FEATURES;
	return 0;
}

/* Calls that neither wait long nor need the lock: the daemon must get through while a refresh is at work. */
static int quick(struct file *file, unsigned int number, union argument *argument)
{
	switch (number) {
	case LOCUM_IOC_INFO:
		return info(&argument->info);
	case LOCUM_IOC_POWER_POLICY:
		return locum_power_policy(argument->word);
	case LOCUM_IOC_TEXT:
		return locum_text(&argument->text);
	case LOCUM_IOC_LISTEN:
		return locum_listen(file);
	case LOCUM_IOC_NEXT_REQUEST:
		return locum_next_request(file, &argument->request);
	case LOCUM_IOC_BUSY:
		return locum_busy(file, argument->word);
	default:
		return -ENOIOCTLCMD;
	}
}

static int locked(unsigned int number, union argument *argument)
{
	switch (number) {
	case LOCUM_IOC_ENTER:
		return locum_switch(&argument->change, LOCUM_CPU_MODE_NESTED);
	case LOCUM_IOC_LEAVE:
		return locum_switch(&argument->change, LOCUM_CPU_MODE_NATIVE);
	case LOCUM_IOC_CYCLE:
		return locum_cycle(&argument->cycle);
	case LOCUM_IOC_PING:
		return locum_call(&argument->call, LOCUM_OP_PING);
	case LOCUM_IOC_GRANT:
		return locum_grant(&argument->call);
	case LOCUM_IOC_START:
		return locum_start(&argument->call);
	case LOCUM_IOC_ABORT:
		return locum_abort(&argument->call);
	case LOCUM_IOC_WILL:
		return locum_call(&argument->call, LOCUM_OP_WILL);
	case LOCUM_IOC_MEM_REMOVE:
		return locum_memory_remove(&argument->range);
	case LOCUM_IOC_MEM_ADD:
		return locum_memory_add(&argument->range);
	case LOCUM_IOC_MEM_WIPE:
		return locum_memory_wipe(&argument->range);
	default:
		return -ENOTTY;
	}
}

static int dispatch(struct file *file, unsigned int number, union argument *argument)
{
	int error = quick(file, number, argument);

	if (error != -ENOIOCTLCMD)
		return error;
	if (mutex_lock_killable(&locum.lock))
		return -EINTR;
	error = locked(number, argument);
	mutex_unlock(&locum.lock);
	return error;
}

/**
 * struct ioctl - one that this module knows
 * @number: with the size that its argument has in this release
 * @least: the size that it had in the release that brought it
 */
static const struct ioctl {
	unsigned int number;
	unsigned int least;
} ioctls[] = {
	{ LOCUM_IOC_INFO, 96 },
	{ LOCUM_IOC_ENTER, 40 },
	{ LOCUM_IOC_LEAVE, 40 },
	{ LOCUM_IOC_CYCLE, 64 },
	{ LOCUM_IOC_PING, 40 },
	{ LOCUM_IOC_GRANT, 40 },
	{ LOCUM_IOC_START, 40 },
	{ LOCUM_IOC_ABORT, 40 },
	{ LOCUM_IOC_WILL, 40 },
	{ LOCUM_IOC_MEM_REMOVE, 32 },
	{ LOCUM_IOC_MEM_ADD, 32 },
	{ LOCUM_IOC_MEM_WIPE, 32 },
	{ LOCUM_IOC_POWER_POLICY, 4 },
	{ LOCUM_IOC_TEXT, 1024 },
	{ LOCUM_IOC_LISTEN, 0 },
	{ LOCUM_IOC_NEXT_REQUEST, 64 },
	{ LOCUM_IOC_BUSY, 4 },
};

/* This release's number of an ioctl whose argument may have another size in the caller's release; 0 if there is none. */
static unsigned int own_number(unsigned int number)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ioctls); i++)
		if (!((ioctls[i].number ^ number) & ~IOCSIZE_MASK) && _IOC_SIZE(number) >= ioctls[i].least)
			return ioctls[i].number;
	return 0;
}

/* What the caller's release has and ours lacks comes back as 0. */
static int copy_back(void __user *user, size_t size, const void *argument, size_t own_size)
{
	size_t both = min(size, own_size);

	if (copy_to_user(user, argument, both) || clear_user(user + both, size - both))
		return -EFAULT;
	return 0;
}

static long device_ioctl(struct file *file, unsigned int asked, unsigned long pointer)
{
	void __user *user = (void __user *)pointer;
	unsigned int number = own_number(asked);
	size_t size = _IOC_SIZE(asked), own_size = _IOC_SIZE(number);
	union argument *argument;
	int error = 0;

	if (!number)
		return -ENOTTY;
	if (number != LOCUM_IOC_INFO && !(file->f_mode & FMODE_WRITE))
		return -EPERM;
	argument = kzalloc(sizeof(*argument), GFP_KERNEL);
	if (!argument)
		return -ENOMEM;
	/* -E2BIG where the caller wants what only a later release has. */
	if (_IOC_DIR(number) & _IOC_WRITE)
		error = copy_struct_from_user(argument, own_size, user, size);
	if (error) {
		kfree(argument);
		return error;
	}
	error = dispatch(file, number, argument);
	/* On errors too: the caller wants L0's reason. */
	if (_IOC_DIR(number) & _IOC_READ && copy_back(user, size, argument, own_size))
		error = -EFAULT;
	kfree(argument);
	return error;
}

/* What can be read here holds addresses and memory that the kernel keeps to itself: as for /dev/mem. */
static int device_open(struct inode *inode, struct file *file)
{
	return security_locked_down(LOCKDOWN_DEV_MEM);
}

static int device_release(struct inode *inode, struct file *file)
{
	locum_listen_end(file);
	return 0;
}

static loff_t device_llseek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, MAX_LFS_FILESIZE);
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.llseek = device_llseek,
	.read = locum_read,
	.write = locum_write,
	.mmap = locum_mmap,
	.poll = locum_poll,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "locum",
	.fops = &operations,
	.mode = 0600,
};

/**
 * locum_device_init() - make /dev/locum
 *
 * Return: 0 or what misc_register() says.
 */
int locum_device_init(void)
{
	return misc_register(&device);
}

/** locum_device_exit() - undo locum_device_init() */
void locum_device_exit(void)
{
	misc_deregister(&device);
}
