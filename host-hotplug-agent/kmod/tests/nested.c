// SPDX-License-Identifier: GPL-2.0
/* Real L0 with VMX only: enter, call, leave, many times; what must be refused meanwhile. Wants at least two CPUs. */
#include "check.h"

#define CPU1 "/sys/devices/system/cpu/cpu1/online"

static int modes(const char *word)
{
	char text[4096], *at = text;
	int count = 0;

	CHECK(!get_file("/sys/kernel/locum/mode", text, sizeof(text)));
	while ((at = strstr(at, word))) {
		at += strlen(word);
		count++;
	}
	return count;
}

/* The arguments of a grant, as enum locum_resource names them. */
static struct locum_call grant(unsigned long kind, unsigned long first, unsigned long size)
{
	return (struct locum_call){ .a = kind, .b = first, .c = size };
}

static struct locum_call start(unsigned long entry, unsigned long zero_page, unsigned int boot_apic)
{
	return (struct locum_call){ .a = entry, .b = zero_page, .c = boot_apic };
}

static void calls(void)
{
	struct locum_call call = {};

	CHECK(!ioctl(device, LOCUM_IOC_PING, &call) && call.ticks > 0);
	call = grant(99, 0, 0);
	FAILS(ioctl(device, LOCUM_IOC_GRANT, &call), EINVAL);
	CHECK(call.l0_errno == LOCUM_ERRNO_ARGUMENT);
	call = grant(LOCUM_RESOURCE_MEMORY, 0x1000000, 4096);
	FAILS(ioctl(device, LOCUM_IOC_GRANT, &call), EBUSY);
	call = grant(LOCUM_RESOURCE_MEMORY, header.private_, 4096);
	CHECK(ioctl(device, LOCUM_IOC_GRANT, &call) == -1 && call.l0_errno != 0);
	call = grant(LOCUM_RESOURCE_CPU, 0, 0);
	FAILS(ioctl(device, LOCUM_IOC_GRANT, &call), EBUSY);
	call = start(0x1000, 0x2000, 0);
	CHECK(ioctl(device, LOCUM_IOC_START, &call) == -1 && call.l0_errno != 0);
	call = (struct locum_call){ .reserved = 1 };
	FAILS(ioctl(device, LOCUM_IOC_PING, &call), EINVAL);
}

static void cycle(int cpu, unsigned int count, unsigned int pause_us)
{
	struct locum_cycle cycle = { .cpu = cpu, .count = count, .pause_us = pause_us };

	CHECK(!ioctl(device, LOCUM_IOC_CYCLE, &cycle) && cycle.done == count && !cycle.l0_errno);
	printf("cpu %d: %u cycles, ticks: enter %llu (longest %llu), leave %llu (longest %llu)\n", cpu, cycle.done,
	       cycle.enter_ticks / count, cycle.enter_max, cycle.leave_ticks / count, cycle.leave_max);
}

void test_nested(void)
{
	struct locum_switch request = { .cpu = 1 };
	struct locum_cycle once = { .cpu = 0, .count = 1 };
	struct locum_call call = {};
	int cpus = modes("native");
	int idle = refcount();

	FAILS(ioctl(device, LOCUM_IOC_PING, &call), ENOTCONN);
	CHECK(!ioctl(device, LOCUM_IOC_ENTER, &request) && request.done == 1);
	CHECK(modes("nested") == 1 && refcount() == idle + 1);
	FAILS(ioctl(device, LOCUM_IOC_PING, &call), ENOTCONN);
	FAILS(ioctl(device, LOCUM_IOC_CYCLE, &once), EALREADY);
	request = (struct locum_switch){ .cpu = LOCUM_ALL_CPUS };
	CHECK(!ioctl(device, LOCUM_IOC_ENTER, &request) && (int)request.done == cpus);
	CHECK(modes("nested") == cpus && refcount() == idle + 1);
	calls();

	/* Parked out of nested mode, and back into it. */
	CHECK(!put_file(CPU1, "0"));
	CHECK(modes("parked") == 1);
	CHECK(!put_file(CPU1, "1"));
	CHECK(modes("nested") == cpus);
	CHECK(!ioctl(device, LOCUM_IOC_PING, &call));

	request = (struct locum_switch){ .cpu = 0 };
	CHECK(!ioctl(device, LOCUM_IOC_LEAVE, &request) && request.done == 1);
	CHECK(modes("native") == 1);
	request = (struct locum_switch){ .cpu = LOCUM_ALL_CPUS };
	CHECK(!ioctl(device, LOCUM_IOC_LEAVE, &request) && (int)request.done == cpus);
	CHECK(modes("native") == cpus && refcount() == idle);
	cycle(0, 100, 0);
	cycle(1, 100, 0);
	cycle(LOCUM_ALL_CPUS, 30, 100);
	CHECK(modes("native") == cpus);
}
