// SPDX-License-Identifier: GPL-2.0
/*
 * What an instruction does that exits for a host, or may, when its kernel executes it: in 64-bit and in compatibility
 * mode, plainly, with RFLAGS.TF, with execution breakpoints, and with an interrupt that waits. `lab-guest instructions
 * --kernel` writes a struct request to /proc/lab_probe and reads a struct reply; it knows the instructions, and this
 * knows none.
 *
 * The code ends with an INT3. That, an exception, a #DB and the interrupt are seen by their handlers' hooks (die
 * notifier, hrtimer), which note the registers; what ends a try goes on at lab_probe_landing. A #PF has no such hook.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/hrtimer.h>
#include <linux/kdebug.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <asm/debugreg.h>
#include <asm/irq_regs.h>
#include <asm/processor-flags.h>
#include <asm/segment.h>
#include <asm/special_insns.h>
#include <asm/trapnr.h>
#include "probe.h"

/* Bits of what is asked for. */
#define COMPATIBILITY	1
#define SINGLE_STEP	2
#define BREAKPOINTS	4
#define INTERRUPT	8

/* An interrupt, beside the vectors of exceptions. */
#define INTERRUPTED	256

struct request {
	u64 how;
	/* Where in the code the instruction is that is tried, and what follows it. */
	u64 at, next;
	/* RAX, RCX, RDX, RBX, RSI, RDI, RBP */
	u64 registers[7];
	/* The first is executed first. */
	u8 code[16];
};

struct stop {
	u64 vector, rip, rflags, rsp;
	u64 registers[7];
};

/* More are not told: what goes round is as good as known. */
#define STOPS 4

struct reply {
	u64 count;
	struct stop stops[STOPS];
};

unsigned long lab_probe_stack;

static DEFINE_MUTEX(lock);
static struct reply reply;
static bool running;

static void note(unsigned int vector, const struct pt_regs *regs)
{
	struct stop *stop = &reply.stops[reply.count];

	if (reply.count >= STOPS)
		return;
	*stop = (struct stop){
		.vector = vector,
		.rip = regs->ip - LAB_PAGE,
		.rflags = regs->flags,
		.rsp = regs->sp - LAB_STACK_TOP,
		.registers = { regs->ax, regs->cx, regs->dx, regs->bx, regs->si, regs->di, regs->bp },
	};
	reply.count++;
}

/* The kernel goes on. */
static void land(struct pt_regs *regs)
{
	running = false;
	regs->ip = (unsigned long)lab_probe_landing;
	regs->cs = __KERNEL_CS;
	regs->ss = __KERNEL_DS;
	regs->sp = lab_probe_stack;
	regs->flags = X86_EFLAGS_FIXED;
}

static bool ours(struct pt_regs *regs)
{
	return running && !user_mode(regs) && smp_processor_id() == 0 && regs->ip - LAB_PAGE < PAGE_SIZE;
}

static int excepted(struct notifier_block *block, unsigned long what, void *data)
{
	struct die_args *args = data;
	struct pt_regs *regs = args->regs;

	switch (what) {
	case DIE_DEBUG:
	case DIE_INT3:
	case DIE_GPF:
	case DIE_TRAP:
		break;
	default:
		return NOTIFY_DONE;
	}
	if (!ours(regs))
		return NOTIFY_DONE;
	if (what != DIE_DEBUG) {
		note(what == DIE_INT3 ? X86_TRAP_BP : args->trapnr, regs);
		land(regs);
		return NOTIFY_STOP;
	}
	note(X86_TRAP_DB, regs);
	/* A breakpoint is passed with RF, as hardware breakpoints of Linux' are; a step is followed by none. */
	*(unsigned long *)args->err &= ~(DR_STEP | DR_TRAP_BITS);
	regs->flags &= ~X86_EFLAGS_TF;
	regs->flags |= X86_EFLAGS_RF;
	if (reply.count == STOPS)
		land(regs);
	return NOTIFY_STOP;
}

static struct notifier_block notifier = { .notifier_call = excepted, .priority = INT_MAX };

/* Of the handlers that interrupts have, the timer's alone tells what was interrupted. */
static enum hrtimer_restart interrupted(struct hrtimer *timer)
{
	struct pt_regs *regs = get_irq_regs();

	/* What comes late, when a fault's handler has let interrupts in, comes anywhere. */
	if (regs && ours(regs))
		note(INTERRUPTED, regs);
	return HRTIMER_NORESTART;
}

static struct hrtimer timer;

/* How long a timer that is due may take until its interrupt waits, in nanoseconds. */
#define DUE 200000

/* Has an interrupt wait on this CPU, where interrupts are off. */
static void raise(void)
{
	u64 now = ktime_get_ns();

	hrtimer_start(&timer, ns_to_ktime(now), HRTIMER_MODE_ABS_PINNED_HARD);
	while (ktime_get_ns() - now < DUE)
		cpu_relax();
}

static void attempt(const struct request *request)
{
	struct start start = {
		.rip = LAB_PAGE,
		.cs = request->how & COMPATIBILITY ? __KERNEL32_CS : __KERNEL_CS,
		.rflags = X86_EFLAGS_FIXED | (request->how & SINGLE_STEP ? X86_EFLAGS_TF : 0),
		.rsp = LAB_STACK_TOP,
	};
	unsigned long flags, cr0;

	memset(lab_page(), 0, PAGE_SIZE);
	memcpy(lab_page(), request->code, sizeof(request->code));
	memcpy(start.registers, request->registers, sizeof(start.registers));
	memset(&reply, 0, sizeof(reply));
	preempt_disable();
	local_irq_save(flags);
	cr0 = native_read_cr0();
	start.cr3 = lab_page_cr3();
	if (request->how & BREAKPOINTS) {
		/* Linux' own handler takes it for no one's, and hands it on, if this thread may have one (virtual_dr6). */
		current->thread.virtual_dr6 |= DR_TRAP0 | DR_TRAP1;
		set_debugreg(LAB_PAGE + request->at, 0);
		set_debugreg(LAB_PAGE + request->next, 1);
		/* Both local, execution (SDM vol. 3B, 19.2.4). */
		set_debugreg(5UL, 7);
	}
	if (request->how & INTERRUPT)
		raise();
	running = true;
	lab_probe_enter(&start);
	running = false;
	if (request->how & BREAKPOINTS) {
		set_debugreg(0UL, 7);
		set_debugreg(0UL, 0);
		set_debugreg(0UL, 1);
		current->thread.virtual_dr6 &= ~(unsigned long)(DR_TRAP0 | DR_TRAP1);
	}
	if (native_read_cr0() != cr0)
		native_write_cr0(cr0);
	local_irq_restore(flags);
	preempt_enable();
	hrtimer_cancel(&timer);
}

static ssize_t probe_write(struct file *file, const char __user *from, size_t count, loff_t *offset)
{
	struct request request;
	cpumask_var_t before;
	int error;

	if (count != sizeof(request) || copy_from_user(&request, from, count))
		return -EINVAL;
	if (!alloc_cpumask_var(&before, GFP_KERNEL))
		return -ENOMEM;
	mutex_lock(&lock);
	cpumask_copy(before, current->cpus_ptr);
	error = set_cpus_allowed_ptr(current, cpumask_of(0));
	if (!error) {
		attempt(&request);
		error = set_cpus_allowed_ptr(current, before);
	}
	mutex_unlock(&lock);
	free_cpumask_var(before);
	return error ? error : count;
}

static ssize_t probe_read(struct file *file, char __user *to, size_t count, loff_t *offset)
{
	ssize_t result = sizeof(reply);

	if (count != sizeof(reply))
		return -EINVAL;
	mutex_lock(&lock);
	if (copy_to_user(to, &reply, sizeof(reply)))
		result = -EFAULT;
	mutex_unlock(&lock);
	return result;
}

static const struct proc_ops operations = { .proc_write = probe_write, .proc_read = probe_read };

static int __init probe_init(void)
{
	int error = lab_page_init();

	if (error)
		return error;
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 15, 0)
	hrtimer_setup(&timer, interrupted, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_PINNED_HARD);
#else
	hrtimer_init(&timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_PINNED_HARD);
	timer.function = interrupted;
#endif
	error = register_die_notifier(&notifier);
	if (error)
		goto pages;
	if (!proc_create("lab_probe", 0600, NULL, &operations)) {
		error = -ENOMEM;
		goto notifier;
	}
	return 0;

notifier:
	unregister_die_notifier(&notifier);
pages:
	lab_page_exit();
	return error;
}

static void __exit probe_exit(void)
{
	remove_proc_entry("lab_probe", NULL);
	unregister_die_notifier(&notifier);
	lab_page_exit();
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_DESCRIPTION("What instructions come to in a host's kernel");
MODULE_LICENSE("GPL");
