// SPDX-License-Identifier: GPL-2.0
/*
 * What a nested host asks of L0 for the agent, with what this host must do before and after.
 */
#include "locum.h"
#include <linux/cpumask.h>
#include <linux/preempt.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <asm/processor.h>
#include <asm/tsc.h>

/**
 * locum_call() - a call on behalf of the agent, under locum.lock
 * @call: in and out, see locum_uapi.h
 * @op: enum locum_op
 *
 * Return: 0, -EINVAL, -ENOTCONN, -EOPNOTSUPP (also: L0 is older than the operation), an error of L0.
 */
int locum_call(struct locum_call *call, u64 op)
{
	long result;
	u64 start;

	call->l0_errno = 0;
	call->ticks = 0;
	if (call->reserved)
		return -EINVAL;
	/* A VMCALL outside L0 would be #UD, or VMfail under KVM: so no change of mode or CPU between the check and the call. */
	preempt_disable();
	if (!locum_nested()) {
		preempt_enable();
		return -ENOTCONN;
	}
	start = rdtsc_ordered();
	result = locum_vmcall(op, call);
	call->ticks = rdtsc_ordered() - start;
	preempt_enable();
	if (result == LOCUM_UNKNOWN_OP) {
		pr_err("L0 is older than operation %#llx and does not know it: reboot into the L0 of the installed package\n",
		       op);
		return -EOPNOTSUPP;
	}
	call->l0_errno = -result;
	return locum_errno(-result);
}

/* CPUID always exits (SDM vol. 3C, 26.1.2). Before L0 returns it drops what this CPU has cached of rights that are gone;
 * an idle CPU would go on with them. The exit is wanted, not the answer: so no function of Linux, which may know that.
 */
static void drop_stale_rights(void *unused)
{
	u32 eax = 0, ebx, ecx = 0, edx;

	asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx) : : "memory");
}

/**
 * struct start - a START with the machine stopped
 * @call: the agent's
 * @taken: a CPU makes the call
 * @done: it has made it
 * @error: what came of it
 */
struct start {
	struct locum_call *call;
	atomic_t taken;
	bool done;
	int error;
};

static int start_stopped(void *data)
{
	struct start *start = data;

	if (!atomic_xchg(&start->taken, 1)) {
		start->error = locum_call(start->call, LOCUM_OP_START);
		smp_store_release(&start->done, true);
	}
	while (!smp_load_acquire(&start->done))
		cpu_relax();
	drop_stale_rights(NULL);
	return 0;
}

/**
 * locum_start() - start the successor, under locum.lock
 * @call: in and out, see locum_uapi.h
 *
 * This host loses what it granted at that moment. The machine is stopped, so that no CPU runs anything else before it has
 * dropped its translations.
 *
 * Return: as locum_call().
 */
int locum_start(struct locum_call *call)
{
	struct start start = { .call = call };
	int error = stop_machine(start_stopped, &start, cpu_online_mask);

	return error ? error : start.error;
}

static bool online_apic_id(u64 apic_id)
{
	unsigned int cpu;

	for_each_online_cpu(cpu)
		if (locum_apic_id(cpu) == apic_id)
			return true;
	return false;
}

/**
 * locum_grant() - give a resource to the other slot, under locum.lock
 * @call: in and out, see locum_uapi.h
 *
 * L0 knows owners, not users: what Linux still uses here must not go.
 *
 * Return: as locum_call(), -EBUSY.
 */
int locum_grant(struct locum_call *call)
{
	/* The arguments, as enum locum_resource names them: of a CPU, the first is its APIC id. */
	const u64 kind = call->a, first = call->b, size = call->c;
	bool memory = kind == LOCUM_RESOURCE_MEMORY;
	int error;

	if (kind == LOCUM_RESOURCE_CPU && online_apic_id(first)) {
		pr_err("the CPU with APIC id %llu is online: take it offline first\n", first);
		return -EBUSY;
	}
	if (memory && (!size || first + size < first))
		return -EINVAL;
	if (memory && locum_is_ram(first, size)) {
		pr_err("memory %#llx+%#llx is in use by this kernel: remove it first (LOCUM_IOC_MEM_REMOVE)\n", first,
		       size);
		return -EBUSY;
	}
	error = locum_call(call, LOCUM_OP_GRANT);
	/* Only removed memory is in our table; MMIO and pages L0 gave are not. */
	if (!error && memory && locum_ranges_cover(first, size, LOCUM_RANGE_REMOVED))
		error = locum_ranges_set(first, size, LOCUM_RANGE_GRANTED);
	if (memory)
		on_each_cpu(drop_stale_rights, NULL, 1);
	return error;
}

/**
 * locum_abort() - stop the other host and take everything back, under locum.lock
 * @call: in and out, see locum_uapi.h
 *
 * Return: as locum_call().
 */
int locum_abort(struct locum_call *call)
{
	int error = locum_call(call, LOCUM_OP_ABORT);

	if (!error)
		locum_ranges_replace(LOCUM_RANGE_GRANTED, LOCUM_RANGE_REMOVED);
	return error;
}
