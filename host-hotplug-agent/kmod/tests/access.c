// SPDX-License-Identifier: GPL-2.0
/* Reading, writing and mapping /dev/locum: what is allowed, and what is not. */
#include "check.h"

void test_access(void)
{
	const struct locum_slot_info *other = &header.slots[other_slot()];
	int reader = open("/dev/locum", O_RDONLY);
	struct locum_status status;
	static char page[4096], back[4096];
	unsigned int word = 0;
	struct stat file;
	void *map;

	CHECK(!fstat(device, &file) && (file.st_mode & 0777) == 0600);
	/* A program without the right to write sees status, trace and log, nothing else. */
	CHECK(!ioctl(reader, LOCUM_IOC_INFO, &machine));
	CHECK(pread(reader, &status, sizeof(status), header.status) == sizeof(status));
	CHECK(status.cpu_count == machine.cpu_count);
	CHECK(pread(reader, page, 64, header.trace) == 64 && pread(reader, page, 64, header.log) == 64);
	CHECK(!header.kept || pread(reader, page, 64, header.kept + header.kept_ring_size) == 64);
	FAILS(pread(reader, page, 64, header.channels), EPERM);
	FAILS(pread(reader, page, 64, other->tables), EPERM);
	FAILS(ioctl(reader, LOCUM_IOC_POWER_POLICY, &word), EPERM);
	FAILS(pwrite(reader, page, 64, other->tables), EBADF);

	map = mmap(NULL, 65536, PROT_READ, MAP_SHARED, reader, header.trace);
	CHECK(map != MAP_FAILED && *(uint64_t *)(map + 8) == LOCUM_TRACE_RECORDS * !!*(uint64_t *)(map + 8));
	FAILS(mprotect(map, 4096, PROT_READ | PROT_WRITE), EACCES);
	munmap(map, 65536);
	CHECK(mmap(NULL, 4096, PROT_READ, MAP_SHARED, reader, header.channels) == MAP_FAILED && errno == EPERM);
	CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, header.status) == MAP_FAILED);
	if (header.pool_table) {
		uint64_t bytes = (uint64_t)header.pool_extent_size * header.pool_extent_count;

		map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device, header.pool_table);
		if (CHECK(map != MAP_FAILED)) {
			uint64_t last = *(volatile uint64_t *)(map + bytes - 8);

			*(volatile uint64_t *)(map + bytes - 8) = ~last;
			CHECK(pread(device, page, 8, header.pool_table + bytes - 8) == 8 && *(uint64_t *)page == ~last);
			*(volatile uint64_t *)(map + bytes - 8) = last;
			munmap(map, bytes);
		}
		CHECK(mmap(NULL, bytes, PROT_READ, MAP_SHARED, reader, header.pool_table) == MAP_FAILED && errno == EPERM);
		CHECK(mmap(NULL, bytes + 4096, PROT_READ | PROT_WRITE, MAP_SHARED, device, header.pool_table) == MAP_FAILED);
		CHECK(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, device, header.pool_table - 4096) == MAP_FAILED);
	}
	map = mmap(NULL, machine.shared_size, PROT_READ, MAP_SHARED, device, machine.shared);
	CHECK(map != MAP_FAILED && *(uint64_t *)(map + (machine.header - machine.shared)) == LOCUM_MAGIC);
	munmap(map, machine.shared_size);

	/* The other slot's tables are ours to write; ours, L0's words and Linux's memory are not. */
	memset(page, 0x5a, sizeof(page));
	CHECK(pwrite(device, page, sizeof(page), other->tables + 100) == sizeof(page));
	CHECK(pread(device, back, sizeof(back), other->tables + 100) == sizeof(back));
	CHECK(!memcmp(page, back, sizeof(page)));
	CHECK(pwrite(device, page, sizeof(page), other->tables + other->tables_size - 64) == 64);
	FAILS(pwrite(device, page, 64, header.slots[machine.slot].tables), EFAULT);
	FAILS(pwrite(device, page, 64, header.status), EFAULT);
	FAILS(pwrite(device, page, 64, machine.header), EFAULT);
	FAILS(pwrite(device, page, 64, 0x1000000), EFAULT);
	FAILS(pread(device, page, 64, 0x1000000), EFAULT);
	FAILS(pread(device, page, 64, header.private_), EFAULT);
	FAILS(pread(device, page, 64, 1ULL << 52), EFAULT);
	/* The RSDP is in the BIOS area, or L0 tells where it is. */
	CHECK(pread(device, page, 64, header.machine_rsdp ? header.machine_rsdp : 0xf0000) == 64);
	FAILS(pread(device, page, 64, -4096), EINVAL);

	FAILS(ioctl(device, _IO('L', 0x7f), 0), ENOTTY);
	FAILS(ioctl(device, _IO('M', 1), 0), ENOTTY);
	word = 2;
	FAILS(ioctl(device, LOCUM_IOC_POWER_POLICY, &word), EINVAL);
	word = LOCUM_POWER_POLICY_EXIT;
	CHECK(!ioctl(device, LOCUM_IOC_POWER_POLICY, &word));
	close(reader);
}
