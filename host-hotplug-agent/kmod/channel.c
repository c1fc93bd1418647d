// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/locum-chan0 to 3: byte streams to the other host, over rings in memory that both see.
 *
 * No interrupt crosses a partition, so who waits polls: a timer per channel looks at both rings, often at first and
 * less often the longer nothing happens, and stops when nobody waits. The words of a ring that the other host writes
 * are not trusted: every position is masked, and more bytes than a ring holds is an error (-EIO). How many channels there
 * are and how long a ring is says L0, and both hosts read the same header.
 */
#include "locum.h"
#include "compat.h"
#include <linux/hrtimer.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>
#include <linux/wait.h>

#define POLL_FIRST_NS	(50 * NSEC_PER_USEC)
#define POLL_LAST_NS	(1000 * NSEC_PER_USEC)

/**
 * struct direction - one way of a channel
 * @ring: shared with the other host
 * @lock: one reader or writer at a time
 * @waiters: who waits for this direction to become ready
 * @wanted: somebody found it not ready
 * @open: a file has it
 */
struct direction {
	struct locum_channel_ring *ring;
	struct mutex lock;
	wait_queue_head_t waiters;
	bool wanted;
	bool open;
};

struct channel {
	struct miscdevice device;
	char name[16];
	struct direction in;
	struct direction out;
	struct mutex open_lock;
	struct hrtimer timer;
	spinlock_t arming; /* of the timer, by its own function or by who wants to be woken */
	u64 interval;
};

static struct channel channels[LOCUM_CHANNEL_COUNT];

/* Channels that both L0 and this module have. */
static u32 channel_count(void)
{
	return min_t(u32, locum.layout.channel_count, ARRAY_SIZE(channels));
}

/* Bytes of data in a ring, a power of two. */
static u32 ring_data(void)
{
	return locum.layout.ring_size - LOCUM_CHANNEL_DATA;
}

/* Bytes in the ring, or -EIO if the other host's word can't be right. */
static long used(const struct locum_channel_ring *ring)
{
	/* Acquire: the bytes were stored before head, and were read before tail. */
	u32 bytes = smp_load_acquire(&ring->head) - smp_load_acquire(&ring->tail);

	return bytes <= ring_data() ? (long)bytes : -EIO;
}

static bool at_end(const struct direction *in)
{
	return READ_ONCE(in->ring->flags) & LOCUM_FLAG_EOF;
}

/* Would read() return at once? */
static bool readable(const struct direction *in)
{
	return at_end(in) || !locum_other_host_alive() || used(in->ring);
}

/* Would write()? */
static bool writable(const struct direction *out)
{
	return READ_ONCE(out->ring->closed) || !locum_other_host_alive() || used(out->ring) != ring_data();
}

/* Looks, wakes, and tells whether to look again. */
static bool look(struct direction *way, bool (*ready)(const struct direction *), __poll_t events)
{
	if (!READ_ONCE(way->wanted) || !wq_has_sleeper(&way->waiters))
		return false;
	if (!ready(way))
		return true;
	WRITE_ONCE(way->wanted, false);
	wake_up_poll(&way->waiters, events);
	return false;
}

static enum hrtimer_restart tick(struct hrtimer *timer)
{
	struct channel *channel = container_of(timer, struct channel, timer);
	bool again = look(&channel->in, readable, EPOLLIN | EPOLLHUP);

	again |= look(&channel->out, writable, EPOLLOUT | EPOLLERR);
	if (!again)
		return HRTIMER_NORESTART;
	spin_lock(&channel->arming);
	/* Armed by somebody on another CPU meanwhile: then it is due soon, and must not be moved. */
	if (!hrtimer_is_queued(timer)) {
		channel->interval = min(channel->interval + channel->interval / 8, POLL_LAST_NS);
		hrtimer_forward_now(timer, ns_to_ktime(channel->interval));
	}
	spin_unlock(&channel->arming);
	/* Queues it only if it is not. */
	return HRTIMER_RESTART;
}

/* Ready? If not, have the timer look. The caller is in the wait queue already, so no wake-up is lost. */
static bool ready_or_wanted(struct channel *channel, struct direction *way, bool (*ready)(const struct direction *))
{
	if (ready(way))
		return true;
	WRITE_ONCE(way->wanted, true);
	spin_lock_bh(&channel->arming);
	channel->interval = POLL_FIRST_NS;
	hrtimer_start(&channel->timer, ns_to_ktime(POLL_FIRST_NS), HRTIMER_MODE_REL_SOFT);
	spin_unlock_bh(&channel->arming);
	return false;
}

/* Copies at most @count bytes out of the ring. */
static ssize_t take(struct locum_channel_ring *ring, char __user *buffer, size_t count)
{
	u32 tail = ring->tail;
	long bytes = used(ring);
	size_t done = 0;

	if (bytes < 0)
		return bytes;
	count = min_t(size_t, count, bytes);
	while (done < count) {
		u32 at = (tail + done) & (ring_data() - 1);
		size_t run = min_t(size_t, count - done, ring_data() - at);

		if (copy_to_user(buffer + done, ring->data + at, run))
			break;
		done += run;
	}
	/* Release: the bytes are read before the writer may overwrite them. */
	smp_store_release(&ring->tail, tail + (u32)done);
	return done || !count ? done : -EFAULT;
}

/* Copies at most @count bytes into the ring. */
static ssize_t put(struct locum_channel_ring *ring, const char __user *buffer, size_t count)
{
	u32 head = ring->head;
	long bytes = used(ring);
	size_t done = 0;

	if (bytes < 0)
		return bytes;
	count = min_t(size_t, count, ring_data() - bytes);
	while (done < count) {
		u32 at = (head + done) & (ring_data() - 1);
		size_t run = min_t(size_t, count - done, ring_data() - at);

		if (copy_from_user(ring->data + at, buffer + done, run))
			break;
		done += run;
	}
	/* Release: the bytes are there before the reader is told. */
	smp_store_release(&ring->head, head + (u32)done);
	return done || !count ? done : -EFAULT;
}

static ssize_t channel_read(struct file *file, char __user *buffer, size_t count, loff_t *position)
{
	struct channel *channel = file->private_data;
	struct direction *in = &channel->in;
	ssize_t result;

	if (mutex_lock_interruptible(&in->lock))
		return -ERESTARTSYS;
	for (;;) {
		/* The end may be marked, and the other host gone, after its last bytes: look at the ring last. */
		bool end = at_end(in);
		bool alive = locum_other_host_alive();

		result = take(in->ring, buffer, count);
		if (result || !count || end)
			break;
		result = alive ? -EAGAIN : -ENOTCONN;
		if (!alive || file->f_flags & O_NONBLOCK)
			break;
		result = wait_event_interruptible(in->waiters, ready_or_wanted(channel, in, readable));
		if (result)
			break;
	}
	mutex_unlock(&in->lock);
	return result;
}

static ssize_t channel_write(struct file *file, const char __user *buffer, size_t count, loff_t *position)
{
	struct channel *channel = file->private_data;
	struct direction *out = &channel->out;
	size_t done = 0;
	ssize_t result = 0;

	if (mutex_lock_interruptible(&out->lock))
		return -ERESTARTSYS;
	while (done < count) {
		result = -EPIPE;
		if (READ_ONCE(out->ring->closed) || READ_ONCE(out->ring->flags) & LOCUM_FLAG_EOF)
			break;
		result = -ENOTCONN;
		if (!locum_other_host_alive())
			break;
		result = put(out->ring, buffer + done, count - done);
		if (result < 0)
			break;
		done += result;
		if (result)
			continue;
		result = -EAGAIN;
		if (file->f_flags & O_NONBLOCK)
			break;
		result = wait_event_interruptible(out->waiters, ready_or_wanted(channel, out, writable));
		if (result)
			break;
	}
	mutex_unlock(&out->lock);
	return done ? done : result;
}

static __poll_t channel_poll(struct file *file, struct poll_table_struct *table)
{
	struct channel *channel = file->private_data;
	__poll_t events = 0;

	if (file->f_mode & FMODE_READ) {
		poll_wait(file, &channel->in.waiters, table);
		if (ready_or_wanted(channel, &channel->in, readable))
			events |= EPOLLIN | EPOLLRDNORM;
		if (events && !used(channel->in.ring))
			events |= EPOLLHUP;
	}
	if (file->f_mode & FMODE_WRITE) {
		poll_wait(file, &channel->out.waiters, table);
		if (ready_or_wanted(channel, &channel->out, writable))
			events |= EPOLLOUT | EPOLLWRNORM;
		if (READ_ONCE(channel->out.ring->closed))
			events |= EPOLLERR;
		if (!locum_other_host_alive())
			events |= EPOLLHUP;
	}
	return events;
}

/* The reader's end is gone: the writer is told, and the bytes left are dropped when a reader comes again. */
static void shut_read(struct channel *channel)
{
	WRITE_ONCE(channel->in.ring->closed, 1);
}

static void shut_write(struct channel *channel)
{
	/* After the data: who sees the flag sees the bytes before it. */
	smp_store_release(&channel->out.ring->flags, LOCUM_FLAG_EOF);
}

static long channel_ioctl(struct file *file, unsigned int number, unsigned long pointer)
{
	struct channel *channel = file->private_data;
	u32 ways;

	if (number != LOCUM_CHAN_SHUTDOWN)
		return -ENOTTY;
	if (get_user(ways, (u32 __user *)pointer))
		return -EFAULT;
	if (!ways || ways & ~(LOCUM_SHUT_READ | LOCUM_SHUT_WRITE))
		return -EINVAL;
	if ((ways & LOCUM_SHUT_READ && !(file->f_mode & FMODE_READ)) ||
	    (ways & LOCUM_SHUT_WRITE && !(file->f_mode & FMODE_WRITE)))
		return -EPERM;
	if (ways & LOCUM_SHUT_READ)
		shut_read(channel);
	if (ways & LOCUM_SHUT_WRITE)
		shut_write(channel);
	return 0;
}

static int channel_open(struct inode *inode, struct file *file)
{
	struct channel *channel = container_of(file->private_data, struct channel, device);
	bool read = file->f_mode & FMODE_READ;
	bool write = file->f_mode & FMODE_WRITE;

	file->private_data = channel;
	mutex_lock(&channel->open_lock);
	if ((read && channel->in.open) || (write && channel->out.open)) {
		mutex_unlock(&channel->open_lock);
		return -EBUSY;
	}
	if (read) {
		struct locum_channel_ring *ring = channel->in.ring;

		channel->in.open = true;
		if (READ_ONCE(ring->closed)) {
			/* All that was left is dropped; paired as in take(). */
			smp_store_release(&ring->tail, smp_load_acquire(&ring->head));
			WRITE_ONCE(ring->closed, 0);
		}
	}
	if (write) {
		channel->out.open = true;
		WRITE_ONCE(channel->out.ring->flags, 0);
	}
	mutex_unlock(&channel->open_lock);
	return stream_open(inode, file);
}

static int channel_release(struct inode *inode, struct file *file)
{
	struct channel *channel = file->private_data;

	mutex_lock(&channel->open_lock);
	if (file->f_mode & FMODE_READ) {
		shut_read(channel);
		channel->in.open = false;
	}
	if (file->f_mode & FMODE_WRITE) {
		shut_write(channel);
		channel->out.open = false;
	}
	mutex_unlock(&channel->open_lock);
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = channel_open,
	.release = channel_release,
	.read = channel_read,
	.write = channel_write,
	.poll = channel_poll,
	.unlocked_ioctl = channel_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static void init_direction(struct direction *way, struct locum_channel_ring *ring)
{
	way->ring = ring;
	mutex_init(&way->lock);
	init_waitqueue_head(&way->waiters);
}

/* The ring of a channel that the host in a slot writes. */
static struct locum_channel_ring *ring(unsigned int number, enum locum_slot from)
{
	return locum.channels + (u64)(number * LOCUM_SLOTS + from) * locum.layout.ring_size;
}

static int init_channel(unsigned int number)
{
	struct channel *channel = &channels[number];

	init_direction(&channel->out, ring(number, locum.slot));
	init_direction(&channel->in, ring(number, locum_other_slot()));
	mutex_init(&channel->open_lock);
	spin_lock_init(&channel->arming);
	hrtimer_setup(&channel->timer, tick, CLOCK_MONOTONIC, HRTIMER_MODE_REL_SOFT);
	snprintf(channel->name, sizeof(channel->name), "locum-chan%u", number);
	channel->device.minor = MISC_DYNAMIC_MINOR;
	channel->device.name = channel->name;
	channel->device.fops = &operations;
	channel->device.mode = 0600;
	return misc_register(&channel->device);
}

static void exit_channels(unsigned int count)
{
	while (count--) {
		misc_deregister(&channels[count].device);
		hrtimer_cancel(&channels[count].timer);
	}
}

/**
 * locum_channels_init() - make /dev/locum-chan0 and on
 *
 * Return: 0 or what misc_register() says.
 */
int locum_channels_init(void)
{
	unsigned int i;
	int error;

	for (i = 0; i < channel_count(); i++) {
		error = init_channel(i);
		if (error) {
			exit_channels(i);
			return error;
		}
	}
	return 0;
}

/** locum_channels_exit() - undo locum_channels_init() */
void locum_channels_exit(void)
{
	exit_channels(channel_count());
}
