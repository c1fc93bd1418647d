// SPDX-License-Identifier: GPL-2.0
/*
 * /sys/kernel/locum/: what an operator or a script sees and the one thing it can start.
 *
 *   state, progress, last_error  the daemon's words, pollable (POLLPRI)
 *   mode                         "cpu0 apic 0 native", a line per CPU of the machine; " (other host)" at the end of its
 *   generation                   of this host
 *   hosts                        "slot 0 generation 4 running", a line per slot
 *   counters                     L0's, summed over the CPUs: "exits 17", a line each
 *   refresh                      write a successor's name: the daemon starts it
 */
#include "locum.h"
#include <linux/cpumask.h>
#include <linux/ctype.h>
#include <linux/kobject.h>
#include <linux/poll.h>
#include <linux/string.h>
#include <linux/sysfs.h>
#include <linux/wait.h>

static const char * const text_names[] = { "state", "progress", "last_error" };
static char texts[ARRAY_SIZE(text_names)][LOCUM_TEXT_MAX + 1] = { "idle" };

/* Guards the texts and what is below; never held for long. */
static DEFINE_MUTEX(lock);
static struct file *daemon;
static struct locum_request request;
static bool waiting, busy;
static DECLARE_WAIT_QUEUE_HEAD(daemon_queue);
static struct kobject *directory;

static ssize_t show_text(char *buffer, unsigned int kind)
{
	ssize_t length;

	mutex_lock(&lock);
	length = sysfs_emit(buffer, "%s\n", texts[kind]);
	mutex_unlock(&lock);
	return length;
}

static ssize_t state_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	return show_text(buffer, LOCUM_TEXT_KIND_STATE);
}

static ssize_t progress_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	return show_text(buffer, LOCUM_TEXT_KIND_PROGRESS);
}

static ssize_t last_error_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	return show_text(buffer, LOCUM_TEXT_KIND_LAST_ERROR);
}

static const char *mode_name(u32 mode)
{
	switch (mode) {
	case LOCUM_CPU_MODE_PARKED:
		return "parked";
	case LOCUM_CPU_MODE_NATIVE:
		return "native";
	case LOCUM_CPU_MODE_NESTED:
		return "nested";
	default:
		return "absent";
	}
}

static ssize_t mode_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	unsigned int cpu;
	int length = 0;

	for_each_possible_cpu(cpu) {
		int index = locum_cpu_index(locum_apic_id(cpu));
		const struct locum_cpu_status *status;

		if (index < 0)
			continue;
		status = locum_cpu(index);
		length += sysfs_emit_at(buffer, length, "cpu%u apic %u %s%s\n", cpu, status->apic_id,
					mode_name(READ_ONCE(status->mode)),
					READ_ONCE(status->owner) == locum.slot ? "" : " (other host)");
	}
	return length;
}

static ssize_t generation_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	return sysfs_emit(buffer, "%u\n", READ_ONCE(locum_host(locum.slot)->generation));
}

static const char *host_name(u32 state)
{
	static const char * const names[] = {
		"absent", "preparing", "running", "dead", "retired", "dumping"
	};

	static_assert(ARRAY_SIZE(names) == LOCUM_HOST_STATE_DUMPING + 1);

	return state < ARRAY_SIZE(names) ? names[state] : "unknown";
}

static ssize_t hosts_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	unsigned int slot;
	int length = 0;

	for (slot = LOCUM_SLOT_EVEN; slot < LOCUM_SLOTS; slot++) {
		const struct locum_host_status *host = locum_host(slot);

		length += sysfs_emit_at(buffer, length, "slot %u generation %u %s%s\n", slot,
					READ_ONCE(host->generation), host_name(READ_ONCE(host->state)),
					slot == locum.slot ? " (this host)" : "");
	}
	return length;
}

static ssize_t counters_show(struct kobject *object, struct kobj_attribute *attribute, char *buffer)
{
	u32 count = locum_cpu_count();
	u64 exits = 0, guest_exits = 0, nmis = 0, enters = 0, leaves = 0;
	u32 i;

	for (i = 0; i < count; i++) {
		const struct locum_cpu_status *cpu = locum_cpu(i);

		exits += READ_ONCE(cpu->exits);
		guest_exits += READ_ONCE(cpu->guest_exits);
		nmis += READ_ONCE(cpu->nmis);
		enters += READ_ONCE(cpu->enters);
		leaves += READ_ONCE(cpu->leaves);
	}
	return sysfs_emit(buffer, "exits %llu\nguest_exits %llu\nnmis %llu\nenters %llu\nleaves %llu\nrefusals %llu\n",
			  exits, guest_exits, nmis, enters, leaves, READ_ONCE(locum.status->refusals));
}

static bool valid_name(const char *name, size_t length)
{
	size_t i;

	if (!length || length >= sizeof(request.name) || name[0] == '.')
		return false;
	for (i = 0; i < length; i++)
		if (!isalnum(name[i]) && !strchr("._-", name[i]))
			return false;
	return true;
}

/* Queues a name for the daemon; under @lock. */
static int queue(const char *name, size_t length)
{
	if (!daemon) {
		pr_err("no daemon to refresh this host: start it (systemctl start locum)\n");
		return -ENXIO;
	}
	if (busy)
		return -EBUSY;
	memset(&request, 0, sizeof(request));
	memcpy(request.name, name, length);
	waiting = true;
	busy = true;
	return 0;
}

static ssize_t refresh_store(struct kobject *object, struct kobj_attribute *attribute, const char *buffer, size_t size)
{
	size_t length = size && buffer[size - 1] == '\n' ? size - 1 : size;
	int error;

	if (!valid_name(buffer, length)) {
		pr_err("not a successor's name: letters, digits, '.', '_' and '-', at most %zu, as in /etc/locum/NAME.toml\n",
		       sizeof(request.name) - 1);
		return -EINVAL;
	}
	mutex_lock(&lock);
	error = queue(buffer, length);
	mutex_unlock(&lock);
	if (error)
		return error;
	wake_up_interruptible_poll(&daemon_queue, EPOLLIN);
	return size;
}

static struct kobj_attribute state_attribute = __ATTR_RO(state);
static struct kobj_attribute progress_attribute = __ATTR_RO(progress);
static struct kobj_attribute last_error_attribute = __ATTR_RO(last_error);
static struct kobj_attribute mode_attribute = __ATTR_RO(mode);
static struct kobj_attribute generation_attribute = __ATTR_RO(generation);
static struct kobj_attribute hosts_attribute = __ATTR_RO(hosts);
static struct kobj_attribute counters_attribute = __ATTR_RO(counters);
static struct kobj_attribute refresh_attribute = __ATTR_WO(refresh);

static struct attribute *attributes[] = {
	&state_attribute.attr,
	&progress_attribute.attr,
	&last_error_attribute.attr,
	&mode_attribute.attr,
	&generation_attribute.attr,
	&hosts_attribute.attr,
	&counters_attribute.attr,
	&refresh_attribute.attr,
	NULL,
};

static const struct attribute_group group = {
	.attrs = attributes,
};

/**
 * locum_text() - set what state, progress or last_error shows
 * @text: see locum_uapi.h
 *
 * Return: 0, -EINVAL.
 */
int locum_text(const struct locum_text *text)
{
	if (text->kind >= ARRAY_SIZE(texts) || text->len > LOCUM_TEXT_MAX || text->reserved)
		return -EINVAL;
	mutex_lock(&lock);
	memcpy(texts[text->kind], text->text, text->len);
	texts[text->kind][text->len] = 0;
	mutex_unlock(&lock);
	sysfs_notify(directory, NULL, text_names[text->kind]);
	return 0;
}

/**
 * locum_listen() - make a file the daemon's
 * @file: of /dev/locum
 *
 * Return: 0, -EBUSY.
 */
int locum_listen(struct file *file)
{
	int error = 0;

	mutex_lock(&lock);
	if (daemon && daemon != file)
		error = -EBUSY;
	else
		daemon = file;
	mutex_unlock(&lock);
	return error;
}

/**
 * locum_listen_end() - the file is being closed
 * @file: of /dev/locum, the daemon's or not
 */
void locum_listen_end(struct file *file)
{
	mutex_lock(&lock);
	if (daemon == file) {
		daemon = NULL;
		waiting = false;
		busy = false;
	}
	mutex_unlock(&lock);
}

/**
 * locum_next_request() - take the name that waits
 * @file: the daemon's
 * @out: where to
 *
 * Return: 0, -EPERM, -EAGAIN.
 */
int locum_next_request(struct file *file, struct locum_request *out)
{
	int error = 0;

	mutex_lock(&lock);
	if (daemon != file)
		error = -EPERM;
	else if (!waiting)
		error = -EAGAIN;
	else
		*out = request;
	if (!error)
		waiting = false;
	mutex_unlock(&lock);
	return error;
}

/**
 * locum_busy() - the daemon says whether a refresh runs
 * @file: the daemon's
 * @value: 1 or 0
 *
 * Return: 0, -EPERM, -EINVAL.
 */
int locum_busy(struct file *file, u32 value)
{
	int error = 0;

	if (value > 1)
		return -EINVAL;
	mutex_lock(&lock);
	if (daemon != file)
		error = -EPERM;
	else
		busy = value;
	mutex_unlock(&lock);
	return error;
}

/**
 * locum_poll() - poll(2) on /dev/locum
 * @file: any, of which the daemon's has something to wait for
 * @table: poll's
 *
 * Return: POLLIN while a name waits.
 */
__poll_t locum_poll(struct file *file, struct poll_table_struct *table)
{
	__poll_t events;

	poll_wait(file, &daemon_queue, table);
	mutex_lock(&lock);
	events = daemon == file && waiting ? EPOLLIN | EPOLLRDNORM : 0;
	mutex_unlock(&lock);
	return events;
}

/**
 * locum_sysfs_init() - make /sys/kernel/locum
 *
 * Return: 0, -ENOMEM, or what sysfs says.
 */
int locum_sysfs_init(void)
{
	int error;

	directory = kobject_create_and_add("locum", kernel_kobj);
	if (!directory)
		return -ENOMEM;
	error = sysfs_create_group(directory, &group);
	if (error)
		kobject_put(directory);
	return error;
}

/** locum_sysfs_exit() - undo locum_sysfs_init() */
void locum_sysfs_exit(void)
{
	kobject_put(directory);
}
