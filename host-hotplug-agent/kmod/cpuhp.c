// SPDX-License-Identifier: GPL-2.0
/*
 * Bring up no CPU that is not this host's and parked.
 *
 * The firmware's table lists all CPUs of the machine as ours, so that we can have them later. Linux wakes one by a
 * command in L0's mailbox and waits without limit for the answer (acpi_wakeup_cpu()): ask first.
 */
#include "locum.h"
#include <linux/cpuhotplug.h>
#include <linux/delay.h>

/* How long a CPU may take from Linux's idea of being offline to L0's parking loop. */
#define PARK_TRIES	100
#define PARK_SLEEP_US	1000

static int state;

static bool parked(int index)
{
	return READ_ONCE(locum_cpu(index)->mode) == LOCUM_CPU_MODE_PARKED;
}

static int check_cpu(unsigned int cpu)
{
	u32 apic_id = locum_apic_id(cpu);
	int index = locum_cpu_index(apic_id);
	unsigned int tries;

	if (index < 0) {
		pr_err("CPU %u (APIC id %u) is unknown to L0 and stays offline: boot with nr_cpus= what L0 manages\n",
		       cpu, apic_id);
		return -ENODEV;
	}
	if (READ_ONCE(locum_cpu(index)->owner) != locum.slot) {
		pr_err("CPU %u (APIC id %u) belongs to the other host and stays offline: finish or abort the refresh first\n",
		       cpu, apic_id);
		return -EPERM;
	}
	for (tries = 0; !parked(index) && tries < PARK_TRIES; tries++)
		usleep_range(PARK_SLEEP_US, 2 * PARK_SLEEP_US);
	if (!parked(index)) {
		pr_err("CPU %u (APIC id %u) is not parked in L0 (mode %u) and stays offline: see L0's log, reboot to get it back\n",
		       cpu, apic_id, READ_ONCE(locum_cpu(index)->mode));
		return -EBUSY;
	}
	return 0;
}

/**
 * locum_cpuhp_init() - have Linux ask before it brings up a CPU
 *
 * Return: 0 or what the hotplug core says.
 */
int locum_cpuhp_init(void)
{
	state = cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, "locum:prepare", check_cpu, NULL);
	return state < 0 ? state : 0;
}

/** locum_cpuhp_exit() - undo locum_cpuhp_init() */
void locum_cpuhp_exit(void)
{
	cpuhp_remove_state_nocalls(state);
}
