// SPDX-License-Identifier: GPL-2.0
/* Fake L0 only: which CPUs may come online. */
#include "check.h"

#define CPU1 "/sys/devices/system/cpu/cpu1/online"

void test_cpus(void)
{
	volatile struct locum_cpu_status *cpu = fake_cpu(1);
	char text[256];

	CHECK(!put_file(CPU1, "0"));
	cpu->owner = LOCUM_SLOT_ODD;
	cpu->mode = LOCUM_CPU_MODE_PARKED;
	FAILS(put_file(CPU1, "1"), EPERM);
	CHECK(!get_file("/sys/kernel/locum/mode", text, sizeof(text)));
	CHECK(!strcmp(text, "cpu0 apic 0 native\ncpu1 apic 1 parked (other host)\n"));
	cpu->owner = LOCUM_SLOT_EVEN;
	cpu->mode = LOCUM_CPU_MODE_NESTED;
	FAILS(put_file(CPU1, "1"), EBUSY);
	cpu->mode = LOCUM_CPU_MODE_PARKED;
	CHECK(!put_file(CPU1, "1"));
	cpu->mode = LOCUM_CPU_MODE_NATIVE;
}
