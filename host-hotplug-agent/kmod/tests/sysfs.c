// SPDX-License-Identifier: GPL-2.0
/* /sys/kernel/locum and the daemon's side of it. */
#include "check.h"

#define DIR "/sys/kernel/locum/"

static int set_text(unsigned int kind, const char *words)
{
	struct locum_text text = { .kind = kind, .len = strlen(words) };

	memcpy(text.text, words, text.len);
	return ioctl(device, LOCUM_IOC_TEXT, &text);
}

static void test_texts(void)
{
	struct locum_text text = { .kind = 3 };
	struct pollfd poller = { .events = POLLPRI };
	char line[1100];

	CHECK(!get_file(DIR "state", line, sizeof(line)) && !strcmp(line, "idle\n"));
	poller.fd = open(DIR "progress", O_RDONLY);
	CHECK(read(poller.fd, line, sizeof(line)) == 1);
	CHECK(poll(&poller, 1, 0) == 0);
	CHECK(!set_text(LOCUM_TEXT_KIND_PROGRESS, "42 offload"));
	CHECK(poll(&poller, 1, 1000) == 1 && poller.revents & POLLPRI);
	close(poller.fd);
	CHECK(!get_file(DIR "progress", line, sizeof(line)) && !strcmp(line, "42 offload\n"));
	CHECK(!set_text(LOCUM_TEXT_KIND_PROGRESS, ""));
	FAILS(ioctl(device, LOCUM_IOC_TEXT, &text), EINVAL);
	text = (struct locum_text){ .len = LOCUM_TEXT_MAX + 1 };
	FAILS(ioctl(device, LOCUM_IOC_TEXT, &text), EINVAL);
}

static void test_requests(void)
{
	struct locum_request request;
	struct pollfd poller = { .events = POLLIN };
	unsigned int word = 0;
	int other = open("/dev/locum", O_RDWR);

	FAILS(put_file(DIR "refresh", "new"), ENXIO);
	FAILS(ioctl(other, LOCUM_IOC_NEXT_REQUEST, &request), EPERM);
	CHECK(!ioctl(other, LOCUM_IOC_LISTEN));
	FAILS(ioctl(device, LOCUM_IOC_LISTEN), EBUSY);
	FAILS(ioctl(other, LOCUM_IOC_NEXT_REQUEST, &request), EAGAIN);
	FAILS(put_file(DIR "refresh", "../etc/passwd"), EINVAL);
	FAILS(put_file(DIR "refresh", "\n"), EINVAL);
	poller.fd = other;
	CHECK(poll(&poller, 1, 0) == 0);
	CHECK(!put_file(DIR "refresh", "trixie-6.12_107\n"));
	CHECK(poll(&poller, 1, 1000) == 1 && poller.revents == POLLIN);
	FAILS(put_file(DIR "refresh", "second"), EBUSY);
	CHECK(!ioctl(other, LOCUM_IOC_NEXT_REQUEST, &request));
	CHECK(!strcmp((char *)request.name, "trixie-6.12_107"));
	FAILS(put_file(DIR "refresh", "second"), EBUSY);
	CHECK(!ioctl(other, LOCUM_IOC_BUSY, &word));
	CHECK(!put_file(DIR "refresh", "second"));
	close(other);
	FAILS(put_file(DIR "refresh", "third"), ENXIO);
}

void test_sysfs(void)
{
	char text[4096];

	CHECK(!get_file(DIR "mode", text, sizeof(text)) && !strncmp(text, "cpu0 apic ", 10));
	CHECK(!get_file(DIR "counters", text, sizeof(text)) && !strncmp(text, "exits ", 6));
	CHECK(!get_file(DIR "generation", text, sizeof(text)) && atoi(text) % 2 == (int)machine.slot);
	CHECK(!get_file(DIR "hosts", text, sizeof(text)) && strstr(text, "running (this host)\n"));
	test_texts();
	test_requests();
}
