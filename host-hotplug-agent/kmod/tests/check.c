// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of locum.ko, run in a host as root with the module loaded: "check" on a real L0, "check nested" on one with VMX,
 * "check fake" on the fake one (run.sh), where it also plays L0 and the other host by /dev/mem. Last line: "N checks, N failed".
 * "check family N" and "check size N" only change what the fake L0's header says.
 */
#include "check.h"
#include "fake_l0.h"

int failures, checks;
int device;
struct locum_info machine;
struct locum_header header;
volatile unsigned char *fake;

int check(int good, const char *what, const char *file, int line)
{
	checks++;
	if (!good) {
		failures++;
		printf("FAILED %s:%d: %s (errno %d %s)\n", file, line, what, errno, strerror(errno));
	}
	return good;
}

int put_file(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	int result, saved;

	if (file < 0)
		return -1;
	result = write(file, text, strlen(text));
	saved = errno;
	close(file);
	errno = saved;
	return result < 0 ? -1 : 0;
}

int get_file(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY);
	ssize_t length;

	if (file < 0)
		return -1;
	length = read(file, text, size - 1);
	close(file);
	if (length < 0)
		return -1;
	text[length] = 0;
	return 0;
}

int refcount(void)
{
	char text[32];

	return get_file("/sys/module/locum/refcnt", text, sizeof(text)) ? -1 : atoi(text);
}

static volatile unsigned char *fake_status(void)
{
	return fake + (header.status - machine.shared);
}

volatile struct locum_host_status *fake_host(enum locum_slot slot)
{
	return FAKE_HOST(fake_status(), &header, slot);
}

volatile struct locum_cpu_status *fake_cpu(unsigned int index)
{
	return FAKE_CPU(fake_status(), &header, index);
}

static unsigned int ring_size(void)
{
	return FAKE_OR(header.channel_ring_size, LOCUM_FIRST_CHANNEL_RING_SIZE);
}

unsigned int fake_ring_data(void)
{
	return ring_size() - LOCUM_CHANNEL_DATA;
}

volatile struct locum_channel_ring *fake_ring(unsigned int channel, enum locum_slot from)
{
	unsigned long offset = (channel * LOCUM_SLOTS + from) * (unsigned long)ring_size();

	return (volatile struct locum_channel_ring *)(fake + (header.channels - machine.shared) + offset);
}

static volatile unsigned char *map_fake(void)
{
	int memory = open("/dev/mem", O_RDWR);
	void *map = mmap(NULL, FAKE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, FAKE_BASE);

	return map == MAP_FAILED ? NULL : map;
}

/* "check family 2", without the module: what the fake L0 says of itself from now on. Prints what it said before. */
static int set_word(const char *name, unsigned int value)
{
	volatile struct locum_header *there = (volatile struct locum_header *)map_fake();
	volatile __u32 *word;

	if (!there)
		return 1;
	if (!strcmp(name, "family"))
		word = &there->family;
	else if (!strcmp(name, "size"))
		word = &there->size;
	else
		return 1;
	printf("%u\n", *word);
	*word = value;
	return 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 2)
		return set_word(argv[1], atoi(argv[2]));
	device = open("/dev/locum", O_RDWR);
	if (!CHECK(device >= 0) || !CHECK(!ioctl(device, LOCUM_IOC_INFO, &machine)))
		return 1;
	CHECK(machine.family == LOCUM_UAPI_FAMILY && machine.l0_family == LOCUM_FAMILY);
	CHECK(machine.features == LOCUM_UAPI_FEATURES);
	CHECK(machine.slot < LOCUM_SLOTS && machine.tsc_khz > 1000 && machine.memory_block >= 1 << 24);
	/* As a program does that knows this release's header: what L0 does not have is 0. */
	CHECK(pread(device, &header, sizeof(header), machine.header) == sizeof(header) && header.size >= LOCUM_HEADER_MIN);
	if (header.size < sizeof(header))
		memset((char *)&header + header.size, 0, sizeof(header) - header.size);
	CHECK(header.magic == LOCUM_MAGIC && header.shared == machine.shared);
	if (argc > 1 && !strcmp(argv[1], "fake")) {
		fake = map_fake();
		if (!CHECK(fake != NULL))
			return 1;
	}
	if (argc > 1 && !strcmp(argv[1], "nested"))
		test_nested();
	test_access();
	test_sysfs();
	test_releases();
	test_memory();
	if (fake) {
		test_old_l0();
		test_switch();
		test_cpus();
		test_channels();
	}
	printf("%d checks, %d failed\n", checks, failures);
	return failures != 0;
}
