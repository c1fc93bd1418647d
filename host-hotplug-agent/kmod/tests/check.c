// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of locum.ko, run in a host as root with the module loaded: "check" on a real L0, "check nested" on one with VMX,
 * "check fake" on the fake one (run.sh), where it also plays L0 and the other host by /dev/mem. Last line: "N checks, N failed".
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

volatile struct locum_status *fake_status(void)
{
	return (volatile struct locum_status *)(fake + (header.status - machine.shared));
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	device = open("/dev/locum", O_RDWR);
	if (!CHECK(device >= 0) || !CHECK(!ioctl(device, LOCUM_IOC_INFO, &machine)))
		return 1;
	CHECK(machine.family == LOCUM_UAPI_FAMILY && machine.l0_family == LOCUM_FAMILY);
	CHECK(machine.slot < LOCUM_SLOTS && machine.tsc_khz > 1000 && machine.memory_block >= 1 << 24);
	CHECK(pread(device, &header, sizeof(header), machine.header) == sizeof(header));
	CHECK(header.magic == LOCUM_MAGIC && header.shared == machine.shared);
	if (argc > 1 && !strcmp(argv[1], "fake")) {
		int memory = open("/dev/mem", O_RDWR);

		fake = mmap(NULL, FAKE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, FAKE_BASE);
		if (!CHECK(fake != MAP_FAILED))
			return 1;
	}
	if (argc > 1 && !strcmp(argv[1], "nested"))
		test_nested();
	test_access();
	test_sysfs();
	test_memory();
	if (fake) {
		test_switch();
		test_cpus();
		test_channels();
	}
	printf("%d checks, %d failed\n", checks, failures);
	return failures != 0;
}
