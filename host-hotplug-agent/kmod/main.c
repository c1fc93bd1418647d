// SPDX-License-Identifier: GPL-2.0
/*
 * locum.ko: the host's hand on L0.
 *
 * L0 lies dormant below this kernel and cannot be reached from a program. This module finds it (discover.c) and reads
 * what it tells (status.c), gives and takes CPUs (stub.S, frames.c, switch.c), passes on what the agent wants of it
 * (call.c, vmcall.c), moves memory out of and into Linux (memory.c, ranges.c, access.c), carries bytes between the two
 * hosts (channel.c), and keeps Linux from hurting itself or the other host: no CPU is brought up that is not this host's
 * (cpuhp.c), power-off works where ACPI offers none (power.c), and the module stays while it is needed (pin.c). It holds
 * no policy: what happens when is the agent's business, in user space, over /dev/locum (device.c) and /sys/kernel/locum
 * (sysfs.c).
 *
 * Calls go one way: device.c -> access.c, call.c, switch.c, sysfs.c, power.c -> memory.c -> vmcall.c, pin.c, frames.c,
 * ranges.c -> discover.c -> status.c.
 *
 * No patch to Linux or KVM and nothing that is not exported to modules.
 */
#include "locum.h"
#include <linux/init.h>
#include <linux/module.h>

struct locum locum = {
	.lock = __MUTEX_INITIALIZER(locum.lock),
};

static const struct {
	int (*init)(void);
	void (*exit)(void);
} parts[] = {
	{ locum_discover, locum_forget },
	{ locum_frames_init, locum_frames_exit },
	{ locum_memory_init, locum_memory_exit },
	{ locum_cpuhp_init, locum_cpuhp_exit },
	{ locum_power_init, locum_power_exit },
	{ locum_sysfs_init, locum_sysfs_exit },
	{ locum_channels_init, locum_channels_exit },
	{ locum_device_init, locum_device_exit },
};

static void undo(unsigned int count)
{
	while (count--)
		parts[count].exit();
}

static int __init locum_init(void)
{
	unsigned int i;
	int error;

	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		error = parts[i].init();
		if (error) {
			undo(i);
			return error;
		}
	}
	/* A successor's module is loaded while nested: it must not go before its CPUs are native. */
	mutex_lock(&locum.lock);
	locum_pin();
	mutex_unlock(&locum.lock);
	pr_info("slot %u, generation %u, %s\n", locum.slot,
		READ_ONCE(locum_host(locum.slot)->generation),
		locum_any_nested() ? "nested" : "native");
	return 0;
}
module_init(locum_init);

static void __exit locum_exit(void)
{
	undo(ARRAY_SIZE(parts));
}
module_exit(locum_exit);

MODULE_DESCRIPTION("Locum: enter and leave the monitor, move resources between two hosts");
MODULE_LICENSE("GPL");
MODULE_VERSION("1");
