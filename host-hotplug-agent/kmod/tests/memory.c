// SPDX-License-Identifier: GPL-2.0
/* Memory out of Linux, written, read, wiped, and back. Wants two removable blocks side by side (movablecore=). */
#include "check.h"

#define POLICY "/sys/devices/system/memory/auto_online_blocks"

/* Offline after adding, but for a kernel whose policy put it into the movable zone. */
static void online(const char *path)
{
	char text[64];

	CHECK(!get_file(path, text, sizeof(text)));
	if (!strcmp(text, "offline\n"))
		CHECK(!put_file(path, "online_movable"));
}

/* Adds memory while the policy says that what is added goes to a kernel zone: the module must not let it. */
static void add_against_policy(const struct locum_range *range, const char *path)
{
	char policy[64], text[64];

	CHECK(!get_file(POLICY, policy, sizeof(policy)));
	CHECK(!put_file(POLICY, "online_kernel"));
	CHECK(!ioctl(device, LOCUM_IOC_MEM_ADD, range));
	CHECK(!put_file(POLICY, policy));
	CHECK(!get_file(path, text, sizeof(text)) && !strcmp(text, "offline\n"));
}

/* Removed memory, and no other of Linux's, can be read. */
static int is_away(unsigned long address)
{
	char byte;

	return pread(device, &byte, 1, address) == 1;
}

/* @held: references to the module while no memory is away. */
static void removed_and_back(struct locum_range range, unsigned long block, int held)
{
	static unsigned char data[3 << 20], back[3 << 20];
	struct locum_range part;
	char path[80], text[64];
	unsigned long i;

	CHECK(is_away(range.start) && is_away(range.start + range.size - 1));
	CHECK(!is_away(range.start - 1) && !is_away(range.start + range.size) && refcount() == held + 1);
	FAILS(ioctl(device, LOCUM_IOC_MEM_REMOVE, &range), EBUSY);

	for (i = 0; i < sizeof(data); i++)
		data[i] = i * 7 + (i >> 9);
	CHECK(pwrite(device, data, sizeof(data), range.start + 4096 * 3 + 5) == sizeof(data));
	CHECK(pread(device, back, sizeof(back), range.start + 4096 * 3 + 5) == sizeof(back));
	CHECK(!memcmp(data, back, sizeof(data)));
	CHECK(pwrite(device, data, 8192, range.start + range.size - 4096) == 4096);
	FAILS(pwrite(device, data, 1, range.start + range.size), EFAULT);

	part = range;
	part.size = 4096 + 1;
	FAILS(ioctl(device, LOCUM_IOC_MEM_WIPE, &part), EINVAL);
	CHECK(!ioctl(device, LOCUM_IOC_MEM_WIPE, &range));
	CHECK(pread(device, back, sizeof(back), range.start) == sizeof(back));
	for (i = 0; i < sizeof(back) && !back[i]; i++)
		;
	CHECK(i == sizeof(back));

	/* Block by block, as after a retired host; then one removal of both, and both at once. */
	part = range;
	part.size = block;
	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%llu/state", range.start / block);
	add_against_policy(&part, path);
	FAILS(ioctl(device, LOCUM_IOC_MEM_ADD, &part), EEXIST);
	FAILS(ioctl(device, LOCUM_IOC_MEM_WIPE, &part), EEXIST);
	online(path);
	part.start += block;
	CHECK(!ioctl(device, LOCUM_IOC_MEM_ADD, &part));
	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%llu/state", range.start / block + 1);
	online(path);
	snprintf(path, sizeof(path), "/sys/devices/system/memory/memory%llu/valid_zones", range.start / block + 1);
	CHECK(!get_file(path, text, sizeof(text)) && !strcmp(text, "Movable\n"));
	CHECK(!is_away(range.start) && !is_away(range.start + range.size - 1) && refcount() == held);
}

/* The highest pair of blocks that Linux lets go. */
void test_memory(void)
{
	unsigned long block = machine.memory_block;
	struct locum_range range = { .size = 2 * block };
	struct locum_range bad = { .start = block + 4096, .size = block };
	int held = refcount();
	long number;

	FAILS(ioctl(device, LOCUM_IOC_MEM_REMOVE, &bad), EINVAL);
	bad = (struct locum_range){ .start = 1ULL << 45, .size = block };
	FAILS(ioctl(device, LOCUM_IOC_MEM_REMOVE, &bad), EBUSY);
	bad = (struct locum_range){ .start = header.private_ & -block, .size = block };
	CHECK(ioctl(device, LOCUM_IOC_MEM_WIPE, &bad) == -1 && (errno == EACCES || errno == EEXIST));

	for (number = 64; number > 0; number--) {
		range.start = number * block;
		if (!ioctl(device, LOCUM_IOC_MEM_REMOVE, &range))
			break;
	}
	if (!CHECK(number > 0))
		return;
	printf("removed %#llx+%#llx\n", range.start, range.size);
	removed_and_back(range, block, held);
	CHECK(!ioctl(device, LOCUM_IOC_MEM_REMOVE, &range));
	removed_and_back(range, block, held);
}
