/* SPDX-License-Identifier: GPL-2.0 */
/* Where run.sh puts the fake L0; the kernel's memmap= says the same. */
#define FAKE_BASE		0x8000000UL
#define FAKE_SIZE		0x200000UL
#define FAKE_PRIVATE		0x8200000UL
#define FAKE_PRIVATE_SIZE	0x200000UL
#define FAKE_HEADER_PAGE	4096
#define FAKE_TABLES		65536
#define FAKE_CPUS		2

/* Elements of the status' arrays, as a header says or the first release had them. */
#define FAKE_OR(said, first)	((said) ? (said) : (first))
#define FAKE_HOST(status, header, slot)									\
	((struct locum_host_status *)((unsigned long)(status) +						\
		FAKE_OR((header)->status_hosts, LOCUM_FIRST_STATUS_HOSTS) +				\
		(slot) * FAKE_OR((header)->host_status_size, LOCUM_FIRST_HOST_STATUS_SIZE)))
#define FAKE_CPU(status, header, index)									\
	((struct locum_cpu_status *)((unsigned long)(status) +						\
		FAKE_OR((header)->status_cpus, LOCUM_FIRST_STATUS_CPUS) +				\
		(index) * FAKE_OR((header)->cpu_status_size, LOCUM_FIRST_CPU_STATUS_SIZE)))
