// SPDX-License-Identifier: GPL-2.0
/*
 * Power-off and panic where ACPI or L0 needs to be told in another way.
 *
 * Linux calls the power-off handler in atomic context on CPU 0, all others parked (smp_ops.stop_this_cpu). We go just
 * ahead of acpi_power_off(). Nested, power-off means the end of this host, not of the machine: L0 retires it or
 * declares it dead, and does not come back; unless no other host would go on, and then it is as natively. Native in a
 * hardware-reduced host (every one but the first) Linux has no S5: we write PM1 control ourselves. Native in the first
 * host we let ACPI do it.
 *
 * Reboot needs nothing here: after restart handlers, which x86 asks since 7.x and of which we have none,
 * native_machine_emergency_restart() tries the FADT's reset register, then port 0x64, then 0xCF9 itself,
 * hardware-reduced or not. L0 filters those in a nested host.
 */
#include "locum.h"
#include <linux/acpi.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/kexec.h>
#include <linux/limits.h>
#include <linux/panic_notifier.h>
#include <linux/reboot.h>

/* PM1 control (ACPI 6.5, section 4.8.3.2.1). */
#define SLP_TYP_SHIFT	10
#define SLP_TYP_MASK	(7 << SLP_TYP_SHIFT)
#define SLP_EN		BIT(13)

/* Other CPUs park soon after Linux has counted them as stopped. */
#define RETIRE_TRIES	1000
#define RETIRE_WAIT_US	1000

static struct sys_off_handler *power_off_handler, *prepare_handler;
static u32 policy = LOCUM_POWER_POLICY_EXIT;
static u8 s5_a, s5_b;
static bool have_s5;

static bool hardware_reduced(void)
{
	return acpi_gbl_FADT.flags & ACPI_FADT_HW_REDUCED;
}

/**
 * locum_power_policy() - what power-off does while nested
 * @wanted: enum locum_power_policy
 *
 * Return: 0, -EINVAL.
 */
int locum_power_policy(u32 wanted)
{
	if (wanted != LOCUM_POWER_POLICY_EXIT && wanted != LOCUM_POWER_POLICY_RETIRE)
		return -EINVAL;
	WRITE_ONCE(policy, wanted);
	return 0;
}

/* Gives everything to the other host. Returns only if L0 refuses. */
static void retire(void)
{
	unsigned int tries;
	long result;

	for (tries = 0; tries < RETIRE_TRIES; tries++) {
		result = locum_vmcall(LOCUM_OP_RETIRE, NULL);
		if (result != -LOCUM_ERRNO_NOT_PARKED)
			break;
		udelay(RETIRE_WAIT_US);
	}
	pr_emerg("L0 refuses to retire this host (error %ld); its resources are lost to the other host until it is aborted: see locum trace\n",
		 result);
}

/* Tells L0 that this host is at its end. Returns if no other host goes on: then the machine ends with it. */
static void exit_host(void)
{
	long result = locum_vmcall(LOCUM_OP_EXIT, NULL);

	if (result != -LOCUM_ERRNO_STATE)
		pr_emerg("L0 refuses to end this host (error %ld): see locum trace\n", result);
}

static void write_pm1(u16 port, u8 type)
{
	u16 value;

	if (!port)
		return;
	value = (inw(port) & ~SLP_TYP_MASK) | type << SLP_TYP_SHIFT;
	outw(value, port);
	outw(value | SLP_EN, port);
}

/* S5 without ACPI's help. Returns if the machine does not obey. */
static void machine_off(void)
{
	const struct locum_header *header = &locum.header;

	if (!have_s5 || !header->pm1a_cnt) {
		pr_emerg("the machine has no \\_S5_ or no PM1 control: switch it off by hand\n");
		return;
	}
	write_pm1(header->pm1a_cnt, s5_a);
	write_pm1(header->pm1b_cnt, s5_b);
	mdelay(100);
}

static int power_off(struct sys_off_data *data)
{
	if (locum_cpu_mode(smp_processor_id()) == LOCUM_CPU_MODE_NESTED) {
		if (READ_ONCE(policy) == LOCUM_POWER_POLICY_RETIRE)
			retire();
		exit_host();
	}
	if (hardware_reduced())
		machine_off();
	return NOTIFY_DONE;
}

/* AML may want to know (ACPI 6.5, section 7.4.1); in the first host, ACPI tells it. Interpreter's context: can sleep. */
static int prepare(struct sys_off_data *data)
{
	if (hardware_reduced() && !locum_any_nested() && acpi_has_method(NULL, "\\_PTS"))
		acpi_execute_simple_method(NULL, "\\_PTS", ACPI_STATE_S5);
	return NOTIFY_DONE;
}

/*
 * Last of all, so that the console and other notifiers have had their turn. A crash kernel comes after the notifiers only
 * with crash_kexec_post_notifiers, which the agent switches on while CPUs are nested; else we are not asked (panic() in
 * kernel/panic.c). An L0 that is older than the call takes a host that dumps for one that lives, as ever.
 */
static int on_panic(struct notifier_block *block, unsigned long event, void *message)
{
	if (locum_cpu_mode(raw_smp_processor_id()) != LOCUM_CPU_MODE_NESTED)
		return NOTIFY_DONE;
	if (kexec_crash_loaded())
		locum_vmcall(LOCUM_OP_DUMP, NULL);
	else
		exit_host();
	return NOTIFY_DONE;
}

static struct notifier_block panic_notifier = {
	.notifier_call = on_panic,
	.priority = INT_MIN,
};

/**
 * locum_power_init() - register for power-off and panic
 *
 * Return: 0 or what register_sys_off_handler() says.
 */
int locum_power_init(void)
{
	/* Evaluated now: power-off is no time for AML. */
	have_s5 = ACPI_SUCCESS(acpi_get_sleep_type_data(ACPI_STATE_S5, &s5_a, &s5_b));
	if (!have_s5)
		pr_warn("the DSDT has no \\_S5_: power-off will need a hand\n");
	power_off_handler = register_sys_off_handler(SYS_OFF_MODE_POWER_OFF, SYS_OFF_PRIO_FIRMWARE + 1, power_off, NULL);
	if (IS_ERR(power_off_handler))
		return PTR_ERR(power_off_handler);
	prepare_handler = register_sys_off_handler(SYS_OFF_MODE_POWER_OFF_PREPARE, SYS_OFF_PRIO_FIRMWARE + 1, prepare, NULL);
	if (IS_ERR(prepare_handler)) {
		unregister_sys_off_handler(power_off_handler);
		return PTR_ERR(prepare_handler);
	}
	atomic_notifier_chain_register(&panic_notifier_list, &panic_notifier);
	return 0;
}

/** locum_power_exit() - undo locum_power_init() */
void locum_power_exit(void)
{
	atomic_notifier_chain_unregister(&panic_notifier_list, &panic_notifier);
	unregister_sys_off_handler(prepare_handler);
	unregister_sys_off_handler(power_off_handler);
}
