// SPDX-License-Identifier: GPL-2.0
/*
 * What L0's status says of this host's CPUs and of the other host. It changes under our eyes.
 */
#include "locum.h"
#include <linux/cpumask.h>
#include <asm/smp.h>

/**
 * locum_host() - L0's words about the host in a slot
 * @slot: the slot
 *
 * Return: to be read with READ_ONCE().
 */
const struct locum_host_status *locum_host(enum locum_slot slot)
{
	return (const void *)locum.status + locum.layout.hosts + slot * locum.layout.host_size;
}

/**
 * locum_cpu() - L0's words about a CPU
 * @index: below the status' number of CPUs
 *
 * Return: to be read with READ_ONCE().
 */
const struct locum_cpu_status *locum_cpu(u32 index)
{
	return (const void *)locum.status + locum.layout.cpus + (u64)index * locum.layout.cpu_size;
}

/**
 * locum_cpu_count() - how many CPUs L0 tells of
 *
 * Return: their number, no more than L0 has room for.
 */
u32 locum_cpu_count(void)
{
	return min(READ_ONCE(locum.status->cpu_count), locum.layout.cpu_capacity);
}

/**
 * locum_apic_id() - APIC id of a CPU of Linux
 * @cpu: CPU number, possible
 *
 * Return: the APIC id, %BAD_APICID for a CPU that the firmware never told of.
 */
u32 locum_apic_id(unsigned int cpu)
{
	return per_cpu(x86_cpu_to_apicid, cpu);
}

/**
 * locum_cpu_index() - index of a CPU in L0's status
 * @apic_id: its APIC id
 *
 * Return: the index or -ENODEV.
 */
int locum_cpu_index(u32 apic_id)
{
	u32 count = locum_cpu_count();
	u32 i;

	for (i = 0; i < count; i++)
		if (READ_ONCE(locum_cpu(i)->apic_id) == apic_id)
			return i;
	return -ENODEV;
}

/**
 * locum_cpu_mode() - mode of a CPU according to L0's status
 * @cpu: CPU number, possible
 *
 * Return: the mode; LOCUM_CPU_MODE_ABSENT if L0 does not know it.
 */
enum locum_cpu_mode locum_cpu_mode(unsigned int cpu)
{
	int index = locum_cpu_index(locum_apic_id(cpu));

	return index < 0 ? LOCUM_CPU_MODE_ABSENT : READ_ONCE(locum_cpu(index)->mode);
}

/**
 * locum_nested() - may this host call L0?
 *
 * Return: whether all online CPUs are nested. The answer holds under locum.lock.
 */
bool locum_nested(void)
{
	unsigned int cpu;

	for_each_online_cpu(cpu)
		if (locum_cpu_mode(cpu) != LOCUM_CPU_MODE_NESTED)
			return false;
	return true;
}

/**
 * locum_any_nested() - is L0 above any of this host's online CPUs?
 *
 * Return: whether at least one is nested.
 */
bool locum_any_nested(void)
{
	unsigned int cpu;

	for_each_online_cpu(cpu)
		if (locum_cpu_mode(cpu) == LOCUM_CPU_MODE_NESTED)
			return true;
	return false;
}

/**
 * locum_other_host_alive() - is there a host in the other slot?
 *
 * Return: whether it is being prepared or runs. One that writes a dump counts: memory is still its own.
 */
bool locum_other_host_alive(void)
{
	u32 state = READ_ONCE(locum_host(locum_other_slot())->state);

	return state == LOCUM_HOST_STATE_PREPARING || state == LOCUM_HOST_STATE_RUNNING ||
	       state == LOCUM_HOST_STATE_DUMPING;
}
