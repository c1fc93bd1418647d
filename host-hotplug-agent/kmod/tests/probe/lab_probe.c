// SPDX-License-Identifier: GPL-2.0
/*
 * What each instruction does that exits for a host, or may, when its kernel executes it. Reading /proc/lab_probe tries all
 * of them on CPU 0 and tells what came of each in a line, to be compared between a native and a nested host: plainly, and
 * with RFLAGS.TF. Execution breakpoints are for user space alone (lab-guest instructions): Bochs 3.0 does not keep to RF
 * where a #DB's handler returns to another page, and a kernel's would never end.
 *
 * A fault is taken by the exception table, which tells its vector; a #DB by a die notifier, which notes where it came. The
 * CPU is in VMX operation (kvm_intel is loaded) and has no current VMCS.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/kdebug.h>
#include <linux/module.h>
#include <linux/notifier.h>
#include <linux/objtool.h>
#include <linux/proc_fs.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <asm/asm.h>
#include <asm/debugreg.h>
#include <asm/processor-flags.h>

/* What the instruction gets and leaves. */
struct registers {
	unsigned long ax, cx, dx, bx;
	unsigned long flags;
	/* Vector of the fault, or -1. */
	long fault;
};

struct probe {
	const char *name;
	void (*run)(struct registers *registers, void *page);
	unsigned long ax, cx, dx;
	/* The instruction, and what follows it. */
	const void *at;
	/* AX and DX differ from one time to the next. */
	bool varies;
	/* It would be the end of this kernel if it did not fault. */
	bool writes_state;
};

/* A #DB. */
struct stop {
	long offset;
	unsigned long flags;
};

static struct stop stops[4];
static unsigned int stop_count;
static const void *running;

#define INSTRUCTION(name, code)                                                                                        \
	extern const char at_##name[];                                                                                 \
	static noinline void run_##name(struct registers *r, void *page)                                               \
	{                                                                                                              \
		unsigned long flags = r->flags;                                                                        \
		long fault = -1;                                                                                       \
                                                                                                                       \
		asm volatile("push %[flags]\n\t"                                                                       \
			     "popfq\n"                                                                                 \
			     ANNOTATE_NOENDBR                                                                          \
			     ".globl at_" #name "\n"                                                                   \
			     "at_" #name ":\n"                                                                         \
			     "1: " code "\n"                                                                           \
			     "2: pushfq\n\t"                                                                           \
			     "pop %[flags]\n\t"                                                                        \
			     "jmp 4f\n"                                                                                \
			     "3: mov %%rax, %[fault]\n"                                                                \
			     "4:\n" _ASM_EXTABLE_FAULT(1b, 3b)                                                         \
			     : [flags] "+&r"(flags), [fault] "+&r"(fault), "+a"(r->ax), "+c"(r->cx), "+d"(r->dx),      \
			       "+b"(r->bx)                                                                             \
			     : "S"(page)                                                                               \
			     : "memory", "cc");                                                                        \
		r->flags = flags;                                                                                      \
		r->fault = fault;                                                                                      \
	}                                                                                                              \
	STACK_FRAME_NON_STANDARD(run_##name);

INSTRUCTION(nop, "nop")
INSTRUCTION(cpuid, "cpuid")
INSTRUCTION(xsetbv, ".byte 0x0f, 0x01, 0xd1")
INSTRUCTION(xgetbv, ".byte 0x0f, 0x01, 0xd0")
INSTRUCTION(rdmsr, "rdmsr")
INSTRUCTION(wrmsr, "wrmsr")
INSTRUCTION(wbinvd, "wbinvd")
INSTRUCTION(getsec, ".byte 0x0f, 0x37")
INSTRUCTION(rsm, ".byte 0x0f, 0xaa")
INSTRUCTION(vmcall, ".byte 0x0f, 0x01, 0xc1")
INSTRUCTION(vmlaunch, ".byte 0x0f, 0x01, 0xc2")
INSTRUCTION(vmresume, ".byte 0x0f, 0x01, 0xc3")
INSTRUCTION(vmfunc, ".byte 0x0f, 0x01, 0xd4")
INSTRUCTION(vmxon, ".byte 0xf3, 0x0f, 0xc7, 0x36")
INSTRUCTION(vmclear, ".byte 0x66, 0x0f, 0xc7, 0x36")
INSTRUCTION(vmptrld, ".byte 0x0f, 0xc7, 0x36")
INSTRUCTION(vmptrst, ".byte 0x0f, 0xc7, 0x3e; movq (%%rsi), %%rbx")
INSTRUCTION(vmread, ".byte 0x0f, 0x78, 0xc1")
INSTRUCTION(vmwrite, ".byte 0x0f, 0x79, 0xc1")
INSTRUCTION(invept, ".byte 0x66, 0x0f, 0x38, 0x80, 0x0e")
INSTRUCTION(invvpid, ".byte 0x66, 0x0f, 0x38, 0x81, 0x0e")
INSTRUCTION(invpcid, ".byte 0x66, 0x0f, 0x38, 0x82, 0x0e")
INSTRUCTION(invlpg, "invlpg (%%rsi)")
INSTRUCTION(from_cr0, "mov %%cr0, %%rbx")
INSTRUCTION(to_cr0, "mov %%rax, %%cr0")
INSTRUCTION(from_cr4, "mov %%cr4, %%rbx")
INSTRUCTION(to_cr4, "mov %%rax, %%cr4")
INSTRUCTION(from_cr8, "mov %%cr8, %%rbx")
INSTRUCTION(clts, "clts")
INSTRUCTION(smsw, "smsw %%ebx")
INSTRUCTION(lmsw, "lmsw %%ax")
INSTRUCTION(sldt, "sldt %%ebx")
INSTRUCTION(str, "str %%ebx")
INSTRUCTION(in, "in %%dx, %%al")
INSTRUCTION(out, "out %%al, %%dx")
INSTRUCTION(outs, "outsb")
INSTRUCTION(rdtsc, "rdtsc")
INSTRUCTION(rdtscp, "rdtscp")
INSTRUCTION(rdpmc, "rdpmc")
INSTRUCTION(pause, "pause")
INSTRUCTION(monitor, ".byte 0x0f, 0x01, 0xc8")
INSTRUCTION(from_dr7, "mov %%dr7, %%rbx")
INSTRUCTION(rdmsrlist, ".byte 0xf2, 0x0f, 0x01, 0xc6")
INSTRUCTION(wrmsrlist, ".byte 0xf3, 0x0f, 0x01, 0xc6")
INSTRUCTION(pconfig, ".byte 0x0f, 0x01, 0xc5")
INSTRUCTION(tpause, ".byte 0x66, 0x0f, 0xae, 0xf1")
INSTRUCTION(ud2, ".byte 0x0f, 0x0b")

#define PROBE(title, code, a, c, d, v) { title, run_##code, a, c, d, at_##code, v, false }
#define FAULTS(title, code, a, c, d) { title, run_##code, a, c, d, at_##code, false, true }
#define ONCE(code) PROBE(#code, code, 0, 0, 0, 0)

/* Bits that no CPU of the lab has in CR0 and CR4. */
#define CR0_RESERVED 0xffffffff00000000UL
#define CR4_RESERVED 0x80000000UL

static const struct probe probes[] = {
	ONCE(nop),
	PROBE("cpuid-0", cpuid, 0, 0, 0, 0),
	PROBE("cpuid-1", cpuid, 1, 0, 0, 0),
	PROBE("cpuid-7", cpuid, 7, 0, 0, 0),
	PROBE("cpuid-ext", cpuid, 0x80000001, 0, 0, 0),
	PROBE("xsetbv-x87-off", xsetbv, 0, 0, 0, 0),
	PROBE("xsetbv-1", xsetbv, 7, 1, 0, 0),
	PROBE("xgetbv", xgetbv, 0, 0, 0, 0),
	PROBE("rdmsr-efer", rdmsr, 0, 0xc0000080, 0, 0),
	PROBE("rdmsr-apicbase", rdmsr, 0, 0x1b, 0, 0),
	PROBE("rdmsr-microcode", rdmsr, 0, 0x8b, 0, 0),
	PROBE("rdmsr-update", rdmsr, 0, 0x79, 0, 0),
	PROBE("rdmsr-pebs", rdmsr, 0, 0x3f1, 0, 0),
	PROBE("rdmsr-pt", rdmsr, 0, 0x570, 0, 0),
	PROBE("rdmsr-lbr", rdmsr, 0, 0x14ce, 0, 0),
	PROBE("rdmsr-none", rdmsr, 0, 0x1fff, 0, 0),
	PROBE("rdmsr-outside", rdmsr, 0, 0x40000000, 0, 0),
	PROBE("rdmsr-vmx", rdmsr, 0, 0x480, 0, 0),
	PROBE("wrmsr-vmx", wrmsr, 0, 0x480, 0, 0),
	PROBE("wrmsr-outside", wrmsr, 0, 0x40000000, 0, 0),
	FAULTS("wrmsr-efer-bad", wrmsr, 0xffffffff, 0xc0000080, 0xffffffff),
	ONCE(wbinvd),
	ONCE(getsec),
	ONCE(rsm),
	ONCE(vmcall),
	ONCE(vmlaunch),
	ONCE(vmresume),
	ONCE(vmfunc),
	ONCE(vmxon),
	ONCE(vmclear),
	ONCE(vmptrld),
	ONCE(vmptrst),
	ONCE(vmread),
	ONCE(vmwrite),
	PROBE("invept-all", invept, 0, 2, 0, 0),
	PROBE("invept-bad", invept, 0, 7, 0, 0),
	PROBE("invvpid-all", invvpid, 0, 2, 0, 0),
	PROBE("invvpid-none", invvpid, 0, 1, 0, 0),
	PROBE("invvpid-bad", invvpid, 0, 7, 0, 0),
	PROBE("invpcid-bad", invpcid, 0, 7, 0, 0),
	ONCE(invlpg),
	ONCE(from_cr0),
	FAULTS("to_cr0-none", to_cr0, 0, 0, 0),
	FAULTS("to_cr0-reserved", to_cr0, CR0_RESERVED, 0, 0),
	ONCE(from_cr4),
	FAULTS("to_cr4-none", to_cr4, 0, 0, 0),
	FAULTS("to_cr4-reserved", to_cr4, CR4_RESERVED, 0, 0),
	ONCE(from_cr8),
	ONCE(clts),
	ONCE(smsw),
	PROBE("lmsw", lmsw, 3, 0, 0, 0),
	ONCE(sldt),
	ONCE(str),
	PROBE("in", in, 0, 0, 0x80, 1),
	PROBE("out", out, 0, 0, 0x80, 0),
	PROBE("outs", outs, 0, 0, 0x80, 0),
	PROBE("rdtsc", rdtsc, 0, 0, 0, 1),
	PROBE("rdtscp", rdtscp, 0, 0, 0, 1),
	PROBE("rdpmc-bad", rdpmc, 0, 0x3fffffff, 0, 0),
	ONCE(pause),
	PROBE("monitor-bad", monitor, 0, 1, 0, 0),
	ONCE(from_dr7),
	ONCE(rdmsrlist),
	ONCE(wrmsrlist),
	PROBE("pconfig-bad", pconfig, 0x7fffffff, 0, 0, 0),
	ONCE(tpause),
	ONCE(ud2),
};

static int debugged(struct notifier_block *block, unsigned long what, void *data)
{
	struct die_args *args = data;
	unsigned long *dr6 = (unsigned long *)args->err;

	if (what != DIE_DEBUG || !running || user_mode(args->regs) || !(*dr6 & DR_STEP))
		return NOTIFY_DONE;
	if (stop_count < ARRAY_SIZE(stops)) {
		stops[stop_count].offset = args->regs->ip - (unsigned long)running;
		stops[stop_count].flags = args->regs->flags;
	}
	stop_count++;
	args->regs->flags &= ~X86_EFLAGS_TF;
	*dr6 &= ~DR_STEP;
	return NOTIFY_STOP;
}

static struct notifier_block notifier = { .notifier_call = debugged, .priority = INT_MAX };

enum how { PLAIN, SINGLE_STEP, HOWS };
static const char *const how_names[] = { "plain", "single-step" };

static void attempt(const struct probe *probe, enum how how, void *page, struct registers *r)
{
	unsigned long flags;

	memset(page, 0, 64);
	*r = (struct registers){ .ax = probe->ax, .cx = probe->cx, .dx = probe->dx, .bx = 0x77 };
	local_irq_save(flags);
	r->flags = (flags & ~X86_EFLAGS_IF) | (how == SINGLE_STEP ? X86_EFLAGS_TF : 0);
	stop_count = 0;
	running = probe->at;
	probe->run(r, page);
	running = NULL;
	local_irq_restore(flags);
}

static void tell(struct seq_file *file, const struct probe *probe, enum how how, const struct registers *r)
{
	unsigned int i;

	seq_printf(file, "%s %s: fault %ld flags %#lx", probe->name, how_names[how], r->fault,
		   r->flags & ~(unsigned long)X86_EFLAGS_IF);
	if (r->fault < 0 && !probe->varies)
		seq_printf(file, " ax %lx dx %lx", r->ax, r->dx);
	seq_printf(file, " cx %lx bx %lx stops %u", r->cx, r->bx, stop_count);
	for (i = 0; i < min_t(unsigned int, stop_count, ARRAY_SIZE(stops)); i++)
		seq_printf(file, " [%+ld flags %#lx]", stops[i].offset, stops[i].flags);
	seq_putc(file, '\n');
}

static int show(struct seq_file *file, void *unused)
{
	struct registers registers;
	cpumask_var_t before;
	unsigned int i;
	enum how how;
	void *page;
	int error;

	page = kzalloc(PAGE_SIZE, GFP_KERNEL);
	if (!page || !alloc_cpumask_var(&before, GFP_KERNEL)) {
		kfree(page);
		return -ENOMEM;
	}
	cpumask_copy(before, current->cpus_ptr);
	error = set_cpus_allowed_ptr(current, cpumask_of(0));
	for (i = 0; !error && i < ARRAY_SIZE(probes); i++) {
		/* QEMU's own CPU, which has no VMX, takes what faults on others. */
		if (probes[i].writes_state && !boot_cpu_has(X86_FEATURE_VMX))
			continue;
		for (how = PLAIN; how < HOWS; how++) {
			attempt(&probes[i], how, page, &registers);
			tell(file, &probes[i], how, &registers);
		}
	}
	if (!error)
		error = set_cpus_allowed_ptr(current, before);
	free_cpumask_var(before);
	kfree(page);
	return error;
}

static int __init probe_init(void)
{
	int error = register_die_notifier(&notifier);

	if (error)
		return error;
	if (!proc_create_single("lab_probe", 0400, NULL, show)) {
		unregister_die_notifier(&notifier);
		return -ENOMEM;
	}
	return 0;
}

static void __exit probe_exit(void)
{
	remove_proc_entry("lab_probe", NULL);
	unregister_die_notifier(&notifier);
}

module_init(probe_init);
module_exit(probe_exit);
MODULE_DESCRIPTION("What instructions come to in a host's kernel");
MODULE_LICENSE("GPL");
