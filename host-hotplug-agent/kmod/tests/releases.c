// SPDX-License-Identifier: GPL-2.0
/* A program, the module and L0 may be of three releases: what each does with what it does not know. */
#include "check.h"

/* Structures as a later release might have them. */
struct later_info {
	struct locum_info info;
	unsigned long long more;
};

struct later_switch {
	struct locum_switch known;
	unsigned long long more;
};

void test_releases(void)
{
	struct later_info info = { .more = ~0ULL };
	struct later_switch leave = { .known.cpu = LOCUM_ALL_CPUS };
	unsigned int word = 0;

	/* What the module lacks is 0, going there and coming back. */
	CHECK(!ioctl(device, _IOR(LOCUM_IOC, 0x01, struct later_info), &info));
	CHECK(!memcmp(&info.info, &machine, sizeof(machine)) && !info.more);
	CHECK(!ioctl(device, _IOWR(LOCUM_IOC, 0x11, struct later_switch), &leave) && leave.known.done > 0);
	leave.more = 1;
	FAILS(ioctl(device, _IOWR(LOCUM_IOC, 0x11, struct later_switch), &leave), E2BIG);
	/* No release's. */
	FAILS(ioctl(device, _IOWR(LOCUM_IOC, 0x11, unsigned int), &word), ENOTTY);
	FAILS(ioctl(device, _IOW(LOCUM_IOC, 0x11, struct locum_switch), &leave), ENOTTY);
	FAILS(ioctl(device, _IOW(LOCUM_IOC, 0x7f, unsigned int), &word), ENOTTY);
	/* Of the table that was there before the first release. */
	FAILS(ioctl(device, 0x88104c33, &info), ENOTTY);
}

/* Fake L0 only, as there is no VMX: a call that L0 does not know ends in #UD, and in words. */
void test_old_l0(void)
{
	struct locum_call call = { .l0_errno = 99 };
	unsigned int i;

	for (i = 0; i < machine.cpu_count; i++)
		fake_cpu(i)->mode = LOCUM_CPU_MODE_NESTED;
	FAILS(ioctl(device, LOCUM_IOC_PING, &call), EOPNOTSUPP);
	CHECK(!call.l0_errno);
	call.a = LOCUM_WILL_YIELD;
	FAILS(ioctl(device, LOCUM_IOC_WILL, &call), EOPNOTSUPP);
	for (i = 0; i < machine.cpu_count; i++)
		fake_cpu(i)->mode = LOCUM_CPU_MODE_NATIVE;
	FAILS(ioctl(device, LOCUM_IOC_PING, &call), ENOTCONN);
	FAILS(ioctl(device, LOCUM_IOC_WILL, &call), ENOTCONN);
}
