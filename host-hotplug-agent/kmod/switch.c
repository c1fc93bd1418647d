// SPDX-License-Identifier: GPL-2.0
/*
 * Native to nested and back, on one CPU or on all.
 *
 * One CPU: by an interrupt of another (smp_call_function_single). All CPUs: with the machine stopped (stop_machine),
 * so that no CPU waits for one that is away. Both run with interrupts off. CPU hotplug is disabled meanwhile, so the
 * set of online CPUs is the same for going there and, if one fails, for coming back. (stop_machine_cpuslocked() is not
 * exported, and stop_machine() takes the hotplug lock itself.)
 */
#include "locum.h"
#include "stub.h"
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/sched/signal.h>
#include <linux/smp.h>
#include <linux/stop_machine.h>
#include <asm/apic.h>
#include <asm/desc.h>
#include <asm/trapnr.h>
#include <asm/tsc.h>

/*
 * What of CR4 L0 carries over. With any other bit set the CPU refuses to enter: each is a feature that L0 does not know, and
 * some would not even let it start. With CET, MSRs and SSP stay in the CPU while L0 runs; but a shadow stack of the kernel's
 * own, which Linux has none of, would not fit the stub's far return. LASS, which Linux 7.3 uses, faults on the stub's jump
 * to L0, below the upper half.
 */
#define KNOWN_CR4 (X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE | X86_CR4_MCE | \
		   X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_UMIP | X86_CR4_VMXE | \
		   X86_CR4_SMXE | X86_CR4_FSGSBASE | X86_CR4_PCIDE | X86_CR4_OSXSAVE | X86_CR4_SMEP | X86_CR4_SMAP | \
		   X86_CR4_PKE | X86_CR4_CET)

/* Bits of CR4 on this CPU that L0 does not carry over. */
static u64 unknown_cr4(void)
{
	unsigned long cr4 = native_read_cr4();
	u64 unknown = cr4 & ~KNOWN_CR4;

	if (cr4 & X86_CR4_CET && __rdmsr(MSR_IA32_S_CET) & CET_SHSTK_EN)
		unknown |= X86_CR4_CET;
	return unknown;
}

/**
 * struct outcome - of one CPU
 * @changed: it has changed its mode in this job
 * @l0_errno: why not, 0 if L0 did not refuse
 * @error: negative errno
 * @unknown_cr4: bits of CR4 for which it was not tried
 * @ticks: TSC ticks that the change took
 */
struct outcome {
	bool changed;
	u32 l0_errno;
	int error;
	u64 unknown_cr4;
	u64 ticks;
};

/**
 * struct job - one change of mode on one or all CPUs
 * @to: LOCUM_CPU_MODE_NESTED or LOCUM_CPU_MODE_NATIVE
 * @only_changed: leave out CPUs that have not changed in the job before (to put them back)
 * @only_check: change nothing, only find out what stands in the way
 * @outcomes: by CPU number
 */
struct job {
	enum locum_cpu_mode to;
	bool only_changed;
	bool only_check;
	struct outcome outcomes[LOCUM_MAX_CPUS];
};

/* Under locum.lock; too large for the stack. */
static struct job job;

/* An NMI that found the stub or L0 in its way comes again now. NMI_VECTOR as a destination of its own id is allowed,
 * while the self shorthand is not (SDM vol. 3A, table "Valid Combinations for the xAPIC Local APIC ICR").
 */
static void resend_nmi(struct locum_frame *frame)
{
	if (xchg(&frame->nmi, 0))
		apic->send_IPI(smp_processor_id(), NMI_VECTOR);
}

/* A machine check that found the stub or L0 in its way is the host's: its handler is called as the CPU would have, and
 * finds in IA32_MCG_STATUS and the banks what the CPU put there. No other way in is exported.
 */
static void raise_machine_check(struct locum_frame *frame)
{
	if (xchg(&frame->machine_check, 0))
		asm volatile("int %0" : : "i"(X86_TRAP_MC) : "memory");
}

/*
 * What has the CPU write down what it executes: PEBS at linear addresses of this kernel's, which L0's page tables do not
 * map; Intel PT and LBRs what is L0's. Off while CR3 changes; L0 keeps them off while nested. An MSR that the CPU lacks is
 * left alone: nested, each access would exit, and leave a record of the #GP in L0's trace.
 */
static const struct {
	unsigned int feature;
	u32 msr;
	/* The bits that switch it on. */
	u64 enable;
} tracing[] = {
	{ X86_FEATURE_PEBS, 0x3f1 /* IA32_PEBS_ENABLE */, ~0ULL },
	{ X86_FEATURE_INTEL_PT, 0x570 /* IA32_RTIT_CTL */, 1 },
	{ X86_FEATURE_ARCH_LBR, 0x14ce /* IA32_LBR_CTL */, 1 },
};

static void stop_tracing(u64 *traced)
{
	unsigned int i;
	u32 low, high;
	u64 rest;

	for (i = 0; i < ARRAY_SIZE(tracing); i++) {
		traced[i] = 0;
		if (!boot_cpu_has(tracing[i].feature) || rdmsr_safe(tracing[i].msr, &low, &high))
			continue;
		traced[i] = (u64)high << 32 | low;
		rest = traced[i] & ~tracing[i].enable;
		if (rest == traced[i])
			traced[i] = 0;
		else
			wrmsr_safe(tracing[i].msr, (u32)rest, rest >> 32);
	}
}

static void resume_tracing(const u64 *traced)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(tracing); i++) {
		if (traced[i])
			wrmsr_safe(tracing[i].msr, (u32)traced[i], traced[i] >> 32);
	}
}

/* Runs on the CPU, interrupts off. */
static void switch_this_cpu(struct job *work)
{
	unsigned int cpu = smp_processor_id();
	struct locum_frame *frame = locum_frame_of(cpu);
	u64 traced[ARRAY_SIZE(tracing)];
	struct outcome *outcome;
	long result;
	u64 start;

	if (!frame)
		return;
	outcome = &work->outcomes[cpu];
	if (work->only_changed && !outcome->changed)
		return;
	outcome->changed = false;
	outcome->l0_errno = 0;
	outcome->error = 0;
	outcome->unknown_cr4 = 0;
	outcome->ticks = 0;
	if (locum_cpu_mode(cpu) == work->to)
		return;
	outcome->unknown_cr4 = unknown_cr4();
	if (outcome->unknown_cr4)
		outcome->error = -EOPNOTSUPP;
	if (outcome->unknown_cr4 || work->only_check)
		return;
	start = rdtsc_ordered();
	stop_tracing(traced);
	locum_frame_prepare(frame);
	if (work->to == LOCUM_CPU_MODE_NESTED) {
		locum_frame_fill_host(frame);
		result = locum_stub_enter(frame);
	} else {
		result = locum_stub_leave(frame, LOCUM_OP_LEAVE);
	}
	resume_tracing(traced);
	outcome->ticks = rdtsc_ordered() - start;
	resend_nmi(frame);
	raise_machine_check(frame);
	outcome->changed = result == 0;
	if (result) {
		outcome->l0_errno = -result;
		outcome->error = locum_errno(-result);
	}
}

static void switch_by_interrupt(void *work)
{
	switch_this_cpu(work);
}

static int switch_stopped(void *work)
{
	switch_this_cpu(work);
	return 0;
}

/* On one CPU or on all. Failures of CPUs are in the outcomes. */
static int run(int cpu, enum locum_cpu_mode to, bool only_changed)
{
	job.to = to;
	job.only_changed = only_changed;
	job.only_check = false;
	if (cpu == LOCUM_ALL_CPUS)
		return stop_machine(switch_stopped, &job, cpu_online_mask);
	return smp_call_function_single(cpu, switch_by_interrupt, &job, true) ? -ENODEV : 0;
}

static int check_cpu(int cpu)
{
	unsigned int online;

	if (cpu == LOCUM_ALL_CPUS) {
		for_each_online_cpu(online) {
			if (locum_frame_of(online))
				continue;
			pr_err("CPU number %u is beyond the %u that this module manages: boot with nr_cpus=%u\n", online,
			       LOCUM_MAX_CPUS, LOCUM_MAX_CPUS);
			return -EOPNOTSUPP;
		}
		return 0;
	}
	return cpu >= 0 && cpu < nr_cpu_ids && cpu_online(cpu) && locum_frame_of(cpu) ? 0 : -ENODEV;
}

static bool takes_part(unsigned int cpu, int asked)
{
	return asked == LOCUM_ALL_CPUS || cpu == asked;
}

static const char *remedy(const struct outcome *outcome)
{
	if (outcome->unknown_cr4)
		return "this kernel uses FRED, LASS, 5-level paging or what is newer still, which L0 does not know yet: boot with fred=off clearcpuid=lass no5lvl";
	if (outcome->error == -EOPNOTSUPP)
		return "the CPU lacks VMX, EPT or unrestricted guest, or the firmware disabled VMX: enable it in the firmware's setup";
	return "see L0's trace (locum trace)";
}

/* Sums up the outcomes: how many CPUs are in the mode, and the first failure. */
static int sum_up(int asked, struct locum_switch *request)
{
	unsigned int cpu;
	int error = 0;

	request->done = 0;
	for_each_online_cpu(cpu) {
		const struct outcome *outcome = &job.outcomes[cpu];

		if (!takes_part(cpu, asked))
			continue;
		if (!outcome->error) {
			request->done++;
			continue;
		}
		if (!error) {
			error = outcome->error;
			request->l0_errno = outcome->l0_errno;
			request->unknown_cr4 = outcome->unknown_cr4;
			request->failed_apic_id = locum_apic_id(cpu);
			pr_err_ratelimited("CPU %u cannot go %s: L0 error %u, CR4 %#llx; %s\n", cpu,
					   job.to == LOCUM_CPU_MODE_NESTED ? "nested" : "native",
					   outcome->l0_errno, outcome->unknown_cr4, remedy(outcome));
		}
	}
	return error;
}

/* Enter or leave, back again if a CPU fails. Under locum.lock, hotplug disabled. */
static int change(int cpu, enum locum_cpu_mode to, struct locum_switch *request)
{
	enum locum_cpu_mode from = to == LOCUM_CPU_MODE_NESTED ? LOCUM_CPU_MODE_NATIVE : LOCUM_CPU_MODE_NESTED;
	int error;

	error = run(cpu, to, false);
	if (error)
		return error;
	error = sum_up(cpu, request);
	if (error && request->done) {
		struct locum_switch back = {};

		request->done = 0;
		if (run(cpu, from, true) || sum_up(cpu, &back))
			pr_err("some CPUs could not be put back: /sys/kernel/locum/mode tells which\n");
	}
	return error;
}

/* Which CPUs could not go there? Nothing stops and nothing changes. Under locum.lock, hotplug disabled. */
static int check(int cpu, enum locum_cpu_mode to, struct locum_switch *request)
{
	job.to = to;
	job.only_changed = false;
	job.only_check = true;
	if (cpu == LOCUM_ALL_CPUS)
		on_each_cpu(switch_by_interrupt, &job, true);
	else if (smp_call_function_single(cpu, switch_by_interrupt, &job, true))
		return -ENODEV;
	return sum_up(cpu, request);
}

/**
 * locum_switch() - enter or leave nested
 * @request: in and out, see locum_uapi.h
 * @to: LOCUM_CPU_MODE_NESTED or LOCUM_CPU_MODE_NATIVE
 *
 * Return: 0, -EINVAL, -ENODEV, an error of L0.
 */
int locum_switch(struct locum_switch *request, enum locum_cpu_mode to)
{
	u64 start;
	int error;

	if (request->flags & ~(to == LOCUM_CPU_MODE_NESTED ? LOCUM_SWITCH_CHECK : 0) || request->reserved)
		return -EINVAL;
	request->done = 0;
	request->l0_errno = 0;
	request->failed_apic_id = LOCUM_NO_CPU;
	request->unknown_cr4 = 0;
	start = rdtsc_ordered();
	cpu_hotplug_disable();
	error = check_cpu(request->cpu);
	if (!error && request->flags & LOCUM_SWITCH_CHECK)
		error = check(request->cpu, to, request);
	else if (!error)
		error = change(request->cpu, to, request);
	cpu_hotplug_enable();
	request->ticks = rdtsc_ordered() - start;
	locum_pin();
	return error;
}

/* Adds up the ticks of the outcomes of the last job. */
static void add_ticks(int asked, u64 *sum, u64 *max)
{
	unsigned int cpu;

	for_each_online_cpu(cpu) {
		if (!takes_part(cpu, asked))
			continue;
		*sum += job.outcomes[cpu].ticks;
		*max = max(*max, job.outcomes[cpu].ticks);
	}
}

static void pause(u32 us)
{
	if (us)
		usleep_range(us, us + us / 8 + 1);
	else
		cond_resched();
}

static int cycle(struct locum_cycle *request)
{
	struct locum_switch step = { .failed_apic_id = LOCUM_NO_CPU };
	int error = 0;

	while (!error && request->done < request->count) {
		error = change(request->cpu, LOCUM_CPU_MODE_NESTED, &step);
		if (error)
			break;
		add_ticks(request->cpu, &request->enter_ticks, &request->enter_max);
		pause(request->pause_us);
		error = change(request->cpu, LOCUM_CPU_MODE_NATIVE, &step);
		if (error)
			break;
		add_ticks(request->cpu, &request->leave_ticks, &request->leave_max);
		pause(request->pause_us);
		request->done++;
		if (signal_pending(current))
			error = -EINTR;
	}
	request->l0_errno = step.l0_errno;
	request->failed_apic_id = step.failed_apic_id;
	request->reserved = 0;
	return error;
}

/**
 * locum_cycle() - enter and leave many times
 * @request: in and out, see locum_uapi.h
 *
 * Return: 0, -EINVAL, -EALREADY, -EINTR, as locum_switch().
 */
int locum_cycle(struct locum_cycle *request)
{
	int error;

	if (request->count < 1 || request->count > 1000000 || request->pause_us > 1000000)
		return -EINVAL;
	if (locum_any_nested())
		return -EALREADY;
	request->done = 0;
	request->enter_ticks = 0;
	request->leave_ticks = 0;
	request->enter_max = 0;
	request->leave_max = 0;
	cpu_hotplug_disable();
	error = check_cpu(request->cpu);
	if (!error)
		error = cycle(request);
	cpu_hotplug_enable();
	locum_pin();
	return error;
}
