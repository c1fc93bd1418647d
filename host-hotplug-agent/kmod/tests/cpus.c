// SPDX-License-Identifier: GPL-2.0
/* Fake L0 only: which CPUs may come online. */
#include "check.h"

#define CPU1 "/sys/devices/system/cpu/cpu1/online"

void test_cpus(void)
{
	volatile struct locum_status *status = fake_status();
	char text[256];

	CHECK(!put_file(CPU1, "0"));
	status->cpus[1].owner = LOCUM_SLOT_ODD;
	status->cpus[1].mode = LOCUM_CPU_MODE_PARKED;
	FAILS(put_file(CPU1, "1"), EPERM);
	CHECK(!get_file("/sys/kernel/locum/mode", text, sizeof(text)));
	CHECK(!strcmp(text, "cpu0 apic 0 native\ncpu1 apic 1 parked (other host)\n"));
	status->cpus[1].owner = LOCUM_SLOT_EVEN;
	status->cpus[1].mode = LOCUM_CPU_MODE_NESTED;
	FAILS(put_file(CPU1, "1"), EBUSY);
	status->cpus[1].mode = LOCUM_CPU_MODE_PARKED;
	CHECK(!put_file(CPU1, "1"));
	status->cpus[1].mode = LOCUM_CPU_MODE_NATIVE;
}
