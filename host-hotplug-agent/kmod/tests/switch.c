// SPDX-License-Identifier: GPL-2.0
/* Fake L0 only: the stub goes there and comes back, with an NMI on the way, and the host does not notice. */
#include "check.h"

static unsigned long nmis(void)
{
	static char text[16384];
	char *line;
	unsigned long sum = 0, n;
	int used;

	CHECK(!get_file("/proc/interrupts", text, sizeof(text)));
	line = strstr(text, "NMI:");
	if (!CHECK(line != NULL))
		return 0;
	for (line += 4; sscanf(line, "%lu%n", &n, &used) == 1; line += used)
		sum += n;
	return sum;
}

static void refused(int cpu, unsigned int times)
{
	unsigned long before = nmis();
	unsigned int i;

	for (i = 0; i < times; i++) {
		struct locum_switch request = { .cpu = cpu };

		errno = 0;
		if (ioctl(device, LOCUM_IOC_ENTER, &request) != -1 || errno != EOPNOTSUPP || request.l0_errno != 6 ||
		    request.done != 0 || request.failed_apic_id > 1) {
			CHECK(!"a refusal comes through");
			return;
		}
	}
	CHECK(nmis() - before == times * (cpu == LOCUM_ALL_CPUS ? 2 : 1));
}

void test_switch(void)
{
	struct locum_switch request = { .cpu = 77 };
	struct locum_cycle cycle = { .cpu = 0 };
	struct locum_call call = {};

	FAILS(ioctl(device, LOCUM_IOC_ENTER, &request), ENODEV);
	request = (struct locum_switch){ .cpu = -2 };
	FAILS(ioctl(device, LOCUM_IOC_ENTER, &request), ENODEV);
	request = (struct locum_switch){ .flags = 2 };
	FAILS(ioctl(device, LOCUM_IOC_ENTER, &request), EINVAL);
	request = (struct locum_switch){ .flags = LOCUM_SWITCH_CHECK };
	FAILS(ioctl(device, LOCUM_IOC_LEAVE, &request), EINVAL);
	/* This kernel was booted without what L0 does not know, and L0, which would refuse, is not asked. */
	request = (struct locum_switch){ .cpu = LOCUM_ALL_CPUS, .flags = LOCUM_SWITCH_CHECK, .unknown_cr4 = 9 };
	CHECK(!ioctl(device, LOCUM_IOC_ENTER, &request) && request.done == 2 && !request.unknown_cr4);
	request = (struct locum_switch){ .cpu = 1, .flags = LOCUM_SWITCH_CHECK };
	CHECK(!ioctl(device, LOCUM_IOC_ENTER, &request) && request.done == 1);
	request = (struct locum_switch){ .cpu = 77, .flags = LOCUM_SWITCH_CHECK };
	FAILS(ioctl(device, LOCUM_IOC_ENTER, &request), ENODEV);
	request = (struct locum_switch){ .cpu = LOCUM_ALL_CPUS };
	CHECK(!ioctl(device, LOCUM_IOC_LEAVE, &request) && request.done == 2);
	FAILS(ioctl(device, LOCUM_IOC_CYCLE, &cycle), EINVAL);
	FAILS(ioctl(device, LOCUM_IOC_PING, &call), ENOTCONN);
	refused(0, 20);
	refused(1, 20);
	refused(LOCUM_ALL_CPUS, 20);
	cycle = (struct locum_cycle){ .cpu = 1, .count = 5 };
	FAILS(ioctl(device, LOCUM_IOC_CYCLE, &cycle), EOPNOTSUPP);
	CHECK(cycle.done == 0 && cycle.l0_errno == 6 && cycle.failed_apic_id == 1);
}
