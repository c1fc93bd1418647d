/* SPDX-License-Identifier: GPL-2.0 */
/* Where run.sh puts the fake L0; the kernel's memmap= says the same. */
#define FAKE_BASE		0x8000000UL
#define FAKE_SIZE		0x200000UL
#define FAKE_PRIVATE		0x8200000UL
#define FAKE_PRIVATE_SIZE	0x200000UL
#define FAKE_HEADER_PAGE	4096
#define FAKE_TABLES		65536
#define FAKE_CPUS		2
